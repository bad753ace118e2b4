//! What a starting shim is given on standard input, and what it prints: the generations of containerd.
//!
//! | containerd | standard input of `start` | understands |
//! |---|---|---|
//! | 1.6 | nothing, or the runtime options (an Any) | a plain address |
//! | 1.7 to 2.2 | the same | a plain address, and JSON of version 2 (2.x of version 3) |
//! | 2.3 on | BootstrapParams, always; from 2.4 with a directory for sockets, if it is to be another | JSON of version 3 |
//!
//! Both messages begin with a string as field 1: an Any's is a type URL, BootstrapParams' is the id that `-id` says too.
//! In both, field 2 is another string or bytes: BootstrapParams' is the namespace, which `-namespace` says too.
//! 1.7 and 2.1 cannot be told apart by anything that they say, and 1.7 refuses version 3, so it is announced only where
//! BootstrapParams say that it is understood, or where a setting does.
//!
//! Promises: bytes that are neither are taken for nothing. Never: reads or writes.

use std::path::PathBuf;

use prost::Message;

/// Set to `3`, it says that the containerd that runs understands version 3 (2.0 and later do).
pub const VERSION_VARIABLE: &str = "VMINITD_SHIM_VERSION";

/// What was on standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// Nothing, or nothing known.
    Nothing,
    /// Runtime options. They come again with Create.
    Options,
    /// Parameters of a containerd that understands version 3.
    Params {
        /// Where the socket is to be; `None`: where it always is.
        socket_directory: Option<PathBuf>,
    },
}

/// The field that both messages begin with.
#[derive(Clone, PartialEq, Message)]
struct Beginning {
    #[prost(string, tag = "1")]
    first: String,
}

/// Of BootstrapParams what is not said by flags or the environment too, and what proves that it is them.
#[derive(Clone, PartialEq, Message)]
struct Params {
    #[prost(string, tag = "1")]
    instance_id: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "9")]
    socket_dir: String,
}

/// Tells which it is. `id` and `namespace` are what flags say.
pub fn given(input: &[u8], id: &str, namespace: &str) -> Given {
    match Beginning::decode(input) {
        Ok(Beginning { first }) if first.is_empty() => Given::Nothing,
        Ok(Beginning { first }) if first == id => match Params::decode(input) {
            Ok(params) if params.namespace.is_empty() || params.namespace == namespace => {
                let directory = PathBuf::from(params.socket_dir);
                let socket_directory = directory.is_absolute().then_some(directory);
                Given::Params { socket_directory }
            }
            _ => Given::Options,
        },
        Ok(_) => Given::Options,
        Err(_) => Given::Nothing,
    }
}

/// What is printed for a shim that listens on `socket`. `setting` is [`VERSION_VARIABLE`]'s value.
pub fn answer(given: &Given, setting: Option<&str>, socket: &str) -> String {
    let address = format!("unix://{socket}");
    if !matches!(given, Given::Params { .. }) && setting != Some("3") {
        return address;
    }
    serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vminitd_protocol::pb::google::protobuf::Any;

    use super::*;

    fn params(id: &str, namespace: &str, socket_dir: &str) -> Vec<u8> {
        let [instance_id, namespace, socket_dir] = [id, namespace, socket_dir].map(str::to_owned);
        Params { instance_id, namespace, socket_dir }.encode_to_vec()
    }

    fn given_c1(input: &[u8]) -> Given {
        given(input, "c1", "default")
    }

    const PLAIN: Given = Given::Params { socket_directory: None };

    #[test]
    fn options_and_parameters_are_told_apart_by_the_id() {
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![1, 2, 3] };
        assert_eq!(given_c1(&any.encode_to_vec()), Given::Options);
        assert_eq!(given_c1(&params("c1", "default", "")), PLAIN);
        assert_eq!(given_c1(&params("c1", "", "")), PLAIN);
        assert_eq!(given_c1(&params("c2", "default", "")), Given::Options);
        // An id that looks like a type, and a type of which it is the value.
        assert_eq!(given_c1(&params("c1", "other", "")), Given::Options);
        assert_eq!(given_c1(&[]), Given::Nothing);
        assert_eq!(given_c1(b"\xff\xff\xff"), Given::Nothing);
    }

    #[test]
    fn a_directory_for_sockets_is_one_only_by_its_whole_path() {
        let of = |directory| given_c1(&params("c1", "default", directory));
        assert_eq!(of("/run/s"), Given::Params { socket_directory: Some("/run/s".into()) });
        assert_eq!(of("s"), PLAIN);
    }

    #[test]
    fn version_3_is_announced_only_to_who_understands_it() {
        let told = |given: &Given, setting| answer(given, setting, "/run/s");
        for given in &[Given::Nothing, Given::Options] {
            assert_eq!(told(given, None), "unix:///run/s");
            assert_eq!(told(given, Some("2")), "unix:///run/s");
            assert!(told(given, Some("3")).contains("\"version\":3"));
        }
        let json: serde_json::Value = serde_json::from_str(&told(&PLAIN, None)).unwrap();
        assert_eq!(json["address"], "unix:///run/s");
        assert_eq!(json["protocol"], "ttrpc");
    }

    proptest! {
        #[test]
        fn no_input_breaks_it_and_parameters_are_always_known(
            input in proptest::collection::vec(any::<u8>(), 0..64), id in "[a-z0-9]{1,64}", rest in "[a-z]{0,9}",
        ) {
            let _ = given(&input, &id, "n");
            // A later field of theirs, whatever it is.
            let mut message = params(&id, "n", "");
            message.extend([15 << 3 | 2, rest.len() as u8]);
            message.extend(rest.into_bytes());
            prop_assert_eq!(given(&message, &id, "n"), PLAIN);
        }
    }
}

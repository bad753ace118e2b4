//! What a starting shim is given on standard input, and what it prints: the generations of containerd.
//!
//! | containerd | standard input of `start` | understands |
//! |---|---|---|
//! | 1.6 | nothing, or the runtime options (an Any) | a plain address |
//! | 1.7 to 2.2 | the same | a plain address, and JSON of version 2 (2.x of version 3) |
//! | 2.3 on | BootstrapParams, always | JSON of version 3 |
//!
//! Both messages begin with a string as field 1: an Any's is a type URL, BootstrapParams' is the id that `-id` says too.
//! 1.7 and 2.1 cannot be told apart by anything that they say, and 1.7 refuses version 3, so it is announced only where
//! BootstrapParams say that it is understood, or where a setting does.
//!
//! Promises: bytes that are neither are taken for nothing. Never: reads or writes.

use prost::Message;

/// Set to `3`, it says that the containerd that runs understands version 3 (2.0 and later do).
pub const VERSION_VARIABLE: &str = "VMINITD_SHIM_VERSION";

/// What was on standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Nothing, or nothing known.
    Nothing,
    /// Runtime options. They come again with Create.
    Options,
    /// Parameters of a containerd that understands version 3.
    Params,
}

/// The field that both messages begin with.
#[derive(Clone, PartialEq, Message)]
struct Beginning {
    #[prost(string, tag = "1")]
    first: String,
}

/// Tells which it is. `id` is what `-id` says.
pub fn given(input: &[u8], id: &str) -> Given {
    match Beginning::decode(input) {
        Ok(Beginning { first }) if first.is_empty() => Given::Nothing,
        Ok(Beginning { first }) if first == id => Given::Params,
        Ok(_) => Given::Options,
        Err(_) => Given::Nothing,
    }
}

/// What is printed for a shim that listens on `socket`. `setting` is [`VERSION_VARIABLE`]'s value.
pub fn answer(given: Given, setting: Option<&str>, socket: &str) -> String {
    let address = format!("unix://{socket}");
    if given != Given::Params && setting != Some("3") {
        return address;
    }
    serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vminitd_protocol::pb::google::protobuf::Any;

    use super::*;

    fn params(id: &str) -> Vec<u8> {
        Beginning { first: id.to_owned() }.encode_to_vec()
    }

    #[test]
    fn options_and_parameters_are_told_apart_by_the_id() {
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![1, 2, 3] };
        assert_eq!(given(&any.encode_to_vec(), "c1"), Given::Options);
        assert_eq!(given(&params("c1"), "c1"), Given::Params);
        assert_eq!(given(&params("c1"), "c2"), Given::Options);
        assert_eq!(given(&[], "c1"), Given::Nothing);
        assert_eq!(given(b"\xff\xff\xff", "c1"), Given::Nothing);
    }

    #[test]
    fn version_3_is_announced_only_to_who_understands_it() {
        let told = |given, setting| answer(given, setting, "/run/s");
        for given in [Given::Nothing, Given::Options] {
            assert_eq!(told(given, None), "unix:///run/s");
            assert_eq!(told(given, Some("2")), "unix:///run/s");
            assert!(told(given, Some("3")).contains("\"version\":3"));
        }
        let json: serde_json::Value = serde_json::from_str(&told(Given::Params, None)).unwrap();
        assert_eq!(json["address"], "unix:///run/s");
        assert_eq!(json["protocol"], "ttrpc");
    }

    proptest! {
        #[test]
        fn no_input_breaks_it_and_parameters_are_always_known(
            input in proptest::collection::vec(any::<u8>(), 0..64), id in "[a-z0-9]{1,64}", rest in "[a-z]{0,9}",
        ) {
            let _ = given(&input, &id);
            // A later field of theirs, whatever it is.
            let mut message = params(&id);
            message.extend(Any { type_url: String::new(), value: rest.into_bytes() }.encode_to_vec());
            prop_assert_eq!(given(&message, &id), Given::Params);
        }
    }
}

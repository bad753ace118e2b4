//! The runtime options of a Create: what the client of containerd says about the VM.
//!
//! | type | whose | says |
//! |---|---|---|
//! | `vminitd.options.v1.Options` | ours | itself |
//! | `runtimeoptions.v1.Options` | CRI's and ctr's, for runtimes that they do not know | TOML: a file's name, and text that wins over it |
//! | others, as `containerd.runc.v1.Options` | runc's | nothing here; the guest looks at them |
//!
//! The TOML has our message's fields as its keys.
//! Promises: what cannot be read is an error that says where it is. Never: takes an unknown key for nothing.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use prost::Message;
use serde::Deserialize;
use serde::de::IgnoredAny;
use vminitd_protocol::pb::google::protobuf::Any;
use vminitd_protocol::pb::vminitd::options::v1::Options;

/// The type of our options.
const OURS: &str = "vminitd.options.v1.Options";

/// The type of those that name a file, or are text.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// Bytes of a file with options; it has some hundred.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Options that make no sense. Whoever wrote them reads this.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message.
    #[error("runtime options of type {kind:?}")]
    Message {
        /// Its type.
        kind: String,
        /// What is wrong.
        #[source]
        source: prost::DecodeError,
    },
    /// A file whose place depends on who reads it.
    #[error("runtime options: config_path {0:?} is not an absolute path")]
    Relative(PathBuf),
    /// The file.
    #[error("runtime options in {path:?}")]
    File {
        /// It.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The text.
    #[error("runtime options in {place}: {text}")]
    Toml {
        /// The file, or the message.
        place: String,
        /// What is wrong with which of it.
        text: String,
    },
}

/// runtimeoptions.v1.Options, of which the type is of no use to us.
#[derive(Clone, PartialEq, Message)]
struct Generic {
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// The text's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keys {
    memory: Option<String>,
    cpus: Option<u32>,
    kernel: Option<String>,
    initramfs: Option<String>,
    append: Option<String>,
    accelerator: Option<String>,
    /// The section of containerd's own configuration in which the others stand may have it.
    #[serde(rename = "TypeUrl")]
    _type_url: Option<IgnoredAny>,
}

/// Whether the guest needs not see them.
pub fn is_ours(any: &Any) -> bool {
    any.type_url == OURS || is_generic(any)
}

fn is_generic(any: &Any) -> bool {
    // Some write the whole URL, some another package in front.
    any.type_url.ends_with(GENERIC)
}

/// What they say about the VM.
pub fn read(any: Option<&Any>) -> Result<Options, OptionsError> {
    let Some(any) = any.filter(|any| is_ours(any)) else { return Ok(Options::default()) };
    let wrong = |source| OptionsError::Message { kind: any.type_url.clone(), source };
    if !is_generic(any) {
        return Options::decode(&*any.value).map_err(wrong);
    }
    let Generic { config_path, config_body } = Generic::decode(&*any.value).map_err(wrong)?;
    let mut options = Options::default();
    if !config_path.is_empty() {
        let path = Path::new(&config_path);
        let text = text(path)?;
        merge(&mut options, &text, format!("{path:?}"))?;
    }
    merge(&mut options, &String::from_utf8_lossy(&config_body), "config_body".to_owned())?;
    Ok(options)
}

fn text(path: &Path) -> Result<String, OptionsError> {
    if !path.is_absolute() {
        return Err(OptionsError::Relative(path.to_owned()));
    }
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        match text.len() as u64 > MAX_FILE_BYTES {
            true => Err(io::Error::other(format!("more than {MAX_FILE_BYTES} bytes"))),
            false => Ok(text),
        }
    };
    read().map_err(|source| OptionsError::File { path: path.to_owned(), source })
}

fn merge(options: &mut Options, text: &str, place: String) -> Result<(), OptionsError> {
    let keys: Keys = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        OptionsError::Toml { place, text: format!("line {line}: {}", error.message()) }
    })?;
    let Keys { memory, cpus, kernel, initramfs, append, accelerator, _type_url: _ } = keys;
    options.cpus = cpus.unwrap_or(options.cpus);
    for (field, value) in [
        (&mut options.memory, memory),
        (&mut options.kernel, kernel),
        (&mut options.initramfs, initramfs),
        (&mut options.append, append),
        (&mut options.accelerator, accelerator),
    ] {
        if let Some(value) = value {
            *field = value;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn generic(path: &str, body: &str) -> Any {
        let message = Generic { config_path: path.into(), config_body: body.into() };
        Any { type_url: GENERIC.to_owned(), value: message.encode_to_vec() }
    }

    #[test]
    fn text_wins_over_a_file_and_the_rest_of_the_file_holds() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# ours\nmemory = \"1G\"\ncpus = 2\n").unwrap();
        let path = file.path().to_str().unwrap();
        let body = "cpus = 3\nkernel = '/k'\nTypeUrl = 'x'\n";
        let expected =
            Options { memory: "1G".into(), cpus: 3, kernel: "/k".into(), ..Default::default() };
        assert_eq!(read(Some(&generic(path, body))).unwrap(), expected);
    }

    #[test]
    fn our_own_message_is_itself_and_anothers_says_nothing() {
        let ours = Options { append: "quiet".into(), ..Default::default() };
        let any = Any { type_url: OURS.to_owned(), value: ours.encode_to_vec() };
        assert_eq!(read(Some(&any)).unwrap(), ours);
        let runc = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff] };
        assert_eq!(read(Some(&runc)).unwrap(), Options::default());
        assert!(!is_ours(&runc));
        assert_eq!(read(None).unwrap(), Options::default());
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_place() {
        let error = |path: &str, body: &str| {
            host_shim::chain(&read(Some(&generic(path, body))).unwrap_err())
        };
        let text = error("", "cpus = 1\ncolour = 'red'\n");
        assert!(
            text.starts_with("runtime options in config_body: line 2:") && text.contains("colour"),
            "{text}"
        );
        let text = error("", "cpus = 'many'");
        assert!(text.contains("line 1") && text.contains("u32"), "{text}");
        assert!(error("relative.toml", "").contains("not an absolute path"));
        assert!(error("/nowhere/x.toml", "").starts_with("runtime options in \"/nowhere/x.toml\""));
        let broken = Any { type_url: OURS.to_owned(), value: vec![0xff] };
        assert!(read(Some(&broken)).unwrap_err().to_string().contains(OURS));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(body in ".{0,200}", path in "[a-z/.]{0,9}") {
            let _ = read(Some(&generic(&path, &body)));
        }

        #[test]
        fn whatever_is_said_is_read(memory in "[0-9A-Z]{0,9}", cpus in any::<u32>(), append in "[ -~]{0,30}") {
            let mut table = toml::Table::new();
            table.insert("memory".into(), memory.clone().into());
            table.insert("cpus".into(), i64::from(cpus).into());
            table.insert("append".into(), append.clone().into());
            let got = read(Some(&generic("", &table.to_string()))).unwrap();
            prop_assert_eq!(got, Options { memory, cpus, append, ..Default::default() });
        }
    }
}

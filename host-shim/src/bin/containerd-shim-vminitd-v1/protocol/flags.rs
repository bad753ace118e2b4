//! The command line, as containerd writes it: Go's flags, and one action.
//!
//! Promises: what Go's package `flag` takes is taken: one dash or two, `-name value` or `-name=value`, and nothing is a
//! flag any more behind the first word that is none. Never: looks at the environment.

use std::ffi::OsString;
use std::path::PathBuf;

/// What containerd says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's own socket.
    pub address: String,
    /// The program that publishes an event where there is no socket for it.
    pub publish_binary: PathBuf,
    /// The container.
    pub id: String,
    /// Its bundle; absent: the working directory.
    pub bundle: PathBuf,
    /// Talk more.
    pub debug: bool,
    /// Print the version.
    pub version: bool,
    /// Print what this is, for machines.
    pub info: bool,
    /// What is to be done; absent: serve.
    pub action: Option<String>,
}

/// A command line that is none of containerd's. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No such flag.
    #[error(
        "unknown flag {0:?}; containerd passes -namespace, -address, -publish-binary, -id, -bundle and -debug"
    )]
    Unknown(String),
    /// Nothing behind it.
    #[error("flag {0:?} has no value")]
    NoValue(String),
    /// A switch that is neither on nor off.
    #[error("flag {flag:?}: {value:?} is neither true nor false")]
    NoSwitch {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
    },
    /// Bytes that are no text.
    #[error("argument {0:?} is not UTF-8")]
    Encoding(OsString),
}

/// Reads the arguments behind the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Flags, FlagError> {
    let mut flags = Flags::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let arg = text(arg)?;
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            flags.action = Some(arg);
            break;
        };
        if flag.is_empty() {
            flags.action = args.next().map(text).transpose()?;
            break;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let switch = || switch(&arg, value.as_deref());
        match name {
            "debug" => flags.debug = switch()?,
            "v" | "version" => flags.version = switch()?,
            "info" => flags.info = switch()?,
            "namespace" | "address" | "publish-binary" | "id" | "bundle" | "socket" => {
                let value = match value {
                    Some(value) => value,
                    None => text(args.next().ok_or_else(|| FlagError::NoValue(arg.clone()))?)?,
                };
                match name {
                    "namespace" => flags.namespace = value,
                    "address" => flags.address = value,
                    "publish-binary" => flags.publish_binary = value.into(),
                    "id" => flags.id = value,
                    "bundle" => flags.bundle = value.into(),
                    // Old ones pass where to listen to a shim that serves; ours inherits its socket.
                    _ => {}
                }
            }
            _ => return Err(FlagError::Unknown(arg)),
        }
    }
    Ok(flags)
}

fn text(arg: OsString) -> Result<String, FlagError> {
    arg.into_string().map_err(FlagError::Encoding)
}

/// What Go's strconv.ParseBool takes.
fn switch(flag: &str, value: Option<&str>) -> Result<bool, FlagError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(FlagError::NoSwitch { flag: flag.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(words: &[&str]) -> Result<Flags, FlagError> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn what_containerd_passes_is_read() {
        let flags = of(&[
            "-namespace",
            "default",
            "-address",
            "/run/containerd/containerd.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "c1",
            "-debug",
            "-bundle",
            "/b",
            "delete",
        ]);
        let expected = Flags {
            namespace: "default".into(),
            address: "/run/containerd/containerd.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            id: "c1".into(),
            bundle: "/b".into(),
            debug: true,
            action: Some("delete".into()),
            ..Default::default()
        };
        assert_eq!(flags, Ok(expected));
    }

    #[test]
    fn nothing_is_a_flag_behind_the_action() {
        assert_eq!(of(&["start", "-debug"]).unwrap(), of(&["--", "start"]).unwrap());
        assert!(!of(&["start", "-debug"]).unwrap().debug);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |words: &[&str]| of(words).unwrap_err().to_string();
        assert!(error(&["-nonsense", "x"]).starts_with("unknown flag \"-nonsense\""));
        assert_eq!(error(&["-id"]), "flag \"-id\" has no value");
        assert!(error(&["-debug=maybe"]).contains("\"maybe\" is neither"));
    }

    proptest! {
        /// However a flag is written, it is the same.
        #[test]
        fn one_dash_or_two_with_or_without_equals_is_one(
            id in "[a-zA-Z0-9_.=-]{0,20}", two in any::<bool>(), glued in any::<bool>(), debug in any::<bool>(),
        ) {
            let dash = if two { "--" } else { "-" };
            let mut words = match glued {
                true => vec![format!("{dash}id={id}")],
                false => vec![format!("{dash}id"), id.clone()],
            };
            words.push(format!("{dash}debug={debug}"));
            words.push("start".to_owned());
            let flags = parse(words.into_iter().map(OsString::from)).unwrap();
            prop_assert_eq!(flags, Flags { id, debug, action: Some("start".into()), ..Default::default() });
        }
    }
}

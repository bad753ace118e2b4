//! Names that come from the host, parsed once: what has one of these types is a single path
//! component of bounded length.
//!
//! Promises: joined to a directory, none of them leads out of it or names the directory itself.
//! Never: touches a file.

use std::fmt;

use crate::limits::{FILE_NAME_BYTES, ID_BYTES};

/// Why a name is none. Always the host's fault; the RPC is refused and nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or more than the limit.
    #[error("{what} of {length} bytes is not between 1 and {limit}")]
    Length {
        /// Which name.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The longest in bytes.
        limit: usize,
    },
    /// `.` or `..`, or a character that may not be in it.
    #[error("{what} {name:?} is not a single path component of permitted characters")]
    Component {
        /// Which name.
        what: &'static str,
        /// What was given.
        name: String,
    },
    /// The agent has files of its own of this name there.
    #[error("{what} {name:?} is reserved")]
    Reserved {
        /// Which name.
        what: &'static str,
        /// What was given.
        name: String,
    },
}

/// A container's id: letters, digits and `_ . + -`, as libcontainer has it too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// An exec's id; the same form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(String);

/// The name of a file in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

/// What the agent itself puts into a bundle.
const RESERVED: [&str; 3] = ["rootfs", "mounts", super::bundle::ORIGINAL_CONFIG];

impl TryFrom<&str> for ContainerId {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        id("container id", name).map(Self)
    }
}

impl TryFrom<&str> for ExecId {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        id("exec id", name).map(Self)
    }
}

impl TryFrom<&str> for FileName {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        let what = "bundle file name";
        component(what, name, FILE_NAME_BYTES, |c| c != '/' && !c.is_control())?;
        if RESERVED.contains(&name) {
            return Err(NameError::Reserved { what, name: name.to_owned() });
        }
        Ok(Self(name.to_owned()))
    }
}

fn id(what: &'static str, name: &str) -> Result<String, NameError> {
    let permitted = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
    component(what, name, ID_BYTES, permitted)?;
    Ok(name.to_owned())
}

fn component(
    what: &'static str,
    name: &str,
    limit: usize,
    permitted: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    if name.is_empty() || name.len() > limit {
        return Err(NameError::Length { what, length: name.len(), limit });
    }
    if name == "." || name == ".." || !name.chars().all(permitted) {
        return Err(NameError::Component { what, name: name.to_owned() });
    }
    Ok(())
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text!(ContainerId, ExecId, FileName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/a", "a/", "../a", "a\0b", "a b", "é"] {
            assert!(ContainerId::try_from(name).is_err(), "{name:?}");
            assert!(ExecId::try_from(name).is_err(), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "/a", "a\0b", "a\nb", "rootfs", "mounts"] {
            assert!(FileName::try_from(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn longest_name_is_taken_and_one_byte_more_is_not() {
        assert!(ContainerId::try_from(&*"x".repeat(ID_BYTES)).is_ok());
        assert_eq!(
            ContainerId::try_from(&*"x".repeat(ID_BYTES + 1)),
            Err(NameError::Length { what: "container id", length: ID_BYTES + 1, limit: ID_BYTES })
        );
        assert!(FileName::try_from(&*"x".repeat(FILE_NAME_BYTES)).is_ok());
        assert!(FileName::try_from(&*"x".repeat(FILE_NAME_BYTES + 1)).is_err());
    }

    #[test]
    fn ordinary_names_are_taken() {
        for name in ["a", "redis-1", "a.b_c+d", "...", "-"] {
            assert_eq!(ContainerId::try_from(name).unwrap().as_str(), name);
        }
        assert_eq!(FileName::try_from("nw config.json").unwrap().as_str(), "nw config.json");
    }
}

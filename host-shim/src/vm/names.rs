//! The names by which a guest finds what it was given: serials of disks, tags of shares, its own address.
//! Promises: each exists only through `try_from` and fits the field of the device that carries it.

use std::fmt;

use vminitd_protocol::ports::DEFAULT_GUEST_CID;

use crate::limits::{MAX_HOTPLUG_SLOTS, MAX_NAME_BYTES, MAX_SERIAL_BYTES, MAX_TAG_BYTES};

/// A name that no device can carry. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or too long.
    #[error("{kind} {text:?} has {} bytes; give 1 to {most}", text.len())]
    Length {
        /// What it was to be: `disk serial`, `share tag`, `VM name`.
        kind: &'static str,
        /// What was given.
        text: String,
        /// The most bytes that it may have.
        most: usize,
    },
    /// A character that a command line, a mount source or a path cannot carry.
    #[error("{kind} {text:?} may hold letters, digits, '.', '_' and '-' only")]
    Character {
        /// What it was to be.
        kind: &'static str,
        /// What was given.
        text: String,
    },
    /// A VM's name is a directory's, and an argument of commands.
    #[error("{kind} {text:?} begins with {:?}; begin with a letter, digit or '_'", first(.text))]
    Beginning {
        /// What it was to be.
        kind: &'static str,
        /// What was given.
        text: String,
    },
    /// More than a board has.
    #[error("{slots} slots for disks to attach are more than {MAX_HOTPLUG_SLOTS}")]
    Slots {
        /// What was given.
        slots: u32,
    },
    /// Reserved by the vsock standard.
    #[error("guest cid {cid} is reserved; give 3 or more")]
    Cid {
        /// What was given.
        cid: u32,
    },
}

fn checked(kind: &'static str, text: String, most: usize) -> Result<String, NameError> {
    if text.is_empty() || text.len() > most {
        return Err(NameError::Length { kind, text, most });
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(NameError::Character { kind, text });
    }
    Ok(text)
}

fn first(text: &str) -> char {
    text.chars().next().unwrap_or_default()
}

/// Neither hidden, `..` nor an option.
fn begins_well(kind: &'static str, text: String) -> Result<String, NameError> {
    if text.starts_with(['.', '-']) {
        return Err(NameError::Beginning { kind, text });
    }
    Ok(text)
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $most:expr $(, $also:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                checked($kind, text, $most)$(.and_then(|text| $also($kind, text)))?.map(Self)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A disk's name in the guest: `serial:<this>`, at most [`MAX_SERIAL_BYTES`] bytes.
    Serial, "disk serial", MAX_SERIAL_BYTES
}

name! {
    /// A shared directory's name in the guest, at most [`MAX_TAG_BYTES`] bytes.
    Tag, "share tag", MAX_TAG_BYTES
}

name! {
    /// A VM's name on the host, at most [`MAX_NAME_BYTES`] bytes.
    VmName, "VM name", MAX_NAME_BYTES, begins_well
}

/// How many disks can be attached to a running VM: at most [`MAX_HOTPLUG_SLOTS`], which is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugSlots(u32);

impl HotplugSlots {
    /// As the number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for HotplugSlots {
    fn default() -> Self {
        Self(MAX_HOTPLUG_SLOTS)
    }
}

impl TryFrom<u32> for HotplugSlots {
    type Error = NameError;

    fn try_from(slots: u32) -> Result<Self, NameError> {
        if slots > MAX_HOTPLUG_SLOTS {
            return Err(NameError::Slots { slots });
        }
        Ok(Self(slots))
    }
}

/// A guest's vsock address: 3 or more, and not "any".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cid(u32);

impl Cid {
    /// As the number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Cid {
    fn default() -> Self {
        Self(DEFAULT_GUEST_CID)
    }
}

impl TryFrom<u32> for Cid {
    type Error = NameError;

    fn try_from(cid: u32) -> Result<Self, NameError> {
        if cid < 3 || cid == u32::MAX {
            return Err(NameError::Cid { cid });
        }
        Ok(Self(cid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_of_20_bytes_is_taken_and_one_of_21_is_not() {
        assert!(Serial::try_from("s".repeat(MAX_SERIAL_BYTES)).is_ok());
        let error = Serial::try_from("s".repeat(MAX_SERIAL_BYTES + 1)).unwrap_err().to_string();
        assert_eq!(error, format!("disk serial {:?} has 21 bytes; give 1 to 20", "s".repeat(21)));
    }

    #[test]
    fn names_that_a_command_line_would_take_apart_are_refused() {
        for text in ["a,b", "a=b", "a b", "a/b", "", "é", "a\0"] {
            assert!(Tag::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert!("root-fs_1.2".parse::<Tag>().is_ok());
    }

    #[test]
    fn a_vms_name_is_neither_a_hidden_file_nor_an_option() {
        for text in ["..", ".lock", "-t"] {
            let error = VmName::try_from(text.to_owned()).unwrap_err();
            assert!(matches!(error, NameError::Beginning { .. }), "{text}: {error}");
        }
        assert!(VmName::try_from("web.1-a".to_owned()).is_ok());
    }

    #[test]
    fn slots_at_the_limit_are_taken_and_one_more_is_not() {
        assert_eq!(HotplugSlots::try_from(MAX_HOTPLUG_SLOTS).unwrap(), HotplugSlots::default());
        assert!(HotplugSlots::try_from(0).is_ok());
        assert!(HotplugSlots::try_from(MAX_HOTPLUG_SLOTS + 1).is_err());
    }

    #[test]
    fn reserved_cids_are_refused() {
        for cid in [0, 1, 2, u32::MAX] {
            assert_eq!(Cid::try_from(cid), Err(NameError::Cid { cid }));
        }
        assert_eq!(Cid::try_from(3).unwrap(), Cid::default());
    }
}

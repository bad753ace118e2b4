//! How a host names a block device: `/dev/vdX`, `/dev/vdXn`, `serial:ID`, `serial:ID:PARTITION`.
//!
//! Promises: a [`Source`] names a virtio disk or a partition of one, and nothing else: no other
//! device and no path that leads out of /dev.
//! Never: looks whether it is there.

use std::fmt;

use crate::limits::{PARTITION_LABEL_BYTES, SERIAL_BYTES};

/// A block device, by what a host can know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// By the kernel's name: `vda`, `vda1`.
    Name(String),
    /// By the serial number that the host gave the disk.
    Serial {
        /// The serial number.
        id: String,
        /// One of its partitions, instead of the disk.
        partition: Option<Partition>,
    },
}

/// A partition of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partition {
    /// By number, from 1.
    Number(u32),
    /// By the name that the partition table has for it.
    Label(String),
}

/// A source that names no block device of this VM's. The host's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a block device of this VM (/dev/vdX, /dev/vdXn, serial:ID or serial:ID:PARTITION)"
)]
pub struct NotASource(pub String);

impl TryFrom<&str> for Source {
    type Error = NotASource;

    fn try_from(text: &str) -> Result<Self, NotASource> {
        let refused = || NotASource(text.to_owned());
        if let Some(serial) = text.strip_prefix("serial:") {
            return Source::by_serial(serial).ok_or_else(refused);
        }
        let name = text.strip_prefix("/dev/").ok_or_else(refused)?;
        let tail = name.strip_prefix("vd").ok_or_else(refused)?;
        let digits = tail.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let letters = tail.len() - digits.len();
        let number = digits.is_empty() || number(digits).is_some();
        // The kernel's longest name is shorter, of disk and of partition.
        if (1..=8).contains(&letters) && number {
            Ok(Source::Name(name.to_owned()))
        } else {
            Err(refused())
        }
    }
}

impl Source {
    fn by_serial(text: &str) -> Option<Source> {
        let (id, partition) = match text.split_once(':') {
            Some((id, partition)) => (id, Some(Partition::parse(partition)?)),
            None => (text, None),
        };
        ((1..=SERIAL_BYTES).contains(&id.len()) && !id.contains('\0'))
            .then(|| Source::Serial { id: id.to_owned(), partition })
    }
}

impl Partition {
    fn parse(text: &str) -> Option<Partition> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return number(text).map(Partition::Number);
        }
        ((1..=PARTITION_LABEL_BYTES).contains(&text.len()) && !text.contains('\0'))
            .then(|| Partition::Label(text.to_owned()))
    }
}

/// A partition's number as the kernel writes it: from 1, without leading zeroes.
fn number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Name(name) => write!(f, "/dev/{name}"),
            Source::Serial { id, partition: None } => write!(f, "serial:{id}"),
            Source::Serial { id, partition: Some(Partition::Number(number)) } => {
                write!(f, "serial:{id}:{number}")
            }
            Source::Serial { id, partition: Some(Partition::Label(label)) } => {
                write!(f, "serial:{id}:{label}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Source, NotASource> {
        Source::try_from(text)
    }

    #[test]
    fn each_form_is_understood() {
        let serial = |id: &str, partition| Source::Serial { id: id.to_owned(), partition };
        assert_eq!(parse("/dev/vda"), Ok(Source::Name("vda".to_owned())));
        assert_eq!(parse("/dev/vdab12"), Ok(Source::Name("vdab12".to_owned())));
        assert_eq!(parse("serial:data-1"), Ok(serial("data-1", None)));
        assert_eq!(parse("serial:data:7"), Ok(serial("data", Some(Partition::Number(7)))));
        let label = Partition::Label("layer 7:a".to_owned());
        assert_eq!(parse("serial:data:layer 7:a"), Ok(serial("data", Some(label))));
    }

    #[test]
    fn what_is_no_disk_of_this_vm_is_refused_by_its_name() {
        for text in [
            "",
            "vda",
            "/dev/",
            "/dev/vd",
            "/dev/vd1",
            "/dev/sda",
            "/dev/vd/../sda",
            "/dev/vda/x",
            "/dev/vdA",
            "/dev/vda0",
            "/dev/vda01",
            "/dev/vda1p",
            "/dev/vdabcdefghi",
            "/dev/vda99999999999",
            "serial:",
            "serial::1",
            "serial:a:",
            "serial:a:0",
            "serial:a:01",
            "serial:123456789012345678901",
            "relative",
            "/dev/mapper/control",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{text:?} is not a block device")));
        }
        let longest = "l".repeat(PARTITION_LABEL_BYTES);
        assert!(parse(&format!("serial:a:{longest}")).is_ok());
        assert!(parse(&format!("serial:a:{longest}l")).is_err());
    }

    proptest! {
        #[test]
        fn a_source_is_written_as_it_was_read(text in "(/dev/vd[a-z]{1,3}([1-9][0-9]{0,2})?|serial:[a-z0-9._-]{1,20}(:([1-9][0-9]{0,8}|[a-z][ -~]{0,30}))?)") {
            prop_assert_eq!(parse(&text).unwrap().to_string(), text);
        }

        #[test]
        fn any_text_is_a_source_that_stays_in_dev_or_refused(text in "(/dev/|serial:|/dev/vd)?\\PC{0,40}") {
            if let Ok(Source::Name(name)) = parse(&text) {
                prop_assert!(name.starts_with("vd") && name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            }
        }
    }
}

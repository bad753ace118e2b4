//! The disks that are there, as /sys/block has them, and which of them a source names.
//!
//! Promises: a device that goes while it is looked at is one that is not there, no error.
//! Never: reads a disk. The kernel asks a disk for its serial number, though, so that a scan can
//! block as long as the host does.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::source::{Partition, Source};
use crate::limits::DISKS_TOLD;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name: `vda`.
    pub name: String,
    /// Empty when the host gave it none.
    pub serial: String,
    /// By number, if they were looked for.
    pub partitions: Vec<Part>,
}

/// A partition of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The kernel's name: `vda1`.
    pub name: String,
    /// From 1.
    pub number: u32,
    /// Empty when the partition table has none.
    pub label: String,
}

/// More than one device answers to a source. The host's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source_name} is both {first} and {second}")]
pub struct Ambiguous {
    /// The source.
    pub source_name: String,
    /// A device.
    pub first: String,
    /// Another.
    pub second: String,
}

/// The disks below `sys_block` (/sys/block), with their partitions if somebody asks for one. Those
/// that have no hardware behind them (loop, device-mapper, zram) are none.
pub fn disks(sys_block: &Path, with_partitions: bool) -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(sys_block)? {
        let Some((name, path)) = entry.ok().and_then(named) else { continue };
        if !path.join("device").exists() {
            continue;
        }
        let serial = fs::read_to_string(path.join("serial")).unwrap_or_default();
        let partitions = if with_partitions { partitions(&path) } else { Vec::new() };
        disks.push(Disk {
            name,
            serial: serial.trim_end_matches(['\n', '\0', ' ']).to_owned(),
            partitions,
        });
    }
    // vdb before vdaa.
    disks.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    Ok(disks)
}

fn partitions(disk: &Path) -> Vec<Part> {
    let Ok(entries) = fs::read_dir(disk) else { return Vec::new() };
    let parts =
        entries.filter_map(|entry| entry.ok().and_then(named)).filter_map(|(name, path)| {
            // Only partitions have it with this word.
            let text = fs::read_to_string(path.join("uevent")).ok()?;
            let word = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
            let number = word("PARTN=")?.parse().ok()?;
            Some(Part { name, number, label: word("PARTNAME=").unwrap_or_default().to_owned() })
        });
    let mut parts: Vec<Part> = parts.collect();
    parts.sort_by_key(|part| part.number);
    parts
}

fn named(entry: fs::DirEntry) -> Option<(String, std::path::PathBuf)> {
    Some((entry.file_name().into_string().ok()?, entry.path()))
}

/// The name below /dev of what `source` names; `None` when it is not among `disks`.
pub fn lookup<'a>(source: &'a Source, disks: &'a [Disk]) -> Result<Option<&'a str>, Ambiguous> {
    let mut found: Option<&str> = None;
    for name in matches(source, disks) {
        match found {
            None => found = Some(name),
            Some(first) => {
                let (first, second) = (first.to_owned(), name.to_owned());
                return Err(Ambiguous { source_name: source.to_string(), first, second });
            }
        }
    }
    Ok(found)
}

fn matches<'a>(source: &'a Source, disks: &'a [Disk]) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    match source {
        Source::Name(name) => {
            let all = disks.iter().flat_map(|disk| {
                let parts = disk.partitions.iter().map(|part| &*part.name);
                std::iter::once(&*disk.name).chain(parts)
            });
            Box::new(all.filter(move |found| found == name))
        }
        Source::Serial { id, partition } => {
            let disks = disks.iter().filter(move |disk| disk.serial == *id);
            match partition {
                None => Box::new(disks.map(|disk| &*disk.name)),
                Some(wanted) => Box::new(
                    disks
                        .flat_map(|disk| &disk.partitions)
                        .filter(move |part| match wanted {
                            Partition::Number(number) => part.number == *number,
                            Partition::Label(label) => part.label == *label,
                        })
                        .map(|part| &*part.name),
                ),
            }
        }
    }
}

/// What is there, for an error's text.
pub struct There<'a>(pub &'a [Disk]);

impl fmt::Display for There<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no disk");
        }
        for (index, disk) in self.0.iter().take(DISKS_TOLD).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", disk.name)?;
            if !disk.serial.is_empty() {
                write!(f, " (serial {:?})", disk.serial)?;
            }
            for (index, part) in disk.partitions.iter().take(DISKS_TOLD).enumerate() {
                write!(f, "{}{}", if index == 0 { " with partitions " } else { " " }, part.number)?;
                if !part.label.is_empty() {
                    write!(f, "={:?}", part.label)?;
                }
            }
            if disk.partitions.len() > DISKS_TOLD {
                write!(f, " and {} more", disk.partitions.len() - DISKS_TOLD)?;
            }
        }
        match self.0.len().checked_sub(DISKS_TOLD) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A /sys/block as the kernel lays it out, with directories in place of links.
    fn sysfs(disks: &[Disk]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        for disk in disks {
            let dir = sys.path().join(&disk.name);
            for sub in ["device", "queue", "mq"] {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            fs::write(dir.join("serial"), &disk.serial).unwrap();
            fs::write(dir.join("uevent"), format!("DEVNAME={}\nDEVTYPE=disk\n", disk.name))
                .unwrap();
            for part in &disk.partitions {
                let dir = dir.join(&part.name);
                fs::create_dir(&dir).unwrap();
                let label = if part.label.is_empty() {
                    String::new()
                } else {
                    format!("PARTNAME={}\n", part.label)
                };
                let text = format!(
                    "DEVNAME={}\nDEVTYPE=partition\nPARTN={}\n{label}",
                    part.name, part.number
                );
                fs::write(dir.join("uevent"), text).unwrap();
            }
        }
        fs::create_dir_all(sys.path().join("loop0/queue")).unwrap();
        sys
    }

    fn disk(name: &str, serial: &str, labels: &[&str]) -> Disk {
        let part = |(index, label): (usize, &&str)| Part {
            name: format!("{name}{}", index + 1),
            number: u32::try_from(index).unwrap() + 1,
            label: (*label).to_owned(),
        };
        let partitions = labels.iter().enumerate().map(part).collect();
        Disk { name: name.to_owned(), serial: serial.to_owned(), partitions }
    }

    fn found(text: &str, disks: &[Disk]) -> Option<String> {
        lookup(&text.try_into().unwrap(), disks).unwrap().map(str::to_owned)
    }

    #[test]
    fn devices_are_found_by_name_serial_and_partition() {
        let disks = [disk("vda", "root", &[]), disk("vdb", "data", &["one", "", "three"])];
        for (source, expected) in [
            ("/dev/vda", Some("vda")),
            ("/dev/vdb2", Some("vdb2")),
            ("serial:data", Some("vdb")),
            ("serial:data:2", Some("vdb2")),
            ("serial:data:three", Some("vdb3")),
            ("serial:data:4", None),
            ("serial:data:four", None),
            ("serial:root:1", None),
            ("serial:dat", None),
        ] {
            assert_eq!(found(source, &disks).as_deref(), expected, "{source}");
        }
    }

    #[test]
    fn two_disks_of_one_serial_are_an_error_and_not_a_guess() {
        let disks =
            [disk("vda", "x", &["l", "l"]), disk("vdb", "x", &[]), disk("vdc", "y", &["l", "l"])];
        let text =
            |source: &str| lookup(&source.try_into().unwrap(), &disks).unwrap_err().to_string();
        assert_eq!(text("serial:x"), "serial:x is both vda and vdb");
        assert_eq!(text("serial:y:l"), "serial:y:l is both vdc1 and vdc2");
    }

    #[test]
    fn what_is_there_is_told_in_a_line_that_has_an_end() {
        assert_eq!(There(&[]).to_string(), "no disk");
        let disks = [disk("vda", "", &[]), disk("vdb", "data", &["one", ""])];
        assert_eq!(
            There(&disks).to_string(),
            "vda, vdb (serial \"data\") with partitions 1=\"one\" 2"
        );
        let many: Vec<Disk> =
            (0..DISKS_TOLD + 3).map(|n| disk(&format!("vd{n}"), "", &[])).collect();
        assert!(There(&many).to_string().ends_with(" and 3 more"));
    }

    #[test]
    fn devices_without_hardware_are_no_disks_and_those_that_go_are_no_error() {
        let sys = sysfs(&[disk("vdb", "s", &[])]);
        fs::remove_file(sys.path().join("vdb/serial")).unwrap();
        assert_eq!(disks(sys.path(), true).unwrap(), [disk("vdb", "", &[])]);
    }

    proptest! {
        /// The model is what the tree was made from.
        #[test]
        fn a_scan_shows_what_is_there(serials in proptest::collection::vec("[a-c._-]{0,20}", 0..5), labels in proptest::collection::vec("[a-z]{0,5}", 0..5)) {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let made: Vec<Disk> = serials.iter().zip('a'..).map(|(serial, letter)| disk(&format!("vd{letter}"), serial, &labels)).collect();
            let sys = sysfs(&made);
            prop_assert_eq!(&disks(sys.path(), true).unwrap(), &made);
            for source in serials.iter().filter(|serial| !serial.is_empty()) {
                let twice = serials.iter().filter(|serial| serial == &source).count() > 1;
                let text = format!("serial:{source}");
                prop_assert_eq!(lookup(&text.as_str().try_into().unwrap(), &made).is_err(), twice);
            }
        }
    }
}

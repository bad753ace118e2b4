//! Which filesystem an image holds, by the numbers that filesystems are known by.
//! Promises: what is none that a guest of ours mounts is called by its name where it has one.
//! Never: opens a file; looks further than [`PROBE_BYTES`].

use std::fmt;

/// Bytes of an image's beginning that tell what it is: btrfs and CDs have their mark furthest behind.
pub const PROBE_BYTES: usize = 65_536 + 4096;

/// A filesystem that a root can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read-only by nature.
    Erofs,
    /// ext2 and ext3 are mounted by the same driver.
    Ext4,
    /// Read-only by nature.
    Squashfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Erofs, Self::Ext4, Self::Squashfs];

    /// As mount(8) calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }

    /// True when nobody can write to it.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::Erofs | Self::Squashfs)
    }

    /// The kind of an image that begins with `bytes`; an error is what was found instead, for people.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        let known = MAGICS.iter().find(|magic| magic.is_in(bytes));
        match known.map(|magic| magic.means) {
            Some(Meaning::Kind(kind)) => Ok(kind),
            Some(Meaning::Other(name)) => Err(name.to_owned()),
            None => Err(describe(bytes)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Copy)]
enum Meaning {
    Kind(Kind),
    Other(&'static str),
}

struct Magic {
    at: usize,
    bytes: &'static [u8],
    means: Meaning,
}

impl Magic {
    const fn kind(at: usize, bytes: &'static [u8], kind: Kind) -> Self {
        Self { at, bytes, means: Meaning::Kind(kind) }
    }

    const fn other(at: usize, bytes: &'static [u8], name: &'static str) -> Self {
        Self { at, bytes, means: Meaning::Other(name) }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.get(self.at..).is_some_and(|rest| rest.starts_with(self.bytes))
    }
}

/// In the order in which they are looked for: containers before what they may contain.
#[rustfmt::skip]
const MAGICS: &[Magic] = &[
    Magic::other(0, b"QFI\xFB", "a qcow2 image; `qemu-img convert -O raw` makes a raw one"),
    Magic::other(0, b"KDMV", "a VMDK image; `qemu-img convert -O raw` makes a raw one"),
    Magic::other(0, b"vhdxfile", "a VHDX image; `qemu-img convert -O raw` makes a raw one"),
    Magic::other(0, b"\x1F\x8B", "gzip data"),
    Magic::other(0, b"\xFD7zXZ\0", "xz data"),
    Magic::other(0, b"\x28\xB5\x2F\xFD", "zstd data"),
    Magic::other(0, b"BZh", "bzip2 data"),
    Magic::other(0, b"070701", "a cpio archive"),
    Magic::other(0, b"\x7FELF", "an ELF program"),
    Magic::other(257, b"ustar", "a tar archive"),
    Magic::other(512, b"EFI PART", "a partitioned disk (GPT), not a filesystem"),
    Magic::kind(0, b"hsqs", Kind::Squashfs),
    Magic::kind(1024, b"\xE2\xE1\xF5\xE0", Kind::Erofs),
    Magic::kind(1080, b"\x53\xEF", Kind::Ext4),
    Magic::other(0, b"XFSB", "xfs, which no guest of ours mounts"),
    Magic::other(1024, b"\x10\x20\xF5\xF2", "f2fs, which no guest of ours mounts"),
    Magic::other(65_600, b"_BHRfS_M", "btrfs, which no guest of ours mounts"),
    Magic::other(32_769, b"CD001", "a CD image (ISO 9660), which no guest of ours mounts"),
    Magic::other(82, b"FAT32", "FAT, which no guest of ours mounts"),
    Magic::other(54, b"FAT", "FAT, which no guest of ours mounts"),
    Magic::other(510, b"\x55\xAA", "a boot sector, not a filesystem"),
];

fn describe(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing: it is empty".to_owned();
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return "zeros; `mke2fs -t ext4` makes a filesystem there".to_owned();
    }
    let first = &bytes[..bytes.len().min(16)];
    if first.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        return format!("text that begins with {:?}", String::from_utf8_lossy(first));
    }
    let hex: Vec<_> = first.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bytes that begin with {}", hex.join(" "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; at];
        bytes.extend(magic);
        bytes
    }

    #[test]
    fn each_filesystem_is_known_by_its_magic() {
        assert_eq!(Kind::of(&with(1024, &0xE0F5_E1E2u32.to_le_bytes())), Ok(Kind::Erofs));
        assert_eq!(Kind::of(&with(1080, &0xEF53u16.to_le_bytes())), Ok(Kind::Ext4));
        assert_eq!(Kind::of(b"hsqs\0"), Ok(Kind::Squashfs));
    }

    #[test]
    fn what_is_no_filesystem_is_called_by_its_name() {
        for (at, magic, name) in
            [(0, &b"\x1F\x8B\x08"[..], "gzip"), (257, b"ustar\0", "tar"), (0, b"QFI\xFB", "qcow2")]
        {
            let found = Kind::of(&with(at, magic)).unwrap_err();
            assert!(found.contains(name), "{found}");
        }
        assert_eq!(Kind::of(b"").unwrap_err(), "nothing: it is empty");
        assert!(Kind::of(&[0; 4096]).unwrap_err().starts_with("zeros"));
        assert_eq!(Kind::of(b"#!/bin/sh\n").unwrap_err(), "text that begins with \"#!/bin/sh\\n\"");
        assert_eq!(Kind::of(&[1, 0xFE]).unwrap_err(), "bytes that begin with 01 fe");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_kind_or_described(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(Kind::of(&bytes).map_or_else(|found| !found.is_empty(), |_| true));
        }
    }
}

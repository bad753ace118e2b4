//! GUIDs, which on a disk have their first three fields in little-endian order.

use std::fmt;

use sha2::{Digest, Sha256};

/// A GUID as the 16 bytes that are on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// No partition.
    pub const UNUSED: Self = Self([0; 16]);

    /// 0FC63DAF-8483-4772-8E79-3D69D8477DE4: a filesystem of Linux.
    pub const LINUX_FILESYSTEM: Self = Self([
        0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D,
        0xE4,
    ]);

    /// One that follows from `text`, so that the same disk is made of the same images (version 8 of RFC 9562).
    pub fn of(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        bytes[7] = bytes[7] & 0x0F | 0x80;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (place, index) in ORDER.into_iter().enumerate() {
            let dash = if matches!(place, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{:02X}", self.0[index])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_usual_one() {
        assert_eq!(Guid::LINUX_FILESYSTEM.to_string(), "0FC63DAF-8483-4772-8E79-3D69D8477DE4");
    }

    #[test]
    fn made_ones_differ_and_say_that_they_are_made() {
        let (one, other) = (Guid::of("a").to_string(), Guid::of("b").to_string());
        assert!(one != other && Guid::of("a").to_string() == one);
        assert_eq!(&one[14..15], "8", "{one}");
        assert!("89AB".contains(&one[19..20]), "{one}");
    }
}

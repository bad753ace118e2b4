//! How much memory a VM has.
//! Promises: a [`MemorySize`] is a whole number of MiB within what a VM can run with.
//! Never: looks at how much memory the machine has (the hypervisor says when it is too little).

use std::fmt;
use std::str::FromStr;

use crate::limits::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};

const MIB: u64 = 1 << 20;

/// A VM's memory: whole MiB, from [`MIN_MEMORY_BYTES`] to [`MAX_MEMORY_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// The text or number is no size that a VM can have. The caller shows it to whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemorySizeError {
    /// Not a number with one of the units.
    #[error("{text:?} is no size; give 512M or 2G")]
    Syntax {
        /// What was given.
        text: String,
    },
    /// A size, but none that a VM can have.
    #[error("{given} is not between {}M and {}G in whole MiB; give 512M or 2G", MIN_MEMORY_BYTES / MIB, MAX_MEMORY_BYTES >> 30)]
    Range {
        /// What was given.
        given: String,
    },
}

impl MemorySize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The size in MiB.
    pub fn mebibytes(self) -> u64 {
        self.0 / MIB
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = MemorySizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        if !bytes.is_multiple_of(MIB) || !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) {
            return Err(MemorySizeError::Range { given: format!("{bytes} bytes") });
        }
        Ok(Self(bytes))
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    /// Reads `512M`, `2G`, `512MiB`, `2g` or `1048576K`; a bare number is refused, since people mean MiB as often as
    /// bytes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MemorySizeError::Syntax { text: text.to_owned() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "k" | "ki" | "kib" => 10,
            "m" | "mi" | "mib" => 20,
            "g" | "gi" | "gib" => 30,
            "t" | "ti" | "tib" => 40,
            _ => return Err(syntax()),
        };
        if number.is_empty() {
            return Err(syntax());
        }
        let range = || MemorySizeError::Range { given: text.to_owned() };
        let number: u64 = number.parse().map_err(|_| range())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(range)?;
        Self::try_from(bytes).map_err(|_| range())
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mebibytes() {
            n if n.is_multiple_of(1024) => write!(f, "{}G", n / 1024),
            n => write!(f, "{n}M"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_with_each_unit_are_read() {
        for (text, mebibytes) in [
            ("512M", 512),
            ("2G", 2048),
            ("512MiB", 512),
            ("2g", 2048),
            ("131072k", 128),
            ("64Mi", 64),
            ("1T", 1 << 20),
        ] {
            assert_eq!(text.parse::<MemorySize>().unwrap().mebibytes(), mebibytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_teaches_what_is() {
        for text in ["2X", "", "M", "512", "1.5G", "-1G", " 1G", "0x10M", "2G2"] {
            let error = text.parse::<MemorySize>().unwrap_err().to_string();
            assert_eq!(error, format!("{text:?} is no size; give 512M or 2G"));
        }
    }

    #[test]
    fn sizes_out_of_range_say_the_range() {
        for text in ["0M", "1M", "63M", "2T", "99999999999999999999G", "65537K"] {
            let error = text.parse::<MemorySize>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{text} is not between 64M and 1024G in whole MiB; give 512M or 2G")
            );
        }
    }

    proptest! {
        #[test]
        fn a_size_is_written_as_it_is_read(mebibytes in 64u64..=1 << 20) {
            let size = MemorySize::try_from(mebibytes * MIB).unwrap();
            prop_assert_eq!(size.to_string().parse::<MemorySize>().unwrap(), size);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            if let Ok(size) = text.parse::<MemorySize>() {
                prop_assert!((MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&size.bytes()));
            }
        }
    }
}

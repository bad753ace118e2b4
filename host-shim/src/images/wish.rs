//! `FILE[,fstype][,ro][,serial=S]`: what a person says about an image.
//! Promises: an error names the word and what would do. Never: looks at the file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::kind::Kind;
use crate::vm::Serial;

/// An image as a person gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageWish {
    /// The file.
    pub path: PathBuf,
    /// The filesystem in it; found out when it is not said.
    pub kind: Option<Kind>,
    /// It shall not be written. What is read-only by nature need not say so.
    pub read_only: bool,
    /// The disk's name in the guest; made up when it is not said.
    pub serial: Option<Serial>,
}

/// What cannot be understood. The person's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// No file at all.
    #[error("no file is named; give FILE[,fstype][,ro][,serial=S]")]
    NoFile,
    /// A word that means nothing.
    #[error("{word:?} is no option of an image; give erofs, ext4, squashfs, ro or serial=S")]
    Word {
        /// The word.
        word: String,
    },
    /// Two words that say different things.
    #[error("{one} and {other} cannot both be")]
    Both {
        /// One.
        one: String,
        /// The other.
        other: String,
    },
    /// A serial that no disk can have.
    #[error(transparent)]
    Serial(#[from] crate::vm::NameError),
}

impl FromStr for ImageWish {
    type Err = WishError;

    fn from_str(text: &str) -> Result<Self, WishError> {
        let mut words = text.split(',');
        let path = words.next().filter(|path| !path.is_empty()).ok_or(WishError::NoFile)?;
        let mut wish = Self { path: path.into(), kind: None, read_only: false, serial: None };
        let mut writable = false;
        for word in words {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == word);
            match (kind, word, word.strip_prefix("serial=")) {
                (Some(kind), _, _) => match wish.kind.replace(kind) {
                    Some(before) if before != kind => return Err(both(before, kind)),
                    _ => {}
                },
                (_, "ro", _) => wish.read_only = true,
                (_, "rw", _) => writable = true,
                (_, _, Some(serial)) => wish.serial = Some(serial.parse()?),
                _ => return Err(WishError::Word { word: word.to_owned() }),
            }
        }
        if writable && wish.read_only {
            return Err(both("ro", "rw"));
        }
        match wish.kind {
            Some(kind) if kind.is_read_only() && writable => Err(both(kind, "rw")),
            _ => Ok(wish),
        }
    }
}

fn both(one: impl fmt::Display, other: impl fmt::Display) -> WishError {
    WishError::Both { one: one.to_string(), other: other.to_string() }
}

impl fmt::Display for ImageWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(kind) = self.kind {
            write!(f, ",{kind}")?;
        }
        if self.read_only {
            write!(f, ",ro")?;
        }
        match &self.serial {
            Some(serial) => write!(f, ",serial={serial}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wish_is_read_as_it_is_written(
            path in "[a-z./ ]{1,20}", kind in 0usize..4, read_only in any::<bool>(), serial in proptest::option::of("[a-z0-9]{1,20}"),
        ) {
            let wish = ImageWish {
                path: path.into(),
                kind: Kind::ALL.get(kind).copied(),
                read_only,
                serial: serial.map(|serial| serial.parse().unwrap()),
            };
            prop_assert_eq!(wish.to_string().parse(), Ok(wish));
        }
    }

    #[test]
    fn what_is_not_understood_is_named_with_what_would_do() {
        let text = |text: &str| text.parse::<ImageWish>().unwrap_err().to_string();
        assert!(text("").contains("FILE[,fstype]"));
        assert!(text(",ro").contains("no file"));
        assert_eq!(
            text("a,xfs"),
            "\"xfs\" is no option of an image; give erofs, ext4, squashfs, ro or serial=S"
        );
        assert_eq!(text("a,ro,rw"), "ro and rw cannot both be");
        assert_eq!(text("a,erofs,rw"), "erofs and rw cannot both be");
        assert_eq!(text("a,erofs,ext4"), "erofs and ext4 cannot both be");
        assert!(text("a,serial=x/y").contains("disk serial \"x/y\""));
        assert!(text("a,serial=").contains("0 bytes"));
    }
}

//! The kernel's command line: words for the kernel, then words for PID 1 behind `--`.
//! Promises: what was put in as one word arrives as one word; the whole fits into what a kernel takes.
//! Never: knows which words mean something, or on which device the console is (the driver adds that).

use std::fmt;
use std::str::FromStr;

use crate::limits::{MAX_CMDLINE_BYTES, MAX_DRIVER_CMDLINE_BYTES};

/// What the guest is told at boot. Built word by word; its `Display` is the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    kernel: Vec<String>,
    init: Vec<String>,
}

/// A word that cannot be said on a kernel's command line. The caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Kernels know no way to escape these.
    #[error("kernel command line word {word:?} holds a double quote, a line break or a NUL")]
    Unspeakable {
        /// The word.
        word: String,
    },
    /// The empty word, or `--` itself.
    #[error("{word:?} cannot be a word of the kernel command line")]
    NoWord {
        /// The word.
        word: String,
    },
    /// More than the kernel keeps.
    #[error("kernel command line of {length} bytes is longer than {most}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most that it may have.
        most: usize,
    },
}

impl Cmdline {
    /// An empty command line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a word for the kernel: `quiet`, `panic=-1`, `vminitd.hostname=a b`.
    pub fn word(mut self, word: impl Into<String>) -> Result<Self, CmdlineError> {
        self.kernel.push(checked(word.into())?);
        self.within_limit()
    }

    /// Adds `vminitd.<key>=<value>`, which configures our guest.
    pub fn vminitd(self, key: &str, value: impl fmt::Display) -> Result<Self, CmdlineError> {
        self.word(format!("vminitd.{key}={value}"))
    }

    /// Adds a word for PID 1.
    pub fn init_argument(mut self, word: impl Into<String>) -> Result<Self, CmdlineError> {
        self.init.push(checked(word.into())?);
        self.within_limit()
    }

    /// Reads a whole command line, as a person writes it: words parted by spaces, `"` around a value with spaces.
    pub fn parse(text: &str) -> Result<Self, CmdlineError> {
        let mut cmdline = Self::new();
        let mut for_init = false;
        for word in split(text)? {
            cmdline = match (for_init, word.as_str()) {
                (false, "--") => {
                    for_init = true;
                    continue;
                }
                (false, _) => cmdline.word(word)?,
                (true, _) => cmdline.init_argument(word)?,
            };
        }
        Ok(cmdline)
    }

    /// These words first, then `self`'s: where a kernel takes the last of two, `self` wins.
    pub fn after(&self, first: Cmdline) -> Result<Self, CmdlineError> {
        let mut whole = first;
        whole.kernel.extend(self.kernel.iter().cloned());
        whole.init.extend(self.init.iter().cloned());
        whole.within(MAX_CMDLINE_BYTES + MAX_DRIVER_CMDLINE_BYTES)
    }

    fn within_limit(self) -> Result<Self, CmdlineError> {
        self.within(MAX_CMDLINE_BYTES)
    }

    fn within(self, most: usize) -> Result<Self, CmdlineError> {
        match self.to_string().len() {
            length if length > most => Err(CmdlineError::TooLong { length, most }),
            _ => Ok(self),
        }
    }
}

impl FromStr for Cmdline {
    type Err = CmdlineError;

    fn from_str(text: &str) -> Result<Self, CmdlineError> {
        Self::parse(text)
    }
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = (!self.init.is_empty()).then_some("--".to_owned());
        let words = self.kernel.iter().chain(&separator).chain(&self.init);
        for (index, word) in words.enumerate() {
            let space = if index > 0 { " " } else { "" };
            match word.split_once('=') {
                _ if !word.contains(char::is_whitespace) => write!(f, "{space}{word}")?,
                // The kernel takes quotes around a whole word or around a value.
                Some((key, value)) if !key.contains(char::is_whitespace) => {
                    write!(f, "{space}{key}=\"{value}\"")?
                }
                _ => write!(f, "{space}\"{word}\"")?,
            }
        }
        Ok(())
    }
}

fn checked(word: String) -> Result<String, CmdlineError> {
    if word.contains(['"', '\n', '\r', '\0']) {
        return Err(CmdlineError::Unspeakable { word });
    }
    if word.is_empty() || word == "--" {
        return Err(CmdlineError::NoWord { word });
    }
    Ok(word)
}

fn split(text: &str) -> Result<Vec<String>, CmdlineError> {
    let mut words = Vec::new();
    let (mut word, mut in_word, mut quoted) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            '"' => (quoted, in_word) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if in_word {
                    words.push(std::mem::take(&mut word));
                }
                in_word = false;
            }
            c => {
                word.push(c);
                in_word = true;
            }
        }
    }
    if quoted {
        return Err(CmdlineError::Unspeakable { word });
    }
    if in_word {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_for_the_kernel_come_before_those_for_init() {
        let cmdline = Cmdline::new()
            .init_argument("-debug")
            .unwrap()
            .word("quiet")
            .unwrap()
            .vminitd("rpc_port", 7)
            .unwrap();
        assert_eq!(cmdline.to_string(), "quiet vminitd.rpc_port=7 -- -debug");
    }

    #[test]
    fn a_value_with_a_space_is_quoted_as_kernels_read_it() {
        let cmdline = Cmdline::new().vminitd("hostname", "a b").unwrap().word("two words").unwrap();
        assert_eq!(cmdline.to_string(), "vminitd.hostname=\"a b\" \"two words\"");
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        for word in ["a\"b", "a\nb", "a\0b", "", "--"] {
            assert!(Cmdline::new().word(word).is_err(), "{word:?}");
        }
        assert!(Cmdline::parse("a=\"b").is_err());
    }

    #[test]
    fn a_line_at_the_limit_is_taken_and_one_beyond_is_not() {
        assert!(Cmdline::new().word("x".repeat(MAX_CMDLINE_BYTES)).is_ok());
        let error = Cmdline::new().word("x".repeat(MAX_CMDLINE_BYTES + 1)).unwrap_err();
        assert_eq!(
            error,
            CmdlineError::TooLong { length: MAX_CMDLINE_BYTES + 1, most: MAX_CMDLINE_BYTES }
        );
    }

    #[test]
    fn a_line_at_the_limit_leaves_room_for_the_drivers_words() {
        let ours = Cmdline::new().word("x".repeat(MAX_CMDLINE_BYTES)).unwrap();
        let drivers = Cmdline::new().word("y".repeat(MAX_DRIVER_CMDLINE_BYTES - 1)).unwrap();
        assert!(ours.after(drivers).is_ok());
    }

    #[test]
    fn ours_come_after_the_drivers_so_that_they_win() {
        let ours = Cmdline::parse("panic=5 -- -debug").unwrap();
        let whole = ours.after(Cmdline::parse("console=ttyS0 panic=-1").unwrap()).unwrap();
        assert_eq!(whole.to_string(), "console=ttyS0 panic=-1 panic=5 -- -debug");
    }

    proptest! {
        #[test]
        fn a_line_is_read_as_it_is_written(
            kernel in proptest::collection::vec("[a-z.]{1,8}(=[a-z0-9 ]{0,8})?", 0..6),
            init in proptest::collection::vec("-[a-z]{1,8}(=[a-z0-9 ]{0,8})?", 0..4),
        ) {
            let mut cmdline = Cmdline::new();
            for word in kernel {
                cmdline = cmdline.word(word).unwrap();
            }
            for word in init {
                cmdline = cmdline.init_argument(word).unwrap();
            }
            prop_assert_eq!(Cmdline::parse(&cmdline.to_string()).unwrap(), cmdline);
        }
    }
}

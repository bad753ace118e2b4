//! The guest's console: a file, and what to tell of it when something fails.

use std::io;
use std::path::{Path, PathBuf};

use host_shim::ctl::Claim;
use host_shim::machine::console_tail;

/// How many of the console's last lines are shown.
const TAIL_LINES: usize = 20;

/// Where the guest's console goes.
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// At `path`, or in the VM's directory, with which it is removed.
    pub fn new(path: Option<&Path>, claim: &Claim) -> io::Result<Self> {
        let path = match path {
            Some(path) => std::path::absolute(path)?,
            None => claim.file("console.log"),
        };
        Ok(Self { path })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that the guest has printed.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines, for a person.
    pub fn story(&self) -> String {
        let tail = console_tail(&self.path, TAIL_LINES);
        if tail.is_empty() {
            return "the guest's console is empty: the kernel printed nothing".to_owned();
        }
        format!("the guest's console ends with:\n  {}", tail.join("\n  "))
    }
}

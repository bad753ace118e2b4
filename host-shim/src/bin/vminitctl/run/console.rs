//! The guest's console: a file, and what to tell of it when something fails.

use std::io;
use std::path::{Path, PathBuf};

use host_shim::machine::console_tail;
use tempfile::TempDir;

/// How many of the console's last lines are shown.
const TAIL_LINES: usize = 20;

/// Where the guest's console goes. A file of ours is removed with this value.
pub struct Console {
    path: PathBuf,
    _own: Option<TempDir>,
}

impl Console {
    /// At `path`, or in a directory of our own.
    pub fn new(path: Option<&Path>) -> io::Result<Self> {
        Ok(match path {
            Some(path) => Self { path: std::path::absolute(path)?, _own: None },
            None => {
                let own = tempfile::Builder::new().prefix("vminitctl-").tempdir()?;
                Self { path: own.path().join("console.log"), _own: Some(own) }
            }
        })
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

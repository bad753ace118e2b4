//! What a program says on its stderr, for the error that tells of its end.
//!
//! Promises: keeps the last `STDERR_TAIL_BYTES` of it, however much there is.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::STDERR_TAIL_BYTES;

/// The end of what a program wrote. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    /// Reads the pipe to its end.
    pub fn follow(&self, mut pipe: impl Read) {
        let mut buffer = [0; 1024];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    tail.extend_from_slice(&buffer[..read]);
                    let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
                    tail.drain(..excess);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// What is there, as text without space around it.
    pub fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail).trim().to_owned()
    }
}

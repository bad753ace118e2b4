//! What the agent leaves in a file for launchers to read.
//!
//! A file and not a part of the launch, since it may be longer than a message, and since it has to be
//! there for a launch that a new agent asks for.
//!
//! Promises: a launcher that cannot read it launches nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, CodecError};

/// Why there is no such file; then nothing is launched.
#[derive(Debug, thiserror::Error)]
pub enum LeftError {
    /// A defect of ours.
    #[error("{path}")]
    Codec {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// No room, or it is not there.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What is left, in the directory of a container's record or of an exec's.
pub trait Left: Serialize + DeserializeOwned {
    /// The file's name.
    const FILE: &'static str;

    /// What was left in the directory.
    fn read(directory: &Path) -> Result<Self, LeftError> {
        let path = directory.join(Self::FILE);
        match std::fs::read(&path) {
            Ok(bytes) => codec::decode(&bytes).map_err(|source| LeftError::Codec { path, source }),
            Err(source) => Err(LeftError::Io { verb: "read", path, source }),
        }
    }

    /// Leaves it there.
    fn save(&self, directory: &Path) -> Result<(), LeftError> {
        let path = directory.join(Self::FILE);
        match codec::encode_file(self) {
            Ok(bytes) => std::fs::write(&path, bytes).map_err(|source| LeftError::Io {
                verb: "write",
                path,
                source,
            }),
            Err(source) => Err(LeftError::Codec { path, source }),
        }
    }
}

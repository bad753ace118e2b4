//! An image that was looked at: it is there, it can be used as was said, and it holds what was said.
//! Promises: an image that is not to be written is opened for reading only, here and later.
//! Never: writes; knows what the image is for.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use super::kind::{Kind, PROBE_BYTES};
use super::wish::ImageWish;
use crate::vm::Serial;

/// An image, ready for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file or block device.
    pub path: PathBuf,
    /// What it holds.
    pub kind: Kind,
    /// Nobody writes it.
    pub read_only: bool,
    /// The disk's name in the guest, if somebody cares.
    pub serial: Option<Serial>,
    /// Its size.
    pub bytes: u64,
}

/// Why an image cannot be used. The caller's fault; it is shown.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is not there, or not ours to read.
    #[error("{path:?}")]
    Open {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A directory, socket or the like.
    #[error("{path:?} is a {what}; give an image file or a block device{hint}")]
    NoFile {
        /// As given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What would do.
        hint: &'static str,
    },
    /// A writable filesystem in a file that is not to be written.
    #[error("{path:?} cannot be written ({why}): give {path:?},ro to use it read-only")]
    ReadOnly {
        /// As given.
        path: PathBuf,
        /// Its mode or the system's reason.
        why: String,
    },
    /// A filesystem that was not unmounted, whose journal cannot be replayed without writing.
    #[error(
        "{path:?} was not unmounted, and its journal cannot be replayed read-only: use it without ,ro once, or run `e2fsck -p` on it"
    )]
    Journal {
        /// As given.
        path: PathBuf,
    },
    /// Something else than a filesystem that guests mount.
    #[error("{path:?} holds {found}; an image holds erofs, ext4 or squashfs")]
    Unknown {
        /// As given.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another filesystem than was said.
    #[error("{path:?} was said to hold {said} but holds {found}")]
    Other {
        /// As given.
        path: PathBuf,
        /// What was said.
        said: Kind,
        /// What is there.
        found: String,
    },
}

impl Image {
    /// Looks at what was wished.
    pub fn examine(wish: &ImageWish) -> Result<Self, ImageError> {
        let path = wish.path.clone();
        let failed = |source| ImageError::Open { path: path.clone(), source };
        // A named pipe would wait for its writer.
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let (what, hint) = match kind {
                kind if kind.is_dir() => {
                    ("directory", ", or the directory as --rootfs or --volume")
                }
                kind if kind.is_fifo() => ("named pipe", ""),
                _ => ("character device", ""),
            };
            return Err(ImageError::NoFile { path, what, hint });
        }
        // Of a block device the metadata say 0.
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let mut beginning = Vec::new();
        file.take(PROBE_BYTES as u64).read_to_end(&mut beginning).map_err(failed)?;
        let kind = match (wish.kind, Kind::of(&beginning)) {
            (None, Err(found)) => return Err(ImageError::Unknown { path, found }),
            (Some(said), Err(found)) => return Err(ImageError::Other { path, said, found }),
            (Some(said), Ok(found)) if said != found => {
                return Err(ImageError::Other { path, said, found: found.to_string() });
            }
            (_, Ok(kind)) => kind,
        };
        let read_only = wish.read_only || kind.is_read_only();
        if read_only && kind == Kind::Ext4 && has_open_journal(&beginning) {
            return Err(ImageError::Journal { path });
        }
        if !read_only {
            // Root may write anything; a file that nobody may write is meant to stay as it is.
            if metadata.permissions().readonly() {
                return Err(ImageError::ReadOnly { path, why: "its mode says so".to_owned() });
            }
            if let Err(error) = File::options().write(true).open(&path) {
                return Err(ImageError::ReadOnly { path, why: error.to_string() });
            }
        }
        let path = path.canonicalize().map_err(failed)?;
        Ok(Self { path, kind, read_only, serial: wish.serial.clone(), bytes })
    }
}

/// INCOMPAT_RECOVER in the superblock's s_feature_incompat: without a replay the kernel does not mount it.
fn has_open_journal(beginning: &[u8]) -> bool {
    const INCOMPATIBLE_FEATURES: usize = 1024 + 0x60;
    const RECOVER: u8 = 4;
    beginning.get(INCOMPATIBLE_FEATURES).is_some_and(|features| features & RECOVER != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    fn file(directory: &Path, name: &str, magic_at: usize, magic: &[u8]) -> PathBuf {
        let mut bytes = vec![0; magic_at];
        bytes.extend(magic);
        bytes.resize(8192, 0);
        fs::write(directory.join(name), bytes).unwrap();
        directory.join(name)
    }

    fn examine(path: &Path, words: &str) -> Result<Image, String> {
        let wish = format!("{}{words}", path.display()).parse().unwrap();
        Image::examine(&wish).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_is_what_its_magic_says_and_read_only_by_nature_or_by_wish() {
        let directory = tempfile::tempdir().unwrap();
        let erofs = file(directory.path(), "e", 1024, &0xE0F5_E1E2u32.to_le_bytes());
        let ext4 = file(directory.path(), "x", 1080, b"\x53\xEF");
        let image = examine(&erofs, "").unwrap();
        assert_eq!((image.kind, image.read_only, image.bytes), (Kind::Erofs, true, 8192));
        assert!(!examine(&ext4, "").unwrap().read_only);
        assert!(examine(&ext4, ",ro").unwrap().read_only);
        assert_eq!(
            examine(&ext4, ",erofs").unwrap_err(),
            format!("{ext4:?} was said to hold erofs but holds ext4")
        );
    }

    #[test]
    fn what_is_no_image_is_told_by_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let gzip = file(directory.path(), "g", 0, b"\x1F\x8B\x08");
        assert_eq!(
            examine(&gzip, "").unwrap_err(),
            format!("{gzip:?} holds gzip data; an image holds erofs, ext4 or squashfs")
        );
        let error = examine(directory.path(), "").unwrap_err();
        assert!(error.contains("is a directory") && error.contains("--rootfs"), "{error}");
        assert!(examine(&directory.path().join("none"), "").unwrap_err().contains("none"));
        assert!(examine(Path::new("/dev/null"), "").unwrap_err().contains("character device"));
    }

    #[test]
    fn a_journal_that_is_to_be_replayed_needs_writing() {
        let directory = tempfile::tempdir().unwrap();
        let ext4 = file(directory.path(), "x", 1080, b"\x53\xEF");
        let mut bytes = fs::read(&ext4).unwrap();
        bytes[1024 + 0x60] = 4;
        fs::write(&ext4, bytes).unwrap();
        assert!(examine(&ext4, "").is_ok());
        assert!(examine(&ext4, ",ro").unwrap_err().contains("e2fsck -p"));
    }

    #[test]
    fn a_file_that_nobody_may_write_is_wanted_read_only() {
        let directory = tempfile::tempdir().unwrap();
        let ext4 = file(directory.path(), "x", 1080, b"\x53\xEF");
        fs::set_permissions(&ext4, Permissions::from_mode(0o444)).unwrap();
        let error = examine(&ext4, "").unwrap_err();
        assert!(error.contains(",ro to use it read-only"), "{error}");
        assert!(examine(&ext4, ",ro").is_ok());
    }
}

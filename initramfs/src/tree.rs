//! What goes into the image: paths in the guest, and where their content comes from.
//! Promises: parents come before children, each path is there once, and none leads out of the image.
//! Never: reads a file's content; that is for the writer.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    os::unix::{ffi::OsStrExt, ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

/// Directories that init mounts on, or that programs expect to be there.
const DIRECTORIES: [(&str, u32); 8] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// The kernel opens /dev/console for /init before /init can mount devtmpfs; without it, init starts with no stdin, stdout and
/// stderr. Name, mode, major, minor.
const DEVICES: [(&str, u32, u32, u32); 2] =
    [("dev/console", 0o600, 5, 1), ("dev/null", 0o666, 1, 3)];

/// Where the kernel looks for the first program of an initramfs.
const INIT: &str = "init";

/// Where it is in a root image, for `init=/sbin/vminitd`.
const PROGRAM: &str = "sbin/vminitd";

/// The kernel passes over an entry whose name, with its NUL, is longer (PATH_MAX), and says nothing. So it is for link targets.
const MAX_NAME: usize = 4095;

/// The name that ends a newc archive; an entry of that name would cut it short.
const TRAILER: &[u8] = b"TRAILER!!!";

/// Permission bits, with set-id and sticky.
const MODE_BITS: u32 = 0o7777;

/// The content of an image, in the order in which it is written.
#[derive(Debug, Default)]
pub struct Tree {
    /// By path, without the leading slash.
    nodes: BTreeMap<Vec<u8>, Node>,
}

/// One path's content. Modes are permission bits alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory {
        /// Permission bits.
        mode: u32,
        /// Made because something needed it: who adds the directory itself sets its mode.
        implied: bool,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Length in bytes when it was added.
        size: u64,
        /// The file on this machine.
        source: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// What it holds, byte for byte.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Permission bits.
        mode: u32,
        /// Which driver.
        major: u32,
        /// Which device of it.
        minor: u32,
    },
}

/// Why something cannot be added. All but `Read` are the caller's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// On this machine.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A socket, pipe or device, or not a regular file where one is needed.
    #[error("{} is {kind}; {wanted}", path.display())]
    Kind {
        /// On this machine.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What would do.
        wanted: &'static str,
    },
    /// A destination that is not absolute.
    #[error("destination \"{}\" is not absolute; give it from / on", path.display())]
    NotAbsolute {
        /// In the image.
        path: PathBuf,
    },
    /// A destination with `..` or a NUL, or one that only a directory can have.
    #[error("destination \"{}\" {reason}", path.display())]
    Destination {
        /// In the image.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The path is taken.
    #[error("/{} is in the image already", path.display())]
    Duplicate {
        /// In the image, without the leading slash.
        path: PathBuf,
    },
    /// Something lies below a file or link.
    #[error("/{} cannot be below /{}, which is not a directory", path.display(), parent.display())]
    Parent {
        /// In the image, without the leading slash.
        path: PathBuf,
        /// The part of it that is no directory.
        parent: PathBuf,
    },
}

impl Tree {
    /// The default image: `init` as /init (0755), empty directories, and the two devices that the kernel wants for it.
    ///
    /// # Errors
    /// When `init` cannot be read or is not a regular file. A link to one is followed.
    pub fn with_init(init: &Path) -> Result<Self, TreeError> {
        Self::with_program_at(init, INIT)
    }

    /// The same for a root filesystem, where the program is /sbin/vminitd.
    ///
    /// # Errors
    /// As [`Tree::with_init`].
    pub fn for_root(init: &Path) -> Result<Self, TreeError> {
        Self::with_program_at(init, PROGRAM)
    }

    fn with_program_at(init: &Path, place: &str) -> Result<Self, TreeError> {
        let mut tree = Self::default();
        for (path, mode) in DIRECTORIES {
            let implied = true;
            tree.insert(path.into(), Node::Directory { mode, implied })?;
        }
        for (path, mode, major, minor) in DEVICES {
            tree.insert(path.into(), Node::CharDevice { mode, major, minor })?;
        }
        let source = fs::canonicalize(init).map_err(read_error(init))?;
        let data = fs::metadata(&source).map_err(read_error(init))?;
        if !data.is_file() {
            return Err(TreeError::Kind {
                path: init.into(),
                kind: kind(data.file_type()),
                wanted: "/init must be a program",
            });
        }
        let (mode, size) = (0o755, data.len());
        tree.insert(place.into(), Node::File { mode, size, source })?;
        Ok(tree)
    }

    /// Adds a file, link or directory, with all that is below it, at the absolute path `dest`. Modes and links are kept as
    /// they are, owners become root, parents are made (0755). Into a directory that is there already, its content is added.
    ///
    /// # Errors
    /// See [`TreeError`]; what was added before the one at fault stays.
    pub fn add(&mut self, source: &Path, dest: &Path) -> Result<(), TreeError> {
        let name = destination(dest)?;
        let data = fs::symlink_metadata(source).map_err(read_error(source))?;
        if name.is_empty() && !data.is_dir() {
            return Err(bad_destination(dest, "takes a directory only; name the file too"));
        }
        self.add_below(source, &data, name)
    }

    /// What is in the image, parents first: path without the leading slash, content.
    pub fn nodes(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_slice(), node))
    }

    /// Number of paths.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no path at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn add_below(
        &mut self,
        source: &Path,
        data: &fs::Metadata,
        name: Vec<u8>,
    ) -> Result<(), TreeError> {
        let mode = data.permissions().mode() & MODE_BITS;
        if data.is_symlink() {
            let target = fs::read_link(source).map_err(read_error(source))?;
            let target = target.into_os_string().into_vec();
            return self.insert(name, Node::Symlink { target });
        }
        if data.is_file() {
            let (size, source) = (data.len(), source.to_owned());
            return self.insert(name, Node::File { mode, size, source });
        }
        if !data.is_dir() {
            return Err(TreeError::Kind {
                path: source.into(),
                kind: kind(data.file_type()),
                wanted: "only files, directories and links can be added",
            });
        }
        // The root has no entry: the kernel has made it.
        if !name.is_empty() {
            let implied = false;
            self.insert(name.clone(), Node::Directory { mode, implied })?;
        }
        // In the order of names, so that of several faults the same is told each time.
        let entries = fs::read_dir(source).map_err(read_error(source))?;
        let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(read_error(source))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let data = fs::symlink_metadata(&path).map_err(read_error(&path))?;
            let mut below = name.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(entry.file_name().as_bytes());
            self.add_below(&path, &data, below)?;
        }
        Ok(())
    }

    /// The one way in: checks the name, makes the parents, refuses a second one.
    fn insert(&mut self, name: Vec<u8>, node: Node) -> Result<(), TreeError> {
        if name.len() > MAX_NAME {
            return Err(bad_destination(
                &path(&name),
                "is longer than the 4095 bytes that the kernel takes",
            ));
        }
        if name == TRAILER {
            return Err(bad_destination(&path(&name), "is the name that ends an archive"));
        }
        for (slash, _) in name.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let (mode, implied) = (0o755, true);
            let parent = self.nodes.entry(name[..slash].to_vec());
            let parent = parent.or_insert(Node::Directory { mode, implied });
            if !matches!(parent, Node::Directory { .. }) {
                return Err(TreeError::Parent { path: path(&name), parent: path(&name[..slash]) });
            }
        }
        match self.nodes.entry(name) {
            Entry::Vacant(place) => {
                place.insert(node);
                Ok(())
            }
            Entry::Occupied(mut place) => match (place.get(), &node) {
                (Node::Directory { implied: true, .. }, Node::Directory { .. }) => {
                    place.insert(node);
                    Ok(())
                }
                (Node::Directory { .. }, Node::Directory { .. }) if *place.get() == node => Ok(()),
                _ => Err(TreeError::Duplicate { path: path(place.key()) }),
            },
        }
    }
}

/// An absolute path as a name in the image; empty for the root.
fn destination(dest: &Path) -> Result<Vec<u8>, TreeError> {
    let bytes = dest.as_os_str().as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(TreeError::NotAbsolute { path: dest.into() });
    }
    if bytes.contains(&0) {
        return Err(bad_destination(dest, "has a NUL in it"));
    }
    let parts = bytes.split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<_> = parts.collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(bad_destination(dest, "has \"..\" in it"));
    }
    Ok(parts.join(&b'/'))
}

fn kind(kind: fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a character device"
    }
}

fn path(name: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(name).into()
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.into();
    |source| TreeError::Read { path, source }
}

fn bad_destination(path: &Path, reason: &'static str) -> TreeError {
    TreeError::Destination { path: path.into(), reason }
}

//! The newc layout, the cpio form that the kernel unpacks: a header of ASCII hex fields, the name, the content, each padded.
//! Promises: the bytes depend on the tree and its files' content alone; [`length`] is what [`write`] will write.
//! Never: compresses, or holds more of a file than a buffer.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use crate::tree::{Node, Tree};

/// "New ASCII format", without checksums.
const MAGIC: &[u8; 6] = b"070701";
/// Magic and thirteen fields of eight hex digits.
const HEADER: u64 = 6 + 13 * 8;
/// Name and content begin at a multiple of this, from the start of the archive.
const ALIGN: u64 = 4;
/// The archive's length is a multiple of this, as cpio's own are.
const BLOCK: u64 = 512;
/// Ends the archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// Sizes are 32 bits wide.
const MAX_FILE: u64 = u32::MAX as u64;
/// A link's target longer than this with its NUL (PATH_MAX) cannot be made by the kernel, which says nothing.
const MAX_TARGET: usize = 4095;

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Why the archive is not whole.
#[derive(Debug, thiserror::Error)]
pub enum NewcError {
    /// The content of a file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// On this machine.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file changed its length since it was added to the tree: pack again.
    #[error("{} was {was} bytes long and no longer is", path.display())]
    Changed {
        /// On this machine.
        path: PathBuf,
        /// Its length when it was added.
        was: u64,
    },
    /// A file or link target that the layout or the kernel cannot take.
    #[error("/{} is {size} bytes long, more than the {limit} that an initramfs can hold", path.display())]
    TooLong {
        /// In the image, without the leading slash.
        path: PathBuf,
        /// Bytes of content.
        size: u64,
        /// Bytes that would do.
        limit: u64,
    },
    /// The output took no more.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// Writes the tree as an archive.
///
/// # Errors
/// See [`NewcError`]; what was written until then is no archive.
pub fn write(tree: &Tree, out: &mut impl Write) -> Result<(), NewcError> {
    let mut out = Counted { out, at: 0 };
    // An inode number of 0 is left to the trailer.
    for ((name, node), inode) in tree.nodes().zip(1..) {
        out.header(name, inode, &Fields::of(name, node)?)?;
        match node {
            Node::File { size, source, .. } => out.file(source, *size)?,
            Node::Symlink { target } => out.bytes(target)?,
            Node::Directory { .. } | Node::CharDevice { .. } => {}
        }
        out.pad(ALIGN)?;
    }
    out.header(TRAILER, 0, &Fields { links: 1, ..Fields::default() })?;
    out.pad(BLOCK)
}

/// Length of the archive in bytes.
#[must_use]
pub fn length(tree: &Tree) -> u64 {
    let entry = |name: &[u8], size: u64| {
        let header = (HEADER + name.len() as u64 + 1).next_multiple_of(ALIGN);
        header + size.next_multiple_of(ALIGN)
    };
    let entries = tree.nodes().map(|(name, node)| entry(name, content(node)));
    (entries.sum::<u64>() + entry(TRAILER, 0)).next_multiple_of(BLOCK)
}

fn content(node: &Node) -> u64 {
    match node {
        Node::File { size, .. } => *size,
        Node::Symlink { target } => target.len() as u64,
        Node::Directory { .. } | Node::CharDevice { .. } => 0,
    }
}

/// The fields that differ from entry to entry. Owner, group, time and the archive's own device are always 0.
#[derive(Default)]
struct Fields {
    mode: u32,
    /// From 2 on the kernel looks for hard links, which we write as files of their own.
    links: u32,
    size: u32,
    device: (u32, u32),
}

impl Fields {
    fn of(name: &[u8], node: &Node) -> Result<Self, NewcError> {
        let too_long =
            |size, limit| NewcError::TooLong { path: OsStr::from_bytes(name).into(), size, limit };
        let (mode, links, size, device) = match node {
            Node::Directory { mode, .. } => (S_IFDIR | mode, 2, 0, (0, 0)),
            Node::CharDevice { mode, major, minor } => (S_IFCHR | mode, 1, 0, (*major, *minor)),
            Node::File { mode, size, .. } => {
                let size = u32::try_from(*size).map_err(|_| too_long(*size, MAX_FILE))?;
                (S_IFREG | mode, 1, size, (0, 0))
            }
            Node::Symlink { target } if target.len() > MAX_TARGET => {
                return Err(too_long(target.len() as u64, MAX_TARGET as u64));
            }
            Node::Symlink { target } => (S_IFLNK | 0o777, 1, target.len() as u32, (0, 0)),
        };
        Ok(Self { mode, links, size, device })
    }
}

/// An output that knows how far it is.
struct Counted<'a, W> {
    out: &'a mut W,
    at: u64,
}

impl<W: Write> Counted<'_, W> {
    fn header(&mut self, name: &[u8], inode: u32, fields: &Fields) -> Result<(), NewcError> {
        let name_size = name.len() as u32 + 1;
        let (uid, gid, time, checksum, of_device) = (0, 0, 0, 0, (0, 0));
        self.bytes(MAGIC)?;
        for field in [
            inode,
            fields.mode,
            uid,
            gid,
            fields.links,
            time,
            fields.size,
            of_device.0,
            of_device.1,
            fields.device.0,
            fields.device.1,
            name_size,
            checksum,
        ] {
            self.bytes(format!("{field:08X}").as_bytes())?;
        }
        self.bytes(name)?;
        self.bytes(&[0])?;
        self.pad(ALIGN)
    }

    fn file(&mut self, path: &PathBuf, size: u64) -> Result<(), NewcError> {
        let read_error = |source| NewcError::Read { path: path.clone(), source };
        let mut file = File::open(path).map_err(read_error)?;
        let mut buffer = [0; 64 * 1024];
        let mut left = size;
        loop {
            let read = match file.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(error)),
            };
            // Ends too early, or goes on past what the header said.
            if (read == 0) != (left == 0) || read as u64 > left {
                return Err(NewcError::Changed { path: path.clone(), was: size });
            }
            if read == 0 {
                return Ok(());
            }
            self.bytes(&buffer[..read])?;
            left -= read as u64;
        }
    }

    fn pad(&mut self, to: u64) -> Result<(), NewcError> {
        let missing = self.at.next_multiple_of(to) - self.at;
        self.bytes(&[0; BLOCK as usize][..missing as usize])
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), NewcError> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(NewcError::Write)
    }
}

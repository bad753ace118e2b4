//! Read-only devices of which each block is checked against a root hash as it is read (dm-verity).
//!
//! Promises: a device that does not fit its root hash is refused before anything is mounted; what is damaged behind
//! that fails when it is read (EIO). The device goes by itself when the last mount of it has gone, also when no agent is
//! there to see that.
//! Never: trusts the superblock further than to find the tree; keeps a record.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use super::superblock::{self, Superblock, SuperblockError, hex};
use crate::paths::DEV;
use crate::sys::device_mapper::Control;

/// Where the tree of hashes is.
#[derive(Clone, Copy, Debug)]
pub enum Tree<'a> {
    /// Behind the data: its superblock is so many bytes from the device's start.
    Behind(u64),
    /// At the start of another device.
    On(&'a Path),
}

/// Why there is no checked device. The host's mistake or an image that is not what it should be, but for
/// [`VerityError::Kernel`].
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// A device cannot be read.
    #[error("read {device}")]
    Read {
        /// Which.
        device: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Data or tree are on something else.
    #[error("{0} is no block device")]
    NoDevice(PathBuf),
    /// There is no tree where it should be, or not one that is served.
    #[error("tree on {device} at byte {offset}")]
    Superblock {
        /// Where it was looked for.
        device: PathBuf,
        /// How far from the start.
        offset: u64,
        /// What is wrong.
        #[source]
        source: SuperblockError,
    },
    /// The superblock speaks of more data than there is in front of the tree.
    #[error("{device} has {has} bytes of data, its tree is of {wanted}")]
    Short {
        /// The data's device.
        device: PathBuf,
        /// What it has.
        has: u64,
        /// What the tree is of.
        wanted: u64,
    },
    /// The kernel does not do it.
    #[error("{step} a verity device")]
    Kernel {
        /// What it was asked for.
        step: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// No block fits.
    #[error("{device} does not match the root hash {root_hash}")]
    Mismatch {
        /// The data's device.
        device: PathBuf,
        /// The root hash.
        root_hash: String,
    },
    /// Some block fits, but the first, which no filesystem can do without.
    #[error("the first block of {device} is damaged, or its hash is")]
    Damaged {
        /// The data's device.
        device: PathBuf,
    },
}

/// Makes the checked device over `data`: its node, and a descriptor without which it goes as soon as nothing of it is
/// mounted. Reads two blocks through it.
pub fn protect(
    data: &Path,
    root_hash: &[u8],
    tree: Tree<'_>,
) -> Result<(PathBuf, OwnedFd), VerityError> {
    let (tree_device, offset) = match tree {
        Tree::Behind(offset) => (data, offset),
        Tree::On(device) => (device, 0),
    };
    let superblock = read_superblock(tree_device, offset)?;
    let wrong = |source| VerityError::Superblock { device: tree_device.to_owned(), offset, source };
    let first = superblock.first_hash_block(offset);
    let first =
        first.ok_or_else(|| wrong(SuperblockError::Field { what: "its place", value: offset }))?;
    let room = match tree {
        Tree::Behind(offset) => offset.min(size(data)?),
        Tree::On(_) => size(data)?,
    };
    let wanted = superblock.data_bytes();
    if room < wanted {
        return Err(VerityError::Short { device: data.to_owned(), has: room, wanted });
    }
    let table = superblock
        .table(&numbers(data)?, &numbers(tree_device)?, first, root_hash)
        .map_err(wrong)?;
    let (node, device) = map(wanted / 512, &table)?;
    check(&device, data, &superblock, root_hash)?;
    Ok((node, device.into()))
}

fn read_superblock(device: &Path, offset: u64) -> Result<Superblock, VerityError> {
    let failed = |source| VerityError::Read { device: device.to_owned(), source };
    let mut bytes = [0; superblock::BYTES];
    match File::open(device).map_err(failed)?.read_exact_at(&mut bytes, offset) {
        // Nothing is there: it fails for want of a signature.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            bytes = [0; superblock::BYTES]
        }
        done => done.map_err(failed)?,
    }
    Superblock::parse(&bytes).map_err(|source| VerityError::Superblock {
        device: device.to_owned(),
        offset,
        source,
    })
}

fn size(device: &Path) -> Result<u64, VerityError> {
    let end = File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0)));
    end.map_err(|source| VerityError::Read { device: device.to_owned(), source })
}

fn numbers(device: &Path) -> Result<String, VerityError> {
    let metadata = std::fs::metadata(device)
        .map_err(|source| VerityError::Read { device: device.to_owned(), source })?;
    if !metadata.file_type().is_block_device() {
        return Err(VerityError::NoDevice(device.to_owned()));
    }
    Ok(format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev())))
}

/// The device, open, and bound to go when it is closed everywhere. From then on an agent may die at any point.
fn map(sectors: u64, table: &str) -> Result<(PathBuf, File), VerityError> {
    let failed = |step| move |source| VerityError::Kernel { step, source };
    let control = Control::open().map_err(failed("find what makes"))?;
    let (name, number) = create(&control).map_err(failed("create"))?;
    let node = PathBuf::from(format!("{DEV}/dm-{number}"));
    let opened = control
        .load(&name, sectors, "verity", table)
        .map_err(failed("give its table to"))
        .and_then(|()| control.resume(&name).map_err(failed("start")))
        .and_then(|()| File::open(&node).map_err(failed("open")));
    // Also when it failed: nobody has it open then, and it goes at once.
    let bound = control.remove_when_closed(&name).map_err(failed("bind the life of"));
    let device = opened?;
    bound?;
    Ok((node, device))
}

/// A device of a name that no agent has given yet.
fn create(control: &Control) -> io::Result<(String, u64)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vminitd-{}-{number}", std::process::id());
        match control.create(&name) {
            // An agent before this one had its pid.
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
            done => return done.map(|minor| (name, minor)),
        }
    }
}

/// The kernel checks a block when it is read, and so finds a wrong root hash with the first.
fn check(
    device: &File,
    data: &Path,
    superblock: &Superblock,
    root_hash: &[u8],
) -> Result<(), VerityError> {
    let mut block = vec![0; superblock.data_block as usize];
    let mut read =
        |number: u64| device.read_exact_at(&mut block, number * u64::from(superblock.data_block));
    if read(0).is_ok() {
        return Ok(());
    }
    let device = data.to_owned();
    match read(superblock.data_blocks - 1) {
        Ok(()) if superblock.data_blocks > 1 => Err(VerityError::Damaged { device }),
        _ => Err(VerityError::Mismatch { device, root_hash: hex(root_hash) }),
    }
}

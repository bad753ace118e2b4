//! Puts entries of an archive into the guest's filesystem.
//!
//! Owns: the root that places are relative to, and the directory of the last entry, open.
//! Promises: no symlink is followed, and nothing outside of the root is touched, whatever is there
//! already; a file appears under its name when it is whole, in place of what was there; the same
//! entry may be written again.
//! Never: removes a directory, or writes into a file that is there.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::place::Place;
use crate::sys::beneath::open_beneath;

/// The name of what is not whole yet.
const NEW: &str = ".vminitd-extra";

/// Directories this near the root have the modes that the system gave them.
const SYSTEM_DEPTH: usize = 1;

/// See the module.
#[derive(Debug)]
pub struct Writer {
    root: OwnedFd,
    /// The last directory, so that a thousand files in it cost one walk.
    last: Option<(PathBuf, OwnedFd)>,
}

impl Writer {
    /// Writes below this directory.
    pub fn new(root: &Path) -> io::Result<Writer> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let root = File::options().read(true).custom_flags(flags).open(root)?;
        Ok(Writer { root: root.into(), last: None })
    }

    /// A file with all that `data` has.
    pub fn file(&mut self, place: &Place, mode: u32, data: &mut impl Read) -> io::Result<()> {
        let directory = self.directory(place.parent())?;
        remove_new(directory)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = File::from(open_beneath(directory, Path::new(NEW), flags)?);
        let written = io::copy(data, &mut file)
            .and_then(|_| file.set_permissions(Permissions::from_mode(mode)));
        settle(directory, place, written)
    }

    /// A directory; one that is there stays, with this mode unless it is the system's.
    pub fn make_directory(&mut self, place: &Place, mode: u32) -> io::Result<()> {
        let directory = self.directory(place.parent())?;
        let made = match mkdirat(
            Some(directory.as_raw_fd()),
            place.name(),
            Mode::from_bits_truncate(0o755),
        ) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(errno.into()),
        };
        // Not through a link that has its name.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let opened = open_beneath(directory, Path::new(place.name()), flags)?;
        if made || place.path().components().count() > SYSTEM_DEPTH {
            // A descriptor of O_PATH cannot be changed itself, by its name in /proc it can.
            let name = format!("/proc/self/fd/{}", opened.as_raw_fd());
            fchmodat(
                None,
                name.as_str(),
                Mode::from_bits_truncate(mode),
                FchmodatFlags::FollowSymlink,
            )?;
        }
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(&mut self, place: &Place, target: &[u8]) -> io::Result<()> {
        let directory = self.directory(place.parent())?;
        remove_new(directory)?;
        let target = std::ffi::OsStr::from_bytes(target);
        symlinkat(target, Some(directory.as_raw_fd()), NEW)?;
        settle(directory, place, Ok(()))
    }

    /// Another name of a regular file.
    pub fn hard_link(&mut self, place: &Place, target: &Place) -> io::Result<()> {
        let target = open_beneath(self.root.as_fd(), target.path(), OFlag::O_PATH)?;
        if fstat(target.as_raw_fd())?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(io::Error::other("its target is not a regular file"));
        }
        let directory = self.directory(place.parent())?;
        remove_new(directory)?;
        link(target.as_fd(), directory)?;
        settle(directory, place, Ok(()))?;
        // A rename onto another name of the same file does nothing.
        remove_new(directory)
    }

    /// Opens a directory, and makes what is missing of it.
    fn directory(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let opened = self.open(path)?;
            self.last = Some((path.to_owned(), opened));
        }
        match &self.last {
            Some((_, directory)) => Ok(directory.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut directory = open_beneath(self.root.as_fd(), Path::new("."), flags)?;
        for part in path.iter() {
            let part = Path::new(part);
            directory = match open_beneath(directory.as_fd(), part, flags) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    mkdirat(Some(directory.as_raw_fd()), part, Mode::from_bits_truncate(0o755))?;
                    open_beneath(directory.as_fd(), part, flags)?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }
}

/// What an extraction that was killed has left.
fn remove_new(directory: BorrowedFd<'_>) -> io::Result<()> {
    match unlinkat(Some(directory.as_raw_fd()), NEW, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives what is whole its name; removes what is not.
fn settle(directory: BorrowedFd<'_>, place: &Place, written: io::Result<()>) -> io::Result<()> {
    let named = written.and_then(|()| {
        let directory = Some(directory.as_raw_fd());
        Ok(renameat(directory, NEW, directory, place.name())?)
    });
    if named.is_err() {
        // The first error is the one to tell.
        let _ = remove_new(directory);
    }
    named
}

fn link(target: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> io::Result<()> {
    let name = format!("/proc/self/fd/{}", target.as_raw_fd());
    nix::unistd::linkat(
        None,
        name.as_str(),
        Some(directory.as_raw_fd()),
        NEW,
        AtFlags::AT_SYMLINK_FOLLOW,
    )?;
    Ok(())
}

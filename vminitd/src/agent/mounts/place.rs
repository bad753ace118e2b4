//! Where mounts go: below a bundle, or anywhere in the guest.
//!
//! Promises: no symlink is followed on the way to a place, to a directory that is made for a mount,
//! or to what lies on an earlier mount of the same list. A layer's content cannot lead any of them
//! elsewhere.
//! Never: mounts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};

use super::plan::Directory;
use crate::sys::beneath::{open_beneath, open_entry};

/// Mode of directories that nobody said one for.
const MODE: u32 = 0o755;

/// What places are relative to.
#[derive(Clone, Copy, Debug)]
pub enum Ground<'a> {
    /// A bundle. A place in it must be free: no mount is crossed on the way.
    Bundle(&'a Path),
    /// The guest's root.
    Guest,
}

impl<'a> Ground<'a> {
    /// The directory itself.
    pub fn root(self) -> &'a Path {
        match self {
            Ground::Bundle(bundle) => bundle,
            Ground::Guest => Path::new("/"),
        }
    }

    /// Makes the directory at a place, if it is not there, and opens it.
    pub fn open_place(self, place: &Path) -> io::Result<OwnedFd> {
        let open = match self {
            Ground::Bundle(_) => open_entry,
            Ground::Guest => open_beneath,
        };
        self.make(place, open, |_, _| Ok(()))
    }

    /// Makes a directory on an earlier mount. One that is there stays as it is.
    pub fn make_directory(self, directory: &Directory) -> io::Result<()> {
        let finish = |parent: BorrowedFd<'_>, name: &Path| {
            let made = open_beneath(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            let (uid, gid) = (Uid::from_raw(directory.uid), Gid::from_raw(directory.gid));
            fchownat(Some(made.as_raw_fd()), "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
            // Not left to mkdir, which asks the umask.
            nix::sys::stat::fchmod(made.as_raw_fd(), Mode::from_bits_retain(directory.mode))?;
            Ok(())
        };
        self.make(&directory.place, open_beneath, finish).map(drop)
    }

    /// Opens (O_PATH) what a path names, if it lies on an earlier mount of the list, where a layer's
    /// content decides what is a symlink. `None`: it lies elsewhere, and may be used as it is.
    pub fn open_inside(self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let place = self.inside(path)?;
        let open = |root: OwnedFd| open_beneath(root.as_fd(), &place, OFlag::O_PATH);
        Some(self.open_root().and_then(open))
    }

    /// The same for a directory, which is made if it is not there: a tmpfs that was mounted a
    /// moment ago has none.
    pub fn make_inside(self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let place = self.inside(path)?;
        Some(self.make(&place, open_beneath, |_, _| Ok(())))
    }

    /// The part below the root of a path that goes through `mounts/<i>`.
    fn inside(self, path: &Path) -> Option<PathBuf> {
        let Ground::Bundle(bundle) = self else { return None };
        let place = path.strip_prefix(bundle).ok()?;
        let deeper = place.starts_with("mounts") && place.components().count() > 2;
        deeper.then(|| place.to_owned())
    }

    /// Opens the ground itself.
    pub fn open_root(self) -> io::Result<OwnedFd> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
        Ok(File::options().read(true).custom_flags(flags).open(self.root())?.into())
    }

    fn make(
        self,
        place: &Path,
        open: fn(BorrowedFd<'_>, &Path, OFlag) -> io::Result<OwnedFd>,
        finish: impl Fn(BorrowedFd<'_>, &Path) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        let mut directory = self.open_root()?;
        let mut parts = place.iter().map(Path::new).peekable();
        while let Some(part) = parts.next() {
            match mkdirat(Some(directory.as_raw_fd()), part, Mode::from_bits_retain(MODE)) {
                Ok(()) if parts.peek().is_none() => finish(directory.as_fd(), part)?,
                Ok(()) | Err(Errno::EEXIST) => {}
                // A root that cannot be written to may well have the directory.
                Err(Errno::EROFS) if self.is_there(&directory, part) => {}
                Err(errno) => return Err(errno.into()),
            }
            directory = open(directory.as_fd(), part, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        }
        Ok(directory)
    }

    fn is_there(self, directory: &OwnedFd, part: &Path) -> bool {
        open_beneath(directory.as_fd(), part, OFlag::O_PATH).is_ok()
    }
}

/// A path that leads to an open file, whatever becomes of its name.
pub fn path_of(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("{}/{}", crate::paths::OWN_FDS, file.as_raw_fd()))
}

//! Opening files without leaving a directory, see openat2(2) (5.6).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// Opens an entry of `directory` itself: neither a symlink nor a mount point is crossed (ELOOP,
/// EXDEV). openat2(2) with RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, RESOLVE_BENEATH.
pub fn open_entry(directory: BorrowedFd<'_>, name: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_BENEATH;
    open(directory, name, flags, resolve)
}

/// Opens what is below `directory`; no symlink is followed, mounts are crossed. openat2(2) with
/// RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    open(directory, path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH)
}

/// Opens a place, to mount something on it: `root` (None: this process's) is what `/` means to the
/// path and to every symlink in it. openat2(2) with O_PATH, RESOLVE_IN_ROOT.
pub fn open_in_root(root: Option<BorrowedFd<'_>>, path: &Path) -> io::Result<OwnedFd> {
    match root {
        Some(root) => open(root, path, OFlag::O_PATH, ResolveFlag::RESOLVE_IN_ROOT),
        None => {
            let own = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(unsafe { OwnedFd::from_raw_fd(own) })
        }
    }
}

/// Makes the directory `path` and those above it, mode 0755, where `root` is what `/` means to the
/// path and to every symlink in it (unless `links` is false: then there must be none); opens it, as
/// a place. openat2(2) with RESOLVE_IN_ROOT.
pub fn make_directory_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    links: bool,
) -> io::Result<OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_IN_ROOT;
    if !links {
        resolve |= ResolveFlag::RESOLVE_NO_SYMLINKS;
    }
    let open = |path: &Path| open(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY, resolve);
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut above = open(Path::new("."))?;
    let mut place = std::path::PathBuf::new();
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        place.push(name);
        above = match open(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mode = Mode::from_bits_retain(0o755);
                match nix::sys::stat::mkdirat(Some(above.as_raw_fd()), name, mode) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => open(&place)?,
                    Err(errno) => return Err(errno.into()),
                }
            }
            opened => opened?,
        };
    }
    Ok(above)
}

/// Makes the file `path`, mode 0644, and the directories above it, if there is nothing yet; opens it,
/// as a place. `root` is as for [`make_directory_in_root`].
pub fn make_file_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    match open_in_root(Some(root), path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = make_directory_in_root(root, above, true)?;
    // Not through a link that leads nowhere.
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_retain(0o644);
    nix::unistd::close(nix::fcntl::openat(Some(above.as_raw_fd()), name, flags, mode)?)?;
    open(above.as_fd(), Path::new(name), OFlag::O_PATH, ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open(
    directory: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> io::Result<OwnedFd> {
    let mut how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    if flags.contains(OFlag::O_CREAT) {
        how = how.mode(Mode::from_bits_retain(0o600));
    }
    let fd = openat2(directory.as_raw_fd(), path, how)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn directories_are_made_inside_of_the_root_wherever_links_point() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), root.path().join("out")).unwrap();
        symlink("../../../../real", root.path().join("up")).unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        let file = std::fs::File::open(root.path()).unwrap();
        let make =
            |path: &str| make_directory_in_root(file.as_fd(), Path::new(path), true).map(drop);
        make("/a/b/c").unwrap();
        make("/a/b/c").unwrap();
        make("up/below").unwrap();
        assert!(make("/out/x").is_err(), "what it names is not in the root");
        assert!(root.path().join("a/b/c").is_dir() && root.path().join("real/below").is_dir());
        assert_eq!(root.path().join("a/b").metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(make("/file/x").is_err());
    }
}

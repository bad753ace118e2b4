//! A container's root: mounts, devices, and then nothing else is left of the guest's.
//!
//! Runs in the process that becomes the container's init, in its mount namespace.
//!
//! Promises: no link in the image leads out of it: each place is found with the container's root as
//! `/` (openat2(2), RESOLVE_IN_ROOT), and mounted on by descriptor; proc and sysfs go where no link
//! leads at all, so that nobody can put something else in their place.
//! Never: is run outside of a new mount namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknodat, umask};
use nix::unistd::{Gid, Uid, chdir, fchdir, fchownat, pivot_root, symlinkat};

use super::settle::said;
use crate::link::plan::{Device, Mount, Plan, What};
use crate::sys::beneath::{make_directory_in_root, make_file_in_root, open_in_root};
use crate::sys::fsmount::{
    ATTR_RDONLY, Configuring, attach, clone_open_tree, clone_tree, set_attributes,
};

/// Links that programs expect beside the device nodes: where, and what they lead to.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes it, and moves into it. An error names what was tried.
pub fn make(plan: &Plan) -> Result<(), String> {
    let all = MsFlags::MS_REC | MsFlags::from_bits_retain(plan.propagation);
    let none = None::<&str>;
    mount(none, "/", none, all, none)
        .map_err(|errno| said("part from the guest's mounts", errno))?;
    let failed =
        |what: &str, error: io::Error| said(&format!("{what} {}", plan.rootfs.display()), error);
    // A mount of its own: it may be a directory of another.
    let root = clone_tree(&plan.rootfs, true).map_err(|error| failed("open root", error))?;
    let below = open_in_root(None, &plan.rootfs).map_err(|error| failed("open root", error))?;
    attach(root.as_fd(), below.as_fd()).map_err(|error| failed("mount root", error))?;
    for one in &plan.mounts {
        mount_one(root.as_fd(), one).map_err(|error| {
            said(&format!("mount {} on {}", name(one), one.place.display()), error)
        })?;
    }
    make_devices(root.as_fd(), &plan.devices)?;
    enter(root.as_fd()).map_err(|errno| said("change the root", errno))?;
    if plan.read_only {
        set_attributes(root.as_fd(), ATTR_RDONLY, 0, 0, false)
            .map_err(|error| said("make the root read-only", error))?;
    }
    drop(root);
    for path in &plan.read_only_paths {
        make_read_only(path)
            .map_err(|errno| said(&format!("make {} read-only", path.display()), errno))?;
    }
    mask(&plan.masked)
}

fn name(mount: &Mount) -> String {
    match &mount.what {
        What::Filesystem { kind, .. } => kind.clone(),
        What::Bind { source, .. } => source.display().to_string(),
    }
}

fn mount_one(root: BorrowedFd<'_>, mount: &Mount) -> io::Result<()> {
    let Mount { what, place, set, clear } = mount;
    match what {
        What::Filesystem { kind, source, options } => {
            let links = !matches!(&**kind, "proc" | "sysfs");
            let target = make_directory_in_root(root, place, links)?;
            let configuring = Configuring::new(kind)?;
            configuring.set("source", source)?;
            for (key, value) in options {
                match value {
                    Some(value) => configuring.set(key, value)?,
                    None => configuring.set_flag(key)?,
                }
            }
            attach(configuring.mount(*set)?.as_fd(), target.as_fd())
        }
        What::Bind { source, recursive } => {
            let tree = clone_tree(source, *recursive)?;
            let is_directory = File::from(tree.try_clone()?).metadata()?.is_dir();
            let target = match is_directory {
                true => make_directory_in_root(root, place, true)?,
                false => make_file_in_root(root, place)?,
            };
            if set | clear != 0 {
                set_attributes(tree.as_fd(), *set, *clear, 0, false)?;
            }
            attach(tree.as_fd(), target.as_fd())
        }
    }
}

fn make_devices(root: BorrowedFd<'_>, devices: &[Device]) -> Result<(), String> {
    let folder = |path: &Path| make_directory_in_root(root, path, true);
    let dev = folder(Path::new("/dev")).map_err(|error| said("open /dev", error))?;
    for (name, target) in LINKS {
        match symlinkat(*target, Some(dev.as_raw_fd()), *name) {
            // Something is mounted there.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(said(&format!("make the link /dev/{name}"), errno)),
        }
    }
    let usual = umask(Mode::empty());
    for device in devices {
        let failed = |error: io::Error| {
            said(&format!("make the device /dev/{}", device.place.display()), error)
        };
        let above = device.place.parent().filter(|above| *above != Path::new(""));
        let made = above.map(|above| folder(&Path::new("/dev").join(above))).transpose();
        let made = made.map_err(failed)?;
        make_device(made.as_ref().unwrap_or(&dev), device).map_err(|errno| failed(errno.into()))?;
    }
    umask(usual);
    Ok(())
}

fn make_device(above: &OwnedFd, device: &Device) -> Result<(), Errno> {
    let above = Some(above.as_raw_fd());
    let name = device.place.file_name().unwrap_or_default();
    let (kind, mode) =
        (SFlag::from_bits_truncate(device.mode), Mode::from_bits_truncate(device.mode));
    match mknodat(above, name, kind, mode, device.number) {
        // What is there stays, as with runc: whoever lists all devices of a host lists /dev/ptmx, which is a link here.
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    if device.uid.is_none() && device.gid.is_none() {
        return Ok(());
    }
    let (uid, gid) = (device.uid.map(Uid::from_raw), device.gid.map(Gid::from_raw));
    fchownat(above, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// See pivot_root(2), NOTES: the old root lies on top of the new one, until it is let go.
fn enter(root: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(root.as_raw_fd())?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

fn make_read_only(path: &Path) -> Result<(), Errno> {
    let none = None::<&str>;
    match mount(Some(path), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none) {
        Err(Errno::ENOENT) => return Ok(()),
        bound => bound?,
    }
    let flags = MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC
        | MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY;
    mount(Some(path), path, none, flags, none)
}

/// A directory is covered with an empty one, all else with the container's own /dev/null.
fn mask(paths: &[PathBuf]) -> Result<(), String> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = open_in_root(None, Path::new("/dev/null"))
        .map_err(|error| said("open /dev/null", error))?;
    let null = File::from(null);
    if !super::settle::is_null(&null) {
        return Err("/dev/null is not what it should be".to_owned());
    }
    for path in paths {
        mask_one(&null, path).map_err(|error| said(&format!("mask {}", path.display()), error))?;
    }
    Ok(())
}

fn mask_one(null: &File, path: &Path) -> io::Result<()> {
    let target = match open_in_root(None, path) {
        Err(error) => {
            let errno = error.raw_os_error().map(Errno::from_raw);
            return match errno {
                Some(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
                _ => Err(error),
            };
        }
        Ok(target) => File::from(target),
    };
    if target.metadata()?.mode() & libc::S_IFMT == libc::S_IFDIR {
        let empty = Configuring::new("tmpfs")?;
        empty.set("source", "tmpfs")?;
        empty.set_flag("ro")?;
        return attach(empty.mount(ATTR_RDONLY)?.as_fd(), target.as_fd());
    }
    attach(clone_open_tree(null.as_fd(), false)?.as_fd(), target.as_fd())
}

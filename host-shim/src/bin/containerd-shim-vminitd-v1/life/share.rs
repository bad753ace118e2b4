//! The shared root: one directory that one virtiofsd serves, below which everything that containers have of the host's
//! directories and files is mounted.
//!
//! ```text
//! <bundle>/share              a tmpfs in the shim's own mount namespace; mounts below it spread to virtiofsd's
//!   <container>/rootfs        its root filesystem
//!   <container>/<n>           what it binds, by the mount's number
//! ```
//!
//! Owns: these mounts. They are in a mount namespace of the shim's, so that the kernel takes them away with the last
//! of shim, vminit-vmm and virtiofsd, however these end.
//! Promises: what is mounted read-only cannot be written by the guest, whatever it does (so a mount is made elsewhere, and
//! appears in the shared root with its flags: flags that are set later do not spread to virtiofsd's); a mount that appears on the
//! host below a bound directory appears in the guest too.
//! Never: is seen by another process of the host.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{AccessFlags, access};
use vminitd_protocol::pb::containerd::types::Mount;

use super::layers::{self, LayerError};
use super::rootfs::IMAGES;

/// Where the guest has the shared root.
pub const GUEST_SHARE: &str = "/run/host";

/// Its name for virtiofs.
pub const TAG: &str = "host";

/// Bytes of a mount's data, see mount(2): a page, less its end.
const MAX_DATA: usize = 4095;

/// Something cannot be mounted on the host.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The step that failed.
    #[error("mount {what} on {target:?}")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where.
        target: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A place for it cannot be made.
    #[error("make {path:?}")]
    Place {
        /// The place.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What is to be bound is not there.
    #[error("{path:?} of the host")]
    Missing {
        /// It.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Layers that cannot be put together.
    #[error(transparent)]
    Layers(#[from] LayerError),
    /// More layers than fit.
    #[error("the options of {what} have {bytes} bytes; {MAX_DATA} are the most")]
    TooLong {
        /// Of what.
        what: String,
        /// How long they are.
        bytes: usize,
    },
}

/// Gives this process a mount namespace of its own. To be called before there is a second thread. What the host mounts
/// later is seen, what we mount is not.
pub fn own_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// The shared root.
#[derive(Debug)]
pub struct ShareRoot {
    path: PathBuf,
}

impl ShareRoot {
    /// Makes it at `path`.
    pub fn make(path: PathBuf) -> Result<Self, MountError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| MountError::Place { path: path.clone(), source })?;
        let fail = |errno: nix::Error| MountError::Mount {
            what: "the shared root".to_owned(),
            target: path.clone(),
            source: errno.into(),
        };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("vminitd"), &path, Some("tmpfs"), flags, Some("mode=0755,size=16m"))
            .map_err(fail)?;
        mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).map_err(fail)?;
        Ok(Self { path })
    }

    /// The directory to be served.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts a root filesystem; returns where the guest has it.
    pub fn rootfs(&self, container: &str, mounts: &[Mount]) -> Result<String, MountError> {
        let place = self.path.join(container).join("rootfs");
        make_directory(&place)?;
        if mounts.iter().any(|mount| mount.r#type.starts_with("format/")) {
            layers::mount(&self.beside(container), mounts, &place)?;
        } else {
            for mount in mounts {
                let target = match mount.target.as_str() {
                    "" => place.clone(),
                    inside => place.join(inside.trim_start_matches('/')),
                };
                mount_one(&self.beside(container), mount, &target)?;
            }
        }
        Ok(format!("{GUEST_SHARE}/{container}/rootfs"))
    }

    /// Those of `files` that a container's root filesystem has not, where nobody can make them.
    pub fn placeless(&self, container: &str, files: &[&'static str]) -> Vec<&'static str> {
        let root = self.path.join(container).join("rootfs");
        if access(&root, AccessFlags::W_OK) != Err(nix::Error::EROFS) {
            return Vec::new();
        }
        // A link's target is looked for in the guest.
        let absent =
            |file: &&&str| root.join(file.trim_start_matches('/')).symlink_metadata().is_err();
        files.iter().filter(absent).copied().collect()
    }

    /// A directory for what a container's mounts are made of: not below what is served. It is made when it is wanted.
    fn beside(&self, container: &str) -> PathBuf {
        self.path.with_file_name(format!("layers-{container}"))
    }

    /// Binds a path of the host; returns where the guest has it.
    pub fn bind(
        &self,
        container: &str,
        name: &str,
        source: &Path,
        read_only: bool,
    ) -> Result<String, MountError> {
        let missing = |error| MountError::Missing { path: source.to_owned(), source: error };
        let place = self.path.join(container).join(name);
        if source.metadata().map_err(missing)?.is_dir() {
            make_directory(&place)?;
        } else {
            make_directory(&self.path.join(container))?;
            File::create(&place)
                .map_err(|source| MountError::Place { path: place.clone(), source })?;
        }
        let flags = read_only.then_some(MsFlags::MS_RDONLY);
        bind(&self.beside(container), source, &place, true, flags)?;
        Ok(format!("{GUEST_SHARE}/{container}/{name}"))
    }

    /// Takes away what a container had. What the guest still holds of it goes with the VM.
    pub fn remove(&self, container: &str) {
        let directory = self.path.join(container);
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            while umount2(&entry.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {
            }
        }
        // Nothing is mounted below any more; if it were, this would stop at the first thing that cannot be removed
        // from a filesystem, and not follow: so only empty directories and files go.
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path));
        }
        let _ = std::fs::remove_dir(&directory);
    }
}

fn make_directory(path: &Path) -> Result<(), MountError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| MountError::Place { path: path.to_owned(), source })
}

/// A bind mount and, with `flags`, these set on it. `beside` is a directory that is not shared.
fn bind(
    beside: &Path,
    source: &Path,
    target: &Path,
    recursive: bool,
    flags: Option<MsFlags>,
) -> Result<(), MountError> {
    let fail = |errno: nix::Error| MountError::Mount {
        what: format!("{source:?}"),
        target: target.to_owned(),
        source: errno.into(),
    };
    let deep = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    let bind = |source: &Path, target: &Path| {
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | deep, None::<&str>)
    };
    let Some(flags) = flags else { return bind(source, target).map_err(fail) };
    let staged = beside.join("staged");
    if target.is_dir() {
        make_directory(&staged)?;
    } else {
        make_directory(beside)?;
        File::create(&staged)
            .map_err(|source| MountError::Place { path: staged.clone(), source })?;
    }
    let made = bind(source, &staged).and_then(|()| {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
        let made = mount(None::<&str>, &staged, None::<&str>, flags, None::<&str>)
            .and_then(|()| bind(&staged, target));
        umount2(&staged, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
        made
    });
    let _ = std::fs::remove_dir(&staged).or_else(|_| std::fs::remove_file(&staged));
    let _ = std::fs::remove_dir(beside);
    made.map_err(fail)
}

/// What the words of a mount's options mean: flags of the mount, and the rest for the filesystem.
fn flags_and_data(options: &[String]) -> (MsFlags, Vec<&str>) {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in options.iter().flat_map(|option| match option.contains('=') {
        // A value may have commas of its own.
        true => vec![option.as_str()],
        false => option.split(',').collect(),
    }) {
        match option {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags &= !MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            // For images, where it is seen to.
            "loop" => {}
            "suid" | "dev" | "exec" | "atime" | "diratime" | "async" | "defaults" | "" => {}
            other => data.push(other),
        }
    }
    (flags, data)
}

/// Makes one mount. Its type has no prefix. `beside` is a directory that is not shared.
pub fn mount_one(beside: &Path, what: &Mount, target: &Path) -> Result<(), MountError> {
    let (flags, data) = flags_and_data(&what.options);
    if what.r#type == "bind" || what.r#type == "rbind" || flags.contains(MsFlags::MS_BIND) {
        let recursive = flags.contains(MsFlags::MS_REC) || what.r#type == "rbind";
        let set = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
        let set = (!set.is_empty()).then_some(set);
        return bind(beside, Path::new(&what.source), target, recursive, set);
    }
    let data = data.join(",");
    let name = format!("{} {:?}", what.r#type, what.source);
    let (directory, data) = if data.len() > MAX_DATA { shortened(&data) } else { (None, data) };
    if data.len() > MAX_DATA {
        return Err(MountError::TooLong { what: name, bytes: data.len() });
    }
    let make = || -> io::Result<()> {
        if let Some(directory) = &directory {
            // The working directory is this thread's own from here on: mount(2) reads relative layers by it.
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(directory)?;
        }
        let source = Some(what.source.as_str());
        Ok(mount(source, target, Some(what.r#type.as_str()), flags, Some(data.as_str()))?)
    };
    let made = match directory {
        None => make(),
        Some(_) => std::thread::scope(|scope| {
            let panicked = |_| Err(io::Error::other("the thread that mounts it panicked"));
            scope.spawn(make).join().unwrap_or_else(panicked)
        }),
    };
    let made = made.or_else(|error| match IMAGES.contains(&what.r#type.as_str()) {
        // A kernel that reads no filesystem from a file wants a device in between.
        true if error.raw_os_error() == Some(libc::ENOTBLK) => mount_by_loop(what, target),
        _ => Err(error),
    });
    made.map_err(|source| MountError::Mount { what: name, target: target.to_owned(), source })
}

/// mount(8) makes a loop device that goes with the mount.
fn mount_by_loop(what: &Mount, target: &Path) -> io::Result<()> {
    let options = [what.options.clone(), vec!["loop".to_owned()]].concat().join(",");
    let mut mount = Command::new("mount");
    mount.args(["-t", &what.r#type, "-o", &options]).arg(&what.source).arg(target);
    let output = mount.stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// Overlay's options with lower directories relative to the one that all of them are below.
fn shortened(data: &str) -> (Option<PathBuf>, String) {
    let Some(lower) = data.split(',').find_map(|option| option.strip_prefix("lowerdir=")) else {
        return (None, data.to_owned());
    };
    let common = lower.split(':').map(|path| path.rsplit_once('/').map_or("", |(up, _)| up));
    let common = common.reduce(|common, path| {
        let same = common.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
        &common[..same]
    });
    // Up to a whole component.
    let whole = common.and_then(|common| common.rfind('/').map(|at| &common[..=at]));
    let Some(common) = whole.filter(|common| common.starts_with('/')) else {
        return (None, data.to_owned());
    };
    let short: Vec<&str> =
        lower.split(':').map(|path| path.strip_prefix(common).unwrap_or(path)).collect();
    let short = data.replacen(lower, &short.join(":"), 1);
    (Some(common.into()), short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parted_into_flags_and_data() {
        let options =
            ["ro,nosuid", "lowerdir=/a,b", "index=off", "rw", "noatime"].map(str::to_owned);
        let (flags, data) = flags_and_data(&options);
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_NOATIME);
        assert_eq!(data, ["lowerdir=/a,b", "index=off"]);
    }

    #[test]
    fn many_layers_are_named_from_where_they_are() {
        let layer = |n: usize| format!("/var/lib/containerd/snapshots/{n}/fs");
        let layers: Vec<String> = (100..200).map(layer).collect();
        let data = format!("workdir=/w,upperdir=/u,lowerdir={}", layers.join(":"));
        let (directory, short) = shortened(&data);
        assert_eq!(directory.unwrap(), Path::new("/var/lib/containerd/snapshots/"));
        assert!(short.starts_with("workdir=/w,upperdir=/u,lowerdir=100/fs:101/fs:"), "{short}");
        assert!(short.len() < MAX_DATA);
        let (nothing, same) = shortened("lowerdir=a:b");
        assert_eq!((nothing, same.as_str()), (None, "lowerdir=a:b"));
    }
}

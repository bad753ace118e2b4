//! Makes planned mounts below a bundle, and takes them away again.
//!
//! Promises: a mount lands in the bundle whatever symlinks are in the way; when one fails, those
//! before it are gone again; what was written to a filesystem is on its device before its unmount
//! returns.
//! Never: runs on the agent's thread: all of it can block.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};
use tracing::warn;

use super::options::Options;
use super::plan::{Planned, What};
use crate::sys::beneath::{open_beneath, open_entry};
use crate::sys::fsmount::{Configuring, attach, clone_tree, set_attributes};

/// Which step of which mount failed. What the host asked for, or a device that does not do it.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Its place could not be made or opened.
    #[error("make {place} for a mount")]
    Place {
        /// The place, below the bundle.
        place: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The filesystem did not take an option, or could not be mounted.
    #[error("mount {kind} {source_name:?} on {place}: {step}{complaint}")]
    Filesystem {
        /// Its type.
        kind: &'static str,
        /// Its source.
        source_name: String,
        /// Its place.
        place: PathBuf,
        /// The option, or what else failed.
        step: String,
        /// What the filesystem itself says, after `: `.
        complaint: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The tree could not be cloned or changed.
    #[error("bind {from} on {place}")]
    Bind {
        /// The tree.
        from: PathBuf,
        /// Its place.
        place: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It could not be taken away.
    #[error("unmount {path}")]
    Unmount {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Makes the mounts in order. On failure none of them is left.
pub fn make(bundle: &Path, planned: &[Planned]) -> Result<(), MountError> {
    for (index, mount) in planned.iter().enumerate() {
        if let Err(error) = make_one(bundle, mount) {
            if let Err(error) = undo(bundle, &places(&planned[..index])) {
                warn!(%error, "a mount of a rootfs that failed could not be undone");
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Where planned mounts are, for [`undo`].
pub fn places(planned: &[Planned]) -> Vec<PathBuf> {
    planned.iter().map(|mount| mount.place.clone()).collect()
}

/// Takes the mounts at these places away, last first, and everything mounted on top of them. Places
/// without a mount are fine.
pub fn undo(bundle: &Path, places: &[PathBuf]) -> Result<(), MountError> {
    let mut failed = None;
    for place in places.iter().rev() {
        if let Err(error) = unmount(&bundle.join(place)) {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn make_one(bundle: &Path, mount: &Planned) -> Result<(), MountError> {
    let target = open_place(bundle, &mount.place)
        .map_err(|source| MountError::Place { place: mount.place.clone(), source })?;
    match &mount.what {
        What::Bind { source: from } => bind(from, &mount.options, &target).map_err(|source| {
            MountError::Bind { from: from.clone(), place: mount.place.clone(), source }
        }),
        What::Filesystem { kind, source } => {
            if *kind == "overlay" {
                make_layers(bundle, &mount.options)?;
            }
            filesystem(kind, source, mount, &target)
        }
    }
}

/// Makes the directories that an overlay writes to when they are to lie on an earlier mount of the
/// list: a tmpfs that was made a moment ago has none.
fn make_layers(bundle: &Path, options: &Options) -> Result<(), MountError> {
    for (key, value) in &options.data {
        let Some(value) = value.as_deref().filter(|_| matches!(&**key, "upperdir" | "workdir"))
        else {
            continue;
        };
        let Ok(place) = Path::new(value).strip_prefix(bundle) else { continue };
        if place.starts_with("mounts") {
            let failed = |source| MountError::Place { place: place.to_owned(), source };
            make_beneath(bundle, place, open_beneath).map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes `place` below the bundle, if it is not there, and opens it; no symlink is followed and no
/// mount crossed on the way.
fn open_place(bundle: &Path, place: &Path) -> io::Result<OwnedFd> {
    make_beneath(bundle, place, open_entry)
}

type Open = fn(BorrowedFd<'_>, &Path, OFlag) -> io::Result<OwnedFd>;

fn make_beneath(bundle: &Path, place: &Path, open: Open) -> io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
    let bundle = File::options().read(true).custom_flags(flags).open(bundle)?;
    let mut directory = OwnedFd::from(bundle);
    for part in place.iter() {
        let mode = Mode::from_bits_retain(0o755);
        match mkdirat(Some(directory.as_raw_fd()), Path::new(part), mode) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        directory = open(directory.as_fd(), Path::new(part), flags)?;
    }
    Ok(directory)
}

fn bind(from: &Path, options: &Options, target: &OwnedFd) -> io::Result<()> {
    let tree = clone_tree(from, options.recursive)?;
    // Before it is attached, so that it is never visible without them. Not for what lies below:
    // mount(8) does it for the one mount too.
    set_attributes(tree.as_fd(), options.attributes, 0, 0, false)?;
    attach(tree.as_fd(), target.as_fd())?;
    propagate(&tree, options)
}

fn propagate(mount: &OwnedFd, options: &Options) -> io::Result<()> {
    if options.propagation == 0 {
        return Ok(());
    }
    let recursive = options.propagation & libc::MS_REC != 0;
    let propagation = options.propagation & !libc::MS_REC;
    set_attributes(mount.as_fd(), 0, 0, propagation, recursive)
}

fn filesystem(
    kind: &'static str,
    source_name: &str,
    mount: &Planned,
    target: &OwnedFd,
) -> Result<(), MountError> {
    let failed = |step: &str, complaint: String, source| MountError::Filesystem {
        kind,
        source_name: source_name.to_owned(),
        place: mount.place.clone(),
        step: step.to_owned(),
        complaint: if complaint.is_empty() { complaint } else { format!(": {complaint}") },
        source,
    };
    let configuring = Configuring::new(kind)
        .map_err(|error| failed("the kernel does not have it", String::new(), error))?;
    for (key, value) in parameters(kind, source_name, &mount.options) {
        let done = match &value {
            Some(value) => configuring.set(&key, value),
            None => configuring.set_flag(&key),
        };
        done.map_err(|error| {
            let option = value.map_or(key.clone(), |value| format!("{key}={value}"));
            failed(&format!("option {option:?}"), configuring.complaint(), error)
        })?;
    }
    let made = configuring
        .mount(mount.options.attributes)
        .map_err(|error| failed("create", configuring.complaint(), error))?;
    attach(made.as_fd(), target.as_fd())
        .and_then(|()| propagate(&made, &mount.options))
        .map_err(|error| failed("attach", String::new(), error))
}

fn parameters(kind: &str, source_name: &str, options: &Options) -> Vec<(String, Option<String>)> {
    let mut all = vec![("source".to_owned(), Some(source_name.to_owned()))];
    all.extend(options.superblock.iter().map(|flag| ((*flag).to_owned(), None)));
    for (key, value) in &options.data {
        match value {
            // One parameter a layer: together they may be longer than any single one can be.
            Some(layers) if kind == "overlay" && key == "lowerdir" => {
                all.extend(layers_of(layers));
            }
            _ => all.push((key.clone(), value.clone())),
        }
    }
    all
}

/// Splits overlay's `a:b::data` at colons; `\:` is a colon in a name, `::` begins data-only layers.
fn layers_of(layers: &str) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    let (mut layer, mut key) = (String::new(), "lowerdir+");
    let mut characters = layers.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => layer.extend(characters.next()),
            ':' => {
                all.push((key.to_owned(), Some(std::mem::take(&mut layer))));
                if characters.next_if_eq(&':').is_some() {
                    key = "datadir+";
                }
            }
            _ => layer.push(character),
        }
    }
    all.push((key.to_owned(), Some(layer)));
    all
}

fn unmount(path: &Path) -> Result<(), MountError> {
    loop {
        sync(path);
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            // There may be another below the one that went.
            Ok(()) => {}
            // EINVAL: not (or no longer) a mount point. ENOENT: the place was never made.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => {
                // What is on top of it, or a file that somebody still has open. It goes when that
                // is closed; a process of the container cannot have it, they are all gone.
                warn!(path = %path.display(), error = %errno, "unmount lazily");
                let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
                umount2(path, flags).map_err(|errno| MountError::Unmount {
                    path: path.to_owned(),
                    source: errno.into(),
                })?;
            }
        }
    }
}

/// Writes a filesystem back, if it is one; unmounting does that too, but only for the last mount
/// of it, and says nothing when it fails.
fn sync(path: &Path) {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let Ok(root) = File::options().read(true).custom_flags(flags).open(path) else { return };
    if let Err(errno) = nix::unistd::syncfs(root.as_raw_fd()) {
        warn!(path = %path.display(), error = %errno, "a filesystem was not written back");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vminitd_protocol::pb::containerd::types::Mount;

    use super::*;
    use crate::agent::mounts::plan::plan;

    fn mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.to_owned(),
            source: source.as_ref().to_str().unwrap().to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    /// Runs in a mount namespace of its own (that of one thread), so that nothing is left on this
    /// machine whatever happens. Needs root, which CI has.
    fn in_namespace(test: impl FnOnce(&Path) + Send + 'static) {
        let run = move || {
            use nix::mount::MsFlags;
            if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS) {
                eprintln!("skipped: no mount namespace: {errno}");
                return;
            }
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let dir = tempfile::tempdir().unwrap();
            // overlayfs wants upper and work on a filesystem that is no overlay itself.
            let none = None::<&str>;
            nix::mount::mount(none, dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
            test(dir.path());
            let _ = umount2(dir.path(), MntFlags::MNT_DETACH);
        };
        std::thread::spawn(run).join().unwrap();
    }

    fn mounts_below(path: &Path) -> usize {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let below = format!("{}/", path.display());
        table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(&below)).count()
    }

    #[test]
    fn overlay_of_a_hundred_layers_shows_each_and_goes_without_a_trace() {
        in_namespace(|dir| {
            let bundle = dir.join("bundle");
            fs::create_dir(&bundle).unwrap();
            let layers: Vec<String> = (0..100)
                .map(|layer| {
                    let path = dir.join(format!("a-rather-long-name-of-a-layer:{layer}"));
                    fs::create_dir(&path).unwrap();
                    fs::write(path.join(format!("file-{layer}")), "x").unwrap();
                    path.to_str().unwrap().replace(':', "\\:")
                })
                .collect();
            for sub in ["upper", "work"] {
                fs::create_dir(dir.join(sub)).unwrap();
            }
            let options = [
                format!("lowerdir={}", layers.join(":")),
                format!("upperdir={}", dir.join("upper").display()),
                format!("workdir={}", dir.join("work").display()),
            ];
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let planned =
                plan(&[mount("tmpfs", "", &["size=1m"]), mount("overlay", "", &options)]).unwrap();
            make(&bundle, &planned).unwrap();
            assert_eq!(fs::read_dir(bundle.join("rootfs")).unwrap().count(), 100);
            fs::write(bundle.join("rootfs/new"), "y").unwrap();
            assert_eq!(fs::read_to_string(dir.join("upper/new")).unwrap(), "y");
            assert_eq!(mounts_below(&bundle), 2);
            undo(&bundle, &places(&planned)).unwrap();
            assert_eq!(mounts_below(&bundle), 0);
            undo(&bundle, &places(&planned)).unwrap();
        });
    }

    #[test]
    fn failure_in_the_middle_leaves_no_mount_and_says_what_and_why() {
        in_namespace(|dir| {
            let missing = dir.join("missing");
            let planned = plan(&[
                mount("tmpfs", "", &[]),
                mount("overlay", "", &[&format!("lowerdir={}", missing.display())]),
            ])
            .unwrap();
            let error = crate::agent::errors::chain(&make(dir, &planned).unwrap_err());
            assert!(error.contains("overlay") && error.contains("missing"), "{error}");
            assert!(error.contains("No such file"), "{error}");
            assert_eq!(mounts_below(dir), 0);
            let planned = plan(&[mount("tmpfs", "", &["colour=red"])]).unwrap();
            let error = crate::agent::errors::chain(&make(dir, &planned).unwrap_err());
            assert!(error.contains("colour=red"), "{error}");
        });
    }

    #[test]
    fn bind_is_read_only_when_asked_and_the_source_stays_writable() {
        in_namespace(|dir| {
            let (bundle, tree) = (dir.join("bundle"), dir.join("tree"));
            fs::create_dir(&bundle).unwrap();
            fs::create_dir(&tree).unwrap();
            let planned = plan(&[mount("bind", &tree, &["ro"])]).unwrap();
            make(&bundle, &planned).unwrap();
            let error = fs::write(bundle.join("rootfs/file"), "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            fs::write(tree.join("file"), "x").unwrap();
            assert_eq!(fs::read_to_string(bundle.join("rootfs/file")).unwrap(), "x");
            undo(&bundle, &places(&planned)).unwrap();
        });
    }

    #[test]
    fn symlink_in_place_of_a_mount_point_leads_nowhere() {
        in_namespace(|dir| {
            let (bundle, elsewhere) = (dir.join("bundle"), dir.join("elsewhere"));
            fs::create_dir(&bundle).unwrap();
            fs::create_dir(&elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, bundle.join("rootfs")).unwrap();
            let planned = plan(&[mount("tmpfs", "", &[])]).unwrap();
            assert!(matches!(make(&bundle, &planned), Err(MountError::Place { .. })));
            assert_eq!(mounts_below(dir), 0);
            std::os::unix::fs::symlink(&elsewhere, bundle.join("mounts")).unwrap();
            let two = plan(&[mount("tmpfs", "", &[]), mount("tmpfs", "", &[])]).unwrap();
            assert!(matches!(make(&bundle, &two), Err(MountError::Place { .. })));
        });
    }

    #[test]
    fn overlay_on_a_fresh_tmpfs_gets_its_directories_and_no_symlink_leads_them_elsewhere() {
        in_namespace(|dir| {
            let (bundle, tree) = (dir.join("bundle"), dir.join("tree"));
            fs::create_dir(&bundle).unwrap();
            fs::create_dir(&tree).unwrap();
            let at = |key: &str, name: &str| format!("{key}={}/mounts/1/{name}", bundle.display());
            let lower = format!("lowerdir={}/mounts/0", bundle.display());
            let (upper, work) = (at("upperdir", "upper"), at("workdir", "work"));
            let planned = plan(&[
                mount("bind", &tree, &["ro"]),
                mount("tmpfs", "", &[]),
                mount("overlay", "", &[&lower, &upper, &work]),
            ])
            .unwrap();
            make(&bundle, &planned).unwrap();
            fs::write(bundle.join("rootfs/new"), "x").unwrap();
            assert_eq!(fs::read_dir(&tree).unwrap().count(), 0);
            undo(&bundle, &places(&planned)).unwrap();

            std::os::unix::fs::symlink(dir, tree.join("upper")).unwrap();
            let upper = format!("upperdir={}/mounts/0/upper/evil", bundle.display());
            let planned =
                plan(&[mount("bind", &tree, &[]), mount("overlay", "", &[&lower, &upper, &work])]);
            assert!(make(&bundle, &planned.unwrap()).is_err());
            assert!(!dir.join("evil").exists());
        });
    }

    #[test]
    fn place_that_has_a_mount_already_is_refused() {
        in_namespace(|dir| {
            let planned = plan(&[mount("tmpfs", "", &[])]).unwrap();
            make(dir, &planned).unwrap();
            assert!(matches!(make(dir, &planned), Err(MountError::Place { .. })));
            undo(dir, &places(&planned)).unwrap();
            assert_eq!(mounts_below(dir), 0);
        });
    }
}

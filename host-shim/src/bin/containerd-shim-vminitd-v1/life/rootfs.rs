//! The mounts of a Create, sorted: what is mounted on the host and shared, and what the guest mounts from disks.
//!
//! | snapshotter | sends | becomes |
//! |---|---|---|
//! | overlayfs, native | `overlay`, `bind` of directories | mounted on the host, below the shared root |
//! | blockfile | `ext4` of an image file | a disk, mounted in the guest |
//! | erofs, with `default_size` | `ext4` and `erofs` of image files, `format/mkdir/overlay` | disks, mounted in the guest; templates are passed on |
//! | erofs, without | `erofs` of image files, `format/mkdir/overlay` with directories of the host to write to | mounted on the host, below the shared root |
//!
//! A directory of the host cannot be what an overlay of the guest writes to in the form that the snapshotter reads again:
//! so where one is needed, all of it is mounted on the host, as containerd would. With an image that the guest writes this
//! is refused: whatever is in that is the guest's, and not for the host's kernel to look at.
//!
//! Promises: what cannot be done is an error that names the mount. Never: mounts.

use std::path::PathBuf;

use vminitd_protocol::pb::containerd::types::Mount;

/// Filesystems that our guest's kernel mounts from disks.
pub const IMAGES: [&str; 3] = ["erofs", "ext4", "squashfs"];

/// Of these, those that nobody can write.
const READ_ONLY: [&str; 2] = ["erofs", "squashfs"];

/// How a root filesystem comes about.
#[derive(Clone, Debug, PartialEq)]
pub enum Rootfs {
    /// It is in the bundle, or where the config says.
    Bundle,
    /// Mounted on the host and shared.
    Shared(Vec<Mount>),
    /// Mounted in the guest, from disks.
    Disks {
        /// The mounts; sources of images are to be replaced by [`Rootfs::on_disks`].
        mounts: Vec<Mount>,
        /// The images, and which mount each is the source of.
        images: Vec<(usize, Image)>,
    },
}

/// An image file or a block device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its path.
    pub path: PathBuf,
    /// The guest cannot write it.
    pub read_only: bool,
}

/// Mounts that cannot be made. The snapshotter's fault, or ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootfsError {
    /// Directories of the host beside an image that the guest writes.
    #[error(
        "rootfs: mount {index} ({kind}) needs {path:?} of the host beside an image that is written; let the snapshotter use images for all"
    )]
    Mixed {
        /// Which.
        index: usize,
        /// Its type.
        kind: String,
        /// What it names.
        path: String,
    },
}

impl Rootfs {
    /// Sorts a Create's mounts.
    pub fn sort(mounts: &[Mount]) -> Result<Self, RootfsError> {
        if mounts.is_empty() {
            return Ok(Self::Bundle);
        }
        let in_guest = |mount: &Mount| IMAGES.contains(&kind(mount)) || kind(mount) != mount.r#type;
        if !mounts.iter().any(in_guest) {
            return Ok(Self::Shared(mounts.to_vec()));
        }
        let mut images: Vec<(usize, Image)> = Vec::new();
        let mut passed = Vec::new();
        let mut of_host = None;
        for (index, mount) in mounts.iter().enumerate() {
            let mut mount = mount.clone();
            let is_image = IMAGES.contains(&kind(&mount)) && !mount.source.contains("{{");
            if is_image {
                let read_only = READ_ONLY.contains(&kind(&mount)) || says(&mount, "ro");
                images.push((index, Image { path: mount.source.clone().into(), read_only }));
                mount.options.retain(|option| option != "loop");
            }
            if let Some(path) = host_path(&mount) {
                of_host.get_or_insert((index, mount.r#type.clone(), path));
            }
            passed.push(mount);
        }
        if let Some((index, kind, path)) = of_host {
            return match images.iter().all(|(_, image)| image.read_only) {
                true => Ok(Self::Shared(mounts.to_vec())),
                false => Err(RootfsError::Mixed { index, kind, path }),
            };
        }
        Ok(Self::Disks { mounts: passed, images })
    }
}

/// The mounts with `sources` (a disk's place in the guest for each image) in place of the host's paths.
pub fn on_disks(mounts: &[Mount], images: &[(usize, Image)], sources: &[String]) -> Vec<Mount> {
    let mut mounts = mounts.to_vec();
    for ((index, _), source) in images.iter().zip(sources) {
        mounts[*index].source.clone_from(source);
    }
    mounts
}

/// The filesystem, without what is to be done before.
pub fn kind(mount: &Mount) -> &str {
    let kind = mount.r#type.strip_prefix("format/").unwrap_or(&mount.r#type);
    kind.strip_prefix("mkdir/").unwrap_or(kind)
}

fn says(mount: &Mount, word: &str) -> bool {
    mount.options.iter().any(|option| option == word)
}

/// A path of the host that a mount in the guest cannot have.
fn host_path(mount: &Mount) -> Option<String> {
    // An erofs may be parts of several files.
    let layers = ["lowerdir=", "upperdir=", "workdir=", "device="];
    let layer = mount.options.iter().find_map(|option| {
        let path = layers.iter().find_map(|key| option.strip_prefix(key))?;
        path.starts_with('/').then(|| path.to_owned())
    });
    let bind = kind(mount).ends_with("bind") && mount.source.starts_with('/');
    layer.or_else(|| bind.then(|| mount.source.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn directories_are_shared_as_they_come() {
        let overlay =
            vec![mount("overlay", "overlay", &["lowerdir=/a:/b", "upperdir=/u", "workdir=/w"])];
        assert_eq!(Rootfs::sort(&overlay).unwrap(), Rootfs::Shared(overlay.clone()));
        let native = vec![mount("bind", "/snapshots/1", &["rbind", "rw"])];
        assert_eq!(Rootfs::sort(&native).unwrap(), Rootfs::Shared(native.clone()));
        assert_eq!(Rootfs::sort(&[]).unwrap(), Rootfs::Bundle);
    }

    #[test]
    fn a_block_file_is_a_disk_without_a_loop_device() {
        let mounts = [mount("ext4", "/b/1.img", &["loop", "noatime"])];
        let Rootfs::Disks { mounts, images } = Rootfs::sort(&mounts).unwrap() else { panic!() };
        assert_eq!(images, [(0, Image { path: "/b/1.img".into(), read_only: false })]);
        assert_eq!(
            on_disks(&mounts, &images, &["serial:d0".into()]),
            [mount("ext4", "serial:d0", &["noatime"])]
        );
    }

    #[test]
    fn layers_become_disks_and_templates_are_passed_on() {
        let overlay = mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ overlay 2 1 }}",
            ],
        );
        let mounts = [
            mount("ext4", "/rw.img", &["loop"]),
            mount("erofs", "/1.erofs", &["ro", "loop"]),
            mount("format/erofs", "/2.erofs", &["ro"]),
            overlay.clone(),
        ];
        let Rootfs::Disks { mounts, images } = Rootfs::sort(&mounts).unwrap() else { panic!() };
        let read_only: Vec<bool> = images.iter().map(|(_, image)| image.read_only).collect();
        assert_eq!(read_only, [false, true, true]);
        assert_eq!(mounts[3], overlay);
    }

    #[test]
    fn layers_below_a_directory_of_the_host_are_mounted_there_unless_the_guest_writes_one() {
        let overlay = mount(
            "format/mkdir/overlay",
            "overlay",
            &["workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir={{ mount 0 }}"],
        );
        let layers = [mount("erofs", "/s/1/layer.erofs", &["ro", "loop"]), overlay.clone()];
        assert_eq!(Rootfs::sort(&layers).unwrap(), Rootfs::Shared(layers.to_vec()));
        let error = Rootfs::sort(&[mount("ext4", "/rw.img", &[]), overlay]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("mount 1 (format/mkdir/overlay)") && error.contains("/s/2/work"),
            "{error}"
        );
        let parts = [mount("erofs", "/s/fsmeta.erofs", &["ro", "device=/s/1/layer.erofs"])];
        assert_eq!(Rootfs::sort(&parts).unwrap(), Rootfs::Shared(parts.to_vec()));
    }
}

//! What a VM is given of the host's files: disks and shares, and what of them is the root filesystem.
//!
//! Owns: the disk that images were packed into, as long as the VM may read it. Promises: nothing that was given
//! read-only is opened for writing. Never: starts a VM.

use std::path::Path;

use host_shim::container::{Rootfs, Shares};
use host_shim::images::image::Image;
use host_shim::images::pack::Packed;
use host_shim::images::stack::{Content, Stack, StackDisk};
use host_shim::limits::MAX_DISKS;
use host_shim::vm::{Disk, Share, Tag};

use super::RunError;
use crate::cli::RunArgs;

/// The tag of the share that holds the root filesystem.
const ROOTFS_TAG: &str = "rootfs";

/// Disks, shares and root filesystem.
pub struct Storage {
    /// Behind the guest's own root, if that is a disk.
    pub disks: Vec<Disk>,
    /// The root filesystem's first, if it is one.
    pub shares: Vec<Share>,
    /// What Create is to mount.
    pub rootfs: Rootfs,
    /// The file is gone with it.
    _packed: Option<Packed>,
}

impl Storage {
    /// A directory of the host as the root.
    pub fn directory(rootfs: &Path, volumes: Shares) -> Result<Self, RunError> {
        let path = readable_directory(rootfs)
            .map_err(|source| RunError::Rootfs { path: rootfs.to_owned(), source })?;
        let tag = Tag::try_from(ROOTFS_TAG.to_owned()).expect("a constant that is a tag");
        let share = Share { tag, path, read_only: true };
        let shares = [share].into_iter().chain(volumes.list().iter().cloned()).collect();
        let rootfs = Rootfs::shared(ROOTFS_TAG).with_shares(volumes.tags());
        Ok(Self { disks: Vec::new(), shares, rootfs, _packed: None })
    }

    /// Images as the root.
    pub fn images(args: &RunArgs, volumes: Shares) -> Result<Self, RunError> {
        let images = args.image.iter().map(Image::examine).collect::<Result<Vec<_>, _>>();
        let images = images.map_err(|error| RunError::Image(error.into()))?;
        let others = usize::from(args.root_image.is_some()) + usize::from(!args.extras.is_empty());
        let slots = MAX_DISKS - others;
        let stack = Stack::plan(&images, slots).map_err(|error| RunError::Image(error.into()))?;
        let mut packed = None;
        let mut disks = Vec::new();
        for StackDisk { serial, content, read_only } in &stack.disks {
            let path = match content {
                Content::Image(path) => path.clone(),
                Content::Packed(places) => {
                    let images: Vec<&Image> = places.iter().map(|place| &images[*place]).collect();
                    let disk = Packed::make(&images, &std::env::temp_dir())
                        .map_err(|error| RunError::Image(error.into()))?;
                    packed.insert(disk).path().to_owned()
                }
            };
            disks.push(Disk { serial: serial.clone(), path, read_only: *read_only });
        }
        let rootfs = Rootfs::images(&stack).with_shares(volumes.tags());
        Ok(Self { disks, shares: volumes.list().to_vec(), rootfs, _packed: packed })
    }
}

fn readable_directory(path: &Path) -> std::io::Result<std::path::PathBuf> {
    std::fs::read_dir(path)?;
    path.canonicalize()
}

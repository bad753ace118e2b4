//! Turns the block devices that planned mounts name into device nodes, before anything is mounted.
//!
//! Promises: all of them cost one look when they are there.
//! Never: mounts.

use std::path::PathBuf;
use std::time::Duration;

use super::options::Tree;
use super::plan::{Planned, Source, What};
use crate::agent::block::find::{FindError, find_all};

/// True when a mount names a device, which may be waited for.
pub fn named(planned: &[Planned]) -> bool {
    planned.iter().any(|mount| {
        let source = matches!(&mount.what, What::Filesystem { source: Source::Device(_), .. });
        let tree = mount.options.verity.as_ref();
        source || tree.is_some_and(|verity| matches!(verity.tree, Tree::Device(_)))
    })
}

/// Puts `/dev/vdX` in the place of each source that names a disk, however it does; waits for those
/// that are yet to come.
pub async fn resolve(planned: &mut [Planned], patience: Duration) -> Result<(), FindError> {
    let mut devices = Vec::new();
    let mut places: Vec<Box<dyn FnOnce(PathBuf) + Send + '_>> = Vec::new();
    for mount in planned {
        if let What::Filesystem { source, .. } = &mut mount.what
            && let Source::Device(device) = source
        {
            devices.push(device.clone());
            places.push(Box::new(move |path| *source = Source::Path(path)));
        }
        if let Some(verity) = &mut mount.options.verity
            && let Tree::Device(device) = &verity.tree
        {
            devices.push(device.clone());
            places.push(Box::new(move |path| verity.tree = Tree::Node(path)));
        }
    }
    if devices.is_empty() {
        return Ok(());
    }
    for (place, path) in places.into_iter().zip(find_all(&devices, patience).await?) {
        place(path);
    }
    Ok(())
}

//! Turns the block devices that planned mounts name into device nodes, before anything is mounted.
//!
//! Promises: all of them cost one look when they are there.
//! Never: mounts.

use std::time::Duration;

use super::plan::{Planned, What};
use crate::agent::block::find::{FindError, find_all};
use crate::agent::block::source::Source;

/// Puts `/dev/vdX` in the place of each source that names a disk, however it does; waits for those
/// that are yet to come.
pub async fn resolve(planned: &mut [Planned], patience: Duration) -> Result<(), FindError> {
    let mut sources = Vec::new();
    let mut places = Vec::new();
    for mount in planned {
        if let What::Filesystem { kind: "erofs" | "ext4", source } = &mut mount.what
            && let Ok(named) = Source::try_from(&**source)
        {
            sources.push(named);
            places.push(source);
        }
    }
    if sources.is_empty() {
        return Ok(());
    }
    for (place, path) in places.into_iter().zip(find_all(&sources, patience).await?) {
        *place = path.display().to_string();
    }
    Ok(())
}

//! A root filesystem of layers, put together on the host: each mount of the list has a place of its own, and the last, by
//! its templates, names those before it.
//!
//! Promises: what was mounted on the way is gone when this returns: an overlay keeps what it lies on by itself.
//! Never: makes a directory inside a layer: what is in there is not trusted.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::templates::{self, Earlier, TemplateError};

use super::share::{MountError, mount_one};

/// Options by which a directory is wanted.
const MKDIR: &str = "X-containerd.mkdir.";

/// A list that cannot be mounted on the host. The snapshotter's fault, or ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// A template.
    #[error("rootfs: mount {index}")]
    Template {
        /// Which mount.
        index: usize,
        /// What is wrong.
        #[source]
        source: TemplateError,
    },
    /// A directory in a layer.
    #[error("rootfs: mount {index}: {option:?} beside directories of the host is not served")]
    Directory {
        /// Which mount.
        index: usize,
        /// Its option.
        option: String,
    },
}

/// Mounts that go with this, the last first, and the directories that they are on.
struct OnTheWay {
    directory: PathBuf,
    places: Vec<PathBuf>,
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = std::fs::remove_dir(place);
        }
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Mounts the list, the last of it on `target`. `directory` is made for those before it.
pub fn mount(directory: &Path, mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    let mut way = OnTheWay { directory: directory.to_owned(), places: Vec::new() };
    let mut earlier: Vec<Earlier> = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let place = match index + 1 == mounts.len() {
            true => target.to_owned(),
            false => directory.join(index.to_string()),
        };
        let mount = plain(index, mount, &earlier)?;
        if place != target {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&place)
                .map_err(|source| MountError::Place { path: place.clone(), source })?;
            way.places.push(place.clone());
        }
        mount_one(directory, &mount, &place)?;
        let place = place.display().to_string();
        earlier.push(Earlier { source: mount.source, target: mount.target, place });
    }
    Ok(())
}

/// A mount without prefixes and templates.
fn plain(index: usize, mount: &Mount, earlier: &[Earlier]) -> Result<Mount, LayerError> {
    let mut mount = mount.clone();
    if let Some(kind) = mount.r#type.strip_prefix("format/") {
        let expand = |text: &String| {
            templates::expand(text, earlier)
                .map_err(|source| LayerError::Template { index, source })
        };
        mount = Mount {
            r#type: kind.to_owned(),
            source: expand(&mount.source)?,
            target: expand(&mount.target)?,
            options: mount.options.iter().map(expand).collect::<Result<_, _>>()?,
        };
    }
    if let Some(kind) = mount.r#type.strip_prefix("mkdir/") {
        if let Some(option) = mount.options.iter().find(|option| option.starts_with(MKDIR)) {
            return Err(LayerError::Directory { index, option: option.clone() });
        }
        mount.r#type = kind.to_owned();
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        Mount {
            r#type: "format/mkdir/overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn templates_are_replaced_and_directories_in_layers_refused() {
        let earlier = [0, 1].map(|n| Earlier { place: format!("/l/{n}"), ..Default::default() });
        let mount = overlay(&["upperdir=/s/fs", "lowerdir={{ overlay 1 0 }}"]);
        let got = plain(2, &mount, &earlier).unwrap();
        assert_eq!(got.r#type, "overlay");
        assert_eq!(got.options, ["upperdir=/s/fs", "lowerdir=/l/1:/l/0"]);
        let mount = overlay(&["X-containerd.mkdir.path={{ mount 0 }}/upper:0755"]);
        let error = plain(2, &mount, &earlier).unwrap_err().to_string();
        assert!(error.contains("mount 2") && error.contains("/l/0/upper"), "{error}");
        let error = plain(2, &overlay(&["lowerdir={{ mount 2 }}"]), &earlier).unwrap_err();
        assert!(host_shim::chain(&error).contains("refers to mount 2"), "{error}");
    }
}

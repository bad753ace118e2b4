//! Paths of the host in a container: what config.json binds, and `--volume`.
//!
//! A bind mount's source means a path of the host; in the guest it is where the share with that path is.
//! Promises: mounts keep their order and options; `--volume` and `--tmpfs` come last. Never: starts anything.

use std::path::Path;

use host_shim::container::{FILE_IN_SHARE, Placed, Rootfs, ShareError, Shares, TmpfsWish};
use oci_spec::runtime::{Mount, MountBuilder, Spec};

use super::RunError;
use crate::cli::RunArgs;

/// Which mounts of a spec, and which volumes, are where.
pub struct Binds {
    /// Mounts of the spec, by their place in its list.
    of_spec: Vec<(usize, Placed)>,
    /// One for each `--volume`.
    volumes: Vec<Placed>,
}

/// Finds what is to be shared.
pub fn find(spec: &Spec, args: &RunArgs, shares: &mut Shares) -> Result<Binds, RunError> {
    let mut binds = Binds { of_spec: Vec::new(), volumes: Vec::new() };
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let Some(source) = mount.source().as_ref().filter(|_| is_bind(mount)) else { continue };
        // The runtime specification: a relative source is below the bundle.
        let bundle = args.bundle.as_deref().unwrap_or(Path::new(""));
        let placed = shares.add(&bundle.join(source), is_read_only(mount));
        let failed = |error: ShareError| RunError::Bundle {
            path: bundle.join("config.json"),
            source: format!("mount on {:?}: {}", mount.destination(), host_shim::chain(&error))
                .into(),
        };
        binds.of_spec.push((index, placed.map_err(failed)?));
    }
    for volume in &args.volume {
        let placed = shares.add(&volume.host, volume.read_only).map_err(RunError::Volume)?;
        binds.volumes.push(placed);
    }
    Ok(binds)
}

impl Binds {
    /// Lets the spec's mounts mean what is in the guest, and adds what the options say.
    pub fn put_into(self, spec: &mut Spec, rootfs: &Rootfs, args: &RunArgs) {
        let mounts = spec.mounts_mut().get_or_insert_default();
        for (index, placed) in self.of_spec {
            mounts[index].set_source(Some(place(rootfs, placed).into()));
        }
        for (volume, placed) in args.volume.iter().zip(self.volumes) {
            let mut options: Vec<String> = ["rbind", "rprivate"].map(str::to_owned).to_vec();
            options.extend(volume.read_only.then(|| "ro".to_owned()));
            let mount = MountBuilder::default()
                .typ("bind")
                .source(place(rootfs, placed))
                .destination(&volume.guest)
                .options(options)
                .build();
            mounts.push(mount.expect("every field has a value"));
        }
        mounts.extend(args.tmpfs.iter().map(TmpfsWish::mount));
    }
}

fn place(rootfs: &Rootfs, placed: Placed) -> String {
    let share = rootfs.share_place(placed.share);
    if placed.is_file { format!("{share}/{FILE_IN_SHARE}") } else { share }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// The last word counts.
fn is_read_only(mount: &Mount) -> bool {
    let mut words = mount.options().iter().flatten();
    let last = words.rfind(|word| matches!(&***word, "ro" | "rro" | "rw"));
    last.is_some_and(|word| word != "rw")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        let mount = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|word| (*word).to_owned()).collect();
            MountBuilder::default().destination("/d").options(options).build().unwrap()
        };
        assert!(is_read_only(&mount(&["rbind", "ro"])));
        assert!(!is_read_only(&mount(&["ro", "rbind", "rw"])));
        assert!(!is_read_only(&mount(&[])));
        assert!(is_bind(&mount(&["rbind"])) && !is_bind(&mount(&["ro"])));
    }
}

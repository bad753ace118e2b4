//! The container's cgroup on the host: shim, vminit-vmm, QEMU and virtiofsd are in it.
//!
//! What is in the guest has the container's own limits; the host's cgroup holds the whole VM, whose memory is its size
//! and what runs it. Owns: the directories, until [`Cgroup::leave`]; `delete` removes them after a shim that was killed.
//! Promises: a host without such a cgroup, or without the right to make one, runs the VM all the same, and the log says so.
//! Never: leaves the mount of cgroups by way of `..`.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use tracing::warn;

use crate::protocol::delete::{CGROUPS, remove_cgroups};

/// What runs a VM may use beside the VM's memory: QEMU's own, virtiofsd's, ours, and the page cache of all.
const BESIDE: u64 = 256 << 20;

/// Where cgroups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Hierarchies of version 1 that matter: those that limit or count what a VM uses.
const V1: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// A directory for the container in each hierarchy.
#[derive(Debug, Default)]
pub struct Cgroup {
    /// Where we were before, and where we are.
    places: Vec<(PathBuf, PathBuf)>,
    bundle: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup that the config names, limits it to a VM of so many bytes, and goes in, before there are others.
    pub fn enter(config: &Value, memory: u64, bundle: &Path) -> Self {
        let mut cgroup = Self { places: Vec::new(), bundle: bundle.to_owned() };
        let Some(path) = config["linux"]["cgroupsPath"].as_str().and_then(relative) else {
            return cgroup;
        };
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let hierarchies = hierarchies(&own, Path::new(MOUNT).join("cgroup.controllers").exists());
        let place = |(root, before): &(PathBuf, PathBuf)| (before.clone(), root.join(&path));
        cgroup.places = hierarchies.iter().map(place).collect();
        let list: Vec<String> =
            cgroup.places.iter().map(|(_, place)| place.display().to_string()).collect();
        // First, so that whatever was made is known to `delete`.
        let _ = std::fs::write(bundle.join(CGROUPS), list.join("\n"));
        for ((root, _), (_, place)) in hierarchies.iter().zip(&cgroup.places) {
            if let Err(error) = join(root, place, memory + BESIDE) {
                warn!(?place, %error, "the VM is not in its container's cgroup");
            }
        }
        cgroup
    }

    /// Goes back to where we came from, and removes it. Nobody else may be in it any more.
    pub fn leave(&self) {
        for (before, _) in &self.places {
            let _ = std::fs::write(before.join("cgroup.procs"), "0");
        }
        remove_cgroups(&self.bundle);
    }
}

fn join(root: &Path, place: &Path, limit: u64) -> io::Result<()> {
    std::fs::create_dir_all(place)?;
    // Version 2: what is above has to hand the controllers down.
    for above in place.ancestors().skip(1).take_while(|above| above.starts_with(root)) {
        let file = above.join("cgroup.subtree_control");
        if file.exists() {
            let _ = std::fs::write(file, "+memory +cpu +pids");
        }
    }
    for file in ["memory.max", "memory.limit_in_bytes"].map(|file| place.join(file)) {
        if file.exists() {
            std::fs::write(file, limit.to_string())?;
        }
    }
    std::fs::write(place.join("cgroup.procs"), "0")
}

/// The hierarchies to use, and where in each of them we are. `unified` says that there is only version 2.
fn hierarchies(own: &str, unified: bool) -> Vec<(PathBuf, PathBuf)> {
    let mount = Path::new(MOUNT);
    let place = |root: PathBuf, path: &str| {
        let before = root.join(path.trim_start_matches('/'));
        (root, before)
    };
    let lines = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?))
    });
    let known = lines.filter_map(|(controllers, path)| match unified {
        true => controllers.is_empty().then(|| place(mount.to_owned(), path)),
        false => controllers
            .split(',')
            .any(|controller| V1.contains(&controller))
            .then(|| place(mount.join(controllers), path)),
    });
    known.collect()
}

/// A path below the mount: of cgroupfs as it is, of systemd (`slice:prefix:name`) as systemd would make it.
fn relative(path: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = path.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            let stem = slice.strip_suffix(".slice")?;
            let mut below = PathBuf::new();
            // a-b.slice is below a.slice.
            for (at, _) in stem.match_indices('-') {
                below.push(format!("{}.slice", &stem[..at]));
            }
            below.join(slice).join(format!("{prefix}-{name}.scope"))
        }
        _ => PathBuf::from(path.trim_start_matches('/')),
    };
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && path.components().next().is_some()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_cgroupfs_or_systemd_mean_it_and_none_leads_out() {
        let of = |path: &str| relative(path).map(|path| path.display().to_string());
        assert_eq!(of("/default/c1").as_deref(), Some("default/c1"));
        assert_eq!(of("system.slice:ctr:c1").as_deref(), Some("system.slice/ctr-c1.scope"));
        assert_eq!(
            of("kubepods-besteffort-pod1.slice:cri-containerd:c1").as_deref(),
            Some(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c1.scope"
            )
        );
        for bad in ["", "/", "/../x", "a/../../b", "x:y:z"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let own = "4:memory:/a\n2:cpu,cpuacct:/\n1:name=systemd:/s\n0::/u\n";
        let v1 = [("memory", "memory/a"), ("cpu,cpuacct", "cpu,cpuacct/")];
        let path = |path: &str| Path::new(MOUNT).join(path);
        assert_eq!(hierarchies(own, false), v1.map(|(root, before)| (path(root), path(before))));
        assert_eq!(hierarchies(own, true), [(MOUNT.into(), path("u"))]);
    }
}

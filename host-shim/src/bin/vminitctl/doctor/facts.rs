//! What a host is like, as far as VMs and containerd are concerned.
//!
//! Never: judges, changes anything, or fails: what cannot be seen is not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use host_shim::locate;
use host_shim::vm::Arch;

/// Where containerd keeps what snapshotters have made, by default.
const CONTAINERD_ROOT: &str = "/var/lib/containerd";
/// Its configuration, by default.
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// Its socket, by default.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// What containerd starts for our runtime.
const SHIM: &str = "containerd-shim-vminitd-v1";

/// What was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whose guests were asked for.
    pub arch: Arch,
    /// Whether /dev/kvm can be opened, or why not.
    pub kvm: Result<(), String>,
    /// Bytes that can be had without swapping.
    pub memory_available: u64,
    /// Where QEMU is, or what was looked for.
    pub qemu: Result<String, String>,
    /// What it says of itself.
    pub qemu_version: Option<String>,
    /// Whether there is a device for taps.
    pub tun: bool,
    /// Whether the kernel counts and limits memory by cgroups.
    pub memory_cgroup: bool,
    /// What belongs to a VM, each with where it is, or what was looked for.
    pub programs: Vec<(&'static str, Result<String, String>)>,
    /// What the containerd on PATH says of itself.
    pub containerd_version: Option<String>,
    /// Whether it listens where everybody looks for it.
    pub containerd_socket: bool,
    /// The shim, if PATH has it.
    pub shim: Option<String>,
    /// containerd's configuration, if it can be read.
    pub config: Option<String>,
    /// Whether our runtime is in it.
    pub config_names_runtime: bool,
    /// Snapshotters that have a directory, by name.
    pub snapshotters: Vec<String>,
    /// What mkfs.erofs says of itself.
    pub erofs_version: Option<String>,
}

/// Looks, for guests of this architecture.
pub fn gather(arch: Arch) -> Facts {
    let found = |what: Result<PathBuf, locate::LocateError>| match what {
        Ok(path) => Ok(path.display().to_string()),
        Err(error) => Err(error.to_string()),
    };
    let qemu = found(locate::qemu(arch));
    let config = fs::read_to_string(CONTAINERD_CONFIG).ok();
    Facts {
        arch,
        kvm: match fs::File::options().read(true).write(true).open("/dev/kvm") {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        },
        memory_available: memory_available(
            &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        ),
        qemu_version: qemu.as_ref().ok().and_then(|path| first_line(path, "--version")),
        qemu,
        tun: Path::new("/dev/net/tun").exists(),
        memory_cgroup: has_memory(
            &fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default(),
            &fs::read_to_string("/proc/cgroups").unwrap_or_default(),
        ),
        programs: vec![
            ("guest kernel", found(locate::kernel(arch, None))),
            ("guest's initramfs", found(locate::initramfs(arch, None))),
            ("vminit-vmm", found(locate::vmm())),
            ("virtiofsd", found(locate::virtiofsd())),
        ],
        containerd_version: first_line("containerd", "--version"),
        containerd_socket: Path::new(CONTAINERD_SOCKET).exists(),
        shim: on_path(SHIM),
        config_names_runtime: config
            .as_ref()
            .is_some_and(|text| text.contains("io.containerd.vminitd.v1")),
        config,
        snapshotters: snapshotters(Path::new(CONTAINERD_ROOT)),
        erofs_version: first_line("mkfs.erofs", "--version")
            .or_else(|| first_line("mkfs.erofs", "-V")),
    }
}

fn memory_available(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// By cgroup v2's list of controllers, or by v1's table: name, hierarchy, count, enabled.
fn has_memory(v2: &str, v1: &str) -> bool {
    let in_v1 = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], ["memory", _, _, "1"])
    };
    v2.split_whitespace().any(|name| name == "memory") || v1.lines().any(in_v1)
}

fn first_line(program: &str, flag: &str) -> Option<String> {
    let output =
        Command::new(program).arg(flag).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

fn on_path(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.map(|path| path.display().to_string())
}

fn snapshotters(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        // Every plugin has a directory from the first start on; only one that was used has something in it.
        let name = entry.file_name().into_string().ok()?;
        let used = fs::read_dir(entry.path().join("snapshots"))
            .is_ok_and(|mut dir| dir.next().is_some())
            || entry.path().join("metadata.db").exists();
        used.then(|| name.strip_prefix("io.containerd.snapshotter.v1.").map(str::to_owned))
            .flatten()
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says() {
        assert_eq!(memory_available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), 2 << 20);
        assert_eq!(memory_available("nonsense"), 0);
        assert!(has_memory("cpu memory pids\n", ""));
        assert!(has_memory("", "#subsys_name\thierarchy\nmemory\t4\t20\t1\n"));
        assert!(!has_memory("cpu pids", "memory\t4\t20\t0\n"));
    }

    #[test]
    fn a_snapshotter_counts_when_it_was_used() {
        let root = tempfile::tempdir().unwrap();
        for (name, used) in [("overlayfs", true), ("native", false)] {
            let dir = root.path().join(format!("io.containerd.snapshotter.v1.{name}"));
            fs::create_dir_all(dir.join("snapshots")).unwrap();
            if used {
                fs::write(dir.join("metadata.db"), "").unwrap();
            }
        }
        fs::create_dir(root.path().join("io.containerd.content.v1.content")).unwrap();
        assert_eq!(snapshotters(root.path()), ["overlayfs"]);
    }

    #[test]
    fn looking_at_this_host_ends_well() {
        let facts = gather(Arch::HOST);
        assert!(facts.memory_available > 0);
    }
}

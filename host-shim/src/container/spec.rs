//! The container that a person gets who says nothing else: what containerd's own default is, less a terminal.
//!
//! See the OCI runtime specification, config.md and config-linux.md.

use oci_spec::runtime::Spec;
use serde_json::json;

/// containerd's default capabilities.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Where programs are looked for.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files of /proc and /sys that tell about the machine or change it.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

/// Parts of /proc that a container may only read.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a person says about the process.
#[derive(Clone, Debug, Default)]
pub struct ProcessWish {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `KEY=VALUE` each; PATH is there already and may be replaced.
    pub env: Vec<String>,
    /// The host name in the container.
    pub hostname: String,
}

/// A spec with namespaces of its own but for users, uid 0, and its root filesystem in `rootfs` of the bundle.
pub fn default_spec(wish: &ProcessWish) -> Spec {
    let mut env = vec![PATH.to_owned()];
    for entry in &wish.env {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
        env.retain(|other| other.split_once('=').is_none_or(|(name, _)| name != key));
        env.push(entry.clone());
    }
    let spec = json!({
        "ociVersion": "1.2.0",
        "hostname": wish.hostname,
        "root": { "path": "rootfs" },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": wish.args,
            "env": env,
            "cwd": "/",
            "capabilities": {
                "bounding": DEFAULT_CAPABILITIES, "effective": DEFAULT_CAPABILITIES, "permitted": DEFAULT_CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network" }, { "type": "cgroup" },
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    serde_json::from_value(spec).expect("the literal above is a runtime spec")
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> serde_json::Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_of_the_wish_replaces_the_default_path_and_keeps_its_order() {
        let env = ["A=1", "PATH=/bin", "A=2"].map(str::to_owned).to_vec();
        let spec = default_spec(&ProcessWish { env, ..Default::default() });
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_deref().unwrap(), ["PATH=/bin", "A=2"]);
    }

    #[test]
    fn user_namespace_is_the_only_one_shared_with_the_guest() {
        let spec = default_spec(&ProcessWish::default());
        let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        assert_eq!(namespaces.len(), 6);
        assert!(namespaces.iter().all(|n| n.typ() != oci_spec::runtime::LinuxNamespaceType::User));
    }
}

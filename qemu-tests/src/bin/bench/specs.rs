//! The containers' specs: the same for both runtimes.

use host_shim::container::DEFAULT_CAPABILITIES;
use qemu_tests::ALL_CAPABILITIES;
use serde_json::{Value, json};

/// The directory of the images that is every container's root filesystem.
const ROOTFS: &str = "/bench/rootfs";

/// A container with what a usual one has: proc, dev, devpts and sysfs; all namespaces but user; a memory limit, one
/// masked and one read-only path.
pub fn container(arguments: &[&str], cgroups_path: &str, seccomp: Option<Value>) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"];
    let namespaces = namespaces.map(|kind| json!({ "type": kind }));
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "hostname": "bench",
        "root": { "path": ROOTFS },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": DEFAULT_CAPABILITIES, "effective": DEFAULT_CAPABILITIES,
                "permitted": DEFAULT_CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": namespaces,
            "resources": { "memory": { "limit": 64 << 20 } },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    });
    if let Some(seccomp) = seccomp {
        spec["linux"]["seccomp"] = seccomp;
    }
    spec
}

/// The same on a root filesystem of its own, which its Create has mounts for, and without a limit to its memory, which
/// what it reads counts for.
pub fn on_own_rootfs(arguments: &[&str]) -> Value {
    let mut spec = container(arguments, "", None);
    spec["root"]["path"] = json!("rootfs");
    spec["linux"]["resources"] = json!({});
    spec
}

/// A container that measures the guest from inside: the guest's root on /guest, the guest's namespaces but for mounts.
pub fn driver() -> Value {
    let mut spec = container(&["/bin/bench-guest", "drive"], "", None);
    spec["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    // It reads disks as well.
    spec["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    // A host name needs a namespace of its own.
    spec.as_object_mut().expect("an object").remove("hostname");
    spec["annotations"] = json!({ "io.vminitd.vsock": "allow" });
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(ALL_CAPABILITIES.as_slice());
    }
    spec["process"]["noNewPrivileges"] = json!(false);
    let guest = json!({ "destination": "/guest", "type": "bind", "source": "/", "options": ["rbind", "rprivate"] });
    spec["mounts"].as_array_mut().expect("an array").push(guest);
    spec
}

/// A profile as large as containerd's default: some 350 calls allowed for three architectures, the rest refused.
pub fn seccomp() -> Value {
    let names: Vec<&str> = include_str!("syscalls.txt").split_ascii_whitespace().collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": names, "action": "SCMP_ACT_ALLOW" },
            {
                "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }],
            },
            {
                "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }],
            },
            {
                "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 0xffff_ffff_u32, "op": "SCMP_CMP_EQ" }],
            },
            {
                "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }],
            },
        ],
    })
}

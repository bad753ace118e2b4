//! From an OCI config to the [`Plan`] of a container, where it asks for nothing unusual.
//!
//! Promises: there is a plan only if everything that the config says is in it, or has no meaning
//! here; whatever is not known to be so is left to libcontainer, which also says what is wrong with
//! a config that is no use.
//! Never: looks at anything but the config.
//!
//! Left to libcontainer: hooks, terminals, user and time namespaces, a mount or cgroup namespace that is not new,
//! sysctls, propagation into the guest, mapped and recursively changed mounts, mounts in /proc, no tmpfs on /dev.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Hooks, Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxPersonalityDomain,
    Mount as MountSpec, Spec,
};

use super::exec_spec;
use crate::link::plan::{Device, Mount, Plan, What};
use crate::sys::fsmount::{
    ATTR_ATIME_FIELD, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_RDONLY, ATTR_RELATIME, ATTR_STRICTATIME,
};

/// The plan, if there is one. The config's paths are absolute already.
pub fn plan(spec: &Spec) -> Option<Plan> {
    let linux = spec.linux().as_ref()?;
    let process = spec.process().as_ref()?;
    let root = spec.root().as_ref()?;
    let unusual = !spec.version().starts_with("1.")
        || spec.hooks().as_ref().is_some_and(has_hooks)
        || process.terminal().unwrap_or(false)
        || is_unusual(linux);
    if unusual {
        return None;
    }
    let (new_namespaces, joined) = namespaces(linux)?;
    let names = spec.hostname().is_some() || spec.domainname().is_some();
    if names && new_namespaces & libc::CLONE_NEWUTS == 0 {
        return None;
    }
    let own_cgroups = new_namespaces & libc::CLONE_NEWCGROUP != 0;
    let mounts = spec.mounts().iter().flatten().map(|mount| self::mount(mount, own_cgroups));
    let mounts: Vec<Mount> = mounts.collect::<Option<_>>()?;
    mounts.iter().find(|mount| is_tmpfs_on_dev(mount))?;
    let personality = linux.personality().as_ref().map(|personality| match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    });
    let mut program = exec_spec::program(process).ok()?;
    // They are an exec's.
    (program.cpus_before, program.cpus) = (vec![], vec![]);
    let paths = |list: &Option<Vec<String>>| list.iter().flatten().map(PathBuf::from).collect();
    Some(Plan {
        rootfs: root.path().clone(),
        read_only: root.readonly().unwrap_or(false),
        propagation: match linux.rootfs_propagation().as_deref() {
            None | Some("slave") => libc::MS_SLAVE,
            Some("private") => libc::MS_PRIVATE,
            Some(_) => return None,
        },
        new_namespaces,
        joined,
        host_name: spec.hostname().clone(),
        domain_name: spec.domainname().clone(),
        mounts,
        devices: devices(linux.devices().as_deref().unwrap_or_default())?,
        masked: paths(linux.masked_paths()),
        read_only_paths: paths(linux.readonly_paths()),
        personality,
        program,
    })
}

#[allow(deprecated, reason = "prestart hooks are run all the same")]
fn has_hooks(hooks: &Hooks) -> bool {
    [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ]
    .into_iter()
    .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

fn is_unusual(linux: &Linux) -> bool {
    let flags = linux.personality().as_ref().and_then(|personality| personality.flags().as_ref());
    linux.net_devices().is_some()
        || linux.uid_mappings().as_ref().is_some_and(|list| !list.is_empty())
        || linux.gid_mappings().as_ref().is_some_and(|list| !list.is_empty())
        || linux.sysctl().as_ref().is_some_and(|all| !all.is_empty())
        || linux.intel_rdt().is_some()
        || linux.memory_policy().is_some()
        || linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty())
        || linux.mount_label().as_ref().is_some_and(|label| !label.is_empty())
        || flags.is_some_and(|flags| !flags.is_empty())
}

/// What it gets of its own, and what it shares.
fn namespaces(linux: &Linux) -> Option<(i32, Vec<(i32, PathBuf)>)> {
    use LinuxNamespaceType as Type;
    let (mut new, mut joined) = (0, vec![]);
    let mut seen = HashSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if !seen.insert(kind as i32) {
            return None;
        }
        match (kind, namespace.path()) {
            (Type::User | Type::Time, _) => return None,
            (_, None) => new |= kind as i32,
            (Type::Pid | Type::Ipc | Type::Uts | Type::Network, Some(path)) => {
                joined.push((kind as i32, path.clone()));
            }
            (Type::Mount | Type::Cgroup, Some(_)) => return None,
        }
    }
    (new & libc::CLONE_NEWNS != 0).then_some((new, joined))
}

/// What an option does to a mount's attributes: name, those that it sets, those that it takes away.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", ATTR_RDONLY, 0),
    ("rw", 0, ATTR_RDONLY),
    ("nosuid", ATTR_NOSUID, 0),
    ("suid", 0, ATTR_NOSUID),
    ("nodev", ATTR_NODEV, 0),
    ("dev", 0, ATTR_NODEV),
    ("noexec", ATTR_NOEXEC, 0),
    ("exec", 0, ATTR_NOEXEC),
    ("nodiratime", ATTR_NODIRATIME, 0),
    ("diratime", 0, ATTR_NODIRATIME),
    ("noatime", ATTR_NOATIME, ATTR_ATIME_FIELD),
    ("relatime", ATTR_RELATIME, ATTR_ATIME_FIELD),
    ("strictatime", ATTR_STRICTATIME, ATTR_ATIME_FIELD),
];

/// Without effect: a mount's propagation in a container is the root's.
const PASSED_OVER: &[&str] = &[
    "defaults",
    "bind",
    "rbind",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
];

/// Of options that change what they are put on, or what is below it, in another way.
const UNUSUAL: &[&str] = &[
    "sync",
    "async",
    "dirsync",
    "remount",
    "mand",
    "nomand",
    "atime",
    "norelatime",
    "nostrictatime",
    "idmap",
    "ridmap",
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rnodiratime",
    "rdiratime",
    "rrelatime",
    "rnorelatime",
    "rnoatime",
    "ratime",
    "rstrictatime",
    "rnostrictatime",
    "rnosymfollow",
    "rsymfollow",
    "nosymfollow",
    "symfollow",
    "tmpcopyup",
    "copyup",
];

fn mount(mount: &MountSpec, own_cgroups: bool) -> Option<Mount> {
    let place = mount.destination();
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    let kind = mount.typ().as_deref().unwrap_or_default();
    let is_bind = kind == "bind" || has("bind") || has("rbind");
    let is_proc = kind == "proc" && place == Path::new("/proc");
    if !is_plain(place) || place.starts_with("/proc") && !is_proc {
        return None;
    }
    let (mut set, mut clear) = (0, 0);
    let mut rest = vec![];
    for option in options {
        if UNUSUAL.contains(&option.as_str()) {
            return None;
        }
        if let Some((_, sets, clears)) = ATTRIBUTES.iter().find(|(name, ..)| name == option) {
            set = set & !clears | sets;
            // What a bind has of its own is taken from it for an access time alone.
            clear |= clears & ATTR_ATIME_FIELD;
        } else if !PASSED_OVER.contains(&option.as_str()) && !option.is_empty() {
            rest.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.clone(), None),
            });
        }
    }
    let source = mount.source().as_ref()?;
    let what = if is_bind {
        What::Bind { source: source.clone(), recursive: has("rbind") }
    } else {
        let kind = match kind {
            "" => return None,
            "cgroup" if own_cgroups => {
                rest.clear();
                "cgroup2"
            }
            "cgroup" => return None,
            kind => kind,
        };
        let source = source.to_str()?.to_owned();
        What::Filesystem { kind: kind.to_owned(), source, options: rest }
    };
    Some(Mount { what, place: place.clone(), set, clear })
}

/// Absolute, and the same wherever it is looked at.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn is_tmpfs_on_dev(mount: &Mount) -> bool {
    let is_tmpfs = matches!(&mount.what, What::Filesystem { kind, .. } if kind == "tmpfs");
    is_tmpfs && mount.place == Path::new("/dev")
}

/// Nodes that every container has, below /dev: name, major and minor number.
const USUAL: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("random", 1, 8),
];

fn devices(named: &[LinuxDevice]) -> Option<Vec<Device>> {
    let mut all: Vec<Device> = named.iter().map(device).collect::<Option<_>>()?;
    for (name, major, minor) in USUAL {
        if all.iter().all(|device| device.place != Path::new(name)) {
            all.push(Device {
                place: name.into(),
                mode: libc::S_IFCHR | 0o666,
                number: libc::makedev(*major, *minor),
                uid: None,
                gid: None,
            });
        }
    }
    Some(all)
}

fn device(device: &LinuxDevice) -> Option<Device> {
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return None,
    };
    let place = device.path();
    let below = place.strip_prefix("/dev").ok().filter(|below| *below != Path::new(""))?;
    let (major, minor) = (device.major().try_into().ok()?, device.minor().try_into().ok()?);
    is_plain(place).then(|| Device {
        place: below.to_owned(),
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        number: libc::makedev(major, minor),
        uid: device.uid(),
        gid: device.gid(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config() -> Value {
        json!({
            "ociVersion": "1.2.0", "hostname": "h", "root": { "path": "/r", "readonly": true },
            "process": { "cwd": "/", "args": ["sh"], "user": { "uid": 1, "gid": 2 } },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "ro", "rw"] },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["strictatime", "mode=755"] },
                { "destination": "/data", "type": "none", "source": "/a", "options": ["rbind", "noatime", "rprivate"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "x=1"] },
            ],
            "linux": {
                "namespaces": [
                    { "type": "mount" }, { "type": "uts" }, { "type": "cgroup" }, { "type": "network", "path": "/n" },
                ],
                "devices": [{ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "uid": 7 }],
                "maskedPaths": ["/proc/kcore"],
            },
        })
    }

    fn planned(config: &Value) -> Option<Plan> {
        plan(&serde_json::from_slice(&serde_json::to_vec(config).unwrap()).unwrap())
    }

    #[test]
    fn usual_config_becomes_a_plan() {
        let plan = planned(&config()).unwrap();
        let new = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
        assert_eq!(plan.new_namespaces, new);
        assert_eq!(plan.joined, [(libc::CLONE_NEWNET, PathBuf::from("/n"))]);
        assert!(plan.read_only && plan.program.uid == 1 && plan.host_name.as_deref() == Some("h"));
        let [proc, dev, data, cgroup] = plan.mounts.as_slice() else { panic!("{plan:?}") };
        assert_eq!(proc.set, ATTR_NOSUID, "the last option wins");
        assert_eq!((dev.set, dev.clear), (ATTR_STRICTATIME, ATTR_ATIME_FIELD));
        let options = vec![("mode".to_owned(), Some("755".to_owned()))];
        let (kind, source) = ("tmpfs".to_owned(), "tmpfs".to_owned());
        assert_eq!(dev.what, What::Filesystem { kind, source, options });
        assert_eq!(data.what, What::Bind { source: "/a".into(), recursive: true });
        assert_eq!((data.set, data.clear), (ATTR_NOATIME, ATTR_ATIME_FIELD));
        let (kind, source) = ("cgroup2".to_owned(), "cgroup".to_owned());
        assert_eq!(cgroup.what, What::Filesystem { kind, source, options: vec![] });
        let tun = plan.devices.first().unwrap();
        assert_eq!((tun.place.to_str(), tun.mode), (Some("net/tun"), libc::S_IFCHR | 0o666));
        assert_eq!((tun.number, tun.uid), (libc::makedev(10, 200), Some(7)));
        assert_eq!(plan.devices.len(), 7);
        assert_eq!(plan.masked, [PathBuf::from("/proc/kcore")]);
    }

    #[test]
    fn whatever_is_unusual_is_left_to_libcontainer() {
        let mount = |options: &[&str]| json!({ "destination": "/x", "type": "tmpfs", "source": "x", "options": options });
        let unusual: &[(&str, Value)] = &[
            ("/hooks", json!({ "poststop": [{ "path": "/h" }] })),
            ("/process/terminal", json!(true)),
            ("/process/args", json!([])),
            ("/ociVersion", json!("2.0.0")),
            ("/linux/namespaces", json!([{ "type": "uts" }, { "type": "cgroup" }])),
            ("/linux/namespaces", json!([{ "type": "mount" }, { "type": "cgroup" }])),
            ("/linux/namespaces/3", json!({ "type": "user" })),
            ("/linux/namespaces/3", json!({ "type": "time" })),
            ("/linux/namespaces/3", json!({ "type": "mount", "path": "/m" })),
            ("/linux/namespaces/2", json!({ "type": "cgroup", "path": "/c" })),
            ("/linux/namespaces/2", json!({ "type": "ipc" })),
            ("/linux/sysctl", json!({ "a": "b" })),
            ("/linux/rootfsPropagation", json!("shared")),
            ("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 1, "size": 1 }])),
            ("/linux/devices/0/path", json!("/etc/x")),
            ("/linux/devices/0/path", json!("/dev/../x")),
            ("/linux/devices/0/type", json!("a")),
            ("/mounts/2", mount(&["rro"])),
            ("/mounts/2", mount(&["idmap"])),
            ("/mounts/2/destination", json!("/proc/sys")),
            ("/mounts/2/destination", json!("/a/../b")),
            ("/mounts/2/destination", json!("relative")),
            ("/mounts/2/destination", json!("/")),
            ("/mounts/1/destination", json!("/other")),
            ("/mounts/1/type", json!("ramfs")),
        ];
        for (at, value) in unusual {
            let mut config = config();
            let (above, name) = at.rsplit_once('/').unwrap();
            match config.pointer_mut(above).unwrap() {
                Value::Array(list) => list[name.parse::<usize>().unwrap()] = value.clone(),
                object => object[name] = value.clone(),
            }
            assert_eq!(planned(&config), None, "{at} {value}");
        }
    }
}

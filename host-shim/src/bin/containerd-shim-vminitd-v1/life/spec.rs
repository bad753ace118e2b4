//! A container's config.json, changed from what it means on the host into what it is to mean in the guest.
//!
//! | field | becomes | why |
//! |---|---|---|
//! | `root.path` | `rootfs` | the guest mounts it in its own bundle |
//! | sources of bind mounts | where the guest has them | a path of the host means nothing there |
//! | a bind mount on /dev/shm | the guest's own | memory that is shared through a file server is none |
//! | `linux.namespaces`: a path of a process in this VM | stays | pods share namespaces of their sandbox |
//! | any other path of a namespace | gone | that namespace is the host's |
//! | the network namespace | gone, when the VM has a network | the VM's interface is the container's |
//! | `hooks` for the host | gone | the shim runs them: see `hooks` |
//! | `linux.cgroupsPath`, `linux.intelRdt` | gone | the host's |
//!
//! Promises: what it does not know stays as it is. Never: looks at a path.

use std::path::{Path, PathBuf};

use host_shim::container::user_network::FILES;
use serde_json::{Value, json};

/// Hooks that run on the host, in the runtime's namespaces (config.md of the OCI runtime specification).
pub const HOST_HOOKS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

/// A pod's memory that is shared between processes, in the guest.
pub const GUEST_SHM: &str = "/run/shm";

/// A bind mount of something that is on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Which mount of the config.
    pub index: usize,
    /// What is mounted; absolute.
    pub source: PathBuf,
    /// Where, in the container.
    pub destination: PathBuf,
    /// The container cannot write it.
    pub read_only: bool,
}

/// What a container's namespaces are to be.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// Pids of the guest that containerd knows: the containers' of this VM.
    pub pids: &'a [u32],
    /// The pid by which containerd knows the init that the VM was made for, and the guest's for it.
    pub holder: Option<(u32, u32)>,
    /// Whether containers have the VM's network.
    pub network: bool,
    /// Files that the root filesystem has no place for: it cannot be written, and they are not there.
    pub placeless: &'a [&'static str],
}

/// The bind mounts whose sources are to be had in the guest. Relative sources are below `bundle`.
pub fn binds(config: &Value, bundle: &Path) -> Vec<Bind> {
    let mounts = config["mounts"].as_array().map_or(&[][..], Vec::as_slice);
    let bind = |(index, mount): (usize, &Value)| {
        let options = options(mount);
        let is_bind =
            mount["type"] == "bind" || options.iter().any(|o| *o == "bind" || *o == "rbind");
        let source = mount["source"].as_str().filter(|_| is_bind)?;
        let destination = PathBuf::from(mount["destination"].as_str()?);
        let last = options.iter().rfind(|word| matches!(**word, "ro" | "rro" | "rw"));
        let read_only = last.is_some_and(|word| *word != "rw");
        Some(Bind { index, source: bundle.join(source), destination, read_only })
    };
    let all = mounts.iter().enumerate().filter_map(bind);
    all.filter(|bind| bind.destination != Path::new("/dev/shm")).collect()
}

/// Changes `config`. `places` has the guest's source for each of [`binds`].
pub fn change(config: &mut Value, places: &[(usize, String)], around: Around<'_>) {
    config["root"]["path"] = "rootfs".into();
    for (index, place) in places {
        config["mounts"][*index]["source"] = place.as_str().into();
    }
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let bound = options(mount).iter().any(|option| *option == "bind" || *option == "rbind");
        if mount["destination"] == "/dev/shm" && (bound || mount["type"] == "bind") {
            mount["source"] = GUEST_SHM.into();
        }
    }
    if around.network {
        share_network_files(config, around.placeless);
    }
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
        linux.remove("intelRdt");
        if let Some(namespaces) = linux.get_mut("namespaces").and_then(Value::as_array_mut) {
            namespaces.retain_mut(|namespace| keep(namespace, around));
        }
    }
    if let Some(hooks) = config["hooks"].as_object_mut() {
        hooks.retain(|name, _| !HOST_HOOKS.contains(&name.as_str()));
    }
}

/// Binds the guest's own files about its network, where nobody has said others.
fn share_network_files(config: &mut Value, placeless: &[&str]) {
    if !config["mounts"].is_array() {
        config["mounts"] = json!([]);
    }
    let Some(mounts) = config["mounts"].as_array_mut() else { return };
    for file in FILES.into_iter().filter(|file| !placeless.contains(file)) {
        if !mounts.iter().any(|mount| mount["destination"] == file) {
            let options = ["bind", "ro", "nosuid", "nodev", "noexec"];
            mounts.push(
                json!({ "destination": file, "type": "bind", "source": file, "options": options }),
            );
        }
    }
}

/// Changes a namespace; false: it goes.
fn keep(namespace: &mut Value, around: Around<'_>) -> bool {
    if namespace["type"] == "network" && around.network {
        return false;
    }
    let Some(path) = namespace["path"].as_str() else { return true };
    let mut parts = path.strip_prefix("/proc/").unwrap_or_default().splitn(2, '/');
    let pid = parts.next().and_then(|pid| pid.parse().ok());
    if let (Some((host, guest)), Some(rest)) = (around.holder, parts.next())
        && pid == Some(host)
    {
        namespace["path"] = format!("/proc/{guest}/{rest}").into();
        return true;
    }
    if !pid.is_some_and(|pid| around.pids.contains(&pid)) {
        namespace.as_object_mut().map(|namespace| namespace.remove("path"));
    }
    true
}

fn options(mount: &Value) -> Vec<&str> {
    mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(mut config: Value, around: Around<'_>) -> Value {
        change(&mut config, &[], around);
        config
    }

    const ALONE: Around<'static> =
        Around { pids: &[], holder: None, network: false, placeless: &[] };

    #[test]
    fn only_what_is_bound_from_the_host_is_to_be_had_in_the_guest() {
        let config = json!({ "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind", "ro", "rw"] },
            { "destination": "/data", "source": "data", "options": ["rbind", "ro"] },
            { "destination": "/dev/shm", "type": "bind", "source": "/pod/shm", "options": ["rbind"] },
        ]});
        let bind = |index, source: &str, destination: &str, read_only| Bind {
            index,
            source: source.into(),
            destination: destination.into(),
            read_only,
        };
        let expected = [bind(1, "/h", "/etc/hosts", false), bind(2, "/bundle/data", "/data", true)];
        assert_eq!(binds(&config, Path::new("/bundle")), expected);
        let mut config = config;
        change(&mut config, &[(1, "/g/1".into()), (2, "/g/2".into())], ALONE);
        let sources: Vec<&str> = config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["source"].as_str().unwrap())
            .collect();
        assert_eq!(sources, ["proc", "/g/1", "/g/2", GUEST_SHM]);
    }

    #[test]
    fn namespaces_of_the_host_are_made_anew_and_those_of_the_pod_shared() {
        let config = json!({ "linux": { "cgroupsPath": "/x", "namespaces": [
            { "type": "pid" },
            { "type": "ipc", "path": "/proc/41/ns/ipc" },
            { "type": "uts", "path": "/proc/1/ns/uts" },
            { "type": "network", "path": "/run/netns/cni-1" },
            { "type": "pid", "path": "/proc/7001/ns/pid" },
        ]}});
        let around = Around { pids: &[41], holder: Some((7001, 39)), ..ALONE };
        let got = changed(config.clone(), around);
        let expected = json!([
            { "type": "pid" }, { "type": "ipc", "path": "/proc/41/ns/ipc" }, { "type": "uts" }, { "type": "network" },
            { "type": "pid", "path": "/proc/39/ns/pid" },
        ]);
        assert_eq!(got["linux"]["namespaces"], expected);
        assert_eq!(got["linux"].get("cgroupsPath"), None);
        let around = Around { network: true, ..around };
        let got = changed(config.clone(), around);
        assert_eq!(got["linux"]["namespaces"].as_array().unwrap().len(), 4);
        assert_eq!(got["mounts"][0]["source"], "/etc/resolv.conf");
        let got = changed(config, Around { placeless: &FILES, ..around });
        assert_eq!(got["mounts"], json!([]));
    }

    #[test]
    fn hooks_of_the_host_do_not_go_to_the_guest_and_others_do() {
        let hook = json!([{ "path": "/bin/x" }]);
        let config = json!({ "hooks": {
            "prestart": hook, "createRuntime": hook, "createContainer": hook, "startContainer": hook,
            "poststart": hook, "poststop": hook,
        }});
        let hooks = &changed(config, ALONE)["hooks"];
        let names: Vec<&String> = hooks.as_object().unwrap().keys().collect();
        assert_eq!(names, ["createContainer", "startContainer"]);
    }

    #[test]
    fn what_is_not_known_stays() {
        let config = json!({ "root": { "path": "/x", "readonly": true }, "future": { "a": [1] } });
        let expected =
            json!({ "root": { "path": "rootfs", "readonly": true }, "future": { "a": [1] } });
        let mut got = changed(config, ALONE);
        // Indexing makes what is absent null, which says the same.
        got.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        assert_eq!(got, expected);
    }
}

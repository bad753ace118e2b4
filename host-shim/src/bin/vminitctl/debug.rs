//! `vminitctl debug`: a container with tools beside another, in its namespaces.
//!
//! ```text
//! toolbox image --Bundle.Create--> a file in the guest --Create--> erofs on a loop device, namespaces by /proc/PID/ns/*
//! ```
//!
//! Promises: the target does not change; the toolbox is gone when its command has ended.
//! Never: needs anything in the VM but vminitd; a disk or a share could not be added to every VM.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use host_shim::guest::{BOOT_DEADLINE, Guest, SteadyGuest, unlimited};
use host_shim::images::kind::Kind;
use host_shim::locate;
use host_shim::vm::Arch;
use serde_json::{Value, json};
use vminitd_protocol::pb::containerd::task::v3::{
    CreateTaskRequest, DeleteRequest, StateRequest, StateResponse,
};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;

use crate::cli::DebugArgs;
use crate::process::signals::{self, Signals};
use crate::process::{Connected, ProcessError, Target, attend, stdio, term_entry, terminal};
use crate::reach::{ReachError, Reached, with_guest};

/// The image in its bundle.
const IMAGE: &str = "toolbox.image";
/// Bytes of an image: a bundle's files travel in one message of 4 MiB.
const MAX_IMAGE_BYTES: usize = 3 << 20;
/// The namespaces that are the target's.
const SHARED: [(&str, &str); 5] =
    [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];

/// Runs the command; returns its exit status.
pub fn debug(args: DebugArgs) -> Result<i32, ReachError> {
    let given = args.toolbox.as_deref().map(Toolbox::read).transpose()?;
    if args.tty {
        let wanted_by = "--tty";
        terminal::stdin_size().map_err(|source| ProcessError::NoTerminal { wanted_by, source })?;
    }
    let mut signals = signals::watch().map_err(ProcessError::Signals)?;
    let outcome = with_guest(args.vm.name.as_ref(), async |vm| {
        let told = vm.described().await?;
        let request = StateRequest { id: told.container, ..Default::default() };
        let state = vm.guest.task().state(unlimited(), &request).await;
        let state = state.map_err(|error| vm.refused(error))?;
        let image = given.map_or_else(|| Toolbox::of(told.arch), Ok)?;
        run(&args, &vm, &image, &state, &mut signals).await
    });
    outcome.map(|status| status as i32)
}

struct Toolbox {
    bytes: Vec<u8>,
    kind: Kind,
}

impl Toolbox {
    /// Ours, for guests of this architecture.
    fn of(arch: Arch) -> Result<Self, ReachError> {
        let what = format!("the toolbox for {arch}");
        Self::read(&locate::toolbox(arch).map_err(|error| local(&what, error.to_string()))?)
    }

    fn read(path: &Path) -> Result<Self, ReachError> {
        let what = format!("toolbox {path:?}");
        let bytes =
            fs::read(path).map_err(|source| ReachError::Local { what: what.clone(), source })?;
        if bytes.len() > MAX_IMAGE_BYTES {
            let text = format!("{} bytes are more than {MAX_IMAGE_BYTES}", bytes.len());
            return Err(local(&what, text));
        }
        let kind = Kind::of(&bytes).map_err(|found| local(&what, format!("it is {found}")))?;
        Ok(Self { bytes, kind })
    }
}

fn local(what: &str, text: String) -> ReachError {
    ReachError::Local { what: what.to_owned(), source: std::io::Error::other(text) }
}

async fn run(
    args: &DebugArgs,
    vm: &Reached,
    toolbox: &Toolbox,
    state: &StateResponse,
    signals: &mut Signals,
) -> Result<u32, ReachError> {
    // Keys of the system's random numbers: the only ones that std gives out.
    let id = format!("debug-{:08x}", RandomState::new().build_hasher().finish() as u32);
    let target = Target { container: id.clone(), exec: String::new() };
    let files = HashMap::from([
        ("config.json".to_owned(), spec(args, state.pid).to_string().into_bytes()),
        (IMAGE.to_owned(), toolbox.bytes.clone()),
    ]);
    let request = CreateRequest { id: id.clone(), files };
    let bundle = vm.guest.bundle().create(unlimited(), &request).await;
    let bundle = bundle.map_err(|error| vm.refused(error))?.bundle;

    let guest = SteadyGuest::new(vm.guest.clone(), BOOT_DEADLINE);
    let interactive = args.interactive || args.tty;
    let stdio = stdio::open(&guest, &target, interactive, args.tty).await?;
    let stdio = stdio.ok_or(ProcessError::Unmade(1))?;
    let root = Mount {
        r#type: toolbox.kind.name().to_owned(),
        source: format!("{bundle}/{IMAGE}"),
        options: ["ro", "loop"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let request = CreateTaskRequest {
        id: id.clone(),
        bundle,
        rootfs: vec![root],
        terminal: args.tty,
        stdin: stdio.stdin_uri(),
        stdout: stdio.stdout_uri(),
        stderr: stdio.stderr_uri(),
        ..Default::default()
    };
    vm.guest.task().create(unlimited(), &request).await.map_err(|error| vm.refused(error))?;
    let exit = attend(&guest, &target, Connected { stdio, tty: args.tty }, signals, |_| {}).await;
    // Whatever comes of it: the VM may end at the same moment.
    let request = DeleteRequest { id, ..Default::default() };
    let delete = |guest: Guest| async move { guest.task().delete(unlimited(), &request).await };
    let _ = guest.once(delete).await;
    Ok(exit?.exit_status)
}

/// A container with every capability, in the namespaces of process `pid`; only its mounts are its own.
fn spec(args: &DebugArgs, pid: u32) -> Value {
    let command = match args.command.is_empty() {
        true => vec!["sh".to_owned()],
        false => args.command.clone(),
    };
    let shared = SHARED
        .iter()
        .map(|(kind, file)| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
    let namespaces: Vec<Value> = shared.chain([json!({ "type": "mount" })]).collect();
    let capabilities = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "NET_BIND_SERVICE",
        "NET_ADMIN",
        "NET_RAW",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_ADMIN",
        "SYS_RESOURCE",
        "SYS_NICE",
        "SYSLOG",
        "IPC_LOCK",
    ]
    .map(|name| format!("CAP_{name}"));
    let mount = |place: &str, kind: &str, options: &[&str]| json!({ "destination": place, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "terminal": args.tty,
            "user": { "uid": 0, "gid": 0 },
            "args": command,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", term_entry()],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=1m"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=64m"]),
        ],
        "linux": { "namespaces": namespaces },
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_toolbox_is_in_the_targets_namespaces_with_mounts_of_its_own() {
        let cli = Cli::parse_from(["vminitctl", "debug", "web", "--", "ps", "-a"]);
        let Command::Debug(args) = cli.command else { panic!("debug is debug") };
        let spec = spec(&args, 42);
        assert_eq!(spec["process"]["args"], json!(["ps", "-a"]));
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        for namespace in namespaces {
            let joined =
                namespace["path"].as_str().is_some_and(|path| path.starts_with("/proc/42/"));
            assert_eq!(joined, namespace["type"] != "mount", "{namespace}");
        }
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
        assert_eq!(parsed.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 6);
    }
}

//! `--net` and `--publish`: an interface of the VM on a network in its own process, which the container shares.
//!
//! Promises: when the command starts, the network is there, or a line on stderr says that it is not. Never: touches a
//! network of the host.

use host_shim::container::user_network::{self, FILES, PATIENCE_MS};
use host_shim::guest::{Guest, unlimited};
use host_shim::vm::Nic;
use oci_spec::runtime::{LinuxNamespaceType, MountBuilder, Spec};
use vminitd_protocol::pb::vminitd::v1::WaitNetworkRequest;

use super::RunError;
use crate::cli::{Net, RunArgs};

/// Whether the container is to have a network.
pub fn wanted(args: &RunArgs) -> Result<bool, RunError> {
    match (args.net, args.publish.is_empty()) {
        (Some(Net::User), _) | (None, false) => Ok(true),
        (Some(Net::None) | None, true) => Ok(false),
        (Some(Net::None), false) => Err(RunError::PublishWithoutNet),
    }
}

/// The VM's interfaces.
pub fn nics(args: &RunArgs, wanted: bool) -> Vec<Nic> {
    wanted.then(|| user_network::nic(args.publish.clone(), false)).into_iter().collect()
}

/// Words for the guest's command line.
pub fn words(spec: &Spec, wanted: bool) -> Vec<String> {
    if !wanted {
        return vec![];
    }
    let mut words = vec![user_network::word()];
    // The guest's hosts file names the guest.
    let name = spec.hostname().as_deref().filter(|name| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !name.is_empty() && name.bytes().all(fits)
    });
    words.extend(name.map(|name| format!("vminitd.hostname={name}")));
    words
}

/// Has the container use the VM's network, and the files that tell of it.
pub fn share(spec: &mut Spec) {
    if let Some(namespaces) =
        spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut())
    {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    }
    let mounts = spec.mounts_mut().get_or_insert_default();
    for file in FILES {
        if mounts.iter().any(|mount| mount.destination().as_os_str() == file) {
            continue;
        }
        let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        let mount =
            MountBuilder::default().destination(file).typ("bind").source(file).options(options);
        mounts.push(mount.build().expect("every field has a value"));
    }
}

/// Waits until the network is as it is to be.
pub async fn wait(guest: &Guest) {
    let request = WaitNetworkRequest { timeout_ms: PATIENCE_MS };
    match guest.network().wait(unlimited(), &request).await {
        Ok(answer) if answer.settled => {}
        Ok(_) => eprintln!(
            "vminitctl: the guest's network is not up after {} s; the command runs without",
            PATIENCE_MS / 1000
        ),
        Err(error) => eprintln!("vminitctl: the guest's network: {error}"),
    }
}

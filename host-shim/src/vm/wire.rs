//! A VM's description on the control socket, and back.
//! Promises: what comes off the socket passes every check that the owner's own draft passed.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use vminitd_protocol::pb::vminitd::vmm::v1 as pb;

use super::{
    Accelerator, Arch, Cid, Cmdline, CmdlineError, Description, DescriptionError, Disk, Draft,
};
use super::{MemorySize, MemorySizeError, NameError, Network, Nic, NicError, Options, Share};

/// Why a message is no description. The peer's fault: it checks with the same code before it sends.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A name or the guest's address.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemorySizeError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A network interface.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The whole.
    #[error(transparent)]
    Whole(#[from] DescriptionError),
}

impl From<&Description> for pb::VmDescription {
    fn from(vm: &Description) -> Self {
        let text = |path: &std::path::Path| absolute(path).to_string_lossy().into_owned();
        Self {
            name: vm.name().to_string(),
            arch: match vm.arch() {
                Arch::X86_64 => pb::Architecture::X8664,
                Arch::Arm64 => pb::Architecture::Arm64,
            }
            .into(),
            kernel: text(vm.kernel()),
            initramfs: vm.initramfs().map(text).unwrap_or_default(),
            cmdline: vm.cmdline().to_string(),
            memory_bytes: vm.memory().bytes(),
            cpus: vm.cpus(),
            guest_cid: vm.guest_cid().get(),
            guest_dials: vm.guest_dials().iter().copied().collect(),
            disks: vm.disks().iter().map(to_disk).collect(),
            shares: vm.shares().iter().map(to_share).collect(),
            hotplug_slots: vm.hotplug_slots().get(),
            nics: vm.nics().iter().map(to_nic).collect(),
            accelerator: match vm.accelerator() {
                Accelerator::Auto => pb::Accelerator::Auto,
                Accelerator::Hardware => pb::Accelerator::Hardware,
                Accelerator::Emulation => pb::Accelerator::Emulation,
            }
            .into(),
            rosetta: vm.options().rosetta,
            nested: vm.options().nested,
            save_and_restore: vm.options().save_and_restore,
            restore: vm
                .options()
                .restore
                .iter()
                .flat_map(|p| p.as_os_str().as_bytes().to_vec())
                .collect(),
        }
    }
}

impl TryFrom<pb::VmDescription> for Description {
    type Error = WireError;

    fn try_from(vm: pb::VmDescription) -> Result<Self, WireError> {
        let accelerator = match vm.accelerator() {
            pb::Accelerator::Auto => Accelerator::Auto,
            pb::Accelerator::Hardware => Accelerator::Hardware,
            pb::Accelerator::Emulation => Accelerator::Emulation,
        };
        let arch = match vm.arch() {
            pb::Architecture::Native => Arch::HOST,
            pb::Architecture::X8664 => Arch::X86_64,
            pb::Architecture::Arm64 => Arch::Arm64,
        };
        let draft = Draft {
            name: vm.name.try_into()?,
            arch,
            kernel: vm.kernel.into(),
            initramfs: (!vm.initramfs.is_empty()).then(|| PathBuf::from(vm.initramfs)),
            cmdline: Cmdline::parse(&vm.cmdline)?,
            memory: MemorySize::try_from(vm.memory_bytes)?,
            cpus: vm.cpus,
            guest_cid: Cid::try_from(vm.guest_cid)?,
            guest_dials: vm.guest_dials.into_iter().collect(),
            disks: vm.disks.into_iter().map(from_disk).collect::<Result<_, _>>()?,
            hotplug_slots: vm.hotplug_slots.try_into()?,
            shares: vm.shares.into_iter().map(from_share).collect::<Result<_, _>>()?,
            nics: vm.nics.into_iter().map(from_nic).collect::<Result<_, _>>()?,
            accelerator,
            options: Options {
                rosetta: vm.rosetta,
                nested: vm.nested,
                save_and_restore: vm.save_and_restore,
                restore: (!vm.restore.is_empty()).then(|| OsString::from_vec(vm.restore).into()),
            },
        };
        Ok(draft.try_into()?)
    }
}

/// vminit-vmm need not have the owner's working directory.
fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

pub(crate) fn to_disk(disk: &Disk) -> pb::Disk {
    pb::Disk {
        serial: disk.serial.to_string(),
        read_only: disk.read_only,
        path: absolute(&disk.path).to_string_lossy().into_owned(),
    }
}

pub(crate) fn from_disk(disk: pb::Disk) -> Result<Disk, NameError> {
    Ok(Disk { serial: disk.serial.try_into()?, path: disk.path.into(), read_only: disk.read_only })
}

fn to_share(share: &Share) -> pb::Share {
    pb::Share {
        tag: share.tag.to_string(),
        path: share.path.as_os_str().as_bytes().to_vec(),
        read_only: share.read_only,
    }
}

fn from_share(share: pb::Share) -> Result<Share, NameError> {
    Ok(Share {
        tag: share.tag.try_into()?,
        path: OsString::from_vec(share.path).into(),
        read_only: share.read_only,
    })
}

fn to_nic(nic: &Nic) -> pb::Nic {
    let network = match &nic.network {
        Network::User { published, removable } => pb::nic::Network::User(pb::UserNetwork {
            published: published.iter().map(ToString::to_string).collect(),
            removable: *removable,
        }),
        Network::Stream { socket } => {
            pb::nic::Network::StreamSocket(socket.to_string_lossy().into_owned())
        }
        Network::Datagram { socket } => {
            pb::nic::Network::DatagramSocket(socket.to_string_lossy().into_owned())
        }
        Network::Bridged { interface } => pb::nic::Network::Bridged(interface.clone()),
    };
    pb::Nic { mac: nic.mac.to_string(), network: Some(network) }
}

fn from_nic(nic: pb::Nic) -> Result<Nic, NicError> {
    let mac = nic.mac.parse()?;
    let network = match nic.network.ok_or(NicError::NoNetwork(mac))? {
        pb::nic::Network::User(user) => Network::User {
            published: user.published.iter().map(|p| p.parse()).collect::<Result<_, _>>()?,
            removable: user.removable,
        },
        pb::nic::Network::StreamSocket(path) => Network::Stream { socket: path.into() },
        pb::nic::Network::DatagramSocket(path) => Network::Datagram { socket: path.into() },
        pb::nic::Network::Bridged(interface) => Network::Bridged { interface },
    };
    Ok(Nic { mac, network })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::draft;
    use super::*;

    fn nics(ports: &std::collections::BTreeSet<u16>, stream: bool) -> Vec<Nic> {
        let published = ports.iter().map(|port| format!("{port}:{port}/udp").parse().unwrap());
        let user = Network::User { published: published.collect(), removable: stream };
        let socket = Network::Stream { socket: "/run/switch.sock".into() };
        let nic = |mac: &str, network| Nic { mac: mac.parse().unwrap(), network };
        let frames = Network::Datagram { socket: "/run/frames.sock".into() };
        let bridged = Network::Bridged { interface: "en0".to_owned() };
        let others = [
            nic("52:54:00:00:00:02", socket),
            nic("52:54:00:00:00:03", frames),
            nic("52:54:00:00:00:04", bridged),
        ];
        let others = others.into_iter().filter(|_| stream);
        [nic("52:54:00:00:00:01", user)].into_iter().chain(others).collect()
    }

    proptest! {
        #[test]
        fn a_description_arrives_as_it_was_sent(
            arm: bool, cpus in 1u32..=255, mebibytes in 64u64..9999, cid in 3u32..99, dials in proptest::collection::btree_set(any::<u32>(), 0..9),
            ports in proptest::collection::btree_set(1u16.., 0..9), stream: bool, rosetta: bool, nested: bool, save_and_restore: bool,
            tags in proptest::collection::btree_set("[a-z]{1,9}", 0..8), word in "[a-z]{1,9}(=[a-z ]{1,9})?",
        ) {
            let shares = tags.iter().map(|tag| Share { tag: tag.parse().unwrap(), path: format!("/{tag}").into(), read_only: true });
            let sent = Description::try_from(Draft {
                arch: if arm { Arch::Arm64 } else { Arch::X86_64 },
                cpus,
                memory: MemorySize::try_from(mebibytes << 20).unwrap(),
                guest_cid: Cid::try_from(cid).unwrap(),
                guest_dials: dials,
                shares: shares.collect(),
                nics: nics(&ports, stream),
                options: Options { rosetta, nested, save_and_restore, restore: save_and_restore.then(|| "/saved".into()) },
                cmdline: Cmdline::new().word(word).unwrap(),
                ..draft()
            }).unwrap();
            let came = Description::try_from(pb::VmDescription::from(&sent)).unwrap();
            prop_assert_eq!(format!("{came:?}"), format!("{sent:?}"));
        }

        #[test]
        fn hostile_numbers_are_refused_or_within_limits(memory_bytes in any::<u64>(), cpus in any::<u32>(), guest_cid in any::<u32>(), accelerator in any::<i32>()) {
            let good = pb::VmDescription::from(&Description::try_from(draft()).unwrap());
            if let Ok(vm) = Description::try_from(pb::VmDescription { memory_bytes, cpus, guest_cid, accelerator, ..good }) {
                prop_assert!(vm.cpus() == cpus && vm.guest_cid().get() == guest_cid && vm.memory().bytes() == memory_bytes);
            }
        }
    }
}

//! What Virtualization.framework is to be told: a VM's description in, a checked plan out.
//!
//! Promises: a plan is within what this Mac allows, and has nothing in it that the framework refuses by its own
//! documents; what was wished and is not had is an error, or a note where less will do (CPUs, memory, later disks).
//! Never: calls the framework, or looks at a file; so it is the same on every system.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::limits::MAX_DRIVER_CMDLINE_BYTES;
use crate::vm::{Accelerator, Arch, Cid, Cmdline, CmdlineError, Description, Disk, MacAddress};
use crate::vm::{Network, Options, Share};

/// What the kernel is told first. The framework's only console is a virtio one.
pub const VIRTIO_CONSOLE: &str = "console=hvc0 quiet panic=-1";

/// The framework takes whole MiB of memory only.
pub const MEMORY_UNIT: u64 = 1 << 20;

/// The tag of the share with Rosetta in it.
pub const ROSETTA_TAG: &str = "rosetta";

/// macOS, major and minor.
pub type Version = (u32, u32);

/// The first version that the programs are built for.
pub const OLDEST: Version = (13, 0);

const SAVE_AND_RESTORE: Version = (14, 0);
const NESTED: Version = (15, 0);

/// What a Mac allows, in the framework's own words.
#[derive(Clone, Debug)]
pub struct Mac {
    /// Its system.
    pub macos: Version,
    /// Its own architecture: there is no emulation.
    pub arch: Arch,
    /// minimumAllowedCPUCount to maximumAllowedCPUCount.
    pub cpus: RangeInclusive<u32>,
    /// minimumAllowedMemorySize to maximumAllowedMemorySize, in bytes.
    pub memory: RangeInclusive<u64>,
    /// VZLinuxRosettaDirectoryShare.availability.
    pub rosetta: Rosetta,
    /// isNestedVirtualizationSupported.
    pub nested: bool,
}

/// Whether a Mac can run x86_64 programs in arm64 guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rosetta {
    /// It has no Rosetta.
    NotSupported,
    /// It could have.
    NotInstalled,
    /// It can.
    Installed,
}

/// What an interface is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// VZNATNetworkDeviceAttachment.
    Nat,
    /// VZFileHandleNetworkDeviceAttachment, of a datagram socket that is connected to this one.
    Frames(PathBuf),
    /// VZBridgedNetworkDeviceAttachment, of the interface of this name. Needs an entitlement that Apple grants one by one.
    Bridged(String),
}

/// What is to be configured, in the order in which the guest finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// VZLinuxBootLoader.kernelURL.
    pub kernel: PathBuf,
    /// VZLinuxBootLoader.initialRamdiskURL.
    pub initramfs: Option<PathBuf>,
    /// VZLinuxBootLoader.commandLine.
    pub cmdline: String,
    /// CPUCount.
    pub cpus: u32,
    /// memorySize, in bytes.
    pub memory: u64,
    /// VZVirtioBlockDeviceConfiguration each; the serial is blockDeviceIdentifier.
    pub disks: Vec<Disk>,
    /// VZVirtioFileSystemDeviceConfiguration each.
    pub shares: Vec<Share>,
    /// One more of those, with VZLinuxRosettaDirectoryShare, by this tag.
    pub rosetta: Option<&'static str>,
    /// VZVirtioNetworkDeviceConfiguration each.
    pub nics: Vec<(MacAddress, Attachment)>,
    /// nestedVirtualizationEnabled.
    pub nested: bool,
    /// validateSaveRestoreSupportWithError must agree.
    pub save_and_restore: bool,
    /// restoreMachineStateFromURL, instead of a start.
    pub restore: Option<PathBuf>,
    /// Ports on which a listener stands.
    pub guest_dials: Vec<u32>,
    /// What the owner wished and gets less of; for people.
    pub notes: Vec<Note>,
}

/// Less than was wished, which will do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// More or fewer CPUs than this Mac gives a VM.
    #[error("the VM gets {given} CPUs instead of {wished}: this Mac gives one {least} to {most}")]
    Cpus {
        /// What was wished.
        wished: u32,
        /// What it gets.
        given: u32,
        /// The fewest.
        least: u32,
        /// The most.
        most: u32,
    },
    /// More or less memory than this Mac gives a VM.
    #[error(
        "the VM gets {given} MiB of memory instead of {wished}: this Mac gives one {least} to {most}"
    )]
    Memory {
        /// What was wished, in MiB.
        wished: u64,
        /// What it gets.
        given: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// The framework has none.
    #[error("no disk can be attached while the VM runs: Virtualization.framework cannot do that")]
    NoLaterDisks,
}

/// What cannot be had. The caller's fault, or the Mac's; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The system is too old.
    #[error("{what} needs macOS {}.{}, this is {}.{}", .needs.0, .needs.1, .have.0, .have.1)]
    TooOld {
        /// What for.
        what: &'static str,
        /// From which on it would do.
        needs: Version,
        /// What it is.
        have: Version,
    },
    /// There is no emulation.
    #[error("this Mac runs {mac} guests only, not {wished}")]
    Architecture {
        /// What was wished.
        wished: Arch,
        /// What it could be.
        mac: Arch,
    },
    /// There is no emulation.
    #[error("Virtualization.framework emulates nothing; leave the accelerator to us")]
    Emulation,
    /// The framework chooses it.
    #[error("the guest's vsock address is {} under Virtualization.framework, it cannot be {wished}", Cid::default().get())]
    Cid {
        /// What was wished.
        wished: u32,
    },
    /// Its limits contradict each other.
    #[error("this Mac gives a VM no {0} at all")]
    Nothing(&'static str),
    /// Its NAT has no way in.
    #[error(
        "Virtualization.framework's network has no way in: ports cannot be published on interface {0}"
    )]
    Published(MacAddress),
    /// Its frames have another form.
    #[error(
        "interface {0}: a stream of frames is not to be had under Virtualization.framework; use a socket of datagrams, or a user network"
    )]
    StreamSocket(MacAddress),
    /// The Mac has no Rosetta.
    #[error("this Mac has no Rosetta for guests")]
    NoRosetta,
    /// ... yet.
    #[error("Rosetta is not installed; run: softwareupdate --install-rosetta")]
    RosettaNotInstalled,
    /// The guest could not tell them apart.
    #[error("a share is called {ROSETTA_TAG:?}, which is Rosetta's own")]
    RosettaTag,
    /// Before the M3.
    #[error("this Mac's CPU cannot run VMs within VMs")]
    NoNested,
    /// The owner's words and ours do not fit a kernel's command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
}

/// Plans `vm` for `mac`.
pub fn plan(vm: &Description, mac: &Mac) -> Result<Plan, PlanError> {
    let options = vm.options();
    since("running VMs", OLDEST, mac)?;
    if vm.arch() != mac.arch {
        return Err(PlanError::Architecture { wished: vm.arch(), mac: mac.arch });
    }
    if vm.accelerator() == Accelerator::Emulation {
        return Err(PlanError::Emulation);
    }
    if vm.guest_cid() != Cid::default() {
        return Err(PlanError::Cid { wished: vm.guest_cid().get() });
    }
    if options.save_and_restore || options.restore.is_some() {
        since("saving a VM's state", SAVE_AND_RESTORE, mac)?;
    }
    if options.nested {
        since("running VMs within the VM", NESTED, mac)?;
        if !mac.nested {
            return Err(PlanError::NoNested);
        }
    }
    let mut notes = Vec::new();
    let cpus = cpus(vm.cpus(), mac, &mut notes)?;
    let memory = memory(vm.memory().bytes(), mac, &mut notes)?;
    if vm.hotplug_slots().get() > 0 {
        notes.push(Note::NoLaterDisks);
    }
    Ok(Plan {
        kernel: vm.kernel().to_owned(),
        initramfs: vm.initramfs().map(ToOwned::to_owned),
        cmdline: vm.cmdline().after(Cmdline::parse(VIRTIO_CONSOLE)?)?.to_string(),
        cpus,
        memory,
        disks: vm.disks().to_vec(),
        shares: vm.shares().to_vec(),
        rosetta: rosetta(vm, options, mac)?,
        nics: nics(vm)?,
        nested: options.nested,
        save_and_restore: options.save_and_restore || options.restore.is_some(),
        restore: options.restore.clone(),
        guest_dials: vm.guest_dials().iter().copied().collect(),
        notes,
    })
}

fn since(what: &'static str, needs: Version, mac: &Mac) -> Result<(), PlanError> {
    if mac.macos < needs {
        return Err(PlanError::TooOld { what, needs, have: mac.macos });
    }
    Ok(())
}

fn cpus(wished: u32, mac: &Mac, notes: &mut Vec<Note>) -> Result<u32, PlanError> {
    let (least, most) = (*mac.cpus.start(), *mac.cpus.end());
    if mac.cpus.is_empty() || most == 0 {
        return Err(PlanError::Nothing("CPU"));
    }
    let given = wished.clamp(least.max(1), most);
    if given != wished {
        notes.push(Note::Cpus { wished, given, least, most });
    }
    Ok(given)
}

/// The framework takes whole MiB only.
fn memory(wished: u64, mac: &Mac, notes: &mut Vec<Note>) -> Result<u64, PlanError> {
    let (least, most) = (mac.memory.start().div_ceil(1 << 20), mac.memory.end() >> 20);
    if least > most || most == 0 {
        return Err(PlanError::Nothing("memory"));
    }
    let wished = wished >> 20;
    let given = wished.clamp(least, most);
    if given != wished {
        notes.push(Note::Memory { wished, given, least, most });
    }
    Ok(given << 20)
}

fn rosetta(
    vm: &Description,
    options: &Options,
    mac: &Mac,
) -> Result<Option<&'static str>, PlanError> {
    match (options.rosetta, mac.rosetta) {
        (false, _) => Ok(None),
        (true, Rosetta::NotSupported) => Err(PlanError::NoRosetta),
        (true, Rosetta::NotInstalled) => Err(PlanError::RosettaNotInstalled),
        (true, Rosetta::Installed) => {
            if vm.shares().iter().any(|share| share.tag.as_str() == ROSETTA_TAG) {
                return Err(PlanError::RosettaTag);
            }
            Ok(Some(ROSETTA_TAG))
        }
    }
}

fn nics(vm: &Description) -> Result<Vec<(MacAddress, Attachment)>, PlanError> {
    let nic = |nic: &crate::vm::Nic| match &nic.network {
        Network::User { published, .. } if published.is_empty() => Ok((nic.mac, Attachment::Nat)),
        Network::User { .. } => Err(PlanError::Published(nic.mac)),
        Network::Stream { .. } => Err(PlanError::StreamSocket(nic.mac)),
        Network::Datagram { socket } => Ok((nic.mac, Attachment::Frames(socket.clone()))),
        Network::Bridged { interface } => Ok((nic.mac, Attachment::Bridged(interface.clone()))),
    };
    vm.nics().iter().map(nic).collect()
}

const _: () = assert!(VIRTIO_CONSOLE.len() < MAX_DRIVER_CMDLINE_BYTES);

#[cfg(test)]
mod tests;

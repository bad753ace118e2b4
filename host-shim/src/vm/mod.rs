//! What a VM is to be, on any hypervisor.
//!
//! Owns: [`Draft`], which anybody may fill in, and [`Description`], which exists only when every part and all parts
//! together are right. An owner checks before it asks; vminit-vmm takes what the owner sent as an allegation and
//! checks again with the same code.
//! Never: opens a file, or knows what runs the VM.

mod arch;
mod cmdline;
mod memory;
mod names;
mod nic;
mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use arch::{Arch, ArchError};
pub use cmdline::{Cmdline, CmdlineError};
pub use memory::{MemorySize, MemorySizeError};
pub use names::{Cid, HotplugSlots, NameError, Serial, Tag, VmName};
pub use nic::{MacAddress, Network, Nic, NicError, Published};
pub use wire::WireError;
pub(crate) use wire::{from_disk, to_disk};

use crate::limits::{MAX_CPUS, MAX_DISKS, MAX_GUEST_DIALS, MAX_NICS, MAX_PUBLISHED, MAX_SHARES};

/// A VM as somebody wishes it, unchecked. `Description::try_from` checks it.
#[derive(Clone, Debug)]
pub struct Draft {
    /// For people: in process lists and messages.
    pub name: VmName,
    /// Whose instructions the guest executes.
    pub arch: Arch,
    /// An uncompressed kernel (x86_64: the ELF file with a PVH note; arm64: the Image).
    pub kernel: PathBuf,
    /// Absent when a disk is the root.
    pub initramfs: Option<PathBuf>,
    /// Added behind what the driver needs.
    pub cmdline: Cmdline,
    /// How much memory.
    pub memory: MemorySize,
    /// How many CPUs.
    pub cpus: u32,
    /// The guest's vsock address.
    pub guest_cid: Cid,
    /// Ports of the host that the guest may dial; empty: none.
    pub guest_dials: BTreeSet<u32>,
    /// Disks, in the order of the guest's bus.
    pub disks: Vec<Disk>,
    /// How many disks can be attached later.
    pub hotplug_slots: HotplugSlots,
    /// Directories of the host.
    pub shares: Vec<Share>,
    /// Network interfaces, in the order of the guest's bus.
    pub nics: Vec<Nic>,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// What not every hypervisor has.
    pub options: Options,
}

/// What not every hypervisor has. Wished and not to be had, it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Share Rosetta with the guest, so that it runs x86_64 programs on an arm64 Mac.
    pub rosetta: bool,
    /// The guest may run VMs itself.
    pub nested: bool,
    /// The VM's state is to be saved.
    pub save_and_restore: bool,
    /// It begins from this saved state, of a VM of the same description; absolute.
    pub restore: Option<PathBuf>,
}

/// A disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the guest.
    pub serial: Serial,
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest cannot write it.
    pub read_only: bool,
}

/// A directory of the host that the guest may mount (virtiofs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name in the guest.
    pub tag: Tag,
    /// The directory; absolute.
    pub path: PathBuf,
    /// The guest cannot write it, whatever it mounts it as.
    pub read_only: bool,
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// The fastest that was seen to work on this machine.
    #[default]
    Auto,
    /// The machine's own virtualization; the VM does not start without.
    Hardware,
    /// Emulation, even where there is something faster.
    Emulation,
}

/// A VM that makes sense as far as can be said without looking at the machine.
#[derive(Clone, Debug)]
pub struct Description(Draft);

/// Why a draft is no description. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// No CPU, or more than a machine can have.
    #[error("{given} CPUs are not between 1 and {MAX_CPUS}")]
    Cpus {
        /// What was given.
        given: u32,
    },
    /// More of something than fits.
    #[error("{given} {what} are more than {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were given.
        given: usize,
        /// How many fit.
        most: usize,
    },
    /// The guest could not tell them apart.
    #[error("two {what} are called {name:?}")]
    Twice {
        /// `disks` or `shares`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// vminit-vmm need not have the owner's working directory.
    #[error("share {tag:?} has the path {path:?}; give an absolute one")]
    RelativePath {
        /// The share.
        tag: String,
        /// Its path.
        path: PathBuf,
    },
    /// An interface that cannot be made.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// Neither initramfs nor disk: nothing to boot from.
    #[error("no initramfs and no disk: the guest has nothing to boot from")]
    NoRoot,
}

impl TryFrom<Draft> for Description {
    type Error = DescriptionError;

    fn try_from(draft: Draft) -> Result<Self, DescriptionError> {
        if !(1..=MAX_CPUS).contains(&draft.cpus) {
            return Err(DescriptionError::Cpus { given: draft.cpus });
        }
        at_most("disks", draft.disks.len(), MAX_DISKS)?;
        at_most("shares", draft.shares.len(), MAX_SHARES)?;
        at_most("ports for the guest to dial", draft.guest_dials.len(), MAX_GUEST_DIALS)?;
        distinct("disks", draft.disks.iter().map(|disk| disk.serial.as_str()))?;
        distinct("shares", draft.shares.iter().map(|share| share.tag.as_str()))?;
        if let Some(share) = draft.shares.iter().find(|share| !share.path.is_absolute()) {
            let (tag, path) = (share.tag.to_string(), share.path.clone());
            return Err(DescriptionError::RelativePath { tag, path });
        }
        at_most("network interfaces", draft.nics.len(), MAX_NICS)?;
        let macs: Vec<String> = draft.nics.iter().map(|nic| nic.mac.to_string()).collect();
        distinct("network interfaces", macs.iter().map(String::as_str))?;
        let published: Vec<&Published> = draft.nics.iter().flat_map(Nic::published).collect();
        at_most("published ports", published.len(), MAX_PUBLISHED)?;
        let hosts: Vec<String> = published
            .iter()
            .map(|p| format!("{}:{}/{}", p.address, p.host, if p.udp { "udp" } else { "tcp" }))
            .collect();
        distinct("published ports", hosts.iter().map(String::as_str))?;
        draft.nics.iter().try_for_each(Nic::check)?;
        if draft.initramfs.is_none() && draft.disks.is_empty() {
            return Err(DescriptionError::NoRoot);
        }
        Ok(Self(draft))
    }
}

impl Description {
    /// For people: in process lists and messages.
    pub fn name(&self) -> &VmName {
        &self.0.name
    }

    /// Whose instructions the guest executes.
    pub fn arch(&self) -> Arch {
        self.0.arch
    }

    /// Where the kernel is (for vminit-vmm: where it came from).
    pub fn kernel(&self) -> &Path {
        &self.0.kernel
    }

    /// Where the initramfs is, if there is one.
    pub fn initramfs(&self) -> Option<&Path> {
        self.0.initramfs.as_deref()
    }

    /// What is added behind the driver's own words.
    pub fn cmdline(&self) -> &Cmdline {
        &self.0.cmdline
    }

    /// How much memory.
    pub fn memory(&self) -> MemorySize {
        self.0.memory
    }

    /// How many CPUs: at least one.
    pub fn cpus(&self) -> u32 {
        self.0.cpus
    }

    /// The guest's vsock address.
    pub fn guest_cid(&self) -> Cid {
        self.0.guest_cid
    }

    /// The ports of the host that the guest may dial.
    pub fn guest_dials(&self) -> &BTreeSet<u32> {
        &self.0.guest_dials
    }

    /// The disks, each with a serial of its own.
    pub fn disks(&self) -> &[Disk] {
        &self.0.disks
    }

    /// How many disks can be attached later.
    pub fn hotplug_slots(&self) -> HotplugSlots {
        self.0.hotplug_slots
    }

    /// The shares, each with a tag of its own.
    pub fn shares(&self) -> &[Share] {
        &self.0.shares
    }

    /// The network interfaces, each with a MAC address of its own.
    pub fn nics(&self) -> &[Nic] {
        &self.0.nics
    }

    /// Those of them that can be taken away from the running guest.
    pub fn removable_nics(&self) -> impl Iterator<Item = MacAddress> {
        let removable = |nic: &&Nic| matches!(nic.network, Network::User { removable: true, .. });
        self.nics().iter().filter(removable).map(|nic| nic.mac)
    }

    /// What executes the guest's instructions.
    pub fn accelerator(&self) -> Accelerator {
        self.0.accelerator
    }

    /// What not every hypervisor has.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// How many files ride along when this is sent: kernel, initramfs, disks, console.
    pub fn file_count(&self) -> usize {
        1 + usize::from(self.0.initramfs.is_some()) + self.0.disks.len() + 1
    }
}

fn at_most(what: &'static str, given: usize, most: usize) -> Result<(), DescriptionError> {
    if given > most {
        return Err(DescriptionError::TooMany { what, given, most });
    }
    Ok(())
}

fn distinct<'a>(
    what: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), DescriptionError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(DescriptionError::Twice { what, name: name.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn draft() -> Draft {
        Draft {
            name: "test".parse().unwrap(),
            arch: Arch::HOST,
            kernel: "/k/vmlinux".into(),
            initramfs: Some("/k/initramfs".into()),
            cmdline: Cmdline::new(),
            memory: "512M".parse().unwrap(),
            cpus: 1,
            guest_cid: Cid::default(),
            guest_dials: BTreeSet::new(),
            disks: Vec::new(),
            hotplug_slots: HotplugSlots::default(),
            shares: Vec::new(),
            nics: Vec::new(),
            accelerator: Accelerator::Auto,
            options: Options::default(),
        }
    }

    fn disk(serial: &str) -> Disk {
        Disk { serial: serial.parse().unwrap(), path: "/d".into(), read_only: true }
    }

    fn share(tag: &str, path: &str) -> Share {
        Share { tag: tag.parse().unwrap(), path: path.into(), read_only: true }
    }

    #[test]
    fn a_cpu_count_at_the_limit_is_taken_and_others_are_not() {
        for (cpus, good) in [(0, false), (1, true), (MAX_CPUS, true), (MAX_CPUS + 1, false)] {
            assert_eq!(Description::try_from(Draft { cpus, ..draft() }).is_ok(), good, "{cpus}");
        }
    }

    #[test]
    fn two_disks_with_one_serial_are_refused() {
        let error = Description::try_from(Draft { disks: vec![disk("a"), disk("a")], ..draft() })
            .unwrap_err();
        assert_eq!(error.to_string(), "two disks are called \"a\"");
    }

    #[test]
    fn two_shares_with_one_tag_are_refused() {
        let shares = vec![share("a", "/1"), share("a", "/2")];
        assert!(Description::try_from(Draft { shares, ..draft() }).is_err());
    }

    #[test]
    fn a_relative_share_is_refused() {
        let error =
            Description::try_from(Draft { shares: vec![share("a", "x")], ..draft() }).unwrap_err();
        assert_eq!(error.to_string(), "share \"a\" has the path \"x\"; give an absolute one");
    }

    #[test]
    fn something_to_boot_from_is_needed() {
        assert_eq!(
            Description::try_from(Draft { initramfs: None, ..draft() }).unwrap_err(),
            DescriptionError::NoRoot
        );
        assert!(
            Description::try_from(Draft { initramfs: None, disks: vec![disk("root")], ..draft() })
                .is_ok()
        );
    }

    #[test]
    fn disks_at_the_limit_are_taken_and_one_more_is_not() {
        let disks = |n: usize| (0..n).map(|i| disk(&format!("d{i}"))).collect::<Vec<_>>();
        assert!(Description::try_from(Draft { disks: disks(MAX_DISKS), ..draft() }).is_ok());
        assert!(Description::try_from(Draft { disks: disks(MAX_DISKS + 1), ..draft() }).is_err());
    }

    proptest! {
        /// The model: a description is right when no rule of this list is broken.
        #[test]
        fn a_description_exists_exactly_when_no_rule_is_broken(
            cpus in 0u32..300,
            serials in proptest::collection::vec("[ab]{1,6}", 0..70),
            tags in proptest::collection::vec(("[ab]{1,2}", "/?x"), 0..10),
            initramfs in any::<bool>(),
        ) {
            let unique = |names: Vec<&String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
            let good = (1..=255).contains(&cpus)
                && serials.len() <= 64
                && tags.len() <= 8
                && unique(serials.iter().collect())
                && unique(tags.iter().map(|(tag, _)| tag).collect())
                && tags.iter().all(|(_, path)| path.starts_with('/'))
                && (initramfs || !serials.is_empty());
            let made = Description::try_from(Draft {
                cpus,
                disks: serials.iter().map(|serial| disk(serial)).collect(),
                shares: tags.iter().map(|(tag, path)| share(tag, path)).collect(),
                initramfs: initramfs.then(|| "/i".into()),
                ..draft()
            });
            prop_assert_eq!(made.is_ok(), good);
        }
    }
}

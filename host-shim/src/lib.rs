//! The host side of vminitd: what a containerd shim and people's commands need to run containers in a VM.
//!
//! | module | what it is |
//! |---|---|
//! | [`vm`] | what a VM is to be, checked; the same on every system |
//! | [`machine`] | a running VM, as its owner has it |
//! | [`vmm`] | the control socket between a VM's owner and its `vminit-vmm` |
//! | [`ctl`] | running VMs of this host, found by name, and reached by other programs |
//! | [`qemu`], [`virtiofs`], [`vsock`] | Linux: what `vminit-vmm` drives |
//! | [`external`] | VMs in another's program, as vfkit is one |
//! | [`guest`] | what runs in the VM: its services and streams |
//! | [`container`] | containers as a host makes them |
//! | [`dials`] | ports of the host that a guest dials |
//! | [`extras`] | files for the guest itself, packed for a disk |
//! | [`images`] | disk images as root filesystems |
//! | [`vz`] | what Virtualization.framework is to be told |
//! | [`socket_path`] | Unix sockets with long paths |
//! | [`locate`] | where programs and guest files are found |
//!
//! Promises: one VM is one `vminit-vmm`; whoever owns it ends it, also by dying.
//! Never: parses in the owner's process what a guest controls, but for bytes of its console and its RPC answers.

mod chain;
pub mod container;
pub mod ctl;
pub mod dials;
pub mod external;
pub mod extras;
pub mod guest;
pub mod images;
pub mod limits;
pub mod locate;
pub mod machine;
#[cfg(target_os = "linux")]
pub mod qemu;
pub mod socket_path;
pub(crate) mod stderr;
pub mod sys;
#[cfg(target_os = "linux")]
pub mod virtiofs;
pub mod vm;
pub mod vmm;
#[cfg(target_os = "linux")]
pub mod vsock;
pub mod vz;

pub use chain::chain;

//! The VM harness: boots a real guest under real QEMU for a test, and looks at it from outside.
//!
//! A test is `vm_test(async |vm| { ... })`: it gets a VM of its own, and behind its back the harness
//! compares what the guest holds before and after (zombies, mounts, cgroups, fds, files), powers off and
//! looks at how the VM ended. A failing test prints the console's last lines and the last events.
//!
//! Owns: every VM that it boots; none outlives its test, whatever becomes of that.
//! Promises: a missing kernel, initramfs or program fails the test and says what makes it; nothing is skipped
//! in silence. Never: is used by anything but tests.

mod blow;
pub mod cli;
mod container;
pub mod containerd;
pub mod counting;
mod exec;
pub mod images;
mod leaks;
mod promises;
mod rootfs;
mod steady;
mod vm;

pub use blow::Blow;
pub use container::{ALL_CAPABILITIES, Exit, Running, Task, Wish, mount};
pub use exec::{Exec, ExecWish, RunningExec};
pub use leaks::{Listing, inspector};
pub use rootfs::{busybox, guest_program, rootfs};
pub use steady::{Ended, Life, Steady};
pub use vm::{
    Options, ROOTFS_TAG, Vm, arch, guest_share, vm_test, vm_test_on_each_medium,
    vm_test_on_each_medium_in_test_all, vm_test_with,
};

/// A deadline against hanging, in seconds: generous, because emulation is slow and CI's cores are shared.
pub const PATIENCE_S: u64 = 120;

/// The SHA-256 of some bytes, in hex, as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `misbehave burst` writes to stdout (`seed` 1) and stderr (`seed` 2).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

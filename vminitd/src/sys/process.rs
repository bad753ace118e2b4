//! What this process may use and when it runs, see setrlimit(2), ioprio_set(2), sched_setattr(2),
//! personality(2).

use std::io;

use serde::{Deserialize, Serialize};

/// Sets one of the limits, by the kernel's number. setrlimit(2).
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: reads one rlimit, which outlives the call.
    check(unsafe { libc::setrlimit(resource as _, &raw const limit) }.into())
}

/// Sets the class and level for disks. ioprio_set(2).
pub fn set_io_priority(priority: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes integers.
    check(unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, libc::c_int::from(priority))
    })
}

/// struct sched_attr in linux/sched/types.h, its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// Filled in by [`set_scheduling`].
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in ns.
    pub runtime: u64,
    /// Likewise.
    pub deadline: u64,
    /// Likewise.
    pub period: u64,
}

/// Sets how the process is scheduled. sched_setattr(2).
pub fn set_scheduling(scheduling: Scheduling) -> io::Result<()> {
    let attributes = Scheduling { size: size_of::<Scheduling>() as u32, ..scheduling };
    // SAFETY: reads as many bytes as `size` says, which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Sets the execution domain. personality(2).
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: takes an integer.
    check(unsafe { libc::personality(domain.into()) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! Programs that decide which devices a cgroup may use, see bpf(2) and the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst`, "Device controller".

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An eBPF instruction (struct bpf_insn).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Instruction {
    /// Class and operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Jumps: how many instructions to skip; loads: bytes from the source register's address.
    pub offset: i16,
    /// Operand.
    pub value: i32,
}

const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_ATTACH: c_long = 8;
const BPF_PROG_DETACH: c_long = 9;
const BPF_PROG_GET_FD_BY_ID: c_long = 13;
const BPF_PROG_QUERY: c_long = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// A runtime inside the container may attach programs of its own below ours.
const BPF_F_ALLOW_MULTI: u32 = 2;
/// One program takes another's place, without a moment in which neither or both count.
const BPF_F_REPLACE: u32 = 4;

/// Programs on one cgroup that are looked at; we attach one.
const QUERIED: usize = 16;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    cgroup: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
    // The kernel knows more, and takes absent bytes as zero.
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    cgroup: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    // Newer kernels answer more; this is room for it.
    more: [u64; 8],
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    flags: u32,
    padding: u32,
}

/// Lets the kernel check and compile a device program. BPF_PROG_LOAD, Linux 4.15.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"";
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"devices");
    let length =
        u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        length,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        name,
        ..Load::default()
    };
    // SAFETY: the kernel reads `length` instructions with the layout of struct bpf_insn and the
    // licence up to its NUL; both outlive the call.
    unsafe { bpf_fd(BPF_PROG_LOAD, &mut attributes) }
}

/// Makes this the one device program of a cgroup, in the place of those that are there.
/// BPF_PROG_ATTACH with BPF_F_REPLACE, Linux 5.6.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let old = device_programs(cgroup)?;
    let mut attributes = Attach {
        cgroup: number(cgroup),
        program: number(program),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        ..Attach::default()
    };
    let Some((first, others)) = old.split_first() else {
        // SAFETY: only integers.
        return unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) }.map(drop);
    };
    attributes.flags |= BPF_F_REPLACE;
    attributes.replaced = first.as_raw_fd().cast_unsigned();
    // SAFETY: only integers.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) }?;
    for other in others {
        let mut attributes = Attach {
            cgroup: number(cgroup),
            program: other.as_raw_fd().cast_unsigned(),
            kind: BPF_CGROUP_DEVICE,
            ..Attach::default()
        };
        // SAFETY: only integers.
        unsafe { bpf(BPF_PROG_DETACH, &mut attributes) }?;
    }
    Ok(())
}

/// The device programs that are attached to this very cgroup. BPF_PROG_QUERY, Linux 4.15.
fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; QUERIED];
    let mut attributes = Query {
        cgroup: number(cgroup),
        kind: BPF_CGROUP_DEVICE,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: QUERIED as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `count` ids into `ids`, which outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes) }?;
    let count = usize::try_from(attributes.count).unwrap_or(0).min(QUERIED);
    ids[..count]
        .iter()
        .map(|id| {
            let mut attributes = ById { id: *id, ..ById::default() };
            // SAFETY: only integers.
            unsafe { bpf_fd(BPF_PROG_GET_FD_BY_ID, &mut attributes) }
        })
        .collect()
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// Addresses in `attributes` must be valid for what the command does with them.
unsafe fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<c_long> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes there; addresses within are the
    // caller's to answer for.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As [`bpf`]; and the command must be one that returns a new descriptor.
unsafe fn bpf_fd<T>(command: c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! System call filters, see seccomp(2).

use std::io;

/// An instruction of a classic BPF program (struct sock_filter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip when true.
    pub jump_true: u8,
    /// How many when false.
    pub jump_false: u8,
    /// Operand.
    pub value: u32,
}

/// Puts a filter on this process and all that it will fork or exec. Needs CAP_SYS_ADMIN, because
/// no_new_privs stays as it is. The kernel checks the program before it takes it.
pub fn install(filter: &[Instruction]) -> io::Result<()> {
    let length =
        u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `program` points to `length` instructions with the layout of struct sock_filter,
    // which the kernel copies and does not write.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

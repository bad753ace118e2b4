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

/// What the kernel calls this machine's system calls.
pub mod native {
    /// AUDIT_ARCH_X86_64 in linux/audit.h.
    #[cfg(target_arch = "x86_64")]
    pub const ARCHITECTURE: u32 = 0xc000_003e;
    /// AUDIT_ARCH_AARCH64 in linux/audit.h.
    #[cfg(target_arch = "aarch64")]
    pub const ARCHITECTURE: u32 = 0xc000_00b7;

    /// The x32 variants have this bit (__X32_SYSCALL_BIT), and go by the same architecture.
    #[cfg(target_arch = "x86_64")]
    pub const FOREIGN_NUMBERS: u32 = 0x4000_0000;
    /// There are none.
    #[cfg(target_arch = "aarch64")]
    pub const FOREIGN_NUMBERS: u32 = u32::MAX;
}

/// A program's bytes, as the kernel has them.
pub fn bytes(program: &[Instruction]) -> Vec<u8> {
    let bytes = |instruction: &Instruction| {
        let Instruction { code, jump_true, jump_false, value } = *instruction;
        let [a, b] = code.to_ne_bytes();
        let [c, d, e, f] = value.to_ne_bytes();
        [a, b, jump_true, jump_false, c, d, e, f]
    };
    program.iter().flat_map(bytes).collect()
}

/// The reverse of [`bytes`].
pub fn instructions(program: &[u8]) -> Vec<Instruction> {
    let (chunks, _) = program.as_chunks::<{ size_of::<Instruction>() }>();
    let instruction = |bytes: &[u8; 8]| {
        let [a, b, jump_true, jump_false, value @ ..] = *bytes;
        let value = u32::from_ne_bytes(value);
        Instruction { code: u16::from_ne_bytes([a, b]), jump_true, jump_false, value }
    };
    chunks.iter().map(instruction).collect()
}

/// Puts a filter on this process and all that it will fork or exec, with SECCOMP_FILTER_FLAG_*.
/// Needs CAP_SYS_ADMIN or no_new_privs, which stays as it is. The kernel checks the program before
/// it takes it.
pub fn install(filter: &[Instruction], flags: u32) -> io::Result<()> {
    let length =
        u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `program` points to `length` instructions with the layout of struct sock_filter,
    // which the kernel copies and does not write.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel does with a program, for tests of programs.
#[cfg(test)]
pub mod interpreter {
    use super::Instruction;

    /// Runs a filter on a system call; panics where the kernel would refuse the program.
    pub fn run(filter: &[Instruction], number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number, architecture, 0, 0];
        data.extend(arguments.iter().flat_map(|value| [*value as u32, (*value >> 32) as u32]));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, value } = filter[at];
            at += 1;
            let taken = match code {
                0x20 => {
                    accumulator = data[value as usize / 4];
                    continue;
                }
                0x54 => {
                    accumulator &= value;
                    continue;
                }
                0x05 => {
                    at += value as usize;
                    continue;
                }
                0x15 => accumulator == value,
                0x25 => accumulator > value,
                0x35 => accumulator >= value,
                0x06 => return value,
                _ => panic!("code {code:#x}"),
            };
            at += usize::from(if taken { jump_true } else { jump_false });
        }
    }
}

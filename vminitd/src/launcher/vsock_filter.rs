//! The filter that keeps a container from the agent's ports.
//!
//! The ports are vsock's, which no network namespace holds back and for which no cgroup hook
//! exists. So the container may not make such a socket: `socket(AF_VSOCK, ..)` fails as on a
//! kernel without vsock, and io_uring, which can make sockets past this filter, is absent as on a
//! kernel without it. System calls of another architecture have other numbers, and its
//! `socketcall` hides its arguments: they are absent altogether.
//!
//! The kernel evaluates such a filter in advance: a system call that it allows whatever the
//! arguments costs a bitmap test.

use crate::sys::seccomp::{Instruction, native};

/// The program for this architecture.
pub const FILTER: &[Instruction] = &[
    load(ARCHITECTURE_AT),
    skip_if_equal(native::ARCHITECTURE, 1, 0),
    answer(NO_SYSTEM_CALL),
    load(NUMBER_AT),
    skip_if_at_least(native::FOREIGN_NUMBERS, 0, 1),
    answer(NO_SYSTEM_CALL),
    skip_if_at_least(IO_URING_FIRST, 0, 3),
    skip_if_at_least(IO_URING_LAST + 1, 1, 0),
    answer(NO_SYSTEM_CALL),
    answer(ALLOW),
    skip_if_equal(SOCKET, 1, 0),
    answer(ALLOW),
    load(FIRST_ARGUMENT_AT),
    skip_if_equal(libc::AF_VSOCK as u32, 0, 1),
    answer(NO_FAMILY),
    answer(ALLOW),
];

const SOCKET: u32 = libc::SYS_socket as u32;

/// io_uring_setup; io_uring_enter and io_uring_register follow. The same on all architectures.
const IO_URING_FIRST: u32 = 425;
const IO_URING_LAST: u32 = 427;

// Offsets in struct seccomp_data. Arguments are 64 bits wide, little end first, and an address
// family is an int: the kernel looks at its low half only, and so does the filter.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_ARGUMENT_AT: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NO_SYSTEM_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const NO_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;

const fn load(value: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, value)
}

const fn skip_if_equal(value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jump_true, jump_false, value)
}

const fn skip_if_at_least(value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, jump_true, jump_false, value)
}

const fn answer(value: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

const fn instruction(code: u32, jump_true: u8, jump_false: u8, value: u32) -> Instruction {
    Instruction { code: code as u16, jump_true, jump_false, value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::seccomp::interpreter;

    fn run(number: u32, architecture: u32, first_argument: u64) -> u32 {
        interpreter::run(FILTER, number, architecture, [first_argument, 0, 0, 0, 0, 0])
    }

    #[test]
    fn vsock_is_refused_also_with_garbage_in_the_high_half() {
        for high in [0, 1, u64::from(u32::MAX)] {
            let family = high << 32 | libc::AF_VSOCK as u64;
            assert_eq!(run(SOCKET, native::ARCHITECTURE, family), NO_FAMILY);
        }
        assert_eq!(run(SOCKET, native::ARCHITECTURE, libc::AF_UNIX as u64), ALLOW);
    }

    proptest! {
        #[test]
        fn nothing_else_is_refused(number in 0u32..600, argument: u64) {
            let expected = match number {
                425..=427 => NO_SYSTEM_CALL,
                _ if number == SOCKET && argument as u32 == 40 => NO_FAMILY,
                _ => ALLOW,
            };
            prop_assert_eq!(run(number, native::ARCHITECTURE, argument), expected);
        }

        #[test]
        fn other_architectures_are_absent(number: u32, architecture: u32, argument: u64) {
            if architecture != native::ARCHITECTURE {
                prop_assert_eq!(run(number, architecture, argument), NO_SYSTEM_CALL);
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_numbers_are_absent() {
        assert_eq!(run(0x4000_0000 + 41, native::ARCHITECTURE, 40), NO_SYSTEM_CALL);
    }
}

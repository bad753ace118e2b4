//! The filter that keeps a container from the agent, whatever its capabilities.
//!
//! | call | why | answer |
//! |---|---|---|
//! | `socket(AF_VSOCK)` | the agent's ports; no network namespace holds vsock back, and no cgroup hook exists for it | as without vsock |
//! | `io_uring_*` | can make sockets past this filter | as without io_uring |
//! | `open_by_handle_at` | opens any cgroup by its number, from within any cgroup namespace: the agent's too | EPERM |
//! | `bpf` for a program, map or link of another | to take the device rules off its cgroup | EPERM |
//! | calls of another architecture | have other numbers, and `socketcall` hides its arguments | as without these |
//!
//! The first two are open to a container whose annotation says so. The others need capabilities
//! that only privileged containers have.
//!
//! The kernel evaluates such a filter in advance: a system call that it allows whatever the
//! arguments costs a bitmap test.

use crate::sys::seccomp::{Instruction, native};

/// The program for this architecture.
pub fn filter(allow_vsock: bool) -> Vec<Instruction> {
    let mut filter = vec![
        load(ARCHITECTURE_AT),
        skip_if_equal(native::ARCHITECTURE, 1, 0),
        answer(NO_SYSTEM_CALL),
        load(NUMBER_AT),
        skip_if_at_least(native::FOREIGN_NUMBERS, 0, 1),
        answer(NO_SYSTEM_CALL),
        skip_if_equal(OPEN_BY_HANDLE_AT, 0, 1),
        answer(NOT_PERMITTED),
        skip_if_equal(BPF, 0, 6),
        load(FIRST_ARGUMENT_AT),
        skip_if_equal(BPF_PROG_GET_FD_BY_ID, 2, 0),
        skip_if_equal(BPF_MAP_GET_FD_BY_ID, 1, 0),
        skip_if_equal(BPF_LINK_GET_FD_BY_ID, 0, 1),
        answer(NOT_PERMITTED),
        answer(ALLOW),
    ];
    if !allow_vsock {
        filter.extend([
            skip_if_at_least(IO_URING_FIRST, 0, 3),
            skip_if_at_least(IO_URING_LAST + 1, 1, 0),
            answer(NO_SYSTEM_CALL),
            answer(ALLOW),
            skip_if_equal(SOCKET, 1, 0),
            answer(ALLOW),
            load(FIRST_ARGUMENT_AT),
            skip_if_equal(libc::AF_VSOCK as u32, 0, 1),
            answer(NO_FAMILY),
        ]);
    }
    filter.push(answer(ALLOW));
    filter
}

const SOCKET: u32 = libc::SYS_socket as u32;
const OPEN_BY_HANDLE_AT: u32 = libc::SYS_open_by_handle_at as u32;
const BPF: u32 = libc::SYS_bpf as u32;

/// Commands of bpf(2), in linux/bpf.h.
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_MAP_GET_FD_BY_ID: u32 = 14;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;

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
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NO_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;

fn load(value: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, value)
}

fn skip_if_equal(value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jump_true, jump_false, value)
}

fn skip_if_at_least(value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, jump_true, jump_false, value)
}

fn answer(value: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

fn instruction(code: u32, jump_true: u8, jump_false: u8, value: u32) -> Instruction {
    Instruction { code: code as u16, jump_true, jump_false, value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::seccomp::interpreter;

    fn run(allow_vsock: bool, number: u32, architecture: u32, first_argument: u64) -> u32 {
        let arguments = [first_argument, 0, 0, 0, 0, 0];
        interpreter::run(&filter(allow_vsock), number, architecture, arguments)
    }

    #[test]
    fn vsock_is_refused_also_with_garbage_in_the_high_half() {
        let run = |allow, family| run(allow, SOCKET, native::ARCHITECTURE, family);
        for high in [0, 1, u64::from(u32::MAX)] {
            let family = high << 32 | libc::AF_VSOCK as u64;
            assert_eq!((run(false, family), run(true, family)), (NO_FAMILY, ALLOW));
        }
        assert_eq!(run(false, libc::AF_UNIX as u64), ALLOW);
    }

    proptest! {
        #[test]
        fn nothing_else_is_refused(allow: bool, number in 0u32..600, argument in 0u64..60, high: u32) {
            let argument = u64::from(high) << 32 | argument;
            let expected = match number {
                425..=427 if !allow => NO_SYSTEM_CALL,
                _ if number == SOCKET && argument as u32 == 40 && !allow => NO_FAMILY,
                _ if number == OPEN_BY_HANDLE_AT => NOT_PERMITTED,
                _ if number == BPF && [13, 14, 30].contains(&(argument as u32)) => NOT_PERMITTED,
                _ => ALLOW,
            };
            prop_assert_eq!(run(allow, number, native::ARCHITECTURE, argument), expected);
        }

        #[test]
        fn other_architectures_are_absent(allow: bool, number: u32, architecture: u32, argument: u64) {
            if architecture != native::ARCHITECTURE {
                prop_assert_eq!(run(allow, number, architecture, argument), NO_SYSTEM_CALL);
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_numbers_are_absent() {
        assert_eq!(run(true, 0x4000_0000 + 41, native::ARCHITECTURE, 40), NO_SYSTEM_CALL);
    }
}

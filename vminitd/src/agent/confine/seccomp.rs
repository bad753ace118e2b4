//! `linux.seccomp` into a program for the kernel.
//!
//! ```text
//! architecture? --> number: a tree of ranges --> always the same answer
//!       |                                    \-> rules: comparisons in order, answer; else the default's
//!       other: ENOSYS if the profile names it, else the thread is killed (as libseccomp does)
//! ```
//!
//! Not by libseccomp: its programs compare every number in turn, which the kernel then tries for
//! every number when it takes the program (containerd's default profile: 15 ms to make, some to
//! take), and two rules that order the same argument get into each other's way (a property test
//! below found that `a < 0 or a < 2^32` refuses 1).
//!
//! Promises: of rules for the same system call those with comparisons come first, then the order
//! of the profile counts; names of system calls that nobody knows are skipped, as runc does;
//! everything else that cannot be had is an error that names it.
//! Never: loads a program, remembers one, or compiles for other architectures: a container has no
//! system calls of theirs (`launcher/reach_filter.rs`, and the kernel's configuration).

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use tracing::debug;

use super::names;
use crate::link::confinement::Filter;
use crate::sys::seccomp::{self, Instruction, native};

/// Why a profile is no use. The host's fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// Somebody in the VM would have to answer, and nobody can be there.
    #[error("linux.seccomp: {0} asks for SCMP_ACT_NOTIFY, which is not supported in a VM")]
    Notify(String),
    /// The kernel knows none above 4095.
    #[error("linux.seccomp: errnoRet {0} is no error number")]
    Errno(u32),
    /// A system call has six arguments.
    #[error("linux.seccomp: {name} has no argument {index}")]
    Argument {
        /// The system calls.
        name: String,
        /// Counted from 0.
        index: usize,
    },
    /// The kernel takes 4096 instructions.
    #[error(
        "linux.seccomp: the profile makes a program of {0} instructions, the kernel takes 4096"
    )]
    TooLong(usize),
}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    refuse_notify(profile)?;
    let default = answer(profile.default_action(), profile.default_errno_ret())?;
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    for entry in profile.syscalls().iter().flatten() {
        let answer = answer(entry.action(), entry.errno_ret())?;
        let rules = rules(entry)?;
        for name in entry.names() {
            let Some(number) = names::number(name) else {
                debug!(name, "no such system call; its rule is skipped");
                continue;
            };
            let call = calls.entry(number).or_default();
            match rules.is_empty() {
                true => drop(call.always.get_or_insert(answer)),
                false => call.rules.extend(rules.iter().map(|rule| (rule.clone(), answer))),
            }
        }
    }
    let mut program = vec![load(ARCHITECTURE_AT)];
    program.extend([skip(EQUAL, native::ARCHITECTURE, 1, 0), give(foreign(profile, is_other))]);
    program.push(load(NUMBER_AT));
    program.extend(tree(&leaves(calls, default, foreign(profile, is_variant))));
    if program.len() > LONGEST {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter { flags: flags(profile), program: seccomp::bytes(&program) })
}

/// BPF_MAXINSNS in linux/bpf_common.h.
const LONGEST: usize = 4096;

fn refuse_notify(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::Notify("defaultAction".to_owned()));
    }
    let mut entries = profile.syscalls().iter().flatten();
    match entries.find(|entry| entry.action() == LinuxSeccompAction::ScmpActNotify) {
        Some(entry) => Err(SeccompError::Notify(entry.names().join(", "))),
        None => Ok(()),
    }
}

/// What the program returns.
fn answer(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let value = errno.unwrap_or(libc::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno if value <= LAST_ERRNO => libc::SECCOMP_RET_ERRNO | value,
        LinuxSeccompAction::ScmpActTrace if value <= libc::SECCOMP_RET_DATA => {
            libc::SECCOMP_RET_TRACE | value
        }
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => {
            return Err(SeccompError::Errno(value));
        }
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    })
}

/// MAX_ERRNO in linux/err.h.
const LAST_ERRNO: u32 = 4095;

/// What is said about one system call.
#[derive(Debug, Default)]
struct Call {
    /// In order: comparisons that have to hold, and the answer then.
    rules: Vec<(Vec<LinuxSeccompArg>, u32)>,
    /// The answer when no rule holds.
    always: Option<u32>,
}

/// The comparisons of an entry, a list per rule. One that compares an argument twice means a rule
/// per comparison, as runc has it: such a profile could not say "or" otherwise.
fn rules(entry: &LinuxSyscall) -> Result<Vec<Vec<LinuxSeccompArg>>, SeccompError> {
    let arguments = entry.args().as_deref().unwrap_or_default();
    if let Some(argument) = arguments.iter().find(|argument| argument.index() > LAST_ARGUMENT) {
        let name = entry.names().join(", ");
        return Err(SeccompError::Argument { name, index: argument.index() });
    }
    let is_again = |(at, argument): (usize, &LinuxSeccompArg)| {
        arguments[..at].iter().any(|other| other.index() == argument.index())
    };
    Ok(match arguments {
        [] => vec![],
        _ if arguments.iter().enumerate().any(is_again) => {
            arguments.iter().map(|argument| vec![*argument]).collect()
        }
        _ => vec![arguments.to_vec()],
    })
}

/// Counted from 0.
const LAST_ARGUMENT: usize = 5;

/// What to do about system calls of the architectures that `is_such` tells: if the profile reckons
/// with them, what a kernel without them does.
fn foreign(profile: &LinuxSeccomp, is_such: fn(&Arch) -> bool) -> u32 {
    match profile.architectures().iter().flatten().any(is_such) {
        true => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        false => libc::SECCOMP_RET_KILL_THREAD,
    }
}

/// Of another architecture than this machine's.
fn is_other(arch: &Arch) -> bool {
    *arch as u32 != native::ARCHITECTURE && *arch != Arch::ScmpArchNative && !is_variant(arch)
}

/// Of this machine's architecture by the kernel's reckoning, but with numbers of its own.
fn is_variant(arch: &Arch) -> bool {
    *arch == Arch::ScmpArchX32
}

/// From `first` up to the next leaf's, all system calls are dealt with by this code.
#[derive(Debug, PartialEq, Eq)]
struct Leaf {
    first: u32,
    code: Vec<Instruction>,
}

/// Everything, from 0 to the highest number; neighbours differ.
fn leaves(calls: BTreeMap<u32, Call>, default: u32, variant: u32) -> Vec<Leaf> {
    let default = vec![give(default)];
    let mut leaves = vec![Leaf { first: 0, code: default.clone() }];
    let mut add = |first, code: &[Instruction]| {
        let last = leaves.last_mut().filter(|leaf| leaf.first == first);
        match last {
            Some(leaf) => code.clone_into(&mut leaf.code),
            None => leaves.push(Leaf { first, code: code.to_vec() }),
        }
    };
    for (number, call) in &calls {
        let mut code: Vec<_> = call.rules.iter().flat_map(|(all, then)| rule(all, *then)).collect();
        code.push(call.always.map_or(default[0], give));
        add(*number, &code);
        add(number + 1, &default);
    }
    add(native::FOREIGN_NUMBERS, &[give(variant)]);
    // What a tracer makes of a call that it cancels.
    add(u32::MAX, &default);
    leaves.dedup_by(|leaf, before| leaf.code == before.code);
    leaves
}

/// The search for the leaf of the number in the accumulator.
fn tree(leaves: &[Leaf]) -> Vec<Instruction> {
    let (low, high) = leaves.split_at(leaves.len() / 2);
    if low.is_empty() {
        return high.iter().flat_map(|leaf| leaf.code.iter().copied()).collect();
    }
    let (first, low, high) = (high[0].first, tree(low), tree(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(length) => vec![skip(AT_LEAST, first, length, 0)],
        Err(_) => vec![skip(AT_LEAST, first, 0, 1), jump(low.len())],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// Gives the answer if all comparisons hold, else goes on behind.
fn rule(comparisons: &[LinuxSeccompArg], then: u32) -> Vec<Instruction> {
    let mut code = vec![give(then)];
    for argument in comparisons.iter().rev() {
        // At most 6 x 6 instructions: a jump over all of them fits.
        let mut before = comparison(argument, code.len() as u8);
        before.append(&mut code);
        code = before;
    }
    code
}

/// Goes on behind if it holds, else behind `rest` more instructions. The kernel gives the arguments
/// in halves.
fn comparison(argument: &LinuxSeccompArg, rest: u8) -> Vec<Instruction> {
    let at = |half: u32| load(ARGUMENTS_AT + 8 * argument.index() as u32 + HALF_AT[half as usize]);
    let (value, second) = (argument.value(), argument.value_two().unwrap_or_default());
    let (high, low) = ((value >> 32) as u32, value as u32);
    // Orders: the high half decides, unless it is equal; with `yes` and `no` counted from the end.
    let order = |operation, yes: u8, no: u8| {
        let (high_at, low_at) = (at(1), at(0));
        vec![
            high_at,
            skip(GREATER, high, 3 + yes, 0),
            skip(EQUAL, high, 0, 2 + no),
            low_at,
            skip(operation, low, yes, no),
        ]
    };
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => {
            vec![at(1), skip(EQUAL, high, 0, 2 + rest), at(0), skip(EQUAL, low, 0, rest)]
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            vec![at(1), skip(EQUAL, high, 0, 2), at(0), skip(EQUAL, low, rest, 0)]
        }
        LinuxSeccompOperator::ScmpCmpGt => order(GREATER, 0, rest),
        LinuxSeccompOperator::ScmpCmpGe => order(AT_LEAST, 0, rest),
        LinuxSeccompOperator::ScmpCmpLe => order(GREATER, rest, 0),
        LinuxSeccompOperator::ScmpCmpLt => order(AT_LEAST, rest, 0),
        // `value` is the mask, and `valueTwo` what is left under it.
        LinuxSeccompOperator::ScmpCmpMaskedEq => vec![
            at(1),
            and(high),
            skip(EQUAL, (second >> 32) as u32, 0, 3 + rest),
            at(0),
            and(low),
            skip(EQUAL, second as u32, 0, rest),
        ],
    }
}

/// The flags with a meaning for a filter without a listener. The launcher has one thread, so the
/// flag that synchronizes threads has none.
fn flags(profile: &LinuxSeccomp) -> u32 {
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32
        }
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    profile.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag)
}

// Offsets in struct seccomp_data.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
/// Of an argument's low and high half, little end first.
const HALF_AT: [u32; 2] = [0, 4];

const EQUAL: u32 = libc::BPF_JEQ;
const GREATER: u32 = libc::BPF_JGT;
const AT_LEAST: u32 = libc::BPF_JGE;

fn load(at: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
}

fn and(mask: u32) -> Instruction {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

fn skip(operation: u32, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    instruction(libc::BPF_JMP | operation | libc::BPF_K, jump_true, jump_false, value)
}

fn jump(over: usize) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, over as u32)
}

fn give(answer: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, answer)
}

fn instruction(code: u32, jump_true: u8, jump_false: u8, value: u32) -> Instruction {
    Instruction { code: code as u16, jump_true, jump_false, value }
}

#[cfg(test)]
#[path = "seccomp/tests.rs"]
mod tests;

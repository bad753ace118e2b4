//! Programs run by an interpreter of ours, beside a model that reads the profile.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sys::seccomp::{instructions, interpreter};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL_PROCESS: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const KILL_THREAD: u32 = libc::SECCOMP_RET_KILL_THREAD;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

fn profile(json: &Value) -> LinuxSeccomp {
    serde_json::from_value(json.clone()).unwrap()
}

/// What the program says about a system call of this machine.
fn answer(json: &Value, name: &str, arguments: [u64; 6]) -> u32 {
    let filter = compile(&profile(json)).unwrap();
    let number = names::number(name).unwrap();
    interpreter::run(&instructions(&filter.program), number, native::ARCHITECTURE, arguments)
}

fn text(json: &Value) -> String {
    crate::chain(&compile(&profile(json)).unwrap_err())
}

#[test]
fn actions_and_error_numbers_are_those_of_the_profile() {
    let json = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
        { "names": ["read"], "action": "SCMP_ACT_ALLOW" },
        { "names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
        { "names": ["mknodat"], "action": "SCMP_ACT_ERRNO" },
        { "names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS" },
        { "names": ["bpf"], "action": "SCMP_ACT_KILL" },
        { "names": ["kexec_load"], "action": "SCMP_ACT_TRAP" },
        { "names": ["acct"], "action": "SCMP_ACT_LOG" },
        { "names": ["swapon"], "action": "SCMP_ACT_TRACE", "errnoRet": 7 },
    ]});
    let answer = |name| answer(&json, name, [0; 6]);
    assert_eq!(answer("read"), ALLOW);
    assert_eq!(answer("write"), errno(libc::ENOSYS));
    assert_eq!(answer("mkdirat"), errno(libc::EOPNOTSUPP));
    assert_eq!(answer("mknodat"), errno(libc::EPERM));
    assert_eq!(answer("ptrace"), KILL_PROCESS);
    assert_eq!(answer("bpf"), KILL_THREAD);
    assert_eq!(answer("kexec_load"), libc::SECCOMP_RET_TRAP);
    assert_eq!(answer("acct"), libc::SECCOMP_RET_LOG);
    assert_eq!(answer("swapon"), libc::SECCOMP_RET_TRACE | 7);
}

#[test]
fn masked_comparison_has_the_mask_first() {
    // containerd's rule about namespaces that clone may not make.
    let namespaces = 0x7e02_0000_u64;
    let json = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
          "args": [{ "index": 0, "value": namespaces, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
    ]});
    assert_eq!(answer(&json, "clone", [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]), ALLOW);
    let user = libc::CLONE_NEWUSER as u64;
    assert_eq!(answer(&json, "clone", [user, 0, 0, 0, 0, 0]), errno(libc::EPERM));
}

#[test]
fn argument_that_is_compared_twice_means_a_rule_for_each() {
    let json = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
            { "index": 0, "value": 0, "op": "SCMP_CMP_EQ" },
            { "index": 0, "value": 8, "op": "SCMP_CMP_EQ" } ] },
    ]});
    let answer = |value| answer(&json, "personality", [value, 0, 0, 0, 0, 0]);
    assert_eq!([answer(0), answer(8), answer(4)], [ALLOW, ALLOW, errno(libc::EPERM)]);
}

#[test]
fn unknown_system_calls_are_skipped_and_new_ones_are_known() {
    let json = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["no_such_call", "read", "fchmodat2", "mseal"], "action": "SCMP_ACT_ALLOW" },
    ]});
    for name in ["read", "fchmodat2", "mseal"] {
        assert_eq!(answer(&json, name, [0; 6]), ALLOW, "{name}");
    }
    assert_eq!(answer(&json, "write", [0; 6]), errno(libc::EPERM));
}

#[test]
fn other_architectures_answer_as_if_the_kernel_had_none_when_the_profile_names_them() {
    let run = |architectures: &[&str], number, architecture| {
        let json = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures });
        let filter = compile(&profile(&json)).unwrap();
        interpreter::run(&instructions(&filter.program), number, architecture, [0; 6])
    };
    let (i386, own) = (0x4000_0003, "SCMP_ARCH_NATIVE");
    assert_eq!(run(&[], 1, i386), KILL_THREAD);
    assert_eq!(run(&[own, "SCMP_ARCH_X32"], 1, i386), KILL_THREAD);
    assert_eq!(run(&[own, "SCMP_ARCH_X86"], 1, i386), errno(libc::ENOSYS));
    if cfg!(target_arch = "x86_64") {
        let x32 = 0x4000_0000 + 1;
        assert_eq!(
            run(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], x32, native::ARCHITECTURE),
            KILL_THREAD
        );
        assert_eq!(run(&["SCMP_ARCH_X32"], x32, native::ARCHITECTURE), errno(libc::ENOSYS));
    }
    for number in [0, 1, 1000, u32::MAX] {
        assert_eq!(run(&[], number, native::ARCHITECTURE), ALLOW, "{number}");
    }
}

#[test]
fn comparisons_come_before_the_rule_for_the_rest() {
    let json = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["socket"], "action": "SCMP_ACT_ALLOW" },
        { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
          "args": [{ "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }] },
        { "names": ["socket"], "action": "SCMP_ACT_KILL_PROCESS",
          "args": [{ "index": 0, "value": 9, "op": "SCMP_CMP_GT" }] },
    ]});
    let answer = |family| answer(&json, "socket", [family, 0, 0, 0, 0, 0]);
    assert_eq!([answer(1), answer(16), answer(17)], [ALLOW, errno(97), KILL_PROCESS]);
}

#[test]
fn program_that_is_too_long_for_the_kernel_is_refused() {
    let rule = |value: usize| {
        json!({ "names": ["personality"], "action": "SCMP_ACT_ERRNO",
        "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
    };
    let json = |rules| {
        json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": (0..rules).map(rule).collect::<Vec<_>>() })
    };
    assert!(text(&json(1000)).contains("4096"), "{}", text(&json(1000)));
    // The longest jumps that are left are longer than a byte.
    assert_eq!(answer(&json(700), "personality", [699, 0, 0, 0, 0, 0]), errno(libc::EPERM));
    assert_eq!(answer(&json(700), "write", [0; 6]), ALLOW);
    assert_eq!(answer(&json(700), "read", [0; 6]), ALLOW);
}

#[test]
fn what_cannot_be_had_is_named() {
    let rule = |rule: Value| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    let notify = text(&rule(json!({ "names": ["mkdir", "rmdir"], "action": "SCMP_ACT_NOTIFY" })));
    assert!(notify.contains("mkdir, rmdir asks for SCMP_ACT_NOTIFY"), "{notify}");
    let notify = text(&json!({ "defaultAction": "SCMP_ACT_NOTIFY" }));
    assert!(notify.contains("defaultAction"), "{notify}");
    let number = rule(json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096 }));
    assert!(text(&number).contains("errnoRet 4096"), "{}", text(&number));
    let argument = json!([{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }]);
    let argument =
        rule(json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": argument }));
    assert!(text(&argument).contains("mkdir has no argument 6"), "{}", text(&argument));
    for wrong in ["SCMP_ACT_FOO", "SCMP_ARCH_FOO"] {
        let json = json!({ "defaultAction": wrong, "architectures": [wrong] });
        let error = serde_json::from_value::<LinuxSeccomp>(json).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn flags_are_the_kernels() {
    let json = json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": [
        "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC" ]});
    assert_eq!(compile(&profile(&json)).unwrap().flags, 2 | 4);
}

#[derive(Clone, Debug)]
struct Entry {
    name: usize,
    rules: Vec<Vec<(usize, u64, u64, usize)>>,
}

const NAMES: [&str; 8] =
    ["read", "write", "openat", "mmap", "clone", "socket", "personality", "fchmodat2"];
const OPS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
/// Values that meet often, and that differ in either half only.
const VALUES: [u64; 6] = [0, 1, 2, 1 << 32, (1 << 32) | 1, u64::MAX];

fn holds((_, value, second, op): (usize, u64, u64, usize), argument: u64) -> bool {
    match OPS[op] {
        "NE" => argument != value,
        "LT" => argument < value,
        "LE" => argument <= value,
        "EQ" => argument == value,
        "GE" => argument >= value,
        "GT" => argument > value,
        _ => argument & value == second,
    }
}

/// Entries with distinct names, each with rules of which one has to hold, each of these with
/// comparisons of distinct arguments which all have to.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let value = || prop::sample::select(VALUES.to_vec());
    let rule = prop::collection::btree_map(0usize..6, (value(), value(), 0..OPS.len()), 0..3);
    let rule = rule.prop_map(|rule| {
        let all = rule.into_iter();
        all.map(|(index, (value, second, op))| (index, value, second, op)).collect::<Vec<_>>()
    });
    let rules = prop::collection::btree_map(0..NAMES.len(), vec(rule, 1..3), 0..NAMES.len());
    rules.prop_map(|all| all.into_iter().map(|(name, rules)| Entry { name, rules }).collect())
}

proptest! {
    #[test]
    fn program_does_what_the_profile_says(
        entries in entries(),
        calls in vec((0..NAMES.len(), vec(prop::sample::select(VALUES.to_vec()), 6)), 1..40),
    ) {
        let syscalls: Vec<Value> = entries.iter().flat_map(|entry| {
            entry.rules.iter().map(|rule| {
                let arguments: Vec<Value> = rule.iter().map(|(index, value, second, op)| json!({
                    "index": index, "value": value, "valueTwo": second,
                    "op": format!("SCMP_CMP_{}", OPS[*op]),
                })).collect();
                json!({ "names": [NAMES[entry.name]], "action": "SCMP_ACT_ALLOW", "args": arguments })
            })
        }).collect();
        let json = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls });
        let filter = compile(&profile(&json)).unwrap();
        let program = instructions(&filter.program);
        for (name, arguments) in calls {
            let matching = |rule: &Vec<(usize, u64, u64, usize)>| {
                rule.iter().all(|comparison| holds(*comparison, arguments[comparison.0]))
            };
            let allowed = entries.iter().any(|entry| entry.name == name && entry.rules.iter().any(matching));
            let expected = if allowed { ALLOW } else { errno(libc::EPERM) };
            let number = names::number(NAMES[name]).unwrap();
            let arguments = <[u64; 6]>::try_from(arguments.clone()).unwrap();
            prop_assert_eq!(interpreter::run(&program, number, native::ARCHITECTURE, arguments), expected, "{} {:x?}", NAMES[name], arguments);
        }
    }
}

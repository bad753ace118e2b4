//! Filters of the runtime spec: what a filtered process gets from its system calls, with and without no_new_privs.
//!
//! `attack call NAME` makes one call and prints its answer.

use host_shim::vm::Arch;
use qemu_tests::{Blow, ExecWish, Wish, arch, vm_test};
use serde_json::{Value, json};

fn call(name: &str) -> Vec<String> {
    ["attack", "call", name].map(str::to_owned).to_vec()
}

/// `personality` says what it is without changing it only for 0xffffffff.
const QUERY: &str = "4294967295";

fn command(words: &[String], rest: &[&str]) -> Vec<String> {
    words.iter().cloned().chain(rest.iter().map(|word| (*word).to_owned())).collect()
}

fn filtered(args: &[String], profile: &Value, no_new_privileges: Option<bool>) -> Wish {
    let mut wish = Wish::new(&args.iter().map(String::as_str).collect::<Vec<_>>());
    wish.spec["linux"]["seccomp"] = profile.clone();
    wish.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
    if no_new_privileges.is_none() {
        wish.spec["process"].as_object_mut().expect("an object").remove("noNewPrivileges");
    }
    wish
}

/// Everything is allowed but what the rules say.
fn open(rules: Value) -> Value {
    // As engines write it, with what programs of the guest's architecture may be.
    let architectures = match arch() {
        Arch::X86_64 => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        Arch::Arm64 => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
    };
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rules })
}

fn profile() -> Value {
    open(json!([
        { "names": ["mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
        { "names": ["acct"], "action": "SCMP_ACT_KILL_PROCESS" },
        { "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
          "args": [{ "index": 0, "value": 4294967295_u64, "op": "SCMP_CMP_EQ" }] },
    ]))
}

#[test]
fn filter_acts_as_the_profile_says_with_and_without_no_new_privileges() {
    vm_test(async |vm| {
        for (at, no_new_privileges) in [Some(true), Some(false), None].into_iter().enumerate() {
            let run = async |id: &str, words: Vec<String>| {
                vm.run(&format!("{id}{at}"), filtered(&words, &profile(), no_new_privileges)).await
            };
            let told = |exit: qemu_tests::Exit| (exit.status, exit.text().trim().to_owned());
            let refused = (0, "EOPNOTSUPP".to_owned());
            assert_eq!(told(run("errno", call("mkdirat")).await), refused, "{no_new_privileges:?}");
            let killed = (128 + libc::SIGSYS as u32, String::new());
            assert_eq!(told(run("kill", call("acct")).await), killed, "{no_new_privileges:?}");
            let query = command(&call("personality"), &[QUERY]);
            assert_eq!(told(run("args", query).await), (0, "EACCES".to_owned()));
            let change = command(&call("personality"), &["0"]);
            assert_eq!(told(run("other", change).await), (0, "0".to_owned()));
            let status = ["grep", "-E", "NoNewPrivs|^Seccomp:", "/proc/self/status"];
            let status = status.map(str::to_owned).to_vec();
            let expected = u8::from(no_new_privileges == Some(true));
            let text = run("status", status).await.text();
            assert_eq!(text, format!("NoNewPrivs:\t{expected}\nSeccomp:\t2\n"));
        }
    });
}

#[test]
fn filter_that_allows_hardly_more_than_the_program_itself_is_enough_with_no_new_privileges() {
    vm_test(async |vm| {
        let names = [
            "execve",
            "brk",
            "arch_prctl",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "mprotect",
            "mmap",
            "munmap",
            "poll",
            "sigaltstack",
            "rt_sigaction",
            "rt_sigprocmask",
            "readlink",
            "readlinkat",
            "getrandom",
            "write",
            "exit_group",
            "sched_getaffinity",
            "gettid",
            "tgkill",
            "ppoll",
            "read",
            "openat",
            "close",
            "fstat",
            "newfstatat",
            "prctl",
            "futex",
        ];
        let narrow = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            { "names": names, "action": "SCMP_ACT_ALLOW" } ] });
        let exit = vm.run("narrow", filtered(&call("getpid"), &narrow, Some(true))).await;
        assert_eq!((exit.status, exit.text().as_str()), (0, "ENOSYS\n"));
    });
}

#[test]
fn exec_has_the_filter_of_its_container_also_under_another_agent() {
    vm_test(async |vm| {
        let init = ["sh", "-c", "read end"].map(str::to_owned);
        let wish = filtered(&init, &profile(), Some(true)).with_stdin();
        let task = vm.create("c", wish).await.expect("create").start().await.expect("start");
        let mkdirat = call("mkdirat");
        let mut wish = ExecWish::new(&mkdirat.iter().map(String::as_str).collect::<Vec<_>>());
        for (at, no_new_privileges) in [true, false].into_iter().enumerate() {
            wish.process["noNewPrivileges"] = json!(no_new_privileges);
            let exit = task.task.run_exec(&format!("e{at}"), wish.clone()).await;
            assert_eq!(exit.text(), "EOPNOTSUPP\n", "{no_new_privileges}");
        }
        Blow::Kill.strike(vm).await;
        let exit =
            vm.exec_in("c", "after", wish).await.expect("exec").start().await.expect("start");
        assert_eq!(exit.finish().await.text(), "EOPNOTSUPP\n");
        vm.delete_by_force("c").await;
    });
}

#[test]
fn profile_that_cannot_be_had_fails_the_create_with_its_reason() {
    vm_test(async |vm| {
        let rule = |action: &str| open(json!([{ "names": ["mkdirat"], "action": action }]));
        let mut arch = rule("SCMP_ACT_ALLOW");
        arch["architectures"] = json!(["SCMP_ARCH_PDP11"]);
        let cases = [
            (rule("SCMP_ACT_NOTIFY"), "mkdirat asks for SCMP_ACT_NOTIFY"),
            (rule("SCMP_ACT_PRAISE"), "SCMP_ACT_PRAISE"),
            (arch, "SCMP_ARCH_PDP11"),
        ];
        for (profile, reason) in cases {
            let wish = filtered(&call("getpid"), &profile, None);
            let error =
                vm.create("c", wish).await.map(|task| task.id).expect_err(reason).to_string();
            assert!(
                error.contains("OCI runtime create failed") && error.contains(reason),
                "{error}"
            );
        }
    });
}

//! vminit-vmm as a process: whatever dies first, the others end, the owner is told why, and nothing is left.
//!
//! How it proves its point: each test boots the guest kernel without anything to run, so that it panics, and mostly
//! with `panic=0`, so that it then stays. Processes are found by their parents in /proc, before and after the blow.
//! Needs `VMINITD_DIST` (`./dev test` sets it): a directory with `share/vminitd/x86_64/vmlinux` and
//! `libexec/vminitd/virtiofsd`; and `VMINITD_TEST_GUEST`, the directory of the guest's test programs.

#![cfg(target_os = "linux")]

#[path = "vmm_process/disks.rs"]
mod disks;
#[path = "vmm_process/emulation.rs"]
mod emulation;
#[path = "vmm_process/peer.rs"]
mod peer;
#[path = "vmm_process/vm.rs"]
mod vm;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use host_shim::machine::{BootOptions, ConnectError, ExitReason, Exited, Machine};
use host_shim::vm::{Accelerator, Description, Draft, Share};
use tokio::time::timeout;
use vm::{PATIENCE, Process, Vm, assert_all_gone, boot, chain, draft, run};

/// A kernel that has panicked and stays.
const STAYS: &str = "rdinit=/nothing panic=0";

/// A kernel that panics and, after two seconds to look at the VM, restarts, which ends it.
const PANICS: &str = "rdinit=/nothing panic=2";

#[test]
fn a_guest_that_panics_ends_the_vm_with_its_reason() {
    run(async {
        let vm = Vm::boot(PANICS).await;
        let exited = vm.exited().await;
        assert_eq!(exited.reason, ExitReason::Panic, "{exited}");
        assert!(exited.detail.contains("Unable to mount root fs"), "{exited}");
        vm.assert_gone();
    });
}

#[test]
fn kill_ends_it_at_once() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        vm.machine.kill().await;
        assert_eq!(vm.exited().await, exited(ExitReason::Killed, "killed by its owner"));
        vm.assert_gone();
    });
}

#[test]
fn stop_ends_it_through_qemu() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        vm.machine.stop().await;
        assert_eq!(vm.exited().await, exited(ExitReason::Killed, "stopped by its owner"));
        vm.assert_gone();
    });
}

#[test]
fn a_dropped_machine_leaves_nothing() {
    run(async {
        let Vm { machine, processes, directory } = Vm::boot(STAYS).await;
        drop(machine);
        // The task that holds vminit-vmm is dropped when the runtime comes round to it.
        tokio::task::yield_now().await;
        assert_all_gone(&processes);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["console.log", "shared"], "but for what the test made itself");
    });
}

#[test]
fn a_qemu_that_is_killed_is_told_and_takes_all_along() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        vm.kill("qemu-system");
        assert_eq!(vm.exited().await, exited(ExitReason::Crashed, "QEMU was killed by SIGKILL"));
        vm.assert_gone();
    });
}

#[test]
fn a_virtiofsd_that_is_killed_is_told_by_its_share() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        vm.kill("virtiofsd");
        let exited = vm.exited().await;
        assert_eq!(exited.reason, ExitReason::Crashed);
        assert!(exited.detail.starts_with("virtiofsd of share shared "), "{exited}");
        vm.assert_gone();
    });
}

#[test]
fn a_vminit_vmm_that_is_killed_is_told_and_takes_all_along() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        vm.kill("vminit-vmm");
        let exited = vm.exited().await;
        assert_eq!(exited.reason, ExitReason::VmmDied);
        assert!(exited.detail.contains("SIGKILL"), "{exited}");
        vm.assert_gone();
    });
}

#[test]
fn an_owner_that_is_killed_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    // The owner is this test program once more, in the part of `owner_to_be_killed`.
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_to_be_killed", "--nocapture"])
        .env(OWNER_VARIABLE, "1")
        // What it makes for itself, and cannot remove when it is killed, is removed with ours.
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map(Result::unwrap);
    let pids = lines
        .find_map(|line| Some(line.split_once(OWNER_MARK)?.1.to_owned()))
        .expect("an owner with a VM");
    let processes: Vec<Process> =
        pids.split_whitespace().map(|pid| Process::of(pid.parse().unwrap())).collect();
    assert!(processes.len() >= 3, "vminit-vmm, QEMU and virtiofsd: {processes:?}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_all_gone(&processes);
}

const OWNER_VARIABLE: &str = "VMINITD_TEST_IS_OWNER";
const OWNER_MARK: &str = "OWNER OF ";

#[test]
fn owner_to_be_killed() {
    if std::env::var_os(OWNER_VARIABLE).is_none() {
        return;
    }
    run(async {
        let vm = Vm::boot(STAYS).await;
        let pids: Vec<String> =
            vm.processes.iter().map(|process| process.pid.to_string()).collect();
        println!("\n{OWNER_MARK}{}", pids.join(" "));
        std::io::stdout().flush().unwrap();
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_kernel_that_is_missing_is_told_by_its_path() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let error = boot(
            &directory,
            Draft { kernel: "/nowhere/vmlinux".into(), ..draft(&directory, STAYS) },
        )
        .await
        .unwrap_err();
        assert_eq!(
            chain(&error),
            "open the kernel \"/nowhere/vmlinux\": No such file or directory (os error 2)"
        );
    });
}

#[test]
fn a_kernel_that_is_none_is_told_in_qemus_words() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        fs::write(&kernel, "no kernel").unwrap();
        let error = boot(
            &directory,
            Draft { kernel, accelerator: Accelerator::Emulation, ..draft(&directory, STAYS) },
        )
        .await
        .unwrap_err();
        let text = chain(&error);
        assert!(
            text.starts_with("QEMU exited with status 1: ") && text.contains("kernel"),
            "{text}"
        );
    });
}

#[test]
fn a_share_that_is_missing_is_told_by_its_tag() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let draft = draft(&directory, STAYS);
        let path = PathBuf::from("/nowhere");
        let shares = vec![Share { path, ..draft.shares[0].clone() }];
        let error = boot(&directory, Draft { shares, ..draft }).await.unwrap_err();
        assert_eq!(
            chain(&error),
            "share \"shared\": \"/nowhere\" is neither a directory nor a file"
        );
    });
}

#[test]
fn a_program_that_is_no_vminit_vmm_is_told() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let description = Description::try_from(draft(&directory, STAYS)).unwrap();
        let options = |vmm: &str| BootOptions {
            vmm: std::path::PathBuf::from(vmm).into(),
            console: directory.path().join("console.log"),
        };
        let error = Machine::boot(description.clone(), options("/nowhere/vmm")).await.unwrap_err();
        assert_eq!(chain(&error), "start \"/nowhere/vmm\": No such file or directory (os error 2)");
        let error = Machine::boot(description, options("/bin/false")).await.unwrap_err();
        assert!(chain(&error).contains("vminit-vmm died"), "{}", chain(&error));
    });
}

#[test]
fn dialling_a_guest_that_has_ended_says_how_it_ended() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        vm.machine.kill().await;
        match vm.machine.connect(1024).await {
            Err(ConnectError::Gone { exited }) => assert_eq!(exited.reason, ExitReason::Killed),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn dialling_a_guest_without_a_listener_fails_soon_and_may_pass() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        let error = timeout(PATIENCE, vm.machine.connect(1024)).await.unwrap().unwrap_err();
        assert!(error.may_pass(), "{error}");
    });
}

#[test]
fn what_serves_a_guest_has_no_privilege_to_gain_and_a_filter_on_its_system_calls() {
    run(async {
        let vm = Vm::boot(STAYS).await;
        for process in vm.processes.iter().filter(|process| process.name != "vminit-vmm") {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
            assert!(status.contains("NoNewPrivs:\t1"), "{process:?}");
            // virtiofsd's first process only waits for the one in the namespaces.
            if process.name.starts_with("qemu-system") {
                assert!(status.contains("Seccomp:\t2"), "{process:?}");
            }
        }
        let filtered = |process: &&Process| {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
            process.name == "virtiofsd" && status.contains("Seccomp:\t2")
        };
        assert_eq!(vm.processes.iter().filter(filtered).count(), 1, "{:?}", vm.processes);
    });
}

#[test]
fn no_fd_of_the_owner_reaches_who_serves_the_guest() {
    run(async {
        let secret = tempfile::NamedTempFile::new().unwrap();
        // One that forgot its close-on-exec flag: vminit-vmm gets it, QEMU must not.
        nix::fcntl::fcntl(
            secret.as_raw_fd(),
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        let vm = Vm::boot(STAYS).await;
        for process in vm.processes.iter().filter(|process| process.name != "vminit-vmm") {
            for fd in fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap() {
                let target = fs::read_link(fd.unwrap().path()).unwrap_or_default();
                assert_ne!(target, secret.path(), "{process:?}");
            }
        }
    });
}

#[test]
fn the_program_tells_who_starts_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_vminit-vmm")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && help.contains("vminitctl") && help.contains("--control-fd"),
        "{help}"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_vminit-vmm"))
        .args(["--control-fd", "99"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("vminit-vmm: --control-fd: 99 is no connected socket"), "{error}");
    assert!(!output.status.success());
}

fn exited(reason: ExitReason, detail: &str) -> Exited {
    Exited { reason, detail: detail.to_owned() }
}

//! The injected supervisor: a real program in the guest that crashes on command.
//!
//! How it is proved: the program notes each of its starts, with what it found, in a file that the test reads; times
//! are those of the guest's clock. The rule's times are divided by `supervisor_haste`, so a wait is never shorter than
//! its share, and a row of them not much longer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use host_shim::guest::unlimited;
use qemu_tests::{
    Blow, Options, PATIENCE_S, Vm, Wish, guest_program, guest_share, inspector, vm_test_with,
};
use ttrpc::Code;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::SupervisorStatusResponse;

const PROGRAM: &str = "/guest/run/spin-stack/spin-supervisor";

/// A VM whose supervisor's times are this many times shorter, and that looks for none by itself: on a busy host the
/// usual two seconds are over while the program is being copied. What it leaves is in no other test's way.
fn hasty(haste: u32, more: &str) -> Options {
    let append = format!(
        "vminitd.log=info vminitd.supervisor_delay_ms=3600000 vminitd.supervisor_haste={haste} {more}"
    );
    Options { append, look_for_leaks: false, ..Options::default() }
}

/// Runs a shell script with the guest's root on /guest.
async fn sh(vm: &Vm, script: &str) -> String {
    let exit = vm.run("look", inspector(&["sh", "-c", script])).await;
    assert_eq!(exit.status, 0, "{script}: {}", String::from_utf8_lossy(&exit.stderr));
    exit.text()
}

/// Puts the program into the guest, with its orders, and forgets its earlier starts.
async fn inject(vm: &Vm, orders: &str) {
    let script = format!(
        "mkdir -p /guest/run/spin-stack; cd /guest/run/spin-stack; rm -f starts spin-supervisor; \
         printf '{orders}' >orders; cp /bin/supervised {PROGRAM}; chmod 600 {PROGRAM}"
    );
    sh(vm, &script).await;
}

async fn start(vm: &Vm) -> SupervisorStatusResponse {
    vm.guest().machine().supervisor_start(unlimited(), &Empty {}).await.expect("start")
}

async fn stop(vm: &Vm) -> SupervisorStatusResponse {
    vm.guest().machine().supervisor_stop(unlimited(), &Empty {}).await.expect("stop")
}

async fn status(vm: &Vm) -> SupervisorStatusResponse {
    vm.guest().machine().supervisor_status(unlimited(), &Empty {}).await.expect("status")
}

/// Waits until its status is as wanted.
async fn until(
    vm: &Vm,
    wanted: impl Fn(&SupervisorStatusResponse) -> bool,
) -> SupervisorStatusResponse {
    let since = Instant::now();
    loop {
        let status = status(vm).await;
        if wanted(&status) {
            return status;
        }
        assert!(since.elapsed() < Duration::from_secs(PATIENCE_S), "it stays {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One start, as the program noted it.
#[derive(Debug)]
struct Start(String);

impl Start {
    fn get(&self, key: &str) -> &str {
        let value = self.0.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key}: {}", self.0))
    }

    fn at(&self) -> Duration {
        Duration::from_micros(self.get("at").parse().expect("microseconds"))
    }
}

async fn starts(vm: &Vm) -> Vec<Start> {
    let text = sh(vm, "cat /guest/run/spin-stack/starts 2>/dev/null || true").await;
    text.lines().map(|line| Start(line.to_owned())).collect()
}

/// The waits that init has announced, in seconds of the rule's own time.
fn announced(vm: &Vm, haste: u32) -> Vec<u64> {
    let waits = vm.console();
    let waits = waits
        .lines()
        .filter_map(|line| line.split_once("started again in ")?.1.split_whitespace().next());
    let seconds = |wait: &str| match wait.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>().expect("a number") / 1000.0,
        None => wait.strip_suffix('s').and_then(|s| s.parse().ok()).expect("seconds"),
    };
    waits.map(|wait| (seconds(wait) * f64::from(haste)).round() as u64).collect()
}

#[test]
fn supervisor_that_crashes_is_restarted_ever_later_and_then_given_up() {
    const HASTE: u32 = 20;
    vm_test_with(hasty(HASTE, ""), async |vm| {
        // None yet: nothing is said, and a host is told.
        let error = vm.guest().machine().supervisor_status(unlimited(), &Empty {}).await;
        let ttrpc::Error::RpcStatus(error) = error.expect_err("there is none") else {
            panic!("no status")
        };
        assert_eq!(
            (error.code(), error.message.as_str()),
            (Code::NOT_FOUND, "supervisor does not exist: not found")
        );
        inject(vm, "exit 3 0").await;
        assert!(!vm.console().contains("upervisor"), "{}", vm.console());

        start(vm).await;
        let end = until(vm, |status| status.state == "given up").await;
        assert_eq!(
            (end.pid, end.restarts, end.next_restart_ms, end.last_exit),
            (None, 10, None, Some(3))
        );
        let waits = [1, 2, 4, 8, 16, 30, 30, 30, 30, 30];
        assert_eq!(announced(vm, HASTE), waits);
        let seen = starts(vm).await;
        assert_eq!(seen.len(), 11, "{seen:?}");
        for (number, wait) in waits.into_iter().enumerate() {
            let took = seen[number + 1].at() - seen[number].at();
            assert!(
                took >= Duration::from_secs(wait) / HASTE,
                "restart {number} came after {took:?}"
            );
        }
        let whole = seen[10].at() - seen[0].at();
        assert!(whole < Duration::from_secs(2 * 181) / HASTE, "{whole:?}");
        let console = vm.console();
        let errors =
            console.lines().filter(|line| line.contains("stays down: gave up after 10 restarts"));
        assert_eq!(errors.count(), 1, "{console}");

        // A start by request begins anew. What cannot be executed is a crash like any other.
        sh(vm, &format!("printf 'no program' >{PROGRAM}.new; chmod 600 {PROGRAM}.new; mv {PROGRAM}.new {PROGRAM}")).await;
        start(vm).await;
        let crashed = until(vm, |status| status.restarts >= 3).await;
        assert_eq!(crashed.last_exit, Some(126));
        assert_eq!(sh(vm, &format!("stat -c %a {PROGRAM}")).await, "755\n");
        // One that is gone as well.
        sh(vm, &format!("rm {PROGRAM}")).await;
        until(vm, |status| status.last_exit == Some(127)).await;
        let stopped = stop(vm).await;
        assert_eq!((stopped.state.as_str(), stopped.pid), ("stopped", None));
    });
}

#[test]
fn supervisor_that_crashes_seldom_is_never_given_up_and_one_that_was_stable_begins_anew() {
    const HASTE: u32 = 100;
    vm_test_with(hasty(HASTE, ""), async |vm| {
        // It runs for ten seconds each time: at no time are there more than ten restarts in five minutes.
        inject(vm, "exit 1 100").await;
        start(vm).await;
        let status = until(vm, |status| status.restarts > 12 || status.state == "given up").await;
        assert_ne!(status.state, "given up");
        stop(vm).await;
        let before = announced(vm, HASTE).len();

        // Three crashes, then more than five minutes of running, then another crash.
        inject(vm, "exit 1 0\\nexit 1 0\\nexit 1 0\\nexit 1 3050\\nrun").await;
        start(vm).await;
        until(vm, |status| status.restarts == 4 && status.state == "running").await;
        assert_eq!(announced(vm, HASTE)[before..], [1, 2, 4, 1]);
    });
}

#[test]
fn supervisor_is_a_fresh_process_and_its_end_is_term_then_kill() {
    const HASTE: u32 = 20;
    vm_test_with(hasty(HASTE, "vminitd.log=debug"), async |vm| {
        inject(vm, "exit 0 0\\nleave 7\\nignore-term\\nleave 5").await;
        // Its container was there at the second start.
        let asleep = vm.create("asleep", Wish::new(&["sleep", "600"])).await.expect("create");
        start(vm).await;
        let status = until(vm, |status| status.restarts == 1 && status.state == "running").await;
        let pid = status.pid.expect("it runs");
        let console = || vm.console();
        while !console().contains("supervisor: ready") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        let seen = starts(vm).await;
        assert_eq!(seen.len(), 2, "{seen:?}");
        let start_of = &seen[1];
        let pid_text = pid.to_string();
        for (key, value) in [
            ("pid", pid_text.as_str()),
            ("file", &pid_text),
            ("SigBlk", "0000000000000000"),
            ("ignored", "0"),
            ("oom", "0"),
            ("cgroup", "0::/supervisor"),
            ("fds", "[0,1,2]"),
            ("exe", "/run/spin-stack/spin-supervisor"),
            ("cwd", "/"),
            ("root", "/run/bundles/asleep/rootfs"),
        ] {
            assert_eq!(start_of.get(key), value, "{key}: {start_of:?}");
        }
        assert_eq!(sh(vm, &format!("stat -c %a {PROGRAM}")).await, "755\n");
        let limit = sh(vm, "cat /guest/sys/fs/cgroup/supervisor/memory.max").await;
        assert_ne!(limit.trim(), "max");
        asleep.kill(9).await.expect("kill");
        let _ = asleep.wait().await;
        asleep.delete().await.expect("delete");

        // One that leaves when it is told keeps its own status.
        let stopped = stop(vm).await;
        assert_eq!((stopped.state.as_str(), stopped.last_exit), ("stopped", Some(7)));
        let left = sh(vm, "ls /guest/run/spin-supervisor.pid 2>&1 || true").await;
        assert!(left.contains("No such"), "{left}");
        // One that does not is killed. No container's root is there any more.
        start(vm).await;
        until(vm, |status| status.state == "running").await;
        while console().matches("supervisor: ready").count() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let stopped = stop(vm).await;
        assert_eq!((stopped.state.as_str(), stopped.last_exit), ("stopped", Some(137)));
        assert!(console().contains("supervisor: told to end"), "it was not asked first");
        assert!(console().contains("does not end on SIGTERM"));
        assert_eq!(starts(vm).await[2].get("root"), "-");

        // The VM's end is its end: it gets its time.
        start(vm).await;
        while console().matches("supervisor: ready").count() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(vm.power_off().await.reason.to_string(), "power-off");
        assert!(console().contains("the supervisor exited with 5"), "{}", console());
    });
}

#[test]
fn supervisor_that_ignores_term_is_killed_when_the_vm_ends() {
    vm_test_with(hasty(10, ""), async |vm| {
        inject(vm, "ignore-term").await;
        start(vm).await;
        while starts(vm).await.is_empty() {}
        assert_eq!(vm.power_off().await.reason.to_string(), "power-off");
        assert!(vm.console().contains("the supervisor was killed by signal 9"), "{}", vm.console());
    });
}

#[test]
fn supervisor_does_not_notice_that_agents_are_killed_and_its_log_is_whole() {
    const LINES: u64 = 26_000;
    vm_test_with(hasty(1, ""), async |vm| {
        inject(vm, &format!("say {LINES}")).await;
        let begun = start(vm).await;
        for blow in [Blow::Kill, Blow::Stop, Blow::Kill] {
            blow.strike(vm).await;
        }
        let written = format!("{:063}", LINES - 1);
        let since = Instant::now();
        while !sh(vm, "tail -n 1 /guest/var/log/spin-supervisor.log").await.contains(&written) {
            assert!(since.elapsed() < Duration::from_secs(PATIENCE_S), "the log does not grow");
        }
        let now = status(vm).await;
        assert_eq!((now.state.as_str(), now.pid, now.restarts), ("running", begun.pid, 0));
        assert_eq!(
            sh(vm, "cat /guest/run/spin-supervisor.pid").await.trim(),
            now.pid.expect("runs").to_string()
        );

        // 1.6 MiB: the log was replaced once, and all of it is in the two files.
        let sizes =
            sh(vm, "cd /guest/var/log; stat -c %s spin-supervisor.log.1 spin-supervisor.log").await;
        let sizes: Vec<u64> = sizes.lines().map(|size| size.parse().expect("a size")).collect();
        assert_eq!(sizes[0], 1 << 20);
        let text = sh(vm, "cd /guest/var/log; cat spin-supervisor.log.1 spin-supervisor.log").await;
        let expected: String = (0..LINES).map(|line| format!("{line:063}\n")).collect();
        assert!(text == format!("start 1: say {LINES}\n{expected}"), "{} bytes", text.len());
        // Not on the console: that is for the debug level.
        assert!(!vm.console().contains(&written));
    });
}

/// An initramfs that has the program where spinbox's own code looks for it.
fn initramfs_with_supervisor(directory: &std::path::Path) -> PathBuf {
    let mut tree = initramfs::Tree::with_init(&guest_share().join("vminitd")).expect("the guest");
    let place = "/var/lib/spin-stack/bin/spin-supervisor";
    tree.add(&guest_program("supervised"), place.as_ref()).expect("a program");
    let path = directory.join("initramfs.cpio");
    let mut file = std::fs::File::create(&path).expect("a file");
    initramfs::newc::write(&tree, &mut file).expect("written");
    path
}

#[test]
fn supervisor_of_an_image_is_started_a_while_after_serving() {
    let directory = tempfile::tempdir().expect("a directory");
    let initramfs = Some(initramfs_with_supervisor(directory.path()));
    vm_test_with(
        Options { initramfs, ..hasty(1, "vminitd.supervisor_delay_ms=2000") },
        async |vm| {
            let served = Instant::now();
            loop {
                match vm.guest().machine().supervisor_status(unlimited(), &Empty {}).await {
                    Ok(status) if status.state == "running" => break,
                    Ok(status) => panic!("{status:?}"),
                    Err(_) => assert!(served.elapsed() < Duration::from_secs(PATIENCE_S)),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            while starts(vm).await.is_empty() {}
            let seen = starts(vm).await;
            assert_eq!(seen[0].get("exe"), "/var/lib/spin-stack/bin/spin-supervisor");
            let serves = vm.console();
            let serves = serves.lines().find_map(|line| {
                line.split_once("uptime_us=")?.1.trim().strip_suffix(" phase=serve")
            });
            let serves: u64 = serves.and_then(|at| at.parse().ok()).expect("a stamp");
            let wait = seen[0].at() - Duration::from_micros(serves);
            assert!(wait >= Duration::from_secs(2), "{wait:?} after serving");
            // It is begun once: another agent does not start another.
            Blow::Kill.strike(vm).await;
            assert_eq!(status(vm).await.restarts, 0);
            assert_eq!(starts(vm).await.len(), 1);
        },
    );
}

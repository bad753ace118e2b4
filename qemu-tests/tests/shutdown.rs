//! The ends of a VM. What is proven from outside: how the hypervisor says that it ended, what the console's stop
//! report says was left, what the host was told before, and what e2fsck says of the disk afterwards.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use host_shim::guest::unlimited;
use host_shim::machine::Machine;
use host_shim::vm::{Disk, Serial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::cli::{Vms, children, wait};
use qemu_tests::{Options, PATIENCE_S, Vm, Wish, inspector, vm_test_with};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::ShutdownRequest;
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::MachineShutdownRequest;
use vminitd_protocol::topics::TASK_EXIT;

/// A VM that the test itself ends.
fn ends(append: &str) -> Options {
    Options { append: append.to_owned(), look_for_leaks: false, ..Options::default() }
}

async fn ended(machine: &Machine) -> String {
    let ended = timeout(Duration::from_secs(PATIENCE_S), machine.exited());
    ended.await.expect("the VM ends").reason.to_string()
}

/// The stop report, without the time that it took.
fn report(console: &str) -> (String, String) {
    let line = console.lines().rfind(|line| line.contains("vminitd: stop report: "));
    let line = line.unwrap_or_else(|| panic!("no stop report:\n{console}")).trim_end();
    let (_, report) = line.split_once("stop report: ").expect("the mark");
    let (end, left) = report.split_once(" ms, ").expect("a time");
    (end.split_once(' ').expect("an end").0.to_owned(), left.to_owned())
}

async fn ask(vm: &Vm, request: MachineShutdownRequest) {
    // The VM may be gone before the answer is through.
    let _ = vm.guest().machine().shutdown(unlimited(), &request).await;
}

/// Starts `wish` as `id` and waits for its first line.
async fn start_and_wait(
    vm: &Vm,
    id: &str,
    mut wish: Wish,
) -> BufReader<host_shim::vmm::GuestStream> {
    wish.stdout_uri = Some(format!("stream://{id}-says"));
    let mut says = BufReader::new(vm.stream(&format!("{id}-says")).await);
    let task = vm.create(id, wish).await.expect("create");
    std::mem::forget(task.start().await.expect("start"));
    let mut line = String::new();
    let read = says.read_line(&mut line);
    timeout(Duration::from_secs(PATIENCE_S), read).await.expect("a line").expect("a line");
    says
}

fn way_stops_everything(way: &str, act: impl AsyncFnOnce(&Vm)) {
    vm_test_with(ends("vminitd.log=info"), async |vm| {
        // What it does on SIGTERM takes a moment, and is told.
        let script =
            "trap 'sleep 0.2; echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let mut says = start_and_wait(vm, "c", Wish::sh(script)).await;
        act(vm).await;
        assert_eq!(ended(vm.machine()).await, "power-off", "{way}");
        assert_eq!(
            report(&vm.console()),
            ("power-off".to_owned(), "nothing left".to_owned()),
            "{way}"
        );
        let mut rest = String::new();
        says.read_line(&mut rest).await.expect("what was written is in the socket");
        assert_eq!(rest, "bye\n", "{way}");
        vm.await_events(TASK_EXIT, "c", 1).await;
    });
}

async fn signal_to_init(vm: &Vm, signal: &str) {
    let mut wish = inspector(&["sh", "-c", &format!("kill -{signal} 1; sleep 100")]);
    wish.stdout_uri = Some(String::new());
    let task = vm.create("killer", wish).await.expect("create");
    let _ = task.start().await;
}

#[test]
fn sigterm_to_init_stops_everything_and_powers_off() {
    way_stops_everything("SIGTERM", async |vm| signal_to_init(vm, "TERM").await);
}

#[test]
fn ctrl_alt_del_stops_everything_and_powers_off() {
    way_stops_everything("SIGINT", async |vm| signal_to_init(vm, "INT").await);
}

#[test]
fn power_button_stops_everything_and_powers_off() {
    way_stops_everything("button", async |vm| vm.machine().power_down().await);
}

#[test]
fn shutdown_by_the_host_stops_everything_and_powers_off() {
    way_stops_everything("Machine.Shutdown", async |vm| ask(vm, Default::default()).await);
}

#[test]
fn prepare_shutdown_stops_everything_and_powers_off() {
    way_stops_everything("System.PrepareShutdown", async |vm| {
        let _ = vm.guest().system().prepare_shutdown(unlimited(), &Empty {}).await;
    });
}

#[test]
fn task_shutdown_ends_the_vm_when_the_last_container_is_gone() {
    vm_test_with(ends(""), async |vm| {
        let request = ShutdownRequest { id: "c".to_owned(), now: false };
        let says = start_and_wait(vm, "c", Wish::sh("echo up; sleep 1000")).await;
        vm.guest().task().shutdown(unlimited(), &request).await.expect("nothing happens");
        assert_eq!(vm.run("other", Wish::new(&["true"])).await.status, 0);
        vm.delete_by_force("c").await;
        drop(says);
        let _ = vm.guest().task().shutdown(unlimited(), &request).await;
        assert_eq!(ended(vm.machine()).await, "power-off");
        assert_eq!(report(&vm.console()), ("power-off".to_owned(), "nothing left".to_owned()));
    });
}

#[test]
fn file_server_that_stands_still_keeps_no_vm_from_its_end() {
    vm_test_with(ends("vminitd.stop_step_ms=1000 vminitd.stop_grace_ms=300"), async |vm| {
        let _says = start_and_wait(vm, "c", Wish::sh("echo up; sleep 1000")).await;
        let qemu = vm.machine().qemu_pid().expect("QEMU runs");
        let stat = std::fs::read_to_string(format!("/proc/{qemu}/stat")).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        let vmm = fields.split(' ').nth(1).expect("a parent").parse().expect("a number");
        for server in below(vmm, "virtiofsd") {
            kill(server, Signal::SIGSTOP).expect("it runs");
        }
        ask(vm, Default::default()).await;
        // The guest comes to its end; QEMU would wait for the server's last word as long as that stands.
        let ended = timeout(Duration::from_secs(PATIENCE_S), vm.machine().exited()).await;
        let ended = ended.expect("the VM ends").to_string();
        assert!(ended.starts_with("killed (the guest was through, "), "{ended}");
        let (_, left) = report(&vm.console());
        assert!(left.contains("virtiofs"), "{left}");
    });
}

#[test]
fn reboot_ends_the_vm_with_that_reason() {
    vm_test_with(ends(""), async |vm| {
        ask(vm, MachineShutdownRequest { reboot: true, grace_ms: None }).await;
        assert_eq!(ended(vm.machine()).await, "reboot");
        assert_eq!(report(&vm.console()), ("reboot".to_owned(), "nothing left".to_owned()));
    });
}

#[test]
fn containers_that_ignore_term_are_killed_after_their_grace_and_named() {
    vm_test_with(ends("vminitd.stop_grace_ms=100000"), async |vm| {
        let _says = start_and_wait(vm, "stubborn", Wish::new(&["misbehave", "ignore-term"])).await;
        // One that was never started, and one that stands still, are no reason to wait.
        let _created = vm.create("created", Wish::new(&["true"])).await.expect("create");
        ask(vm, MachineShutdownRequest { reboot: false, grace_ms: Some(300) }).await;
        assert_eq!(ended(vm.machine()).await, "power-off");
        let (_, left) = report(&vm.console());
        assert_eq!(left, "left: container stubborn killed after 0.3 s");
        let exited = vm.machine().exited().await;
        assert_eq!(exited.detail, "left: container stubborn killed after 0.3 s");
    });
}

#[test]
fn agent_that_is_killed_in_the_middle_is_replaced_and_goes_on() {
    vm_test_with(ends("vminitd.stop_grace_ms=3000"), async |vm| {
        let wish = inspector(&[
            "sh",
            "-c",
            "trap 'trap \"\" TERM; inspect signal 9' TERM; echo up; while :; do sleep 0.05; done",
        ]);
        let _says = start_and_wait(vm, "murderer", wish).await;
        ask(vm, Default::default()).await;
        assert_eq!(ended(vm.machine()).await, "power-off");
        let console = vm.console();
        assert!(console.contains("agent 2 serves"), "{console}");
        let (_, left) = report(&console);
        assert_eq!(left, "left: container murderer killed after 3 s");
    });
}

#[test]
fn step_that_hangs_is_given_up_and_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = ext4(&directory);
    let append = "vminitd.stop_step_ms=1500 vminitd.stop_grace_ms=300";
    vm_test_with(Options { disks: vec![disk], ..ends(append) }, async |vm| {
        let script = "echo up; while :; do echo x >/file; done";
        let mut says = create_on_ext4(vm, "c", Wish::sh(script)).await;
        // Somebody freezes its filesystem: whoever writes there cannot even be killed.
        let freeze = "fsfreeze --freeze /guest/run/bundles/c/mounts/1";
        assert_eq!(vm.run("freezer", inspector(&["sh", "-c", freeze])).await.status, 0);
        ask(vm, Default::default()).await;
        assert_eq!(ended(vm.machine()).await, "power-off");
        let (_, left) = report(&vm.console());
        for part in ["container c ", "process ", " does not die", "step processes given up"] {
            assert!(left.contains(part), "{part}: {left}");
        }
        drop(says.read_line(&mut String::new()).await);
    });
}

/// The processes of that name below `parent`.
fn below(parent: u32, name: &str) -> Vec<Pid> {
    let mut family = vec![Pid::from_raw(parent as i32)];
    let mut found = Vec::new();
    while let Some(pid) = family.pop() {
        for child in children(pid) {
            let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            if comm.starts_with(name) {
                found.push(child);
            }
            family.push(child);
        }
    }
    assert!(!found.is_empty(), "no {name} runs");
    found
}

/// A writable disk with an empty ext4, the only one of the VM.
fn ext4(directory: &tempfile::TempDir) -> Disk {
    let path = directory.path().join("ext4.img");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(64 << 20).expect("a size");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&path).status();
    assert!(made.expect("mke2fs, of e2fsprogs").success());
    Disk { serial: Serial::try_from("data".to_owned()).expect("a serial"), path, read_only: false }
}

/// A container whose writable layer is on the disk.
async fn create_on_ext4(
    vm: &Vm,
    id: &str,
    mut wish: Wish,
) -> BufReader<host_shim::vmm::GuestStream> {
    let bundle = format!("/run/bundles/{id}");
    let mount = |kind: &str, source: &str, options: &[String]| Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.to_vec(),
    };
    wish.mounts = Some(vec![
        mount("virtiofs", qemu_tests::ROOTFS_TAG, &["ro".to_owned()]),
        mount("ext4", "/dev/vda", &[]),
        mount(
            "overlay",
            "overlay",
            &[
                format!("lowerdir={bundle}/mounts/0"),
                format!("upperdir={bundle}/mounts/1/upper"),
                format!("workdir={bundle}/mounts/1/work"),
            ],
        ),
    ]);
    start_and_wait(vm, id, wish).await
}

/// What e2fsck says of a copy: its journal first, as a mount would do it, then everything.
fn check(image: &Path) {
    let copy = image.with_extension("copy");
    std::fs::copy(image, &copy).expect("a copy");
    let journal = Command::new("e2fsck").args(["-E", "journal_only", "-p"]).arg(&copy).output();
    let journal = journal.expect("e2fsck");
    assert!(journal.status.success(), "{}", String::from_utf8_lossy(&journal.stdout));
    let whole = Command::new("e2fsck").args(["-f", "-n"]).arg(&copy).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&whole.stdout).into_owned();
    assert!(whole.status.success(), "{said}");
    // Unmounted, not only recovered.
    let dump = Command::new("dumpe2fs").arg("-h").arg(&copy).output().expect("dumpe2fs");
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("Filesystem state:         clean"), "{dump}");
    assert!(!dump.contains("needs_recovery"), "{dump}");
}

#[test]
fn disk_that_is_written_until_the_end_is_clean() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = ext4(&directory);
    let image = disk.path.clone();
    let options = Options { disks: vec![disk], ..ends("vminitd.stop_grace_ms=500") };
    vm_test_with(options, async |vm| {
        let script = "trap '' TERM; echo up; n=0; while :; do
            mkdir -p /d$((n % 7)); dd if=/dev/urandom of=/d$((n % 7))/f$n bs=64k count=2 2>/dev/null
            rm -f /d*/f$((n - 20)); n=$((n + 1)); done";
        let _says = create_on_ext4(vm, "writer", Wish::sh(script)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        ask(vm, Default::default()).await;
        assert_eq!(ended(vm.machine()).await, "power-off");
        let (_, left) = report(&vm.console());
        assert_eq!(left, "left: container writer killed after 0.5 s");
    });
    check(&image);
}

#[test]
fn frozen_filesystem_stands_still_until_it_is_thawed_by_whoever() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = ext4(&directory);
    let image = disk.path.clone();
    let options = Options { disks: vec![disk], ..ends("vminitd.thaw_after_ms=4000") };
    vm_test_with(options, async |vm| {
        // Says how often it has written.
        let script = "n=0; while :; do echo $n >/file; echo $n; n=$((n + 1)); sleep 0.05; done";
        let mut says = create_on_ext4(vm, "c", Wish::sh(script)).await;
        let freeze = async |vm: &Vm| {
            let frozen = vm.guest().system().freeze_filesystems(unlimited(), &Empty {}).await;
            frozen.expect("freeze").frozen
        };
        let place = "/run/bundles/c/mounts/1".to_owned();
        // Twice is as good as once.
        assert_eq!(freeze(vm).await, std::slice::from_ref(&place));
        assert_eq!(freeze(vm).await, std::slice::from_ref(&place));
        until_it_stands_still(&mut says).await;
        // What a copy of the disk would hold now.
        check_journal(&image);
        // The agent itself waits for nothing: other containers live.
        assert_eq!(vm.run("other", Wish::new(&["true"])).await.status, 0);
        vm.guest().system().thaw_filesystems(unlimited(), &Empty {}).await.expect("thaw");
        until_it_writes(&mut says).await;
        vm.guest().system().thaw_filesystems(unlimited(), &Empty {}).await.expect("thaw again");
        // Nobody thaws it.
        let frozen = Instant::now();
        assert_eq!(freeze(vm).await, std::slice::from_ref(&place));
        until_it_stands_still(&mut says).await;
        until_it_writes(&mut says).await;
        assert!(frozen.elapsed() > Duration::from_secs(2), "{:?}", frozen.elapsed());
        // The agent that froze it is gone.
        assert_eq!(freeze(vm).await, std::slice::from_ref(&place));
        until_it_stands_still(&mut says).await;
        qemu_tests::Blow::Kill.strike(vm).await;
        until_it_writes(&mut says).await;
        // The VM ends.
        assert_eq!(freeze(vm).await, [place]);
        ask(vm, Default::default()).await;
        assert_eq!(ended(vm.machine()).await, "power-off");
    });
    check(&image);
}

type Says = BufReader<host_shim::vmm::GuestStream>;

/// Takes what was said before the freeze and may be on its way still, until nothing comes any more.
async fn until_it_stands_still(says: &mut Says) {
    let mut line = String::new();
    while timeout(Duration::from_millis(700), says.read_line(&mut line)).await.is_ok() {
        assert!(line.ends_with('\n'), "its output has ended: {line}");
        assert!(line.matches('\n').count() < 30, "it writes on: {line}");
    }
}

/// Waits for the next line: it must stand still.
async fn until_it_writes(says: &mut Says) {
    let mut line = String::new();
    let read = timeout(Duration::from_secs(PATIENCE_S), says.read_line(&mut line)).await;
    assert!(read.is_ok_and(|read| read.is_ok_and(|bytes| bytes > 0)), "it stands still");
}

/// A copy made while it is frozen is consistent as it is.
fn check_journal(image: &Path) {
    let copy = image.with_extension("frozen");
    std::fs::copy(image, &copy).expect("a copy");
    let whole = Command::new("e2fsck").args(["-f", "-n"]).arg(&copy).output().expect("e2fsck");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stdout));
}

#[test]
fn vminitctl_stop_ends_the_vm_and_run_has_its_commands_status() {
    let vms = Vms::new();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
    let mut run = vms.run(&["--name", "web"], &["sh", "-c", script]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = std::io::BufReader::new(run.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("output");
    assert_eq!(line, "up\n");
    let stop = vms.vminitctl(&["stop", "web", "--timeout", "30"]).output().expect("it starts");
    assert_eq!(stop.status.code(), Some(0), "{}", String::from_utf8_lossy(&stop.stderr));
    assert!(stop.stderr.is_empty() && stop.stdout.is_empty(), "nothing was left");
    line.clear();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("output");
    assert_eq!(line, "bye\n");
    assert_eq!(wait(&mut run).code(), Some(5));
    let none = vms.vminitctl(&["stop", "web"]).output().expect("it starts");
    assert_eq!(none.status.code(), Some(125));
}

#[test]
fn vminitctl_stop_kills_a_vm_that_does_not_answer() {
    let vms = Vms::new();
    let mut run = vms.run(&["--name", "deaf"], &["sh", "-c", "echo up; cat"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = std::io::BufReader::new(run.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut stdout, &mut String::new()).expect("output");
    for qemu in below(run.id(), "qemu-system") {
        kill(qemu, Signal::SIGSTOP).expect("it runs");
    }
    let stop = vms.vminitctl(&["stop", "deaf"]).output().expect("it starts");
    let said = String::from_utf8_lossy(&stop.stderr).into_owned();
    assert_eq!(stop.status.code(), Some(1), "{said}");
    assert!(said.contains("VM deaf is killed: "), "{said}");
    assert_eq!(wait(&mut run).code(), Some(125));
}

/// What an end takes in the guest, at a nanosecond an instruction: from a line on the console until its kernel has
/// nothing left to do but to turn the power off.
fn guest_part(console: &Path, line: &str) -> Duration {
    let text = String::from_utf8_lossy(&std::fs::read(console).expect("a console")).into_owned();
    let stamp = |line: &str| {
        let at = text.find(line).unwrap_or_else(|| panic!("{line}: {text}"));
        let (stamp, _) = text[..at].rsplit_once("] ").expect("a stamp");
        let (_, stamp) = stamp.rsplit_once('[').expect("a stamp");
        Duration::from_secs_f64(stamp.trim().parse().expect("seconds"))
    };
    stamp(LAST_LINE) - stamp(line)
}

/// From there on: QEMU's CPU time. The console is to be short, or its end's arrival is not known.
async fn qemu_part(machine: &Machine, console: &Path) -> Duration {
    let pid = machine.qemu_pid().expect("QEMU runs");
    // What it has used, again and again: when it is gone nobody can say.
    let samples = std::thread::spawn(move || {
        let (mut samples, mut most) = (Vec::new(), Duration::ZERO);
        while let Some(used) = cpu_time(pid) {
            // A thread that has ended takes its share along.
            most = most.max(used);
            samples.push((Instant::now(), most));
            std::thread::sleep(Duration::from_micros(500));
        }
        samples
    });
    machine.exited().await;
    let samples = samples.join().expect("it ends with QEMU");
    let text = std::fs::read(console).expect("a console");
    let at = text.windows(LAST_LINE.len()).position(|part| part == LAST_LINE.as_bytes());
    let at = at.expect("the kernel's last line") as u64;
    let arrivals = machine.console_arrivals();
    let (_, seen) = *arrivals.iter().find(|(total, _)| *total > at).expect("it has come");
    let before = samples.iter().rev().find(|(taken, _)| *taken <= seen);
    let (end, before) = (samples.last().expect("one at least").1, before.map(|(_, used)| *used));
    end - before.unwrap_or_default()
}

/// What the kernel says last.
const LAST_LINE: &str = "reboot: Power down";

/// Of all threads of a process that still runs.
fn cpu_time(pid: i32) -> Option<Duration> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanos = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let nanos: u64 = nanos.sum();
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

/// Counted, because what is executed once is mostly translated under emulation, and a busy machine moves all figures by
/// the clock. What QEMU itself takes then is the same for both but for noise, so its least counts for both.
#[test]
fn idle_vm_ends_within_twice_what_reboot_alone_takes() {
    const ROUNDS: usize = 2;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = initramfs::Tree::with_init(&qemu_tests::guest_program("yardstick"));
        let alone = directory.path().join("yardstick.cpio");
        let mut archive = std::fs::File::create(&alone).expect("a file");
        initramfs::newc::write(&tree.expect("the yardstick"), &mut archive).expect("an archive");
        let console = directory.path().join("console.log");
        let least = |parts: &[Duration]| *parts.iter().min().expect("one at least");
        let (mut ours, mut theirs, mut qemus) = (vec![], vec![], vec![]);
        // With its stamps the kernel's console is long, so each part has boots of its own.
        for words in ["loglevel=7 vminitd.log=info", "quiet"].repeat(ROUNDS) {
            let counted = |more: &str| Options { counted: true, ..ends(&format!("{words}{more}")) };
            let vm = Vm::boot(counted("")).await;
            let asked = ask(&vm, Default::default());
            let path = vm.machine().console_path().to_owned();
            let qemu = tokio::join!(asked, qemu_or_end(vm.machine(), &path, words)).1;
            let options = Options { initramfs: Some(alone.clone()), ..counted(" -- reboot") };
            let machine = Vm::spawn(&options, &console).await;
            let alone = qemu_or_end(&machine, &console, words).await;
            match (qemu, alone) {
                // It may end between the last line and our first look.
                (Some(qemu), Some(alone)) => {
                    qemus.extend([qemu, alone].into_iter().filter(|part| !part.is_zero()));
                }
                _ => {
                    ours.push(guest_part(&path, "vminitd: info init: shutting down"));
                    theirs.push(guest_part(&console, "phase=reboot"));
                }
            }
        }
        println!("idle shutdown {ours:?}\nreboot(2) alone {theirs:?}\nthen QEMU {qemus:?}");
        let qemu = least(&qemus);
        let (ours, theirs) = (least(&ours) + qemu, least(&theirs) + qemu);
        assert!(ours <= theirs * 2, "{ours:?} are more than twice {theirs:?}");
    });
}

/// QEMU's part of an end where the console is short.
async fn qemu_or_end(machine: &Machine, console: &Path, words: &str) -> Option<Duration> {
    if words == "quiet" {
        return Some(qemu_part(machine, console).await);
    }
    machine.exited().await;
    None
}

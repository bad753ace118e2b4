//! The extras disk: a tar archive becomes files of the guest, and the supervisor may be among them.
//!
//! How it is proved: the disk is made by the host's own packer or by hand, and the guest's root is looked at from a
//! container that has it mounted.

use std::os::fd::AsFd;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use host_shim::extras::{self, Extra};
use host_shim::guest::unlimited;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use qemu_tests::cli::{Vms, wait};
use qemu_tests::images::disk;
use qemu_tests::{Blow, Options, PATIENCE_S, Vm, guest_program, inspector, vm_test_with};
use vminitd_protocol::pb::google::protobuf::Empty;

const PROGRAM: &str = "/run/spin-stack/spin-supervisor";

async fn sh(vm: &Vm, script: &str) -> String {
    let exit = vm.run("look", inspector(&["sh", "-c", script])).await;
    assert_eq!(exit.status, 0, "{script}: {}", String::from_utf8_lossy(&exit.stderr));
    exit.text()
}

async fn until_console(vm: &Vm, text: &str) {
    let since = Instant::now();
    while !vm.console().contains(text) {
        assert!(since.elapsed() < Duration::from_secs(PATIENCE_S), "{text:?} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A VM with this archive as its first disk.
fn with_archive(archive: &Path, words: &str) -> Options {
    let disks = vec![disk("extras", archive, true)];
    let append = format!("vminitd.log=info spin.extras_disk=0 {words}");
    Options { append, disks, look_for_leaks: false, ..Options::default() }
}

#[test]
fn extras_are_in_place_when_the_supervisor_starts_and_hostile_ones_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let archive = directory.path().join("extras.tar");
    // Hostile entries among good ones, as the system's tar can be made to write them.
    let tree = directory.path().join("tree");
    std::fs::create_dir_all(tree.join("etc/deep")).expect("new");
    std::fs::write(tree.join("etc/deep/file"), "content\n").expect("new");
    std::os::unix::fs::symlink("deep/file", tree.join("etc/link")).expect("new");
    std::os::unix::fs::symlink("/proc/sysrq-trigger", tree.join("etc/out")).expect("new");
    std::fs::write(tree.join("init"), "not init\n").expect("new");
    std::fs::create_dir_all(tree.join("run/vminitd")).expect("new");
    std::fs::write(tree.join("run/vminitd/extras-done"), "").expect("new");
    let pack = |transform: &str, flag: &str, names: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args([flag, "--format=pax", "-P", transform, "-C"])
            .arg(&tree)
            .arg("-f")
            .arg(&archive)
            .args(names);
        assert!(tar.status().expect("tar").success());
    };
    pack("--transform=s,^,/,S", "-c", &["etc", "init", "run/vminitd/extras-done"]);
    pack("--transform=s,^,/../,S", "-r", &["etc/deep/file"]);
    pack("--transform=s,^,/var/lib/,S", "-r", &["etc/deep/file"]);
    std::fs::create_dir_all(tree.join("run/spin-stack")).expect("new");
    std::fs::copy(guest_program("supervised"), tree.join("run/spin-stack/spin-supervisor"))
        .expect("new");
    std::fs::write(tree.join("run/spin-stack/orders"), "run\n").expect("new");
    pack("--transform=s,^,/,S", "-r", &["run/spin-stack"]);

    vm_test_with(with_archive(&archive, ""), async |vm| {
        until_console(vm, "supervisor started").await;
        // etc, etc/deep, its file, the link; the copy; spin-stack and its two. Refused: out, init, the note, `..`.
        let console = vm.console();
        assert!(console.contains("extras: 8 entries, 4 refused"), "{console}");
        for (name, why) in [
            ("/etc/out", "its target is not the extras' to have"),
            ("/init", "it is not the extras' to have"),
            ("/run/vminitd/extras-done", "it is not the extras' to have"),
            ("/../etc/deep/file", "its name has `..`"),
        ] {
            let message = format!("extras: \\\"{name}\\\": {why}").replace('\\', "");
            assert!(console.contains(&message), "{message}\n{console}");
        }
        let order = console.find("extras: 8").zip(console.find("supervisor started"));
        assert!(order.is_some_and(|(extras, supervisor)| extras < supervisor), "{console}");
        let serves = console.find("phase=serve").expect("a stamp");
        assert!(serves < console.find("extras: ").expect("extras"), "{console}");
        let seen = sh(vm, "cd /guest; cat etc/deep/file var/lib/etc/deep/file; readlink etc/link; ls etc | grep -v -e hosts -e resolv; stat -c %a etc/deep").await;
        assert_eq!(seen, "content\ncontent\ndeep/file\ndeep\nlink\n755\n");
        assert!(!sh(vm, "head -c 8 /guest/init").await.contains("not init"));

        // What is extracted is extracted once.
        sh(vm, "rm /guest/etc/link").await;
        Blow::Kill.strike(vm).await;
        assert_eq!(vm.console().matches("extras: 8 entries").count(), 1);
        assert_eq!(sh(vm, "ls /guest/etc | grep -v -e hosts -e resolv").await, "deep\n");
    });
}

#[test]
fn ten_thousand_extras_arrive_whole_also_when_the_agent_is_killed_among_them() {
    const FILES: usize = 10_000;
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    for n in 0..FILES {
        let path = tree.join(format!("d{}", n % 50));
        std::fs::create_dir_all(&path).expect("new");
        std::fs::write(path.join(format!("f{n}")), format!("{n}\n")).expect("new");
    }
    let extra =
        |source: &Path, place: &str| Extra { source: source.to_owned(), place: place.into() };
    let extras = [extra(&tree, "/srv/many"), extra(&guest_program("supervised"), PROGRAM)];
    let archive = directory.path().join("extras.tar");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&archive).expect("new"));
    extras::write(&extras, &mut file).expect("packed");
    drop(file);
    vm_test_with(with_archive(&archive, ""), async |vm| {
        // In the middle, or the check below would not be worth much; a very fast guest may be through.
        Blow::Kill.strike(vm).await;
        until_console(vm, "supervisor started").await;
        let console = vm.console();
        assert!(console.contains("extras: 10052 entries, 0 refused"), "{console}");
        assert_eq!(console.matches("supervisor started").count(), 1, "{console}");
        let sum = "find /guest/srv/many -type f | wc -l; cat /guest/srv/many/*/* | awk '{s += $1} END {print s}'";
        assert_eq!(sh(vm, sum).await, format!("{FILES}\n{}\n", FILES * (FILES - 1) / 2));
        assert_eq!(sh(vm, "find /guest/srv /guest/run/spin-stack -name '.vminitd*'").await, "");
        let status = vm.guest().machine().supervisor_status(unlimited(), &Empty {}).await;
        assert_eq!(status.expect("status").state, "running");
    });
}

#[test]
fn archive_that_is_cut_or_absent_is_told_and_ends_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let archive = directory.path().join("extras.tar");
    let supervised = guest_program("supervised");
    let extras = [
        Extra { source: supervised.clone(), place: PROGRAM.into() },
        Extra { source: supervised, place: "/srv/cut".into() },
    ];
    let mut bytes = Vec::new();
    extras::write(&extras, &mut bytes).expect("packed");
    bytes.truncate(bytes.len() / 2 / 512 * 512 + 512 * 20);
    std::fs::write(&archive, &bytes).expect("new");
    vm_test_with(
        Options { erofs_root: true, ..with_archive(&archive, "spin.extras_disk=1") },
        async |vm| {
            // Also with a root that cannot be written: /run can, /srv is not there and stays so.
            until_console(vm, "supervisor started").await;
            assert!(
                vm.console().contains("not read further: it ends too early"),
                "{}",
                vm.console()
            );
            assert_eq!(
                sh(vm, "ls /guest/srv 2>/dev/null || true; ls /guest/run/spin-stack").await,
                "spin-supervisor\nstarts\n"
            );
            let log = "/guest/var/log/spin-supervisor.log";
            assert_eq!(
                sh(vm, &format!("until grep start {log}; do sleep 0.1; done")).await,
                "start 1: run\n"
            );
        },
    );
}

/// A guest that never dials is waited for no longer than any other answer.
fn accept_in_time(listener: &UnixListener) -> std::io::Result<(UnixStream, SocketAddr)> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(Duration::from_secs(PATIENCE_S)).expect("it fits");
    if poll(&mut fds, patience)? == 0 {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    listener.accept()
}

#[test]
fn extras_disk_is_found_behind_more_disks_than_there_are_letters() {
    let directory = tempfile::tempdir().expect("a directory");
    let archive = directory.path().join("extras.tar");
    let source = directory.path().join("file");
    std::fs::write(&source, "behind z\n").expect("new");
    let mut bytes = Vec::new();
    extras::write(&[Extra { source: source.clone(), place: "/srv/file".into() }], &mut bytes)
        .expect("packed");
    std::fs::write(&archive, &bytes).expect("new");
    let mut options = with_archive(&archive, "spin.extras_disk=28");
    let others = (0..28).map(|number| disk(&format!("other{number}"), &source, true));
    options.disks = others.chain(options.disks).collect();
    vm_test_with(options, async |vm| {
        until_console(vm, "extras: ").await;
        assert_eq!(sh(vm, "cat /guest/srv/file").await, "behind z\n");
    });
}

#[test]
fn vminitctl_gives_the_guest_extras_and_dials_and_asks_after_its_supervisor() {
    let vms = Vms::new();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("vm1.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = accept_in_time(&listener).expect("the guest dials");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).expect("text");
        std::io::Write::write_all(&mut stream, format!("vm1 said {text}").as_bytes())
            .expect("answer");
        text
    });
    std::fs::create_dir(directory.path().join("stack")).expect("new");
    std::fs::write(directory.path().join("stack/orders"), "dial 1027 hello\n").expect("new");
    std::fs::copy(guest_program("supervised"), directory.path().join("stack/spin-supervisor"))
        .expect("new");
    let extra = format!("{}:/run/spin-stack", directory.path().join("stack").display());
    let dial = format!("1027={}", socket.display());
    let args = ["--name", "vm1", "--extra", &extra, "--guest-dial", &dial];
    let mut run = vms.run(&args, &["sleep", "600"]).spawn().expect("it starts");
    let dialled = echo.join();
    if dialled.is_err() {
        run.kill().expect("ours");
        wait(&mut run);
    }
    assert_eq!(dialled.expect("dialled"), "hello");

    let ask = |args: &[&str]| {
        let output = vms.vminitctl(&[&["supervisor"], args].concat()).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text, _) = ask(&["status", "vm1", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (code, &status["state"], &status["restarts"]),
        (Some(0), &"running".into(), &0.into()),
        "{text}"
    );
    assert!(
        status["pid"].is_u64()
            && status["next_restart_ms"].is_null()
            && status["last_exit"].is_null(),
        "{text}"
    );
    let (code, text, _) = ask(&["stop"]);
    assert_eq!((code, text.as_str()), (Some(0), "stopped, 0 restarts, last exit 143\n"));
    assert_eq!(ask(&["status"]).0, Some(3));
    let (code, text, _) = ask(&["start", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(ask(&["status", "nobody"]).0, Some(125));
    run.kill().expect("ours");
    wait(&mut run);
}

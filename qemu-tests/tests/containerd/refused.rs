//! VMs that do not come to be, and hosts without room: the error says why, at once or at the stated deadline, and nothing
//! is left.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use qemu_tests::containerd::{Containerd, with_containerd};

/// What ctr says of a task that must not come to be; nothing of it is left.
fn refusal(containerd: &Containerd, id: &str, annotation: &str) -> String {
    let options = ["--annotation", annotation];
    let options = if annotation.is_empty() { &[][..] } else { &options };
    let exit = containerd.run(options, id, &["true"]);
    assert_ne!(exit.status, 0, "{exit:?}");
    containerd.assert_nothing_left();
    exit.stderr
}

#[test]
fn kernel_that_is_none_is_named_in_the_error_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        let absent = refusal(containerd, "k1", "io.vminitd.kernel=/nowhere/vmlinux");
        assert!(absent.contains("/nowhere/vmlinux"), "{absent}");
        let noise = containerd.host.dir().join("noise");
        fs::write(&noise, vec![7; 1 << 20]).expect("a new file");
        let annotation = format!("io.vminitd.kernel={}", noise.display());
        let no_kernel = refusal(containerd, "k2", &annotation);
        assert!(no_kernel.contains("QEMU"), "{no_kernel}");
    });
}

#[test]
fn panic_at_boot_is_the_error_and_the_consoles_end_is_logged() {
    with_containerd("2", |containerd| {
        let said = refusal(containerd, "p", "io.vminitd.append=rdinit=/nowhere root=/dev/nothing");
        assert!(said.contains("panic (VFS: Unable to mount root fs"), "{said}");
        let log = containerd.log();
        let console: Vec<&str> = log.lines().filter(|line| line.contains("console: ")).collect();
        assert!(console.iter().any(|line| line.contains("Kernel panic - not syncing")), "{log}");
    });
}

#[test]
fn host_without_memory_for_a_vm_is_the_error_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        // As a limit of the service would have it: QEMU needs more than this beside the guest's memory.
        containerd.replace_qemu("ulimit -v 400000; exec \"$QEMU\" \"$@\"");
        let said = refusal(containerd, "m", "");
        assert!(said.contains("Cannot allocate memory"), "{said}");
    });
}

#[test]
fn guest_that_never_comes_up_is_given_up_at_the_deadline() {
    with_containerd("2", |containerd| {
        // Its CPU is never let go.
        containerd.replace_qemu("exec \"$QEMU\" \"$@\" -S");
        let said = refusal(containerd, "n", "");
        assert!(said.contains("the guest did not serve within 30 s"), "{said}");
    });
}

#[test]
fn full_disk_loses_no_output_and_no_exit_and_refuses_what_is_new() {
    with_containerd("2", |containerd| {
        let events = containerd.events();
        let script = "echo ready; read go; yes | head -c 300000; exit 3";
        let mut run = containerd.run_command(&["--rm"], "full", &["sh", "-c", script]);
        let run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run = run.spawn().expect("nsenter");
        let mut stdout = BufReader::new(run.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a pipe");
        assert_eq!(line, "ready\n");
        // Bundles, console.log, shim.exit.json and FIFOs are below /run.
        let fill =
            "busybox mount -o remount,size=$(($(df -k /run | awk 'NR==2{print $3}') + 200))k /run
            cat /dev/zero >/run/filler 2>/dev/null; [ $(df -k /run | awk 'NR==2{print $4}') = 0 ]";
        containerd.host.sh(fill);
        run.stdin.take().expect("piped").write_all(b"go\n").expect("a pipe");
        let mut got = String::new();
        stdout.read_to_string(&mut got).expect("a pipe");
        assert_eq!(got.len(), 300_000);
        assert_eq!(run.wait().expect("our child").code(), Some(3));
        // What the last one has left room for.
        containerd.host.sh("cat /dev/zero >>/run/filler 2>/dev/null; true");
        let refused = containerd.run(&[], "new", &["true"]);
        assert!(refused.stderr.contains("no space left on device"), "{refused:?}");
        containerd.host.sh("rm /run/filler; busybox mount -o remount,size=50% /run");
        assert_eq!(containerd.run(&[], "again", &["echo", "room"]).good(), "room\n");
        let exits = events.topics("full").into_iter().filter(|topic| topic == "/tasks/exit");
        assert_eq!(exits.count(), 1, "{:#?}", events.lines());
        events.end(containerd);
    });
}

//! VMs in another's program: `--vmm external:...`.
//!
//! How it is proved: the program is vfkit's stand-in, which takes its command line and runs QEMU; what a person sees of
//! the container is what it would be with our own. That nothing is left is asked of the system.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use qemu_tests::cli::{Vms, children, wait};
use qemu_tests::images::{erofs, ext4};
use qemu_tests::{PATIENCE_S, noise, rootfs, sha256};

const STAND_IN: &str = concat!("external:", env!("CARGO_BIN_EXE_vfkit-stand-in"));

fn run(vms: &Vms, args: &[&str], script: &str) -> Command {
    let mut command = vms.vminitctl(&["run", "--vmm", STAND_IN]);
    command.args(args).args(["--", "sh", "-c", script]);
    command
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn container_in_anothers_program_is_as_in_our_own() {
    let (vms, directory) = (Vms::new(), tempfile::tempdir().expect("a directory"));
    let base = erofs(directory.path(), "base", rootfs());
    let state = ext4(directory.path(), "state", None, 32);
    let images = ["--image", base.to_str().unwrap(), "--image", state.to_str().unwrap()];
    let script = "cat >/got; sha256sum /got | cut -c1-64; echo err >&2; exit 7";
    let mut command = run(&vms, &[&images[..], &["-i"]].concat(), script);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = noise(3, 5 << 20);
    // Its end is the container's end of input: a half-close through the program.
    let written = child.stdin.take().unwrap().write_all(&bytes);
    let output = child.wait_with_output().unwrap();
    let told = text(&output);
    assert!(written.is_ok(), "{told:?}");
    assert_eq!(told, (Some(7), format!("{}\n", sha256(&bytes)), "err\n".to_owned()));
    // What it wrote is there the next time.
    let output = run(&vms, &images, "wc -c </got; ls /sys/block | grep -c vd").output().unwrap();
    assert_eq!(text(&output), (Some(0), format!("{}\n2\n", bytes.len()), String::new()));
}

#[test]
fn owner_that_is_killed_leaves_neither_program_nor_sockets() {
    let (vms, directory) = (Vms::new(), tempfile::tempdir().expect("a directory"));
    let base = erofs(directory.path(), "base", rootfs());
    for whom in ["vminitctl", "its driver"] {
        let sockets = tempfile::tempdir().unwrap();
        let args = ["--image", base.to_str().unwrap()];
        let mut command = run(&vms, &args, "echo up; sleep 1000");
        let mut child =
            command.env("TMPDIR", sockets.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let driver =
            *children(nix::unistd::Pid::from_raw(child.id().cast_signed())).first().unwrap();
        let programs = children(driver);
        assert_eq!(programs.len(), 1, "{programs:?}");
        let victim = match whom {
            "vminitctl" => nix::unistd::Pid::from_raw(child.id().cast_signed()),
            _ => driver,
        };
        kill(victim, Signal::SIGKILL).unwrap();
        let status = wait(&mut child);
        assert!(!status.success());
        let until = Instant::now() + Duration::from_secs(PATIENCE_S);
        while fs::exists(format!("/proc/{}/exe", programs[0])).unwrap()
            && fs::read_link(format!("/proc/{}/exe", programs[0])).is_ok()
        {
            assert!(Instant::now() < until, "{whom}: process {} is left", programs[0]);
            std::thread::sleep(Duration::from_millis(20));
        }
        // A driver that is killed removes nothing any more.
        while whom == "vminitctl" && fs::read_dir(sockets.path()).unwrap().next().is_some() {
            assert!(Instant::now() < until, "{:?} is left", sockets.path());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_anothers_program_cannot_do_is_refused_with_a_way_out() {
    let vms = Vms::new();
    let output = vms.run(&["--vmm", STAND_IN], &["true"]).output().unwrap();
    let (status, _, stderr) = text(&output);
    assert_eq!(status, Some(125), "{stderr}");
    assert!(stderr.contains("read-only") && stderr.contains("as an image"), "{stderr}");

    let directory = tempfile::tempdir().expect("a directory");
    let base = erofs(directory.path(), "base", rootfs());
    let args = ["run", "--vmm", "external:no-such-vfkit", "--image", base.to_str().unwrap()];
    let output = vms.vminitctl(&args).args(["--", "true"]).output().unwrap();
    let (status, _, stderr) = text(&output);
    assert_eq!(status, Some(125), "{stderr}");
    assert!(stderr.contains("start \"no-such-vfkit\""), "{stderr}");

    // A program that ends at once: its own words are the reason.
    let args = ["run", "--vmm", "external:false", "--image", base.to_str().unwrap()];
    let output = vms.vminitctl(&args).args(["--", "true"]).output().unwrap();
    let (status, _, stderr) = text(&output);
    assert_eq!(status, Some(125), "{stderr}");
    assert!(stderr.contains("false: exit status: 1"), "{stderr}");
}

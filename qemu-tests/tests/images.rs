//! `vminitctl run` with images, volumes and tmpfs, as a person uses it; and `vminitd --check-kernel`.
//!
//! How it proves its point: images are made by mkfs.erofs and mke2fs, and what the container says of them is held
//! against what was put in; what was given read-only is compared byte by byte afterwards.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use qemu_tests::images::{erofs, ext4, layer, root_image};
use qemu_tests::{cli, guest_share, inspector, rootfs, vm_test};

fn vminitctl(args: &[&str]) -> Command {
    let mut command = Command::new(cli::vminitctl());
    command.arg("run").args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str], script: &str) -> Output {
    vminitctl(args).args(["--", "sh", "-c", script]).output().expect("vminitctl starts")
}

/// What it said on stdout; it must have gone well.
fn said(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Why it did not start.
fn refused(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    stderr
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

#[test]
fn images_are_layers_of_which_the_last_is_on_top_and_the_writable_one_is_kept_on_each_medium() {
    let directory = tempfile::tempdir().expect("a directory");
    let base = erofs(directory.path(), "base", rootfs());
    let tree =
        layer(directory.path(), "tree", &[("data/layer", "upper\n"), ("data/second", "2\n")]);
    let second = erofs(directory.path(), "second", &tree);
    let state = ext4(directory.path(), "state", None, 32);
    let before = [fs::read(&base), fs::read(&second)].map(|bytes| bytes.expect("an image"));
    let state_wish = format!("{},serial=state", text(&state));
    let images = ["--image", text(&base), "--image", &state_wish, "--image", text(&second)];

    let first = run(&images, "cat /data/layer /data/second; echo kept >/data/new; rm /data/second");
    assert_eq!(said(&first), "upper\n2\n");
    let guest = root_image(directory.path());
    let args = [&["--root-image", text(&guest)], &images[..]].concat();
    let again = run(&args, "cat /data/new; ls /data/second; grep -c root=/dev/vda /proc/cmdline");
    assert_eq!(said(&again), "kept\n1\n");

    let after = [fs::read(&base), fs::read(&second)].map(|bytes| bytes.expect("an image"));
    assert!(before == after, "a layer was written to");
    // What lies in the image is whole, and where it was said to be.
    let check = Command::new("e2fsck").args(["-fn", text(&state)]).output().expect("e2fsck");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn writable_image_alone_is_the_root_and_a_read_only_one_never_changes() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = ext4(directory.path(), "root", Some(rootfs()), 64);
    let script = "echo new >/new; cat /new; while read a place kind more; do [ $place = / ] && echo $kind; done </proc/mounts; true";
    let before = fs::read(&image).expect("an image");
    let read_only = format!("{},ext4,ro", text(&image));
    assert_eq!(said(&run(&["--image", &read_only], script)), "new\noverlay\n");
    assert!(fs::read(&image).expect("an image") == before, "the image was written to");
    assert_eq!(said(&run(&["--image", text(&image)], script)), "new\next4\n");
    let found = Command::new("debugfs").args(["-R", "cat /new", text(&image)]).output();
    assert_eq!(String::from_utf8_lossy(&found.expect("debugfs").stdout), "new\n");
}

#[test]
fn images_beyond_the_slots_are_partitions_of_one_disk_in_their_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut images = vec![erofs(directory.path(), "base", rootfs())];
    for number in 1..=70 {
        let files = [("data/top", &*format!("{number}\n")), (&*format!("data/{number}"), "")];
        let tree = layer(directory.path(), &format!("tree{number}"), &files);
        images.push(erofs(directory.path(), &number.to_string(), &tree));
    }
    let args: Vec<&str> = images.iter().flat_map(|image| ["--image", text(image)]).collect();
    let temporary = directory.path().join("tmp");
    fs::create_dir(&temporary).expect("a directory");
    let output = vminitctl(&args)
        .env("TMPDIR", &temporary)
        .args(["--", "sh", "-c", "cat /data/top; ls /data | wc -l; ls /sys/block | grep -c vd"])
        .output()
        .expect("vminitctl starts");
    // 70 numbers, `top`, and what the root filesystem itself has there.
    let others = fs::read_dir(rootfs().join("data")).expect("a directory").count();
    assert_eq!(said(&output), format!("70\n{}\n1\n", 71 + others));
    assert_eq!(fs::read_dir(&temporary).expect("a directory").count(), 0, "the disk is left");
}

#[test]
fn volumes_are_written_through_or_not_at_all_and_hide_what_lies_beside_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = |name: &str| directory.path().join(name);
    for name in ["dir", "dir-ro", "bundled", "bundle"] {
        fs::create_dir(host(name)).expect("a directory");
        fs::write(host(name).join("f"), format!("{name}\n")).expect("a file");
    }
    for name in ["file", "file-ro", "secret"] {
        fs::write(host(name), format!("{name}\n")).expect("a file");
    }
    let bind = |source: &str, destination: &str, options: &[&str]| serde_json::json!({ "destination": destination, "type": "bind", "source": source, "options": options });
    let mut wish = qemu_tests::Wish::sh("");
    let mounts = wish.spec["mounts"].as_array_mut().expect("the default spec has some");
    mounts.push(bind("../bundled", "/bundled", &["rbind", "ro"]));
    mounts.push(bind(text(&host("file-ro")), "/etc/app/bundled.conf", &["bind", "ro"]));
    fs::write(host("bundle/config.json"), wish.spec.to_string()).expect("a file");
    std::os::unix::fs::symlink(rootfs(), host("bundle/rootfs")).expect("a link");

    let script = "cat /v/f /ro/f /file /etc/app/conf /bundled/f /etc/app/bundled.conf
        echo written >/v/new; echo appended >>/file
        for place in /ro/new /etc/app/conf /bundled/new /etc/app/bundled.conf; do
            (echo x >>$place) 2>/dev/null && echo $place was written
        done
        while read source place more; do case $place in /v|/file) ls -A $place;; esac; done </proc/mounts
        head -c 2000000 /dev/zero >/scratch/f 2>/dev/null || echo full";
    let volume = |host: PathBuf, guest: &str| format!("{}:{guest}", host.display());
    let output = run(
        &[
            "--bundle",
            text(&host("bundle")),
            "--tmpfs",
            "/scratch:size=1M",
            "--volume",
            &volume(host("dir"), "/v"),
            "--volume",
            &volume(host("dir-ro"), "/ro:ro"),
            "--volume",
            &volume(host("file"), "/file"),
            "--volume",
            &volume(host("file-ro"), "/etc/app/conf:ro"),
        ],
        script,
    );
    let whole = "dir\ndir-ro\nfile\nfile-ro\nbundled\nfile-ro\nf\nnew\n/file\nfull\n";
    assert_eq!(said(&output), whole, "{}", String::from_utf8_lossy(&output.stderr));
    let read = |path: PathBuf| fs::read_to_string(path).expect("a file");
    assert_eq!(read(host("dir/new")), "written\n");
    assert_eq!(read(host("file")), "file\nappended\n");
    assert_eq!(read(host("file-ro")), "file-ro\n");
    assert!(!host("dir-ro/new").exists() && !host("bundled/new").exists());
}

#[test]
fn what_cannot_be_used_is_named_before_a_vm_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    // Nothing of the VM is there, so whatever looked for it would fail otherwise.
    let run = |args: &[&str]| {
        let args = [&["--kernel", "/no/kernel"], args].concat();
        refused(&run(&args, "true"))
    };
    let root = text(rootfs());
    let error = run(&["--rootfs", root, "--volume", "/no/such:/v"]);
    assert!(error.contains("--volume: \"/no/such\" of the host: No such file"), "{error}");
    let error = run(&["--rootfs", root, "--volume", "/tmp"]);
    assert!(error.contains("HOST:GUEST"), "{error}");
    let error = run(&["--rootfs", root, "--tmpfs", "/x:size=lots"]);
    assert!(error.contains("size=lots") && error.contains("size=64M"), "{error}");

    fs::write(path("tar.gz"), b"\x1f\x8b\x08 and so on").expect("a file");
    let error = run(&["--image", text(&path("tar.gz"))]);
    assert!(error.contains("tar.gz") && error.contains("holds gzip data"), "{error}");
    let error = run(&["--image", "/no/such"]);
    assert!(error.contains("--image: \"/no/such\": No such file"), "{error}");
    let error = run(&["--image", "x,xfs"]);
    assert!(error.contains("erofs, ext4, squashfs"), "{error}");
    let error = run(&["--image", root]);
    assert!(error.contains("--rootfs"), "{error}");

    let (one, other) =
        (ext4(directory.path(), "one", None, 8), ext4(directory.path(), "other", None, 8));
    let error = run(&["--image", text(&one), "--image", text(&other)]);
    assert!(error.contains("both writable") && error.contains(",ro"), "{error}");
    let error = run(&["--image", &format!("{},erofs", text(&one))]);
    assert!(error.contains("said to hold erofs but holds ext4"), "{error}");
    let mut mode = fs::metadata(&one).expect("an image").permissions();
    mode.set_readonly(true);
    fs::set_permissions(&one, mode).expect("our own file");
    let error = run(&["--image", text(&one)]);
    assert!(error.contains("one.ext4\",ro"), "{error}");

    let mut wish = qemu_tests::Wish::sh("true");
    let mount = serde_json::json!({ "destination": "/d", "type": "bind", "source": "/no/dir", "options": ["rbind"] });
    wish.spec["mounts"].as_array_mut().expect("the default spec has some").push(mount);
    fs::write(path("config.json"), wish.spec.to_string()).expect("a file");
    std::os::unix::fs::symlink(rootfs(), path("rootfs")).expect("a link");
    let error = run(&["--bundle", text(directory.path())]);
    assert!(error.contains("mount on \"/d\": \"/no/dir\" of the host: No such file"), "{error}");
}

#[test]
fn image_that_a_vm_writes_is_refused_to_another_until_that_has_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = ext4(directory.path(), "root", Some(rootfs()), 64);
    let read_only = format!("{},ro", text(&image));
    let mut first = vminitctl(&["--image", text(&image)])
        .args(["--", "sh", "-c", "echo ready; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("vminitctl starts");
    let mut ready = [0; 6];
    first.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("output");
    let error = refused(&run(&["--image", text(&image)], "true"));
    assert!(error.contains("root.ext4\" is in use: another VM has it"), "{error}");
    let error = refused(&run(&["--image", &read_only, "--append", "x"], "true"));
    assert!(error.contains("not unmounted") || error.contains("another VM writes it"), "{error}");
    let pid = nix::unistd::Pid::from_raw(first.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    first.wait().expect("it ends");
    // The VM dies with its owner, though not in the same moment.
    let again = (0..100).find_map(|_| {
        let output = run(&["--image", text(&image)], "echo again");
        std::thread::sleep(std::time::Duration::from_millis(100));
        let in_use = String::from_utf8_lossy(&output.stderr).contains("is in use");
        (!in_use).then_some(output)
    });
    assert_eq!(said(&again.expect("the image is free again")), "again\n");
}

#[test]
fn check_kernel_finds_nothing_lacking_in_our_guest() {
    let guest = format!("{}:/check:ro", guest_share().join("vminitd").display());
    // Not as PID 1, which it would take for its own VM's.
    let output =
        run(&["--rootfs", text(rootfs()), "--volume", &guest], "/check --check-kernel; exit $?");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("/proc/config.gz") && text.contains("nothing is lacking"), "{text}");
}

/// A kernel whose configuration cannot be read: nothing is said to be lacking that the kernel itself shows to be there.
#[test]
fn check_kernel_asks_the_kernel_where_there_is_no_configuration() {
    vm_test(async |vm| {
        let mut wish = inspector(&["sh", "-c", "chroot /guest /init --check-kernel; exit $?"]);
        wish.spec["linux"]["maskedPaths"] = serde_json::json!(["/guest/proc/config.gz"]);
        let exit = vm.run("check", wish).await;
        let text = exit.text();
        assert_eq!(exit.status, 0, "{text}{}", String::from_utf8_lossy(&exit.stderr));
        assert!(text.contains("asked the kernel instead"), "{text}");
        assert!(text.contains("not known: ") && text.contains("nothing is lacking"), "{text}");
    });
}

/// Whatever this kernel is: what is said is in order, and the status says the same.
#[test]
fn check_kernel_on_any_host_says_what_is_lacking_by_its_status_too() {
    let program = guest_share().join("vminitd");
    let hidden = "mount -t tmpfs none /boot 2>/dev/null
        [ ! -e /proc/config.gz ] || mount --bind /dev/null /proc/config.gz && exec \"$@\"";
    let mut asked = Command::new("unshare");
    asked.args(["--map-root-user", "--mount", "sh", "-c", hidden, "sh"]).arg(&program);
    for (mut command, is_asked) in [(Command::new(&program), false), (asked, true)] {
        let output = command.arg("--check-kernel").output().expect("it runs here");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let lacking = text.lines().filter(|line| line.starts_with("  CONFIG_")).count();
        let last = text.lines().last().unwrap_or_default();
        match output.status.code() {
            Some(0) => assert!(lacking == 0 && last.starts_with("nothing is lacking"), "{text}"),
            Some(1) => {
                assert!(lacking > 0, "{text}{stderr}");
                assert!(last.starts_with(&format!("{lacking} of ")), "{text}");
            }
            other => panic!("{other:?}: {text}{stderr}"),
        }
        assert!(!is_asked || text.contains("asked the kernel instead"), "{text}");
    }
}

//! What a container gets from PID 1 (nothing), and launchers that fail (alone).
//!
//! The container looks at itself and prints what it finds; `misbehave look` has the list.

use std::time::{Duration, Instant};

use qemu_tests::{Options, Wish, vm_test, vm_test_with};
use serde_json::json;

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_else(|| panic!("no {start:?} in:\n{text}"))
        .trim()
}

#[test]
fn container_has_no_blocked_or_ignored_signals() {
    vm_test(async |vm| {
        let text = vm.run("signals", Wish::new(&["grep", "Sig", "/proc/self/status"])).await.text();
        assert_eq!(line(&text, "SigBlk:"), "0000000000000000");
        assert_eq!(line(&text, "SigIgn:"), "0000000000000000");
    });
}

#[test]
fn container_has_oom_score_umask_limits_and_cwd_of_a_fresh_process() {
    vm_test(async |vm| {
        let mut wish = Wish::new(&["misbehave", "look"]);
        wish.spec["process"].as_object_mut().expect("an object").remove("rlimits");
        let text = vm.run("look", wish).await.text();
        assert_eq!(line(&text, "oom_score_adj:"), "0");
        assert_eq!(line(&text, "Umask:"), "0022");
        assert_eq!(line(&text, "cwd:"), "/");
        assert_eq!(line(&text, "Max open files"), "1024 1048576 files");
    });
}

#[test]
fn container_has_no_fds_but_its_stdio() {
    vm_test(async |vm| {
        let text = vm.run("fds", Wish::new(&["misbehave", "look"])).await.text();
        let fds: Vec<&str> = text.lines().filter(|line| line.starts_with("fd ")).collect();
        assert_eq!(fds, ["fd 0: /dev/null", "fd 1: pipe", "fd 2: pipe"]);
    });
}

#[test]
fn container_has_a_session_keyring_of_its_own() {
    vm_test(async |vm| {
        let mut wish = Wish::sh("cat /proc/keys");
        wish.spec["linux"]["maskedPaths"] = json!([]);
        let one = vm.run("one", wish.clone()).await.text();
        let two = vm.run("two", wish).await.text();
        let session = |text: &str| {
            let line = text.lines().find(|line| line.contains(" _ses:"));
            line.and_then(|line| line.split(' ').next()).map(str::to_owned)
        };
        assert!(session(&one).is_some(), "no keyring in:\n{one}");
        assert_ne!(session(&one), session(&two));
    });
}

#[test]
fn container_can_make_neither_vsock_sockets_nor_io_uring() {
    vm_test(async |vm| {
        let exit = vm.run("vsock", Wish::new(&["misbehave", "vsock", "1", "1024"])).await;
        assert!(exit.text().starts_with("socket: E"), "{}", exit.text());
        let exit = vm.run("uring", Wish::new(&["misbehave", "io-uring"])).await;
        assert!(exit.text().starts_with("io_uring_setup: E"), "{}", exit.text());
        let mut open = Wish::new(&["misbehave", "vsock", "2", "9"]);
        open.spec["annotations"] = json!({ "io.vminitd.vsock": "allow" });
        // Allowed to try; the host refuses a port that is not on its list.
        let exit = vm.run("open", open).await;
        assert!(exit.text().starts_with("connect: E"), "{}", exit.text());
    });
}

#[test]
fn container_has_loopback_up_in_its_own_network_namespace() {
    vm_test(async |vm| {
        let exit = vm
            .run(
                "lo",
                Wish::sh("ip -o addr show lo; ping -c 1 -w 5 127.0.0.1 >/dev/null && echo alive"),
            )
            .await;
        assert!(
            exit.text().contains("127.0.0.1/8") && exit.text().ends_with("alive\n"),
            "{}",
            exit.text()
        );
    });
}

/// A container `id` with a createContainer hook, for which the launcher waits. Its path counts in the guest, its
/// namespaces are the container's.
fn with_hook(id: &str, args: &[&str]) -> Wish {
    let mut wish = Wish::new(&["true"]);
    let path = format!("/run/bundles/{id}/rootfs/bin/{}", args[0]);
    wish.spec["hooks"] = json!({ "createContainer": [{ "path": path, "args": args }] });
    wish
}

#[test]
fn launcher_that_hangs_fails_only_its_own_create_and_leaves_nothing() {
    let options = Options {
        append: "vminitd.log=info vminitd.launcher_timeout_ms=3000".to_owned(),
        ..Options::default()
    };
    vm_test_with(options, async |vm| {
        let wish = with_hook("hang", &["misbehave", "hang"]);
        let (hanging, others) =
            tokio::join!(async { vm.create("hang", wish).await.map(|task| task.id) }, async {
                let started = Instant::now();
                for round in 0..3 {
                    assert_eq!(vm.run(&format!("ok{round}"), Wish::new(&["true"])).await.status, 0);
                }
                started.elapsed()
            });
        let error = hanging.expect_err("a launcher that hangs").to_string();
        assert!(error.contains("deadline"), "{error}");
        assert!(others < Duration::from_secs(60), "{others:?}");
        assert_eq!(vm.run("hang", Wish::new(&["true"])).await.status, 0);
    });
}

#[test]
fn hook_that_fails_fails_the_create_with_its_name() {
    vm_test(async |vm| {
        let wish = with_hook("hook", &["false"]);
        let error = vm
            .create("hook", wish)
            .await
            .map(|task| task.id)
            .expect_err("a hook that fails")
            .to_string();
        assert!(error.contains("OCI runtime create failed"), "{error}");
        assert_eq!(vm.run("hook", Wish::new(&["true"])).await.status, 0);
    });
}

#[test]
fn container_made_by_us_is_like_one_made_by_libcontainer() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "cut -d ' ' -f 4- /proc/self/mountinfo | tail -n +2 | sed 's/master:[0-9]*/master/'
             ls -ln /dev /dev/pts | sed 's/ [A-Z][a-z][a-z]  *[0-9]* [0-9:]* / /'
             grep -E '^(Umask|Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap|Sig...:|NStgid|NSsid)' /proc/self/status
             cat /proc/self/limits /proc/self/cgroup /proc/self/oom_score_adj /proc/loadavg/x
             cut -d ' ' -f 5-8 /proc/1/stat; env | sort; hostname; cat /proc/sys/kernel/domainname; pwd; id
             ls -l /proc/1/fd >/run/fds; sed 's/.*[0-9] -> //; s/[0-9]*]$//' /run/fds; ip -o addr; cat /etc/note /secret",
        )
        .with_file("note", b"bound\n");
        let mounts = wish.spec["mounts"].as_array_mut().expect("some");
        mounts.push(json!({ "destination": "/etc/note", "type": "bind", "source": "note", "options": ["bind", "ro", "noatime"] }));
        mounts.push(json!({ "destination": "/new/place", "type": "tmpfs", "source": "x", "options": ["nodev", "size=64k"] }));
        wish.spec["linux"]["devices"] = json!([{ "path": "/dev/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "gid": 7 }]);
        wish.spec["domainname"] = json!("some.domain");
        wish.spec["process"]["oomScoreAdj"] = json!(77);
        let mut unusual = wish.clone();
        unusual.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "0" });
        let ours = vm.create("ours", wish).await.expect("a container");
        let theirs = vm.create("theirs", unusual).await.expect("a container");
        let mut look = Wish::sh("ls /guest/run/vminitd/lc");
        look = look.with_guest_root();
        assert_eq!(vm.run("look", look).await.text(), "theirs\n", "who has a part in what");
        let ours = ours.start().await.expect("a start").finish().await;
        let theirs = theirs.start().await.expect("a start").finish().await;
        let lines = |text: String| {
            text.lines().map(|line| line.replace("/ours/", "/theirs/")).collect::<Vec<_>>()
        };
        assert_eq!(lines(ours.text()), lines(theirs.text()));
        assert!(ours.text().contains("some.domain\n") && ours.text().contains("bound\n"));
    });
}

/// Runs with every launcher that waits for its order in `$1`, `$2` and so on, when there is one.
fn when_a_launcher_waits(script: &str) -> Wish {
    let wait = "read go; procs() { cat /guest/sys/fs/cgroup/vminitd/launch-*/cgroup.procs; }
                while [ -z \"$(procs)\" ]; do sleep 0.1; done; set -- $(procs);";
    Wish::sh(&format!("{wait} {script}")).with_guest_root().in_guest_pid_namespace().with_stdin()
}

#[test]
fn launcher_forked_ahead_ends_unused_and_is_replaced_when_it_was_killed() {
    use tokio::io::AsyncWriteExt as _;
    vm_test(async |vm| {
        let scripts = [
            ("unused", "while [ -n \"$(procs)\" ]; do sleep 0.5; done; echo $#"),
            ("killed", "kill -9 $1; while [ -d /proc/$1 ]; do sleep 0.1; done; echo $#"),
        ];
        for (id, script) in scripts {
            let mut watch = vm.create("watch", when_a_launcher_waits(script)).await.expect("made");
            let mut stdin = watch.stdin.take().expect("asked for");
            let watch = watch.start().await.expect("a start");
            let wish = Wish::new(&["echo", "alive"]);
            // Before: it waits for a few seconds only.
            stdin.write_all(b"go\n").await.expect("it reads");
            drop(stdin);
            let bundle = vm.make_bundle(id, &wish).await.expect("a bundle");
            assert_eq!(watch.finish().await.text(), "1\n", "{id}");
            let task = vm.create_in(id, &bundle, wish).await.expect("another launcher");
            assert_eq!(task.start().await.expect("a start").finish().await.text(), "alive\n");
        }
    });
}

//! The runtime specification, row by row: a container that looks at itself finds what its config says.
//!
//! Seccomp has a file of its own, and so have devices' rules (`devices`) and execs.

use qemu_tests::{Exit, Wish, vm_test};
use serde_json::{Value, json};

/// What stands behind `start` on its line.
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(start));
    found.unwrap_or_else(|| panic!("no {start:?} in:\n{text}")).trim()
}

fn told(exit: &Exit) -> String {
    format!("{}{}", exit.text(), String::from_utf8_lossy(&exit.stderr))
}

fn mounts(wish: &mut Wish, more: &[Value]) {
    wish.spec["mounts"].as_array_mut().expect("some").extend(more.iter().cloned());
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "cat /etc/passwd; ls /bin; touch /data/x; echo y > /proc/sys/kernel/domainname; touch /tmp/x && echo tmp",
        );
        wish.spec["linux"]["maskedPaths"] = json!(["/etc/passwd", "/usr", "/no/such"]);
        wish.spec["linux"]["readonlyPaths"] = json!(["/data", "/proc/sys", "/neither"]);
        let text = told(&vm.run("paths", wish).await);
        assert!(!text.contains("root:") && text.contains("tmp\n"), "{text}");
        assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
        let mut wish = Wish::sh("ls /data | wc -l; touch /data/x");
        wish.spec["linux"]["maskedPaths"] = json!(["/data"]);
        let text = told(&vm.run("folder", wish).await);
        assert!(text.starts_with("0\n") && text.contains("Read-only"), "{text}");
    });
}

const SETS: [(&str, &str); 5] = [
    ("inheritable", "CapInh:"),
    ("permitted", "CapPrm:"),
    ("effective", "CapEff:"),
    ("bounding", "CapBnd:"),
    ("ambient", "CapAmb:"),
];

#[test]
fn each_capability_set_is_what_the_config_says_and_a_missing_one_is_empty() {
    vm_test(async |vm| {
        let sets = async |id: &str, section: Option<Value>, uid: u32| {
            let mut wish = Wish::new(&["cat", "/proc/self/status"]);
            let process = wish.spec["process"].as_object_mut().expect("an object");
            process.remove("capabilities");
            process.insert("user".to_owned(), json!({ "uid": uid, "gid": uid }));
            if let Some(section) = section {
                process.insert("capabilities".to_owned(), section);
            }
            let text = vm.run(id, wish).await.text();
            SETS.map(|(_, start)| u64::from_str_radix(line(&text, start), 16).expect("hex"))
        };
        let (chown, kill, raw, bind) = (1_u64, 1 << 5, 1 << 13, 1 << 10);
        let all = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        });
        // A program that is not root's keeps the ambient ones; root's gets all that are permitted, and with
        // no_new_privs not more.
        let expected = [bind, bind, bind, chown | kill | raw | bind, bind];
        assert_eq!(sets("user", Some(all.clone()), 1000).await, expected);
        let (full, root) = (chown | kill | raw | bind, chown | kill | bind);
        assert_eq!(sets("root", Some(all), 0).await, [bind, root, root, full, bind]);
        assert_eq!(sets("none", None, 0).await, [0; 5]);
        let some = json!({ "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"] });
        assert_eq!(sets("some", Some(some), 1000).await, [0, 0, 0, kill, 0]);
        let mut wish = Wish::new(&["true"]);
        wish.spec["process"]["capabilities"] = json!({ "effective": ["CAP_KILL"] });
        let error =
            vm.create("bad", wish).await.map(|task| task.id).expect_err("no such").to_string();
        assert!(error.contains("effective has CAP_KILL, which permitted has not"), "{error}");
    });
}

#[test]
fn process_has_its_user_groups_umask_limits_environment_arguments_and_directory() {
    vm_test(async |vm| {
        let script = "id -u; id -g; id -G; umask; pwd; env | sort; echo $0 $1; cat /proc/self/oom_score_adj /proc/self/limits; touch /dev/shm/f; stat -c %a /dev/shm/f";
        let mut wish = Wish::new(&["sh", "-c", script, "zero", "one two"]);
        let process = &mut wish.spec["process"];
        process["user"] = json!({ "uid": 1000, "gid": 2000, "additionalGids": [2000, 3000, 4000], "umask": 0o027 });
        process["cwd"] = json!("/var/lib/not there/yet");
        process["env"] = json!(["PATH=/bin", "A=1", "EMPTY=", "B=x=y"]);
        process["oomScoreAdj"] = json!(321);
        process["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            { "type": "RLIMIT_AS", "soft": 1_000_000_000_u64, "hard": u64::MAX },
        ]);
        let text = told(&vm.run("process", wish).await);
        assert!(
            text.starts_with("1000\n2000\n2000 3000 4000\n0027\n/var/lib/not there/yet\n"),
            "{text}"
        );
        for variable in ["A=1\n", "EMPTY=\n", "B=x=y\n", "PATH=/bin\n"] {
            assert!(text.contains(variable), "{text}");
        }
        assert!(text.contains("zero one two\n321\n") && text.ends_with("\n640\n"), "{text}");
        let words = |start| line(&text, start).split_whitespace().take(2).collect::<Vec<_>>();
        assert_eq!(words("Max open files"), ["77", "99"]);
        assert_eq!(words("Max core file size"), ["0", "0"]);
        assert_eq!(words("Max address space"), ["1000000000", "unlimited"]);
    });
}

#[test]
fn root_host_name_and_domain_name_are_what_the_config_says() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "hostname; cat /proc/sys/kernel/domainname; touch /x; touch /dev/x /run/x && echo mounts",
        );
        wish.spec["hostname"] = json!("somehost");
        wish.spec["domainname"] = json!("some.domain");
        wish.spec["root"]["readonly"] = json!(true);
        let text = told(&vm.run("names", wish).await);
        assert!(text.starts_with("somehost\nsome.domain\n") && text.contains("mounts\n"), "{text}");
        assert!(text.contains("/x: Read-only file system"), "{text}");
        let mut shared = Wish::new(&["true"]);
        let namespaces = shared.spec["linux"]["namespaces"].as_array_mut().expect("some");
        namespaces.retain(|namespace| namespace["type"] != "uts");
        let error =
            vm.create("shared", shared).await.map(|task| task.id).expect_err("the guest's name");
        assert!(error.to_string().to_lowercase().contains("hostname"), "{error}");
    });
}

#[test]
fn sysctls_of_its_namespaces_are_set_and_the_guests_are_refused() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/core/somaxconn",
        );
        wish.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "12345", "net.core.somaxconn": "99" });
        assert_eq!(vm.run("own", wish).await.text(), "1\n12345\n99\n");
        for name in ["kernel.pid_max", "vm.swappiness", "kernel.core_pattern", "fs.file-max"] {
            let mut wish = Wish::new(&["true"]);
            wish.spec["linux"]["sysctl"] = json!({ name: "1000" });
            let error =
                vm.create("guests", wish).await.map(|task| task.id).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    });
}

#[test]
fn namespaces_are_new_the_guests_or_joined_by_path() {
    vm_test(async |vm| {
        const LINKS: &str =
            "for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done";
        let of = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        // The guest's own, but for the mount namespace, without which there is no container.
        let mut guests = Wish::sh(LINKS);
        guests.spec["linux"]["namespaces"] = json!([{ "type": "mount" }]);
        guests.spec.as_object_mut().expect("an object").remove("hostname");
        let guests = of(vm.run("guests", guests).await.text());
        let mut new = Wish::sh(&format!("{LINKS}; read end")).with_stdin();
        let more = json!([{ "type": "time" }]).as_array().expect("one").clone();
        new.spec["linux"]["namespaces"].as_array_mut().expect("some").extend(more);
        new.spec["linux"]["timeOffsets"] =
            json!({ "boottime": { "secs": 1_000_000, "nanosecs": 0 } });
        let holder = vm.create("new", new).await.expect("create").start().await.expect("start");
        let mut joined = Wish::sh(&format!("{LINKS}; cut -d. -f1 /proc/uptime"));
        let by_path = |(kind, file): (&str, &str)| json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", holder.task.pid) });
        joined.spec["linux"]["namespaces"] =
            [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("time", "time"), ("pid", "pid")]
                .map(by_path)
                .to_vec()
                .into();
        joined.spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("some")
            .push(json!({ "type": "mount" }));
        joined.spec.as_object_mut().expect("an object").remove("hostname");
        let joined = of(vm.run("joined", joined).await.text());
        vm.guest();
        let mut holder = holder;
        drop(holder.task.stdin.take());
        let new = of(holder.finish().await.text());
        assert_eq!(
            (guests.len(), new.len(), joined.len()),
            (8, 8, 9),
            "{guests:?} {new:?} {joined:?}"
        );
        for (at, name) in
            ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"].into_iter().enumerate()
        {
            assert_eq!(new[at] == guests[at], name == "user", "{name}: {new:?} {guests:?}");
            let expected = if ["cgroup", "user"].contains(&name) { &guests[at] } else { &new[at] };
            assert_eq!(joined[at] == *expected, name != "mnt", "{name}: {joined:?}");
        }
        assert!(joined[8].parse::<u64>().expect("seconds") > 1_000_000, "{joined:?}");
    });
}

#[test]
fn devices_are_made_with_their_numbers_mode_and_owner() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/sub/disk /dev/pipe /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; for l in ptmx fd stdin; do readlink /dev/$l; done",
        );
        wish.spec["linux"]["devices"] = json!([
            { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8 },
            { "path": "/dev/sub/disk", "type": "b", "major": 254, "minor": 17, "fileMode": 0o600, "uid": 0, "gid": 6 },
            { "path": "/dev/pipe", "type": "p", "fileMode": 0o622, "uid": 1, "gid": 1 },
        ]);
        let text = told(&vm.run("devices", wish).await);
        for line in [
            "/dev/mine character special file 1:5 640 7:8",
            "/dev/sub/disk block special file fe:11 600 0:6",
            "/dev/null character special file 1:3 666 0:0",
            "/dev/tty character special file 5:0 666 0:0",
            "pts/ptmx",
            "/proc/self/fd",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
        assert!(text.contains("/dev/pipe fifo") && text.contains("622 1:1"), "{text}");
    });
}

#[test]
fn mounts_have_their_options_and_bound_files_are_the_bundles() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "cat /proc/self/mountinfo; stat -c '%a' /t; cat /etc/bound; echo x > /etc/bound; echo x > /t/f && chmod 755 /t/f && /t/f; dd if=/dev/zero of=/t/big bs=1M count=2 2>&1",
        )
        .with_file("bound", b"from the bundle\n");
        let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
        mounts(
            &mut wish,
            &[
                mount(
                    "/t",
                    "tmpfs",
                    "tmpfs",
                    &["nosuid", "nodev", "noexec", "mode=1770", "size=1m"],
                ),
                mount("/made/for/it", "tmpfs", "tmpfs", &["ro", "relatime"]),
                mount("/etc/bound", "bind", "bound", &["bind", "ro"]),
                mount("/data", "bind", "/run/bundles/mounts/rootfs/root", &["rbind", "rprivate"]),
                mount("/usr", "bind", "/run/bundles/mounts/rootfs/root", &["rbind", "rslave"]),
            ],
        );
        let text = told(&vm.run("mounts", wish).await);
        let info = |place: &str| {
            text.lines()
                .find(|line| line.split(' ').nth(4) == Some(place))
                .unwrap_or_else(|| panic!("{place}: {text}"))
        };
        let tmpfs = info("/t");
        for option in ["nosuid", "nodev", "noexec", "size=1024k", "mode=1770"] {
            assert!(tmpfs.contains(option), "{tmpfs}");
        }
        assert!(info("/made/for/it").contains(" ro,"), "{text}");
        assert!(info("/etc/bound").contains(" ro"), "{text}");
        assert!(text.contains("1770\nfrom the bundle\n"), "{text}");
        assert!(text.contains("/etc/bound: Read-only file system"), "{text}");
        assert!(text.contains("/t/f: Permission denied"), "{text}");
        assert!(text.contains("No space left on device"), "{text}");
        assert!(!info("/data").contains("shared:") && !info("/data").contains("master:"), "{text}");
    });
}

#[test]
fn users_are_mapped_as_the_config_says() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; cat /proc/self/setgroups; grep CapEff /proc/self/status",
        );
        wish.spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("some")
            .push(json!({ "type": "user" }));
        wish.spec["linux"]["uidMappings"] =
            json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        wish.spec["linux"]["gidMappings"] =
            json!([{ "containerID": 0, "hostID": 200_000, "size": 500 }]);
        let exit = vm.run("mapped", wish).await;
        let text = told(&exit);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[..8], ["0", "100000", "1000", "0", "200000", "500", "0", "0"], "{text}");
        assert_ne!(line(&text, "CapEff:"), "0".repeat(16), "{text}");
    });
}

#[test]
fn hooks_run_in_order_with_their_environment_and_the_state_on_stdin() {
    vm_test(async |vm| {
        let prepare = Wish::sh("mkdir /guest/run/hooks").with_guest_root();
        assert_eq!(vm.run("prepare", prepare).await.status, 0);
        let hook = |name: &str, path: &str, log: &str| {
            let script = format!("echo {name} $V $(cat) >> {log}/log");
            json!([{ "path": path, "args": ["sh", "-c", script], "env": [format!("V=value-{name}"), "PATH=/bin"] }])
        };
        let outside = |name: &str| hook(name, "/run/bundles/hooked/rootfs/bin/sh", "/run/hooks");
        // These three run where the container's programs are not in /bin.
        let outside = |name: &str| {
            let mut hook = outside(name);
            let script = format!(
                "echo {name} $V $(/run/bundles/hooked/rootfs/bin/busybox cat) >> /run/hooks/log"
            );
            hook[0]["args"][2] = json!(script);
            hook
        };
        let mut wish = Wish::sh("echo program >> /hooks/log");
        mounts(
            &mut wish,
            &[
                json!({ "destination": "/hooks", "type": "bind", "source": "/run/hooks", "options": ["bind"] }),
            ],
        );
        wish.spec["annotations"] = json!({ "org.example": "note" });
        wish.spec["hooks"] = json!({
            "createRuntime": outside("createRuntime"),
            "createContainer": outside("createContainer"),
            "startContainer": hook("startContainer", "/bin/sh", "/hooks"),
            "poststart": outside("poststart"),
            "poststop": outside("poststop"),
        });
        let exit = vm.run("hooked", wish).await;
        assert_eq!(exit.status, 0, "{}", told(&exit));
        let look = Wish::sh("cat /guest/run/hooks/log; rm -r /guest/run/hooks").with_guest_root();
        let text = vm.run("look", look).await.text();
        let names: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        let order = |name: &str| {
            names
                .iter()
                .position(|other| *other == name)
                .unwrap_or_else(|| panic!("{name}: {text}"))
        };
        let expected =
            ["createRuntime", "createContainer", "startContainer", "program", "poststop"];
        assert!(expected.map(order).is_sorted(), "{text}");
        assert!(
            (order("createContainer")..order("poststop")).contains(&order("poststart")),
            "{text}"
        );
        for line in text.lines().filter(|line| !line.starts_with("program")) {
            let mut words = line.splitn(3, ' ');
            let (name, variable) =
                (words.next().expect("a name"), words.next().expect("a variable"));
            assert_eq!(variable, format!("value-{name}"));
            let state: Value = serde_json::from_str(words.next().expect("a state"))
                .unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_eq!(state["id"], "hooked", "{line}");
            assert_eq!(state["bundle"], "/run/bundles/hooked", "{line}");
            assert_eq!(state["annotations"]["org.example"], "note", "{line}");
            if name == "poststop" {
                assert_eq!(state["status"], "stopped", "{line}");
            } else if ["createRuntime", "poststart"].contains(&name) {
                // The two that run in the container do not know what its process is called outside.
                assert!(state["pid"].as_i64().is_some_and(|pid| pid > 0), "{line}");
            }
        }
    });
}

#[test]
fn priorities_scheduler_and_personality_are_applied() {
    vm_test(async |vm| {
        let mut wish = Wish::sh(
            "awk '{ print \"policy\", $41, \"nice\", $19 }' /proc/$$/stat; ionice -p $$; uname -m; cat /proc/self/personality 2>/dev/null",
        );
        wish.spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
        wish.spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
        wish.spec["linux"]["personality"] = json!({ "domain": "LINUX32" });
        let text = told(&vm.run("priorities", wish).await);
        assert!(
            text.contains("policy 3 nice 5") && text.contains("idle") && text.contains("i686"),
            "{text}"
        );
    });
}

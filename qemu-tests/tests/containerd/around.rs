//! What a task has of the host around it: files and directories, names and addresses, hooks.

use std::fs;
use std::os::unix::fs::MetadataExt;

use qemu_tests::containerd::{Containerd, with_containerd};
use qemu_tests::{images, rootfs};
use serde_json::{Value, json};

fn bind(source: &std::path::Path, destination: &str, options: &str) -> String {
    format!("type=bind,src={},dst={destination},options={options}", source.display())
}

#[test]
fn files_and_directories_of_the_host_are_in_a_task_also_when_its_vm_runs_already() {
    with_containerd("2", |containerd| {
        let host = &containerd.host;
        // As on a host with systemd, so that what is mounted later spreads.
        host.sh("mount --make-rshared /");
        let tree = images::layer(host.dir(), "tree", &[("one", "1\n"), ("below/two", "2\n")]);
        let lone = images::layer(host.dir(), "lone", &[("file", "lone\n"), ("beside", "no\n")]);
        let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
        containerd.start_container(&pod, "pod", &["sleep", "1000"]);

        let directory = bind(&tree, "/data", "rbind:rw");
        let read_only = bind(&tree, "/guest", "rbind:ro");
        let file = bind(&lone.join("file"), "/etc/lone", "rbind:rw");
        let mounts = ["--mount", &*directory, "--mount", &read_only, "--mount", &file];
        let options = [&pod[..], &mounts].concat();
        containerd.start_container(&options, "later", &["sleep", "1000"]);
        assert_eq!(host.running("vminit-vmm").len(), 1);
        let sh = |script: &str| containerd.exec("later", &["sh", "-c", script]);
        let read =
            "cat /data/one /guest/below/two /etc/lone; ls /etc/beside /data/beside 2>/dev/null";
        assert_eq!(sh(&format!("{read}; true")).good(), "1\n2\nlone\n");
        assert_eq!(sh("echo new >/data/new && echo more >>/etc/lone").status, 0);
        assert_ne!(sh("echo new >/guest/new").status, 0);
        let on_host = |name: &str| fs::read_to_string(host.dir().join(name)).unwrap_or_default();
        assert_eq!(
            (on_host("tree/new").as_str(), on_host("lone/file").as_str()),
            ("new\n", "lone\nmore\n")
        );

        // A mount of the host below one that is shared.
        let below = tree.join("below").display().to_string();
        host.sh(&format!("mount -t tmpfs later {below} && echo mounted >{below}/three"));
        host.wait_for("the mount is in the guest", || {
            (sh("cat /data/below/three").status == 0).then_some(())
        });
        containerd.remove("later");
        containerd.remove("pod");
        // What mount(8) keeps its own notes in goes, too.
        host.sh(&format!("umount {below}; rm -rf /run/mount"));
    });
}

/// ctr's own way to give a container the host's names and addresses, and where there is no share for them.
#[test]
fn task_has_the_hosts_names_and_addresses_when_it_is_to() {
    with_containerd("2", |containerd| {
        let (hosts, resolv) =
            (containerd.host.sh("cat /etc/hosts"), containerd.host.sh("cat /etc/resolv.conf"));
        let run =
            containerd.run(&["--net-host"], "names", &["cat", "/etc/hosts", "/etc/resolv.conf"]);
        assert_eq!(run.good(), hosts + &resolv);
    });
}

/// A config of one's own, which `ctr run --config` takes as it is.
fn run_config(
    containerd: &Containerd,
    id: &str,
    config: &Value,
) -> qemu_tests::containerd::Outcome {
    let path = containerd.host.dir().join(format!("{id}.json"));
    fs::write(&path, config.to_string()).expect("a new file");
    let path = path.to_str().expect("a path of ours");
    let run = ["run", "--rm", "--runtime", containerd.runtime.name(), "--config", path, id];
    containerd.ctr(&run)
}

fn hook(path: &str, script: &str) -> Value {
    json!([{ "path": path, "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
}

#[test]
fn hooks_run_in_order_where_they_belong_and_see_the_pods_network() {
    with_containerd("2", |containerd| {
        let host = &containerd.host;
        host.sh("ip netns add pod");
        let log = host.dir().join("hooks.log");
        // Of the state: whose, in which, and in which network.
        let on_host = |kind: &str| {
            let field = |name: &str, value: &str| format!(r#"s/.*"{name}":"\?\({value}\).*/\1/p"#);
            let script = format!(
                "state=$(cat); of() {{ echo \"$state\" | sed -n \"$1\"; }}
                pid=$(of '{}')
                echo {kind} $(of '{}') $(of '{}') $(stat -L -c %i /proc/$pid/ns/net) >>{}",
                field("pid", "[0-9]*"),
                field("id", "[a-z]*"),
                field("status", "[a-z]*"),
                log.display(),
            );
            hook("/bin/sh", &script)
        };
        let in_guest =
            |kind: &str| format!("echo {kind} $(sed 's/.*\"id\":\"\\([a-z]*\\).*/\\1/') >>");
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
        let mut namespaces = namespaces.to_vec();
        namespaces.push(json!({ "type": "network", "path": "/run/netns/pod" }));
        // The guest has no shell of its own; a container's is there before the container is.
        let shell = "/run/bundles/hooked/rootfs/bin/busybox";
        let config = json!({
            "ociVersion": "1.1.0", "hostname": "lone",
            "process": {
                "args": ["sh", "-c", "hostname; cat /tmp/hooks"], "env": ["PATH=/usr/bin:/bin"], "cwd": "/",
                "user": { "uid": 0, "gid": 0 },
            },
            "root": { "path": rootfs() },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": { "namespaces": namespaces },
            "hooks": {
                "prestart": on_host("prestart"), "createRuntime": on_host("createRuntime"),
                "poststart": on_host("poststart"), "poststop": on_host("poststop"),
                "createContainer": hook(shell, &(in_guest("createContainer") + "/run/hooks")),
                "startContainer": hook("/bin/sh", &(in_guest("startContainer") + "/tmp/hooks")),
            },
        });
        let run = run_config(containerd, "hooked", &config);
        assert_eq!(run.good(), "lone\nstartContainer hooked\n");
        let network = fs::metadata(host.path("/run/netns/pod")).expect("the namespace").ino();
        let told = fs::read_to_string(&log).expect("hooks have run");
        let expected = [
            ("prestart", "creating"),
            ("createRuntime", "creating"),
            ("poststart", "running"),
            ("poststop", "stopped"),
        ];
        let expected = expected.map(|(kind, status)| format!("{kind} hooked {status} {network}\n"));
        assert_eq!(told, expected.concat());

        // One that fails is why there is no container, and says so; nothing is left.
        let mut config = config;
        config["hooks"] = json!({ "createRuntime": hook("/bin/sh", "echo no room >&2; exit 3") });
        let run = run_config(containerd, "refused", &config);
        assert!(
            run.stderr.contains("createRuntime hook") && run.stderr.contains("no room"),
            "{run:?}"
        );
        config["hooks"] = json!({ "createContainer": hook(shell, "exit 4") });
        let run = run_config(containerd, "hooked", &config);
        assert!(run.status != 0 && run.stderr.contains("hook"), "{run:?}");
        host.sh("ip netns delete pod; umount -l /run/netns; rm -rf /run/mount");
    });
}

/// A file named by the client (ctr's `--runtime-config-path`, CRI's `ConfigPath`), and none that makes no sense.
#[test]
fn vm_is_as_a_file_of_runtime_options_says() {
    with_containerd("2", |containerd| {
        let path = containerd.host.dir().join("options.toml");
        let file = path.to_str().expect("a path of ours");
        let options = ["--runtime-config-path", file];
        fs::write(&path, "memory = \"300M\"\nappend = \"said.so\"\n").expect("a new file");
        let script = "sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo; cat /proc/cmdline";
        let said = containerd.run(&options, "small", &["sh", "-c", script]).good();
        let kibibytes: u64 =
            said.lines().next().and_then(|line| line.parse().ok()).expect("a number");
        assert!((200 << 10..300 << 10).contains(&kibibytes), "{said}");
        assert!(said.contains("said.so"), "{said}");
        fs::write(&path, "memory = \"300M\"\ncolour = \"red\"\n").expect("the file");
        let refused = containerd.run(&options, "refused", &["true"]);
        assert!(
            refused.stderr.contains("options.toml\": line 2: unknown field `colour`"),
            "{refused:?}"
        );
    });
}

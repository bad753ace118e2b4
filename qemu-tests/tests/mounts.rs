//! Root filesystems from lists of mounts, as containerd's snapshotters and hosts' shims send them.
//!
//! How it proves its point: images are made by the programs that people make them with, from trees of known content; what a
//! container sees of them (checksums, times, attributes, owners) is compared with the tree. The harness finds a mount, loop
//! device or directory that is left.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use host_shim::vm::{Share, Tag};
use qemu_tests::images::disk;
use qemu_tests::{
    Blow, Options, Vm, Wish, images, mount, rootfs, vm_test_on_each_medium,
    vm_test_on_each_medium_in_test_all,
};
use tempfile::TempDir;
use vminitd_protocol::pb::containerd::types::Mount;

/// Bytes of the large file.
const LARGE: usize = 64 << 20;

/// Bytes of the small one, for what the large one would take too long on: many clusters of a compressed image.
const SMALL: usize = 4 << 20;

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A root filesystem: busybox, and the directories that a container needs.
fn base(directory: &Path) -> PathBuf {
    let tree = directory.join("base");
    for place in ["bin", "proc", "dev", "sys", "run", "tmp", "data"] {
        fs::create_dir_all(tree.join(place)).expect("a new directory");
    }
    fs::copy(rootfs().join("bin/busybox"), tree.join("bin/busybox")).expect("a copy");
    tree
}

/// With busybox's applets by name; images hold links as well as anything.
fn with_applets(tree: &Path) {
    for name in [
        "sh", "cat", "md5sum", "stat", "ls", "touch", "mkdir", "ln", "rm", "sleep", "mount",
        "test", "echo",
    ] {
        symlink("busybox", tree.join("bin").join(name)).expect("a new link");
    }
}

/// Makes a file of bytes that do and do not compress; returns its checksum. (MD5: a stranger's bytes are no concern here, and
/// under emulation it is three times as fast as SHA-256.)
fn file_of(path: &Path, length: usize) -> String {
    let mut bytes = Vec::with_capacity(length + 64);
    let noise = qemu_tests::noise(7, length / 2);
    for chunk in noise.chunks(1 << 19) {
        bytes.extend_from_slice(chunk);
        bytes.extend(b"a line that repeats itself\n".iter().cycle().take(chunk.len()));
    }
    assert_eq!(bytes.len(), length);
    fs::write(path, &bytes).expect("a new file");
    let output = Command::new("md5sum").arg(path).output().expect("md5sum");
    String::from_utf8_lossy(&output.stdout)[..32].to_owned()
}

async fn text_of(vm: &Vm, id: &str, mounts: Vec<Mount>, script: &str) -> String {
    let mut wish = Wish::new(&["/bin/sh", "-c", script]);
    wish.mounts = Some(mounts);
    let exit = vm.run(id, wish).await;
    let stderr = String::from_utf8_lossy(&exit.stderr).into_owned();
    assert_eq!((exit.status, &*stderr), (0, ""), "{id}: {}", exit.text());
    exit.text()
}

async fn refused(vm: &Vm, id: &str, mounts: Vec<Mount>) -> String {
    let mut wish = Wish::new(&["/bin/true"]);
    wish.mounts = Some(mounts);
    let error = vm.create(id, wish).await.map(|task| task.id).expect_err("no such rootfs");
    error.to_string()
}

/// The list of containerd's erofs snapshotter: layers, a writable disk, an overlay of them.
fn layered(writable: Mount, layers: &[Mount], options: &[&str]) -> Vec<Mount> {
    let mut list = vec![writable];
    list.extend_from_slice(layers);
    let lower = format!("lowerdir={{{{ overlay {} 1 }}}}", layers.len());
    let mut all = vec![
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
        "upperdir={{ mount 0 }}/upper",
        "workdir={{ mount 0 }}/work",
        &lower,
    ];
    all.extend_from_slice(options);
    list.push(mount("format/mkdir/overlay", "overlay", &all));
    list
}

#[test]
fn large_file_has_its_checksum_on_every_filesystem() {
    let directory = TempDir::new().expect("a directory");
    let tree = base(directory.path());
    with_applets(&tree);
    let large = file_of(&tree.join("data/large"), LARGE);
    let small = file_of(&tree.join("data/small"), SMALL);
    let image = |name: &str| directory.path().join(name);
    let plain = images::erofs(directory.path(), "plain", &tree);
    let ext4 = images::ext4(directory.path(), "disk", Some(&tree), 96);
    // On the share, so that images can be mounted as files too; these without the large file.
    let share = image("share");
    fs::create_dir(&share).expect("a new directory");
    run(Command::new("cp").arg("-a").arg(&tree).arg(&share));
    fs::remove_file(tree.join("data/large")).expect("our file");
    run(Command::new("mkfs.erofs")
        .args(["--quiet", "-zlz4hc"])
        .arg(share.join("packed"))
        .arg(&tree));
    let squash = ["-quiet", "-no-progress", "-comp", "zstd"];
    run(Command::new("mksquashfs").arg(&tree).arg(share.join("squash")).args(squash));
    let files = Share {
        tag: Tag::try_from("files".to_owned()).expect("a tag"),
        path: share.clone(),
        read_only: true,
    };
    let options = Options {
        disks: vec![
            disk("plain", &plain, true),
            disk("packed", &share.join("packed"), true),
            disk("ext4", &ext4, false),
            disk("squash", &share.join("squash"), true),
        ],
        shares: vec![files],
        ..Options::default()
    };
    vm_test_on_each_medium(options, async |vm| {
        let files = mount("virtiofs", "files", &["ro"]);
        let on_files = |kind: &str, path: &str, options: &[&str]| {
            vec![files.clone(), mount(kind, &format!("{{{{ mount 0 }}}}/{path}"), options)]
        };
        let tmpfs = mount("tmpfs", "", &["size=16m"]);
        let erofs = mount("erofs", "serial:plain", &["ro"]);
        let bound = vec![erofs.clone(), mount("format/bind", "{{ mount 0 }}", &["ro"])];
        for (name, list, kind, file) in [
            ("erofs", vec![erofs.clone()], "erofs", "large"),
            ("ext4", vec![mount("ext4", "serial:ext4", &["noatime"])], "ext4", "large"),
            ("virtiofs", on_files("format/bind", "base", &["ro"]), "virtiofs", "large"),
            (
                "overlay",
                layered(tmpfs.clone(), std::slice::from_ref(&erofs), &[]),
                "overlay",
                "large",
            ),
            ("bind", bound, "erofs", "large"),
            ("compressed", vec![mount("erofs", &vm.disk_node(1), &["ro"])], "erofs", "small"),
            ("squashfs", vec![mount("squashfs", "serial:squash", &["ro"])], "squashfs", "small"),
            ("erofs-file", on_files("format/erofs", "packed", &["ro"]), "erofs", "small"),
            ("erofs-loop", on_files("format/erofs", "packed", &["loop", "ro"]), "erofs", "small"),
            ("squashfs-loop", on_files("format/squashfs", "squash", &["ro"]), "squashfs", "small"),
        ] {
            let script = format!("md5sum /data/{file}; cat /proc/self/mountinfo");
            let text = text_of(vm, name, list, &script).await;
            let sum = if file == "large" { &large } else { &small };
            assert!(text.starts_with(&format!("{sum}  /data/{file}\n")), "{name}: {text}");
            // It is what it was asked to be.
            let root = text.lines().find(|line| line.split(' ').nth(4) == Some("/"));
            let root = root.unwrap_or_else(|| panic!("no root: {text}"));
            assert!(root.contains(&format!(" - {kind} ")), "{name}: {root}");
            assert_eq!(root.contains("/dev/loop"), name.ends_with("-loop"), "{name}: {root}");
        }
    });
}

#[test]
fn overlay_keeps_times_attributes_links_and_owners_and_its_changes_stay_on_the_disk() {
    let directory = TempDir::new().expect("a directory");
    let tree = base(directory.path());
    with_applets(&tree);
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::write(tree.join("data/old"), "old").expect("a new file");
    File::options()
        .write(true)
        .open(tree.join("data/old"))
        .and_then(|file| file.set_modified(old))
        .expect("a time");
    fs::hard_link(tree.join("data/old"), tree.join("data/same")).expect("a link");
    std::os::unix::fs::chown(tree.join("data/old"), Some(12), Some(34)).expect("an owner");
    let erofs = directory.path().join("layer.erofs");
    run(Command::new("mkfs.erofs").args(["--quiet", "--preserve-mtime"]).arg(&erofs).arg(&tree));
    let ext4 = images::ext4(directory.path(), "top", None, 16);
    // An attribute, on a layer whose tools can set one without asking the host's filesystem for it.
    let marked = images::layer(directory.path(), "marked", &[("data/marked", "x")]);
    let marked = images::ext4(directory.path(), "marked", Some(&marked), 8);
    run(Command::new("debugfs")
        .args(["-w", "-R", "ea_set /data/marked user.colour green"])
        .arg(&marked));
    let options = Options {
        disks: vec![
            disk("layer", &erofs, true),
            disk("top", &ext4, false),
            disk("marked", &marked, true),
        ],
        ..Options::default()
    };
    vm_test_on_each_medium_in_test_all(options, async |vm| {
        let list = || {
            let layers =
                [mount("erofs", "serial:layer", &["ro"]), mount("ext4", "serial:marked", &["ro"])];
            // Without an index a change parts hard links, here as anywhere.
            let mut list = layered(mount("ext4", "serial:top", &[]), &layers, &["index=on"]);
            if vm.has_erofs_root() {
                // The first medium's VM has left its changes on the disk.
                for option in &mut list[3].options {
                    *option = option.replace("/upper", "/other").replace("/work", "/other-work");
                }
            }
            list
        };
        let look = "stat -c '%Y %u:%g %h %a' /data/old; stat -c '%i' /data/old /data/same | sort -u | wc -l | tr -d ' '";
        let look = look
            .replace("sort", "busybox sort")
            .replace("wc", "busybox wc")
            .replace("tr ", "busybox tr ");
        let before = text_of(vm, "before", list(), &format!("export PATH=/bin; {look}")).await;
        assert_eq!(before, "1000000000 12:34 2 644\n1\n");
        // A change copies the file up: with its time, owner and attributes.
        let script = format!(
            "export PATH=/bin; busybox chmod 600 /data/old /data/marked; {look}; echo new > /data/new; rm /data/same"
        );
        let changed = text_of(vm, "changed", list(), &script).await;
        assert!(changed.starts_with("1000000000 12:34 2 600\n1\n"), "{changed}");
        let after = text_of(
            vm,
            "after",
            list(),
            "export PATH=/bin; cat /data/new; stat -c '%Y %u:%g %a' /data/old; ls /data",
        )
        .await;
        assert_eq!(after, "new\n1000000000 12:34 600\nmarked\nnew\nold\n");
        // Whose files they are can be mapped, where the filesystem does it.
        let mapped = ["ro", "uidmap=0:1000:100", "gidmap=0:2000:100"];
        let text = text_of(
            vm,
            "mapped",
            vec![mount("erofs", "serial:layer", &mapped)],
            "export PATH=/bin; stat -c '%u:%g' /data/old",
        )
        .await;
        assert_eq!(text, "1012:2034\n");
        let mut lists = list();
        lists[3].options.extend(mapped[1..].iter().map(|option| (*option).to_owned()));
        lists[3]
            .options
            .iter_mut()
            .for_each(|option| *option = option.replace("}}/", "}}/mapped-"));
        let text =
            text_of(vm, "layers", lists, "export PATH=/bin; stat -c '%u:%g' /data/old").await;
        assert_eq!(text, "1012:2034\n");
    });
    // Delete has written it back: the image is whole, and has what the container wrote and the attribute that was copied.
    run(Command::new("e2fsck").args(["-fn"]).arg(&ext4));
    let output = Command::new("debugfs")
        .args(["-R", "cat /upper/data/new"])
        .arg(&ext4)
        .output()
        .expect("debugfs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "new\n");
    let output = Command::new("debugfs")
        .args(["-R", "ea_get /upper/data/marked user.colour"])
        .arg(&ext4)
        .output()
        .expect("debugfs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("green"), "{output:?}");
}

/// Owners are 0 where they are kept, and 1000 and 2000 where they are mapped.
#[test]
fn ids_are_mapped_on_each_filesystem_that_does_it_and_refused_by_proc() {
    let directory = TempDir::new().expect("a directory");
    let tree = base(directory.path());
    with_applets(&tree);
    let erofs = images::erofs(directory.path(), "layer", &tree);
    let ext4 = images::ext4(directory.path(), "disk", Some(&tree), 16);
    let squash = directory.path().join("squash");
    run(Command::new("mksquashfs").arg(&tree).arg(&squash).args(["-quiet", "-no-progress"]));
    let options = Options {
        disks: vec![
            disk("layer", &erofs, true),
            disk("disk", &ext4, false),
            disk("squash", &squash, true),
        ],
        ..Options::default()
    };
    vm_test_on_each_medium_in_test_all(options, async |vm| {
        let mapped = |kind: &str, source: &str, options: &[&str]| {
            mount(kind, source, &[options, &["uidmap=0:1000:100", "gidmap=0:2000:100"]].concat())
        };
        let owner = "export PATH=/bin; stat -c %u:%g /bin/busybox";
        let layer = mount("erofs", "serial:layer", &["ro"]);
        for (id, list) in [
            ("erofs", vec![mapped("erofs", "serial:layer", &["ro"])]),
            ("ext4", vec![mapped("ext4", "serial:disk", &[])]),
            ("squashfs", vec![mapped("squashfs", "serial:squash", &["ro"])]),
            ("virtiofs", vec![mapped("virtiofs", qemu_tests::ROOTFS_TAG, &["ro"])]),
            ("bind", vec![layer.clone(), mapped("format/bind", "{{ mount 0 }}", &["ro"])]),
        ] {
            assert_eq!(text_of(vm, id, list, owner).await, "1000:2000\n", "{id}");
        }
        // On a tmpfs, whose owner writes, and the guest's root cannot: it is nobody there.
        let tmpfs = vec![mapped("tmpfs", "", &["mode=0755"]), layer.clone()];
        let script = "export PATH=/bin; touch /data/new; echo $?; stat -c %u:%g /data /data/*";
        for (id, user, expected) in [
            ("owner", [1000, 2000], "0\n1000:2000\n1000:2000\n"),
            ("root", [0, 0], "1\n1000:2000\n"),
        ] {
            let mut wish = Wish::new(&["/bin/sh", "-c", script]);
            wish.mounts = Some(tmpfs.clone());
            wish.spec["process"]["user"] = serde_json::json!({ "uid": user[0], "gid": user[1] });
            let data = serde_json::json!({ "destination": "/data", "type": "bind", "source": "mounts/0", "options": ["rbind"] });
            wish.spec["mounts"].as_array_mut().expect("mounts").push(data);
            let exit = vm.run(id, wish).await;
            let stderr = String::from_utf8_lossy(&exit.stderr).into_owned();
            assert_eq!(exit.text(), expected, "{id}: {stderr}");
        }
        let text = refused(vm, "proc", vec![mapped("bind", "/proc", &["ro"])]).await;
        assert!(text.contains("map its ids"), "{text}");
    });
}

#[test]
fn list_that_fails_in_the_middle_leaves_nothing_and_says_why() {
    let directory = TempDir::new().expect("a directory");
    let tree = base(directory.path());
    with_applets(&tree);
    fs::create_dir(tree.join("links")).expect("a new directory");
    symlink("/run/vminitd", tree.join("links/state")).expect("a new link");
    symlink("../../../../../etc", tree.join("links/up")).expect("a new link");
    let erofs = images::erofs(directory.path(), "layer", &tree);
    let ext4 = images::ext4(directory.path(), "top", Some(&tree), 16);
    let options = Options {
        disks: vec![disk("layer", &erofs, true), disk("top", &ext4, false)],
        ..Options::default()
    };
    vm_test_on_each_medium(options, async |vm| {
        let layer = mount("erofs", "serial:layer", &["ro"]);
        let top = mount("ext4", "serial:top", &[]);
        let before = qemu_tests::Listing::of(vm).await;
        for (id, last, wanted) in [
            (
                "option",
                mount("format/overlay", "", &["lowerdir={{ mount 0 }}", "colour=red"]),
                "colour=red",
            ),
            (
                "forward",
                mount("format/overlay", "", &["lowerdir={{ overlay 0 2 }}"]),
                "refers to mount 2, and 2 come before this one",
            ),
            (
                "consumed",
                mount("overlay", "", &["X-containerd.mkdir.path=/run/bundles/consumed/mounts/x"]),
                "X-containerd.mkdir.path",
            ),
            (
                "outside",
                mount("mkdir/tmpfs", "", &["X-containerd.mkdir.path=/run/vminitd/x"]),
                "is not below the bundle's mounts",
            ),
            ("kind", mount("ext4", "serial:layer", &["ro"]), "mount ext4"),
            // Links in a layer, in place of what the host means.
            (
                "upper",
                mount(
                    "format/overlay",
                    "",
                    &[
                        "lowerdir={{ mount 0 }}",
                        "upperdir={{ mount 1 }}/links/state/u",
                        "workdir={{ mount 1 }}/w",
                    ],
                ),
                "Too many levels",
            ),
            (
                "lower",
                mount("format/overlay", "", &["lowerdir={{ mount 0 }}:{{ mount 1 }}/links/state"]),
                "Too many levels",
            ),
            (
                "mkdir",
                mount(
                    "format/mkdir/tmpfs",
                    "",
                    &["X-containerd.mkdir.path={{ mount 1 }}/links/up/x"],
                ),
                "Too many levels",
            ),
            ("bind", mount("format/bind", "{{ mount 1 }}/links/state", &["rw"]), "Too many levels"),
            (
                "image",
                mount("format/erofs", "{{ mount 1 }}/links/state/mounts.json", &["ro"]),
                "Too many levels",
            ),
        ] {
            let text = refused(vm, id, vec![layer.clone(), top.clone(), last]).await;
            assert!(text.contains(wanted), "{id}: {text}");
        }
        assert!(qemu_tests::Listing::of(vm).await.grown_since(&before).is_empty());
        // Nothing of it holds the devices: the same mounts can be made.
        text_of(vm, "whole", layered(top, &[layer], &[]), "exit 0").await;
    });
}

#[test]
fn agent_killed_in_the_middle_of_mounting_leaves_nothing() {
    let directory = TempDir::new().expect("a directory");
    let tree = base(directory.path());
    with_applets(&tree);
    let erofs = images::erofs(directory.path(), "layer", &tree);
    let options = Options {
        disks: vec![disk("layer", &erofs, true)],
        append: "vminitd.log=info vminitd.device_timeout_ms=600000".to_owned(),
        ..Options::default()
    };
    vm_test_on_each_medium_in_test_all(options, async |vm| {
        let layer = mount("erofs", "serial:layer", &["ro"]);
        let bind = mount("format/bind", "{{ mount 0 }}", &["ro"]);
        // Many mounts, so that the blow comes somewhere among them; whatever it hits, the next agent has no trace of it.
        let mut list = vec![layer.clone()];
        list.extend(vec![bind.clone(); 200]);
        let mut wish = Wish::new(&["/bin/true"]);
        wish.mounts = Some(list);
        let before = vm.agents();
        let killer = vm
            .create("killer", qemu_tests::inspector(&["inspect", "signal", "9"]))
            .await
            .expect("create");
        let create = vm.create("half", wish);
        let kill = killer.start();
        let (created, killed) = tokio::join!(create, kill);
        drop((created.map(|task| task.id), killed.map(drop)));
        vm.reconnect_to_another_than(before).await;
        vm.delete_by_force("half").await;
        vm.delete_by_force("killer").await;
        text_of(vm, "whole", vec![layer, bind], "exit 0").await;
        Blow::Kill.strike(vm).await;
    });
}

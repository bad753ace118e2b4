//! Disks: how a mount finds its device, also a late one, and what is said when it cannot be had or is of no use.
//!
//! How it proves its point: each image is a root filesystem of its own that says who it is, so that what a container
//! prints tells which device was mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use host_shim::guest::unlimited;
use qemu_tests::images::{disk, erofs, ext4, layer};
use qemu_tests::{
    Blow, Options, PATIENCE_S, Vm, Wish, busybox, inspector, mount, vm_test_on_each_medium,
    vm_test_on_each_medium_in_test_all,
};
use tempfile::TempDir;
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::google::protobuf::Empty;

/// Sectors between the starts of two partitions: 1 MiB.
const STEP: u64 = 2048;

/// How many layers a root filesystem has at its most.
const LAYERS: usize = 100;

/// How many of them fit a VM as disks of their own, beside the root's and the one of partitions.
const DISKS: usize = 60;

/// The tree of a root filesystem that says `name`.
pub fn root(directory: &Path, name: &str) -> PathBuf {
    let tree = layer(directory, name, &[("who", name)]);
    for place in ["bin", "proc", "dev", "sys", "run", "tmp"] {
        fs::create_dir(tree.join(place)).expect("a new directory");
    }
    fs::copy(busybox(), tree.join("bin/busybox")).expect("a copy");
    tree
}

fn erofs_root(directory: &Path, name: &str) -> PathBuf {
    erofs(directory, name, &root(directory, name))
}

/// A disk `name`.gpt with these images as partitions `layer1`, `layer2`...
fn packed(directory: &Path, name: &str, images: &[PathBuf]) -> PathBuf {
    let disk = directory.join(format!("{name}.gpt"));
    let file = fs::File::create(&disk).expect("a new file");
    let (mut start, mut table) = (STEP, "label: gpt\n".to_owned());
    let mut starts = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let sectors = fs::metadata(image).expect("an image").len().div_ceil(512);
        table.push_str(&format!("start={start}, size={sectors}, name=layer{}\n", index + 1));
        starts.push(start);
        start += sectors.next_multiple_of(STEP);
    }
    file.set_len((start + STEP) * 512).expect("room");
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&disk)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk");
    std::io::Write::write_all(&mut sfdisk.stdin.take().expect("a pipe"), table.as_bytes())
        .expect("sfdisk reads");
    assert!(sfdisk.wait().expect("its end").success(), "{table}");
    for (image, start) in images.iter().zip(starts) {
        let content = fs::read(image).expect("an image");
        std::os::unix::fs::FileExt::write_all_at(&file, &content, start * 512).expect("room");
    }
    disk
}

/// A container on these mounts that says who its root is.
fn who(mounts: Vec<Mount>) -> Wish {
    Wish { mounts: Some(mounts), ..Wish::new(&["/bin/busybox", "cat", "/who"]) }
}

async fn says(vm: &Vm, id: &str, kind: &str, source: &str, options: &[&str]) -> String {
    let exit = vm.run(id, who(vec![mount(kind, source, options)])).await;
    assert_eq!(exit.status, 0, "{source}: {}", String::from_utf8_lossy(&exit.stderr));
    exit.text()
}

async fn refused(vm: &Vm, id: &str, kind: &str, source: &str, options: &[&str]) -> String {
    match vm.create(id, who(vec![mount(kind, source, options)])).await {
        Err(ttrpc::Error::RpcStatus(status)) => status.message,
        Err(other) => panic!("{source}: {other}"),
        Ok(_) => panic!("{source}: it was mounted"),
    }
}

fn flip(image: &Path, at: usize) {
    let mut bytes = fs::read(image).expect("an image");
    bytes[at] ^= 0xff;
    fs::write(image, bytes).expect("our file");
}

#[test]
fn disk_is_found_by_name_serial_and_partition_and_what_is_wrong_with_one_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let plain = erofs_root(at, "plain");
    let state = ext4(at, "ext4", Some(&root(at, "ext4")), 8);
    let packed = packed(at, "packed", &["one", "two", "six"].map(|name| erofs_root(at, name)));
    let bad_erofs = at.join("bad.erofs");
    fs::copy(&plain, &bad_erofs).expect("a copy");
    // In the superblock, which has a checksum.
    flip(&bad_erofs, 1024 + 16);
    let bad_ext4 = at.join("bad.ext4");
    fs::copy(&state, &bad_ext4).expect("a copy");
    // Where the first group has its bitmap: in block 1, blocks being of 1 KiB, then 2.
    for byte in 2048..2056 {
        flip(&bad_ext4, byte);
    }
    let options = Options {
        append: "vminitd.log=info vminitd.device_timeout_ms=300".to_owned(),
        disks: vec![
            disk("plain", &plain, true),
            disk("packed", &packed, true),
            disk("state", &state, false),
            disk("bad-erofs", &bad_erofs, true),
            disk("bad-ext4", &bad_ext4, false),
        ],
        ..Options::default()
    };
    vm_test_on_each_medium_in_test_all(options, async |vm| {
        let node = |index| vm.disk_node(index);
        for (id, source, expected) in [
            ("c1", &*node(0), "plain"),
            ("c2", "serial:plain", "plain"),
            ("c3", &*format!("{}3", node(1)), "six"),
            ("c4", "serial:packed:2", "two"),
            ("c5", "serial:packed:layer1", "one"),
        ] {
            assert_eq!(says(vm, id, "erofs", source, &["ro"]).await, expected, "{source}");
        }

        let text = refused(vm, "w1", "erofs", "serial:nobody", &["ro"]).await;
        assert!(text.starts_with("no block device serial:nobody after 3"), "{text}");
        assert!(
            text.contains(" (serial \"plain\"), ") && text.contains(" (serial \"packed\")"),
            "{text}"
        );
        assert!(text.contains("there is vda (serial "), "{text}");
        let text = refused(vm, "w2", "erofs", "serial:packed:9", &["ro"]).await;
        let parts = "with partitions 1=\"layer1\" 2=\"layer2\" 3=\"layer3\"";
        assert!(text.contains("serial:packed:9") && text.contains(parts), "{text}");
        let text = refused(vm, "w3", "erofs", "/dev/vdz", &["ro"]).await;
        assert!(text.starts_with("no block device /dev/vdz after "), "{text}");

        let text = refused(vm, "b1", "erofs", "serial:bad-erofs", &["ro"]).await;
        assert!(text.contains("erofs") && text.contains(&node(3)), "{text}");
        assert!(text.contains("checksum"), "{text}");
        let text = refused(vm, "b2", "ext4", "serial:bad-ext4", &[]).await;
        assert!(text.contains("ext4") && text.contains(&node(4)), "{text}");
        let said = format!("EXT4-fs ({})", node(4).trim_start_matches("/dev/"));
        assert!(text.contains(&said), "{text}");
        let text = refused(vm, "b3", "ext4", "serial:plain", &["ro"]).await;
        assert!(text.contains("ext4") && text.contains(&node(0)), "{text}");

        // What is written to is full, and no more than that.
        let fill =
            "busybox dd if=/dev/zero of=/full bs=64k 2>&1 | busybox tail -n 1; busybox cat /who";
        let wish = Wish {
            mounts: Some(vec![mount("ext4", "serial:state", &[])]),
            ..Wish::new(&["/bin/busybox", "sh", "-c", fill])
        };
        let exit = vm.run("full", wish).await;
        assert!(exit.text().ends_with("ext4"), "{}", exit.text());
        assert_eq!(says(vm, "after", "ext4", "serial:state", &["ro"]).await, "ext4");
    });
    let check = Command::new("e2fsck").arg("-fn").arg(&state).output().expect("e2fsck");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn read_only_disk_is_not_mounted_for_writing() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let state = ext4(at, "ext4", Some(&root(at, "ext4")), 8);
    let options = Options { disks: vec![disk("state", &state, true)], ..Options::default() };
    vm_test_on_each_medium(options, async |vm| {
        let text = refused(vm, "rw", "ext4", "serial:state", &[]).await;
        assert!(text.contains("ext4") && text.contains(&vm.disk_node(0)), "{text}");
        assert_eq!(says(vm, "ro", "ext4", "serial:state", &["ro"]).await, "ext4");
    });
}

#[test]
fn late_disk_is_waited_for_and_holds_up_nobody_and_a_detached_one_is_gone() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let late = disk("late", &erofs_root(at, "late"), true);
    let parts = ["one", "two"].map(|name| erofs_root(at, name));
    let packed = disk("packed", &packed(at, "packed", &parts), true);
    let append = format!("vminitd.log=info vminitd.device_timeout_ms={}", PATIENCE_S * 1000);
    let options = Options { append, ..Options::default() };
    vm_test_on_each_medium(options, async |vm| {
        let before = disks(vm, "before").await;
        for (disk, source, expected) in
            [(&late, "serial:late", "late"), (&packed, "serial:packed:2", "two")]
        {
            let creating = vm.create(expected, who(vec![mount("erofs", source, &["ro"])]));
            let attaching = async {
                // The Create waits by now, or will: other calls are served, and no disk is there.
                for _ in 0..3 {
                    vm.guest().system().info(unlimited(), &Empty {}).await.expect("info");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                assert_eq!(disks(vm, &format!("look-{expected}")).await, before);
                vm.machine().attach_disk(disk).await.expect("attach");
            };
            let both = async { tokio::join!(creating, attaching).0 };
            let created = timeout(Duration::from_secs(PATIENCE_S), both).await;
            let task = created.expect("the disk is there").expect("create");
            let exit = task.start().await.expect("start").finish().await;
            assert_eq!((exit.status, &*exit.text()), (0, expected));
            vm.machine().detach_disk(&disk.serial).await.expect("detach");
            assert_eq!(disks(vm, &format!("after-{expected}")).await, before);
        }
    });
}

#[test]
fn agent_that_dies_while_a_create_waits_for_a_disk_leaves_nothing_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let late = disk("late", &erofs_root(directory.path(), "late"), true);
    let append = format!("vminitd.log=info vminitd.device_timeout_ms={}", PATIENCE_S * 1000);
    let options = Options { append, ..Options::default() };
    vm_test_on_each_medium_in_test_all(options, async |vm| {
        let mounts = || vec![mount("erofs", "serial:late", &["ro"])];
        let creating = async { vm.create("c", who(mounts())).await.map(drop) };
        let (created, _) = tokio::join!(creating, Blow::Kill.strike(vm));
        created.expect_err("the agent is dead");
        vm.machine().attach_disk(&late).await.expect("attach");
        // Until the next agent has cleared away what was begun, the id is taken.
        let again = timeout(Duration::from_secs(PATIENCE_S), async {
            loop {
                match vm.create("c", who(mounts())).await {
                    Ok(task) => return task,
                    Err(error) => {
                        assert!(error.to_string().contains("already exists"), "{error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        let task = again.await.expect("it is cleared away");
        let exit = task.start().await.expect("start").finish().await;
        assert_eq!((exit.status, &*exit.text()), (0, "late"));
        vm.machine().detach_disk(&late.serial).await.expect("detach");
    });
}

#[test]
fn guest_outlives_a_disk_that_is_pulled_out_under_a_container() {
    let directory = tempfile::tempdir().expect("a directory");
    let late = disk("late", &erofs_root(directory.path(), "late"), true);
    vm_test_on_each_medium_in_test_all(Options::default(), async |vm| {
        let before = disks(vm, "before").await;
        vm.machine().attach_disk(&late).await.expect("attach");
        let wish = Wish {
            mounts: Some(vec![mount("erofs", "serial:late", &["ro"])]),
            ..Wish::new(&["/bin/busybox", "sleep", "1000"])
        };
        let running = vm.create("victim", wish).await.expect("create").start().await;
        let running = running.expect("start");
        vm.machine().detach_disk(&late.serial).await.expect("detach");
        // It may have ended by itself, for want of its program.
        let _ = running.task.kill(9).await;
        assert_ne!(running.finish().await.status, 0);
        assert_eq!(disks(vm, "after").await, before);
        vm.machine().attach_disk(&late).await.expect("attach");
        assert_eq!(says(vm, "again", "erofs", "serial:late", &["ro"]).await, "late");
        vm.machine().detach_disk(&late.serial).await.expect("detach");
    });
}

/// The guest's disks, a blank between them.
async fn disks(vm: &Vm, id: &str) -> String {
    let exit = vm.run(id, inspector(&["sh", "-c", "ls /guest/sys/block | grep '^vd'"])).await;
    exit.text().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Layers that show one file each, topmost first, as erofs images.
fn layers(directory: &TempDir, count: usize) -> Vec<PathBuf> {
    let image = |index: usize| {
        let name = format!("layer{index}");
        let tree = layer(
            directory.path(),
            &name,
            &[(&*format!("layers/{index}"), "x"), ("top", &*index.to_string())],
        );
        erofs(directory.path(), &name, &tree)
    };
    (1..=count).map(image).collect()
}

/// An overlay of `sources` over a root, and a container that counts what it sees.
fn stacked(id: &str, sources: Vec<String>) -> Wish {
    let mut mounts: Vec<Mount> =
        sources.iter().map(|source| mount("erofs", source, &["ro"])).collect();
    mounts.push(mount("erofs", "serial:base", &["ro"]));
    let lower: Vec<String> =
        (0..mounts.len()).map(|index| format!("/run/bundles/{id}/mounts/{index}")).collect();
    mounts.push(mount("overlay", "overlay", &[&format!("lowerdir={}", lower.join(":"))]));
    let count = "busybox ls /layers | busybox wc -l; busybox cat /top; echo; busybox cat /who";
    Wish { mounts: Some(mounts), ..Wish::new(&["/bin/busybox", "sh", "-c", count]) }
}

#[test]
fn hundred_layers_are_partitions_of_one_disk_or_as_many_disks_as_there_are_slots() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let layers = layers(&directory, LAYERS);
    let mut all = vec![
        disk("base", &erofs_root(at, "root"), true),
        disk("packed", &packed(at, "packed", &layers), true),
    ];
    let few = layers.iter().take(DISKS).enumerate();
    all.extend(few.map(|(index, layer)| disk(&format!("layer{}", index + 1), layer, true)));
    let options = Options { memory: "512M", disks: all, ..Options::default() };
    vm_test_on_each_medium(options, async |vm| {
        let parts = (1..=LAYERS).map(|layer| format!("serial:packed:layer{layer}")).collect();
        let exit = vm.run("parts", stacked("parts", parts)).await;
        assert_eq!(exit.text(), format!("{LAYERS}\n1\nroot"), "{:?}", exit.stderr);
        let disks = (1..=DISKS).map(|layer| format!("serial:layer{layer}")).collect();
        let exit = vm.run("disks", stacked("disks", disks)).await;
        assert_eq!(exit.text(), format!("{DISKS}\n1\nroot"), "{:?}", exit.stderr);
    });
}

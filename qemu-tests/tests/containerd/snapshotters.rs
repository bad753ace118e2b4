//! Root filesystems of containerd's snapshotters: directories that are shared, images that are disks. Of containerds that
//! cannot be had here, the mounts that they send are recorded: assembled from what is public of them.

use std::fs;
use std::path::Path;

use qemu_tests::containerd::{
    Containerd, Host, LoneShim, SetUp, bootstrap_params, config, with_containerd_set_up,
};
use qemu_tests::images::{erofs, ext4, layer};
use qemu_tests::rootfs;
use serde_json::json;
use vminitd_protocol::pb::containerd::types::Mount;

const BLOCK: SetUp = SetUp { env: Vec::new(), block_snapshotters: true };

/// Prints what the root filesystem is, by the container's own table of mounts: `virtiofs`, `ext4`...
const ROOT_KIND: &str =
    "while read -r _ at kind _; do if [ $at = / ]; then echo $kind; fi; done </proc/mounts";

fn root_kind(containerd: &Containerd, options: &[&str], id: &str) -> String {
    containerd.run(options, id, &["sh", "-c", ROOT_KIND]).good().trim().to_owned()
}

#[test]
fn image_of_the_blockfile_snapshotter_is_a_disk_and_a_pods_later_one_is_attached() {
    with_containerd_set_up("2", BLOCK, |containerd| {
        let blockfile = ["--snapshotter", "blockfile"];
        assert_eq!(root_kind(containerd, &blockfile, "b1"), "ext4");
        assert!(containerd.host.running("virtiofsd").is_empty());

        // The first container of the pod is a directory, the next two are disks of the same VM.
        let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
        containerd.start_container(&pod, "pod", &["sleep", "1000"]);
        for id in ["b2", "b3"] {
            let options = [&pod[..], &blockfile].concat();
            containerd.start_container(&options, id, &["sh", "-c", "echo new >/new; sleep 1000"]);
            assert_eq!(containerd.exec(id, &["sh", "-c", ROOT_KIND]).good(), "ext4\n");
        }
        assert_eq!(containerd.host.running("vminit-vmm").len(), 1);
        let disks = containerd.exec("b3", &["sh", "-c", "cat /sys/block/vd*/serial"]).good();
        assert!(disks.contains("d0") && disks.contains("d1"), "{disks:?}");
        containerd.remove("b2");
        // A disk goes with its container, and the others stay.
        containerd.host.wait_for("the disk is gone", || {
            let disks = containerd.exec("b3", &["sh", "-c", "cat /sys/block/vd*/serial"]).good();
            (!disks.contains("d0") && disks.contains("d1")).then_some(())
        });
        containerd.remove("b3");
        containerd.remove("pod");
    });
}

#[test]
fn image_of_the_erofs_snapshotter_2_1_is_shared_with_what_containerd_mounted() {
    with_containerd_set_up("2", BLOCK, |containerd| {
        if containerd.version.erofs.is_none() {
            eprintln!(
                "SKIPPED: there is no mkfs.erofs to test containerd's erofs snapshotter with"
            );
            return;
        }
        let erofs = ["--snapshotter", "erofs"];
        assert_eq!(root_kind(containerd, &erofs, "e1"), "virtiofs");
        assert!(containerd.log().contains("mkfs.erofs --tar=f"), "another differ has unpacked it");
        let script = "echo one >/written; cat /written; ls -d /bin/busybox";
        let exit = containerd.run(&erofs, "e3", &["sh", "-c", script]);
        assert_eq!(exit.good(), "one\n/bin/busybox\n");
        // Its layers containerd itself has mounted, for as long as it has them.
        containerd.host.sh("umount $(grep -o '[^ ]*snapshotter.v1.erofs/[^ ]*/fs' /proc/mounts); rm -rf /run/mount");
    });
}

/// The guest mounts its root filesystem for writing, and a container that may mount can undo what its config says: so
/// what stops them is the host.
#[test]
fn what_the_host_shares_read_only_nobody_in_the_vm_can_write() {
    let host = Host::new();
    let kept = host.dir().join("kept");
    layer(host.dir(), "kept", &[("file", "old\n")]);
    let script =
        "mount -o remount,rw,bind /data 2>/dev/null; mount -o remount,rw,bind /guest 2>/dev/null
        for path in /etc/new /data/new; do touch $path 2>&1; done
        if echo new >/guest; then cat /guest; fi 2>&1";
    let mut config = config(script, &json!({}));
    let bind = |source: &Path, destination: &str| {
        json!({
            "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"],
        })
    };
    let mounts = config["mounts"].as_array_mut().expect("mounts");
    // The second is a file, made on the fly in the place of a directory that the image has.
    mounts.extend([bind(&kept, "/data"), bind(&kept.join("file"), "/dev/file")]);
    config["process"]["args"][2] = script.replace("/guest", "/dev/file").into();
    let admin = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"];
    config["process"]["capabilities"] =
        json!({ "bounding": admin, "effective": admin, "permitted": admin });
    let shim = LoneShim::start(&host, "c1", &config, b"");
    let root = mount("bind", rootfs(), &["rbind", "ro"]);
    let (_, said) = shim.run(vec![root]).expect("Create");
    assert_eq!(said.matches("Read-only file system").count(), 3, "{said}");
    assert_eq!(fs::read_to_string(kept.join("file")).expect("the file"), "old\n");
    assert!(!kept.join("new").exists() && !rootfs().join("etc/new").exists());
}

fn mount(kind: &str, source: &Path, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.display().to_string(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

/// Two layers, of which the upper one has two files more.
fn layers(directory: &Path) -> Vec<Mount> {
    let tree = layer(directory, "tree", &[("data/layer", "upper\n"), ("data/gone", "")]);
    let images = [erofs(directory, "upper", &tree), erofs(directory, "base", rootfs())];
    images.iter().map(|image| mount("erofs", image, &["ro", "loop"])).collect()
}

/// What the container does with them.
const SCRIPT: &str = "cat /data/layer; echo kept >/data/new; rm /data/gone; ls /data; \
    while read -r _ at kind _; do if [ $at = / ]; then echo $kind; fi; done </proc/mounts";

fn overlay(options: &[&str]) -> Mount {
    mount("format/mkdir/overlay", Path::new("overlay"), options)
}

/// containerd from 2.2 on, the erofs snapshotter with `default_size`: what is written goes to an image of its own.
#[test]
fn recorded_layers_below_a_writable_image_are_disks_and_put_together_in_the_guest() {
    let host = Host::new();
    let mut mounts = vec![mount("ext4", &ext4(host.dir(), "rwlayer", None, 32), &["rw", "loop"])];
    mounts.extend(layers(host.dir()));
    mounts.push(overlay(&[
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
        "workdir={{ mount 0 }}/work",
        "upperdir={{ mount 0 }}/upper",
        "lowerdir={{ overlay 1 2 }}",
    ]));
    let params = bootstrap_params("c1", None, None);
    let shim = LoneShim::start(&host, "c1", &config(SCRIPT, &json!({})), &params);
    assert!(shim.told.contains("\"version\":3"), "{:?}", shim.told);
    let done = shim.run(mounts).expect("Create");
    assert_eq!(done, (0, "upper\nlayer\nnew\noverlay\n".to_owned()));
    let image = host.dir().join("rwlayer.ext4");
    let found =
        host.sh(&format!("debugfs -R 'cat /upper/data/new' {} 2>/dev/null", image.display()));
    assert_eq!(found, "kept\n");
}

/// The same without `default_size`: what is written goes to a directory of the host.
#[test]
fn recorded_layers_below_a_directory_are_put_together_on_the_host() {
    let host = Host::new();
    let [upper, work] = ["fs", "work"].map(|name| {
        fs::create_dir(host.dir().join(name)).expect("a new directory");
        format!("{name}dir={}", host.dir().join(name).display()).replace("fsdir", "upperdir")
    });
    let mut mounts = layers(host.dir());
    mounts.push(overlay(&[&work, &upper, "lowerdir={{ overlay 0 1 }}"]));
    let params = bootstrap_params("c1", None, None);
    let shim = LoneShim::start(&host, "c1", &config(SCRIPT, &json!({})), &params);
    let done = shim.run(mounts.clone()).expect("Create");
    assert_eq!(done, (0, "upper\nlayer\nnew\nvirtiofs\n".to_owned()));
    let kept = fs::read_to_string(host.dir().join("fs/data/new")).expect("what was written");
    assert_eq!(kept, "kept\n");

    // An image that the guest writes is nothing that the host would mount.
    mounts[0].r#type = "ext4".to_owned();
    mounts[0].options.clear();
    let shim = LoneShim::start(&host, "c2", &config(SCRIPT, &json!({})), &params);
    let error = shim.run(mounts).expect_err("a refusal");
    assert!(error.contains("beside an image that is written"), "{error}");
}

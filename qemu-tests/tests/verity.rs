//! dm-verity: a layer is what its root hash says, or is not had at all.
//!
//! How it proves its point: trees are made by veritysetup; a byte changed on the host must never be read in the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qemu_tests::images::{self, disk};
use qemu_tests::{Options, PATIENCE_S, Vm, Wish, inspector, mount, noise, vm_test_on_each_medium};
use tokio::time::timeout;

use crate::disks::root;

/// A tree of hashes over `data`, in blocks of so many bytes: behind it, or in a file of its own. Returns the root hash.
fn protect(data: &Path, block: u32, tree: &Path, offset: u64) -> String {
    let output = Command::new("veritysetup")
        .args(["format", "--hash-offset", &offset.to_string()])
        .args(["--data-block-size", &block.to_string()])
        .args([data, tree])
        .output()
        .expect("veritysetup");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let hash = text.lines().find_map(|line| line.strip_prefix("Root hash:"));
    hash.expect("veritysetup prints it").trim().to_owned()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("an image").len()
}

/// A root filesystem with a file that is read and one that is not until later.
fn tree(directory: &Path) -> PathBuf {
    let tree = root(directory, "checked");
    fs::write(tree.join("big"), noise(7, 256 << 10)).expect("a new file");
    tree
}

fn wish(kind: &str, serial: &str, options: &[String], script: &str) -> Wish {
    let mut mount = mount(kind, &format!("serial:{serial}"), &["ro"]);
    mount.options.extend(options.iter().map(|option| format!("X-vminitd.verity.{option}")));
    Wish { mounts: Some(vec![mount]), ..Wish::new(&["/bin/busybox", "sh", "-c", script]) }
}

async fn refused(vm: &Vm, id: &str, serial: &str, options: &[String]) -> String {
    match vm.create(id, wish("erofs", serial, options, "")).await {
        Err(ttrpc::Error::RpcStatus(status)) => status.message,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{options:?}: it was mounted"),
    }
}

/// The kernel removes a device a moment after its last mount has gone.
async fn assert_no_device_is_left(vm: &Vm) {
    let look = "while ls -d /guest/sys/block/dm-* 2>/dev/null; do usleep 20000; done; echo none";
    let looked = vm.run("look", inspector(&["sh", "-c", look]));
    let exit = timeout(Duration::from_secs(PATIENCE_S), looked).await.expect("it goes");
    assert!(exit.text().ends_with("none\n"), "{}", exit.text());
}

#[test]
fn layer_is_what_its_root_hash_says_or_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let tree = tree(at);
    let erofs = images::erofs(at, "layer", &tree);
    let ext4 = images::ext4(at, "layer", Some(&tree), 8);
    let (erofs_at, ext4_at) = (size(&erofs), size(&ext4));
    let apart = at.join("apart.erofs");
    fs::copy(&erofs, &apart).expect("a copy");
    let apart_tree = at.join("apart.tree");
    let apart_hash = protect(&apart, 4096, &apart_tree, 0);
    let erofs_hash = protect(&erofs, 4096, &erofs, erofs_at);
    // mke2fs makes small filesystems of small blocks.
    let ext4_hash = protect(&ext4, 1024, &ext4, ext4_at);
    // One bit of a file's content is another: of the last of its blocks.
    let broken = at.join("broken.erofs");
    let mut bytes = fs::read(&erofs).expect("an image");
    let big = noise(7, 256 << 10);
    let last = &big[big.len() - 4096..];
    let place = bytes.windows(4096).position(|window| window == last).expect("the file's end");
    bytes[place] ^= 1;
    fs::write(&broken, &bytes).expect("a new file");
    let mut first = fs::read(&erofs).expect("an image");
    first[100] ^= 1;
    let beginning = at.join("beginning.erofs");
    fs::write(&beginning, &first).expect("a new file");
    let disks = vec![
        disk("erofs", &erofs, true),
        disk("ext4", &ext4, true),
        disk("apart", &apart, true),
        disk("apart-tree", &apart_tree, true),
        disk("broken", &broken, true),
        disk("beginning", &beginning, true),
    ];
    let sum = qemu_tests::sha256(&big);
    vm_test_on_each_medium(Options { disks, ..Options::default() }, async |vm| {
        let read = "busybox cat /who; busybox sha256sum /big | busybox cut -c 1-64";
        for (id, kind, serial, options) in [
            (
                "c1",
                "erofs",
                "erofs",
                [format!("roothash={erofs_hash}"), format!("hashoffset={erofs_at}")],
            ),
            (
                "c2",
                "ext4",
                "ext4",
                [format!("roothash={ext4_hash}"), format!("hashoffset={ext4_at}")],
            ),
            (
                "c3",
                "erofs",
                "apart",
                [format!("roothash={apart_hash}"), "hashdev=serial:apart-tree".to_owned()],
            ),
        ] {
            let exit = vm.run(id, wish(kind, serial, &options, read)).await;
            let stderr = String::from_utf8_lossy(&exit.stderr).into_owned();
            assert_eq!(exit.text(), format!("checked{sum}\n"), "{serial}: {stderr}");
        }
        assert_no_device_is_left(vm).await;

        let offset = format!("hashoffset={erofs_at}");
        let hash = format!("roothash={erofs_hash}");
        let wrong = format!("roothash={}", "5a".repeat(32));
        let text = refused(vm, "w1", "erofs", &[wrong, offset.clone()]).await;
        let (first, last) = (vm.disk_node(0), vm.disk_node(5));
        let expected = format!("{first} does not match the root hash {}", "5a".repeat(32));
        assert!(text.contains(&expected), "{text}");
        let text = refused(vm, "w2", "erofs", &[hash.clone(), "hashoffset=4096".to_owned()]).await;
        let expected = format!("tree on {first} at byte 4096: there is no verity superblock");
        assert!(text.contains(&expected), "{text}");
        let text = refused(vm, "w3", "erofs", &["roothash=5a5a".to_owned(), offset.clone()]).await;
        assert!(text.contains("a root hash of 2 bytes"), "{text}");
        let text = refused(vm, "w4", "beginning", &[hash.clone(), offset.clone()]).await;
        assert!(text.contains(&format!("the first block of {last} is damaged")), "{text}");
        assert_no_device_is_left(vm).await;

        // What is damaged further behind is met when it is read: all but that is there.
        let read = "busybox cat /who; busybox head -c 200000 /big | busybox wc -c; busybox cat /big >/dev/null";
        let exit = vm.run("broken", wish("erofs", "broken", &[hash, offset], read)).await;
        let stderr = String::from_utf8_lossy(&exit.stderr).into_owned();
        assert_eq!((exit.status, &*exit.text()), (1, "checked200000\n"), "{stderr}");
        assert!(stderr.contains("Input/output error"), "{stderr}");
        assert_no_device_is_left(vm).await;
    });
}

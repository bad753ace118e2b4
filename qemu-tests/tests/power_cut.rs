//! Power cuts: QEMU is killed 100 ms after a Delete has returned, at a random moment of somebody else's writing.
//!
//! How it proves its point: one container writes and leaves, another writes all the time on the same ext4 and tells what
//! it has synced. After the cut a copy of the image is examined: journal replayed, `e2fsck -fn` without a fault (a plain
//! `-n` skips the journal and proves nothing), and each file of the deleted container, and each that was told as
//! synced, has the sum that was told. What QEMU has written is in the host's page cache, so this is a cut of the VM's
//! power, not of the host's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use host_shim::container::shared_rootfs;
use qemu_tests::images::{disk, ext4};
use qemu_tests::{Options, Vm, Wish, mount, sha256};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

/// How long after Delete's answer the power goes.
const GRACE: Duration = Duration::from_millis(100);

/// So many cuts have one of a guest with an erofs root among them.
const ON_SECOND_MEDIUM: u32 = 4;

/// Writes, tells each sum once the file is synced, and makes a mess beside it that nobody promised to keep.
const WRITER: &str = "i=0; while :; do
    i=$((i + 1)); f=/data/b$i
    dd if=/dev/urandom of=$f bs=1000 count=$((i * 37 % 150 + 1)) conv=fsync 2>/dev/null
    sha256sum $f
    echo mess >/data/m$i; mkdir /data/d$i; mv /data/m$i /data/d$i/m; rm -rf /data/d$((i - 3))
done";

/// Writes without a sync of its own: Delete does that.
const LEAVER: &str = "for i in 1 2 3 4 5 6 7 8; do
    dd if=/dev/urandom of=/data/a$i bs=1000 count=$((i * i * 9)) 2>/dev/null; sha256sum /data/a$i
done; rm /data/a3; ln /data/a4 /data/a9";

#[test]
fn delete_that_has_returned_and_every_sync_outlive_a_power_cut() {
    cut_repeatedly(8);
}

#[test]
#[ignore = "takes minutes; `./dev soak`"]
fn soak_fifty_power_cuts_lose_nothing() {
    cut_repeatedly(50);
}

fn cut_repeatedly(times: u32) {
    let seed = std::env::var("VMINITD_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
    let mut state: u64 = seed.unwrap_or(now.as_nanos() as u64 | 1);
    println!("VMINITD_SEED={state} repeats these moments");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut synced = 0;
    for round in 1..=times {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let pause = Duration::from_millis(state % 1500);
        let erofs_root = round % ON_SECOND_MEDIUM == 0;
        synced += runtime.block_on(cut(round, pause, erofs_root));
        println!("cut {round} of {times}, {} ms into the load: all is there", pause.as_millis());
    }
    println!("{times} cuts; {synced} files were synced before one");
    assert!(synced > 0, "nothing was written beside");
}

/// One VM, one cut; returns how many files the writer had told.
async fn cut(round: u32, pause: Duration, erofs_root: bool) -> usize {
    let directory = tempfile::tempdir().expect("a directory");
    let image = ext4(directory.path(), "state", None, 64);
    let disks = vec![disk("state", &image, false)];
    let options = Options { disks, erofs_root, look_for_leaks: false, ..Options::default() };
    let vm = Vm::boot(options).await;

    let told = Arc::new(Mutex::new(Vec::new()));
    let mut stream = vm.stream("told").await;
    let record = told.clone();
    let reader = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            record.lock().expect("nobody panics with it").extend_from_slice(&buffer[..read]);
        }
    });
    let mut writer = on_disk("writer", WRITER);
    writer.stdout_uri = Some("stream://told".to_owned());
    let writer = vm.create("writer", writer).await.expect("a writer");
    let writer = writer.start().await.expect("it starts");

    sleep(pause).await;
    let left = vm.run("leaver", on_disk("leaver", LEAVER)).await;
    assert_eq!(left.status, 0, "{}", String::from_utf8_lossy(&left.stderr));
    // What was told before is promised; what comes after may be or not.
    let promised = told.lock().expect("nobody panics with it").clone();
    sleep(GRACE).await;
    vm.machine().kill().await;
    drop(writer);
    let _ = timeout(Duration::from_secs(10), reader).await;

    let (of_writer, of_leaver) = (sums(&promised), sums(&left.stdout));
    assert_eq!(of_leaver.len(), 8);
    examine(&image, directory.path(), round, &of_writer, &of_leaver);
    of_writer.len()
}

/// The usual container with its upper layer on the disk, in a directory of its own.
fn on_disk(id: &str, script: &str) -> Wish {
    let bundle = format!("/run/bundles/{id}");
    let mut mounts = shared_rootfs(qemu_tests::ROOTFS_TAG, &bundle);
    mounts[1] = mount("ext4", "serial:state", &[]);
    for option in &mut mounts[2].options {
        *option = option.replace("mounts/1/", &format!("mounts/1/{id}-"));
    }
    Wish { mounts: Some(mounts), ..Wish::sh(script) }
}

/// Whole lines of sha256sum(1): name and sum.
fn sums(text: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(text);
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = |line: &str| {
        let (sum, path) = line.split_once("  /data/")?;
        Some((path.to_owned(), sum.to_owned()))
    };
    whole.lines().filter_map(line).collect()
}

fn examine(
    image: &Path,
    directory: &Path,
    round: u32,
    writer: &BTreeMap<String, String>,
    leaver: &BTreeMap<String, String>,
) {
    let copy = directory.join("copy.ext4");
    fs::copy(image, &copy).expect("a copy");
    let replayed = tool("e2fsck", &["-E", "journal_only", "-p"], &copy);
    assert!(matches!(replayed.0, 0 | 1), "cut {round}: {}", replayed.1);
    let checked = tool("e2fsck", &["-fn"], &copy);
    assert_eq!(checked.0, 0, "cut {round}: {}", checked.1);

    for (id, wanted) in [("writer", writer), ("leaver", leaver)] {
        let out = directory.join(id);
        fs::create_dir(&out).expect("a directory");
        let dump = format!("rdump /{id}-upper/data {}", out.display());
        tool("debugfs", &["-R", &dump], &copy);
        let data = out.join("data");
        for (name, sum) in wanted.iter().filter(|(name, _)| *name != "a3") {
            let content = fs::read(data.join(name));
            let content = content.unwrap_or_else(|error| panic!("cut {round}: {name}: {error}"));
            assert_eq!(&sha256(&content), sum, "cut {round}: {name}, {} bytes", content.len());
        }
        if id == "leaver" {
            assert!(!data.join("a3").exists(), "cut {round}: a removed file is back");
            let link = fs::read(data.join("a9")).expect("a link");
            assert_eq!(&sha256(&link), &wanted["a4"], "cut {round}: a link");
        }
    }
}

/// Its exit code, and what it said.
fn tool(program: &str, args: &[&str], image: &Path) -> (i32, String) {
    let output = Command::new(program).args(args).arg(image).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

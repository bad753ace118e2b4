//! Disks: found by serial, read-only where that was said, and written through to the host's file; those that come and go.
//!
//! How it proves its point: the guest looks at /sys/block and writes to each disk.

use std::fs;
use std::time::Duration;

use host_shim::machine::ExitReason;
use host_shim::vm::{Disk, Draft};

use tokio::time::timeout;

use crate::vm::{PATIENCE, Vm, boot, chain, draft, pack_script, run};

/// Bytes of a disk: some sectors.
const DISK_BYTES: usize = 64 << 10;

const SCRIPT: &str = "#!/busybox sh
/busybox mount -t sysfs sys /sys
/busybox mount -t devtmpfs dev /dev
for disk in vda vdb; do
    echo \"$disk $(/busybox cat /sys/block/$disk/serial) ro=$(/busybox cat /sys/block/$disk/ro) $(/busybox head -c 4 /dev/$disk)\"
    echo new >/dev/$disk && /busybox sync && echo \"$disk written\"
done
/busybox poweroff -f
";

#[test]
fn disks_have_their_serial_and_only_a_writable_one_is_written() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let disk = |serial: &str, read_only| {
            let path = directory.path().join(serial);
            let mut content = b"old\n".to_vec();
            content.resize(DISK_BYTES, 0);
            fs::write(&path, content).unwrap();
            Disk { serial: serial.parse().unwrap(), path, read_only }
        };
        let disks = vec![disk("a-layer-of-an-image1", true), disk("state", false)];
        let paths: Vec<_> = disks.iter().map(|disk| disk.path.clone()).collect();
        let initramfs = Some(pack_script(&directory, SCRIPT));
        let draft = Draft { disks, initramfs, ..draft(&directory, "") };
        let (vm, _dials) = Vm::of(directory, draft).await;
        let exited = vm.exited().await;
        let console = vm.machine.console_tail(20).join("\n");
        assert_eq!(exited.reason, ExitReason::PowerOff, "{exited}\n{console}");
        assert!(console.contains("vda a-layer-of-an-image1 ro=1 old"), "{console}");
        assert!(console.contains("vdb state ro=0 old"), "{console}");
        assert!(!console.contains("vda written") && console.contains("vdb written"), "{console}");
        assert!(fs::read(&paths[0]).unwrap().starts_with(b"old\n"));
        assert!(fs::read(&paths[1]).unwrap().starts_with(b"new\n"));
    });
}

/// Each time a disk comes: its serial, and its first word.
const WATCH: &str = "#!/busybox sh
/busybox mount -t sysfs sys /sys
/busybox mount -t devtmpfs dev /dev
echo up
while :; do
    now=$(/busybox cat /sys/block/vda/serial 2>/dev/null)
    [ -n \"$now\" -a \"$now\" != \"$last\" ] && echo \"came $now $(/busybox head -c 3 /dev/vda)\"
    last=$now
    /busybox usleep 20000
done
";

#[test]
fn disks_come_and_go_while_the_guest_runs_and_what_cannot_be_is_named() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let disk = |serial: &str| {
            let path = directory.path().join(serial);
            let mut content = serial.as_bytes().to_vec();
            content.resize(DISK_BYTES, 0);
            fs::write(&path, content).unwrap();
            Disk { serial: serial.parse().unwrap(), path, read_only: true }
        };
        let disks = [disk("one"), disk("two"), disk("six")];
        let initramfs = Some(pack_script(&directory, WATCH));
        let hotplug_slots = 2.try_into().unwrap();
        let draft = Draft { initramfs, hotplug_slots, ..draft(&directory, "") };
        let (vm, _dials) = Vm::of(directory, draft).await;
        let machine = &vm.machine;
        let says = async |word: &str| {
            let looked = timeout(PATIENCE, async {
                while !machine.console_tail(20).join("\n").contains(word) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            assert!(looked.await.is_ok(), "no {word:?} in {:?}", machine.console_tail(20));
        };
        says("up").await;
        for name in ["one", "two", "six"] {
            let disk = disks.iter().find(|disk| disk.serial.as_str() == name).unwrap();
            machine.attach_disk(disk).await.unwrap();
            says(&format!("came {name} {name}")).await;
            let error = machine.attach_disk(disk).await.unwrap_err();
            assert_eq!(chain(&error), format!("a disk {name:?} is attached already"));
            machine.detach_disk(&disk.serial).await.unwrap();
            let error = machine.detach_disk(&disk.serial).await.unwrap_err();
            assert_eq!(chain(&error), format!("no disk {name:?} is attached"));
        }
        machine.attach_disk(&disks[0]).await.unwrap();
        machine.attach_disk(&disks[1]).await.unwrap();
        let error = machine.attach_disk(&disks[2]).await.unwrap_err();
        assert_eq!(chain(&error), "all 2 slots for disks to attach are taken");
        let gone = Disk { path: "/nowhere/disk".into(), ..disks[2].clone() };
        let error = machine.attach_disk(&gone).await.unwrap_err();
        assert!(chain(&error).starts_with("open the disk \"/nowhere/disk\""), "{error}");
    });
}

#[test]
fn a_disk_that_is_missing_is_told_by_its_path() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk {
            serial: "state".parse().unwrap(),
            path: "/nowhere/disk".into(),
            read_only: true,
        };
        let error = boot(&directory, Draft { disks: vec![disk], ..draft(&directory, "") })
            .await
            .unwrap_err();
        assert_eq!(
            chain(&error),
            "open the disk \"/nowhere/disk\": No such file or directory (os error 2)"
        );
    });
}

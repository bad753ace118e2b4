//! Disks: found by serial, read-only where that was said, and written through to the host's file.
//!
//! How it proves its point: the guest looks at /sys/block and writes to each disk.

use std::fs;

use host_shim::machine::ExitReason;
use host_shim::vm::{Disk, Draft};

use crate::vm::{Vm, boot, chain, draft, pack_script, run};

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

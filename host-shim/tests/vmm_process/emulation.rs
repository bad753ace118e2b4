//! What emulation would do to a program that comes from a shared directory, if the driver let it.
//!
//! How it proves its point: the guest runs one program from memory, frees its pages, and then runs another from the
//! share, whose pages virtiofsd fills; each is read anew, ten times over.

use std::fs;

use host_shim::machine::ExitReason;
use host_shim::vm::Draft;

use crate::vm::{Vm, draft, pack_script, run, test_guest};

const SCRIPT: &str = "#!/busybox sh
/busybox mkdir /memory /shared
/busybox mount -t tmpfs memory /memory
/busybox mount -t virtiofs shared /shared
/busybox mount -t proc proc /proc
good=0
for i in 0 1 2 3 4 5 6 7 8 9; do
    /busybox cp /busybox /memory/busybox
    /memory/busybox sha256sum /busybox >/memory/sum
    /memory/busybox rm /memory/busybox
    echo 3 >/proc/sys/vm/drop_caches
    /shared/misbehave exit 7
    [ $? = 7 ] && good=$((good + 1))
done
echo \"RAN $good OF 10\"
/busybox poweroff -f
";

#[test]
fn a_program_from_a_share_runs_its_own_code_in_pages_that_held_anothers() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let draft = Draft { memory: "64M".parse().unwrap(), ..draft(&directory, "") };
        fs::copy(test_guest("misbehave"), draft.shares[0].path.join("misbehave")).unwrap();
        let initramfs = Some(pack_script(&directory, SCRIPT));
        let (vm, _dials) = Vm::of(directory, Draft { initramfs, ..draft }).await;
        let exited = vm.exited().await;
        let console = vm.machine.console_tail(10).join("\n");
        assert_eq!(exited.reason, ExitReason::PowerOff, "{exited}\n{console}");
        assert!(console.contains("RAN 10 OF 10"), "{console}");
    });
}

//! A client that is not ours: what containerd's project makes of its own API, in Go, so that not only our encoder meets our
//! decoder. scripts/go-client.sh builds it.

use std::io::Write;

use qemu_tests::containerd::{Host, LoneShim, config};
use qemu_tests::rootfs;
use serde_json::json;

#[test]
#[ignore = "wants Go; ./dev test-all"]
fn soak_client_of_containerds_own_api_drives_a_shim() {
    let Some(client) = std::env::var_os("VMINITD_GO_CLIENT").filter(|path| !path.is_empty()) else {
        // Past the capture of libtest: a skip is for people to see.
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no client of containerd's own API");
        return;
    };
    let host = Host::new();
    let shim = LoneShim::start(&host, "c1", &config("sleep 1000", &json!({})), b"");
    let mut command = host.limited(client);
    command.arg(shim.address()).arg(&shim.id).arg(&shim.bundle).arg(rootfs());
    let output = command.arg(host.dir().join("output")).output().expect("nsenter");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all as expected\n");
    let gone = || host.running("containerd-shim-vminitd-v1").is_empty().then_some(());
    host.wait_for("the shim has ended", gone);
}

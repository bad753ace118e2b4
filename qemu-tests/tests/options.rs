//! Runtime options of Create, each seen by the container itself.

use prost::Message;
use qemu_tests::{Vm, Wish, vm_test};
use serde_json::json;
use vminitd_protocol::pb::containerd::runc::v1::Options;
use vminitd_protocol::pb::google::protobuf::Any;

fn with_options(mut wish: Wish, options: Options) -> Wish {
    let type_url = "containerd.runc.v1.Options".to_owned();
    wish.options = Some(Any { type_url, value: options.encode_to_vec() });
    wish
}

async fn output(vm: &Vm, id: &str, wish: Wish) -> String {
    let exit = vm.run(id, wish).await;
    assert_eq!(exit.status, 0, "{id}: {}", String::from_utf8_lossy(&exit.stderr));
    exit.text()
}

#[test]
fn options_of_create_are_honoured() {
    vm_test(async |vm| {
        // Pipes belong to whom the host says, so that the user of the process may open them again.
        let script = "for fd in 0 1 2; do stat -L -c '%u:%g' /proc/self/fd/$fd; done";
        let owner = Options { io_uid: 1000, io_gid: 1001, ..Default::default() };
        let mut wish = with_options(Wish::sh(script), owner).with_stdin();
        assert_eq!(output(vm, "owner", wish.clone()).await, "1000:1001\n".repeat(3));
        wish.options = None;
        assert_eq!(output(vm, "root", wish).await, "0:0\n".repeat(3));
        let mut wish = with_options(Wish::sh("echo again >/dev/stdout"), owner_of(1000));
        wish.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        assert_eq!(output(vm, "reopened", wish).await, "again\n");

        // A session keyring of its own, or that of whoever started it.
        let session = |text: String| {
            let line = text.lines().find(|line| line.contains(" _ses:")).map(str::to_owned);
            line.and_then(|line| line.split(' ').next().map(str::to_owned))
        };
        let mut keys = Wish::sh("cat /proc/keys");
        keys.spec["linux"]["maskedPaths"] = json!([]);
        assert!(session(output(vm, "own", keys.clone()).await).is_some());
        let kept = Options { no_new_keyring: true, ..Default::default() };
        assert_eq!(session(output(vm, "kept", with_options(keys, kept)).await), None);

        // Without pivot_root the guest's mounts stay in the namespace, hidden below the container's root.
        let mut below = Wish::new(&["misbehave", "uncover"]);
        add_capability(&mut below, "CAP_SYS_ADMIN");
        assert_eq!(output(vm, "pivoted", below.clone()).await, "");
        let no_pivot = Options { no_pivot_root: true, ..Default::default() };
        let moved = output(vm, "moved", with_options(below, no_pivot)).await;
        assert!(moved.lines().any(|name| name == "bundles"), "{moved}");

        // Options of another runtime say nothing to this one.
        let mut other = Wish::sh("echo ran");
        other.options =
            Some(Any { type_url: "other.v1.Options".to_owned(), value: b"\xff\xff".to_vec() });
        assert_eq!(output(vm, "other", other).await, "ran\n");
        assert!(vm.console().contains("runtime options of an unknown type are ignored"));
        let mut broken = Wish::new(&["true"]);
        broken.options = Some(Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: b"\xff\xff".to_vec(),
        });
        vm.create("broken", broken)
            .await
            .map(|task| task.id)
            .expect_err("options that are no message");
    });
}

fn owner_of(id: u32) -> Options {
    Options { io_uid: id, io_gid: id, ..Default::default() }
}

fn add_capability(wish: &mut Wish, capability: &str) {
    for set in ["bounding", "effective", "permitted"] {
        let set = wish.spec["process"]["capabilities"][set].as_array_mut().expect("a set");
        if !set.contains(&json!(capability)) {
            set.push(json!(capability));
        }
    }
}

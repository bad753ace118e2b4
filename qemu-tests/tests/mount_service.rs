//! The Mount service: mounts in the guest that belong to no container.
//!
//! How it proves its point: containers bind the places into themselves and look; the guest's own table of mounts is read from
//! inside; the agent is killed between any two calls.

use host_shim::guest::unlimited;
use qemu_tests::{
    Blow, Options, Vm, Wish, inspector, vm_test_on_each_medium, vm_test_on_each_medium_in_test_all,
};
use serde_json::json;
use ttrpc::Code;
use vminitd_protocol::pb::containerd::vminitd::services::mount::v1::{
    MountAllRequest, MountSpec, UnmountAllRequest, UnmountRequest,
};

fn spec(kind: &str, source: &str, target: &str, options: &[&str]) -> MountSpec {
    MountSpec {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

async fn mount(vm: &Vm, mounts: &[MountSpec]) -> Result<(), (Code, String)> {
    let request = MountAllRequest { mounts: mounts.to_vec() };
    refusal(vm.guest().mounts().mount_all(unlimited(), &request).await.map(drop))
}

async fn unmount(vm: &Vm, target: &str) -> Result<(), (Code, String)> {
    let request = UnmountRequest { target: target.to_owned() };
    refusal(vm.guest().mounts().unmount(unlimited(), &request).await.map(drop))
}

async fn unmount_all(vm: &Vm) -> Result<(), (Code, String)> {
    refusal(vm.guest().mounts().unmount_all(unlimited(), &UnmountAllRequest {}).await.map(drop))
}

fn refusal(result: ttrpc::Result<()>) -> Result<(), (Code, String)> {
    result.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    })
}

/// What of the guest's table of mounts is below /mnt, /run/mnt and /run/share: place, type.
async fn table(vm: &Vm, id: &str) -> Vec<String> {
    let script = "while read -r _ _ _ _ place _ rest; do case $place in /mnt*|/run/mnt*|/run/share*) echo $place ${rest#*- };; esac; done";
    let wish = inspector(&["sh", "-c", &format!("{script} < /proc/1/mountinfo")]);
    let text = vm.run(id, wish).await.text();
    let line = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect()
}

#[test]
fn mounts_of_the_service_are_made_once_and_go_in_reverse_also_under_another_agent() {
    vm_test_on_each_medium(Options::default(), async |vm| {
        // A host asks this again and again before anything else.
        assert_eq!(unmount_all(vm).await, Ok(()));
        assert_eq!(
            unmount(vm, "/run/mnt/a").await,
            Err((Code::NOT_FOUND, "cannot unmount /run/mnt/a: not found".to_owned()))
        );

        let share = spec("virtiofs", "rootfs", "/run/share", &["ro"]);
        let first = spec("tmpfs", "", "/run/mnt/a", &["size=1m", "mode=0700"]);
        let inner = spec("tmpfs", "", "/run/mnt/a/b/c", &[]);
        let bind = spec("bind", "/run/share/bin", "/run/mnt/bin", &["ro"]);
        let all = [share.clone(), first.clone(), inner.clone(), bind.clone()];
        let wanted = [
            "/run/share virtiofs",
            "/run/mnt/a tmpfs",
            "/run/mnt/a/b/c tmpfs",
            "/run/mnt/bin virtiofs",
        ];
        assert_eq!(mount(vm, &all).await, Ok(()));
        assert_eq!(table(vm, "made").await, wanted);
        // A container uses them, and finds what it wrote when the same was asked for again.
        let mut wish = Wish::sh("echo hi > /data/file; ls /share/bin/misbehave");
        let mounts = wish.spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/data", "type": "bind", "source": "/run/mnt/a", "options": ["rbind"] }));
        mounts.push(json!({ "destination": "/share", "type": "bind", "source": "/run/share", "options": ["bind", "ro"] }));
        assert_eq!(vm.run("user", wish).await.text(), "/share/bin/misbehave\n");
        for blow in [None, Some(Blow::Kill), Some(Blow::Stop)] {
            if let Some(blow) = blow {
                blow.strike(vm).await;
            }
            assert_eq!(mount(vm, &all).await, Ok(()));
            assert_eq!(table(vm, "again").await, wanted);
            for other in [
                spec("tmpfs", "", "/run/mnt/a", &["size=2m", "mode=0700"]),
                spec("virtiofs", "rootfs", "/run/mnt/a/", &["ro"]),
                spec("tmpfs", "other", "/run/mnt/./a", &["size=1m", "mode=0700"]),
            ] {
                let another =
                    (Code::ALREADY_EXISTS, "mount on /run/mnt/a: already exists".to_owned());
                assert_eq!(mount(vm, &[other]).await, Err(another));
            }
        }
        let mut wish = Wish::sh("cat /data/file");
        let mounts = wish.spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/data", "type": "bind", "source": "/run/mnt/a", "options": ["rbind"] }));
        assert_eq!(vm.run("reader", wish).await.text(), "hi\n");

        // What has another mount on it stays, and says so; in reverse all go.
        let (code, text) = unmount(vm, "/run/mnt/a").await.expect_err("it is in use");
        assert_eq!(code, Code::UNKNOWN, "{text}");
        assert!(
            text.starts_with("unmount /run/mnt/a, used by the mount /run/mnt/a/b/c: "),
            "{text}"
        );
        assert_eq!(unmount(vm, "/run/mnt/bin").await, Ok(()));
        assert_eq!(unmount(vm, "/run/mnt/bin").await.expect_err("it is gone").0, Code::NOT_FOUND);
        Blow::Kill.strike(vm).await;
        assert_eq!(unmount_all(vm).await, Ok(()));
        assert_eq!(table(vm, "gone").await, Vec::<String>::new());
        assert_eq!(unmount_all(vm).await, Ok(()));
    });
}

#[test]
fn mounts_in_use_stay_when_all_are_to_go_and_the_others_go() {
    vm_test_on_each_medium_in_test_all(Options::default(), async |vm| {
        // A read-only root has no /mnt.
        let at = if vm.has_erofs_root() { "/run/mnt" } else { "/mnt" };
        let list = ["a", "b", "c"].map(|name| spec("tmpfs", "", &format!("{at}/{name}"), &[]));
        assert_eq!(mount(vm, &list).await, Ok(()));
        // In the guest's own mounts, as a program of the host's would.
        let wish = format!("cd /proc/1/root{at}/b && touch in && sleep 3600");
        let wish = inspector(&["sh", "-c", &wish]);
        let user = vm.create("user", wish).await.expect("create").start().await.expect("start");
        let there = format!("until [ -e /proc/1/root{at}/b/in ]; do sleep 0.1; done");
        assert_eq!(vm.run("there", inspector(&["sh", "-c", &there])).await.status, 0);
        let (code, text) = unmount_all(vm).await.expect_err("a mount in use");
        assert_eq!(code, Code::UNKNOWN, "{text}");
        assert!(text.starts_with(&format!("unmount {at}/b, used by process ")), "{text}");
        assert_eq!(table(vm, "left").await, [format!("{at}/b tmpfs")]);
        drop(user);
        vm.delete_by_force("user").await;
        assert_eq!(unmount_all(vm).await, Ok(()));
        assert_eq!(table(vm, "gone").await, Vec::<String>::new());
    });
}

#[test]
fn request_that_cannot_be_done_leaves_nothing_and_no_link_leads_elsewhere() {
    vm_test_on_each_medium_in_test_all(Options::default(), async |vm| {
        let good = spec("tmpfs", "", "/run/mnt/good", &[]);
        for (bad, wanted) in [
            (
                spec("tmpfs", "", "/run/vminitd", &[]),
                "mount 1: target \"/run/vminitd\" is the guest's own",
            ),
            (spec("tmpfs", "", "/run", &[]), "has /run/vminitd below it"),
            (spec("tmpfs", "", "/", &[]), "is the guest's own, or has /proc below it"),
            (spec("tmpfs", "", "/proc/sys", &[]), "is the guest's own"),
            (spec("tmpfs", "", "/run/bundles/c/rootfs", &[]), "is the guest's own"),
            (spec("tmpfs", "", "/mnt/../proc", &[]), "is no absolute path"),
            (spec("tmpfs", "", "relative", &[]), "is no absolute path"),
            (spec("format/tmpfs", "", "/run/mnt/x", &[]), "type \"format/tmpfs\" is not supported"),
            (spec("nfs", "server:/x", "/run/mnt/x", &[]), "type \"nfs\" is not supported"),
            (spec("tmpfs", "", "/run/mnt/x", &["remount"]), "\"remount\" is not supported"),
        ] {
            let (code, text) = mount(vm, &[good.clone(), bad]).await.expect_err("refused");
            assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
            assert!(text.contains(wanted), "{text}");
        }
        for (bad, wanted) in [
            (spec("tmpfs", "", "/run/mnt/x/y", &["colour=red"]), "colour=red"),
            (spec("virtiofs", "no-such-tag", "/run/mnt/x", &[]), "mount virtiofs \"no-such-tag\""),
            (spec("bind", "/no/such/tree", "/run/mnt/x", &[]), "clone the tree"),
        ] {
            let (code, text) = mount(vm, &[good.clone(), bad]).await.expect_err("it fails");
            assert_eq!(code, Code::UNKNOWN, "{text}");
            assert!(text.contains(wanted), "{text}");
        }
        assert_eq!(table(vm, "none").await, Vec::<String>::new());
        // A container plants links on a filesystem that a later target lies on.
        assert_eq!(mount(vm, &[spec("tmpfs", "", "/run/mnt/shared", &[])]).await, Ok(()));
        let mut wish =
            Wish::sh("ln -s /run/vminitd /data/state; ln -s ../../proc /data/up; mkdir /data/real");
        let mounts = wish.spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/data", "type": "bind", "source": "/run/mnt/shared", "options": ["rbind"] }));
        assert_eq!(vm.run("planter", wish).await.status, 0);
        for target in [
            "/run/mnt/shared/state",
            "/run/mnt/shared/state/x",
            "/run/mnt/shared/up",
            "/run/mnt/shared/up/sys",
        ] {
            let (_, text) = mount(vm, &[spec("tmpfs", "", target, &[])]).await.expect_err("a link");
            assert!(text.contains("Too many levels of symbolic links"), "{target}: {text}");
        }
        assert_eq!(mount(vm, &[spec("tmpfs", "", "/run/mnt/shared/real/x", &[])]).await, Ok(()));
        assert_eq!(unmount_all(vm).await, Ok(()));
        assert_eq!(table(vm, "after").await, Vec::<String>::new());
    });
}

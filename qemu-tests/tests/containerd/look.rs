//! `vminitctl` on a VM that a shim owns, and images of other snapshotters.

use qemu_tests::cli::vminitctl;
use qemu_tests::containerd::{Outcome, with_containerd};

#[test]
fn vminitctl_reaches_the_vm_of_a_task_by_the_beginning_of_its_id() {
    with_containerd("2", |containerd| {
        let id = "4f3a0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab";
        containerd.start_container(&[], id, &["sleep", "1000"]);
        let ctl = |args: &[&str]| {
            let output = containerd.host.limited(vminitctl()).args(args).output();
            Outcome::from(output.expect("nsenter")).good()
        };
        let listed: serde_json::Value =
            serde_json::from_str(&ctl(&["ps", "--json"])).expect("one line");
        assert_eq!(listed["name"], id);
        assert_eq!(listed["namespace"], containerd.namespace.as_str());
        assert_eq!(listed["command"], "sleep 1000");
        assert_eq!(ctl(&["exec", "--name", "4f3a", "echo", "in"]), "in\n");
        let whole = format!("{}/{id}", containerd.namespace);
        assert!(ctl(&["stats", &whole]).contains("\nmemory "));
        assert!(ctl(&["logs", "4f3a"]).contains("vminitd: "));
        assert!(ctl(&["debug", "4f3a", "--", "cat", "/proc/1/cmdline"]).starts_with("sleep\0"));
        let attach = containerd.host.limited(vminitctl()).args(["attach", "4f3a"]).output();
        let refused = Outcome::from(attach.expect("nsenter"));
        assert!(refused.status == 125 && refused.stderr.contains("thrown away"), "{refused:?}");
        containerd.remove(id);
    });
}

#[test]
fn image_of_the_native_snapshotter_runs_and_keeps_what_is_written_to_itself() {
    with_containerd("2", |containerd| {
        let native = ["--snapshotter", "native"];
        let script = "echo one >/written; cat /written";
        assert_eq!(containerd.run(&native, "n1", &["sh", "-c", script]).good(), "one\n");
        let gone = containerd.run(&native, "n2", &["sh", "-c", "[ ! -e /written ] && echo gone"]);
        assert_eq!(gone.good(), "gone\n");
    });
}

//! What a shim and containerd say to each other at its start, in each generation. Of the newer ones, which cannot be had
//! here, their messages are recorded: assembled from the numbers of their public fields.

use prost::Message;
use qemu_tests::containerd::{
    Host, LoneShim, SetUp, bootstrap_params, call_shim, config, field, with_containerd_set_up,
};
use qemu_tests::rootfs;
use serde_json::json;
use vminitd_protocol::pb::containerd::types::Mount;

#[test]
fn shim_says_what_it_is() {
    let host = Host::new();
    let version = call_shim(&host, "-v", b"");
    let expected =
        format!("containerd-shim-vminitd-v1:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    // containerd 2.x writes the runtime options, which may be as long as they like.
    let options = field(1, &[b'x'; 100_000]);
    let info = call_shim(&host, "-info", &options);
    assert!(info.status.success() && info.stderr.is_empty(), "{info:?}");
    /// RuntimeInfo, by the numbers of its fields.
    #[derive(Clone, PartialEq, Message)]
    struct Info {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, tag = "2")]
        version: Option<Version>,
        #[prost(map = "string, string", tag = "5")]
        annotations: std::collections::HashMap<String, String>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Version {
        #[prost(string, tag = "1")]
        version: String,
    }
    let info = Info::decode(&*info.stdout).expect("a message");
    assert_eq!(info.name, "io.containerd.vminitd.v1");
    assert_eq!(info.version.expect("a version").version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.annotations["containerd.io/runtime-allow-mounts"], "mkdir/*,format/*,erofs");
}

#[test]
fn version_3_is_spoken_with_a_containerd_that_is_said_to_understand_it() {
    let set_up = SetUp { env: vec![("VMINITD_SHIM_VERSION", "3".to_owned())], ..SetUp::default() };
    with_containerd_set_up("2", set_up, |containerd| {
        containerd.start_container(&[], "v3", &["sleep", "1000"]);
        assert!(containerd.log().contains("version=3"), "another version was agreed upon");
        assert_eq!(containerd.exec("v3", &["sh", "-c", "echo in; exit 9"]).status, 9);
        containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "v3"]).good();
        containerd.wait_for_state("v3", "STOPPED");
        containerd.remove("v3");
    });
}

/// The tests' root filesystem, as the native snapshotter has it.
fn directory() -> Vec<Mount> {
    vec![Mount {
        r#type: "bind".to_owned(),
        source: rootfs().display().to_string(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
    }]
}

#[test]
fn recorded_parameters_of_each_generation_start_a_shim_that_runs_its_task() {
    let host = Host::new();
    let plain = config("echo out", &json!({}));
    let any = ("vminitd.options.v1.Options", &field(1, b"300M")[..]);
    // 1.6 to 2.2: an Any, or nothing.
    let options = [field(1, any.0.as_bytes()), field(2, any.1)].concat();
    let old = LoneShim::start(&host, "old", &plain, &options);
    assert!(old.told.starts_with("unix:///run/containerd/s/"), "{:?}", old.told);
    assert_eq!(old.run(directory()), Ok((0, "out\n".to_owned())));
    // 2.3: BootstrapParams with the options as an extension.
    let new = LoneShim::start(&host, "new", &plain, &bootstrap_params("new", Some(any), None));
    assert!(new.told.contains("\"version\":3"), "{:?}", new.told);
    assert!(new.address().starts_with("/run/containerd/s/"), "{:?}", new.told);
    assert_eq!(new.run(directory()), Ok((0, "out\n".to_owned())));
    // 2.4: sockets in a directory of their own.
    let params = bootstrap_params("newer", Some(any), Some("/run/elsewhere"));
    let newer = LoneShim::start(&host, "newer", &plain, &params);
    assert!(newer.address().starts_with("/run/elsewhere/"), "{:?}", newer.told);
    assert_eq!(newer.run(directory()), Ok((0, "out\n".to_owned())));
    assert!(!host.path(&newer.address()).exists(), "the socket was left behind");
}

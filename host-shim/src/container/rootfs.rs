//! A directory of the host as a root filesystem: a read-only share below a tmpfs overlay.

use vminitd_protocol::pb::containerd::types::Mount;

/// The mounts for Create that put the share `tag` below a writable layer in the guest's memory. `bundle` is the
/// directory that Bundle.Create answered: mount *i* goes to `<bundle>/mounts/<i>`, the last to `<bundle>/rootfs`.
pub fn shared_rootfs(tag: &str, bundle: &str) -> Vec<Mount> {
    let mount = |kind: &str, source: &str, options: Vec<String>| Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options,
    };
    vec![
        mount("virtiofs", tag, vec!["ro".to_owned()]),
        mount("tmpfs", "tmpfs", vec!["mode=0755".to_owned()]),
        mount(
            "overlay",
            "overlay",
            vec![
                format!("lowerdir={bundle}/mounts/0"),
                format!("upperdir={bundle}/mounts/1/upper"),
                format!("workdir={bundle}/mounts/1/work"),
            ],
        ),
    ]
}

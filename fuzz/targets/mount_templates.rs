//! Lists of rootfs mounts, templates and all: a line of the input is a mount, its fields are separated by tabs: type, source,
//! target, options.
//!
//! Looks for: panics, a place or a directory outside of the bundle, and a result that grows without bounds.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use vminitd::agent::mounts::plan::{What, plan};
use vminitd::limits::{MOUNT_LIST_BYTES, MOUNT_TEXT_BYTES};
use vminitd_protocol::pb::containerd::types::Mount;

fuzz_target!(|text: &str| {
    let mounts: Vec<Mount> = text.lines().map(mount).collect();
    let Ok(planned) = plan(Path::new("/run/bundles/c1"), &mounts) else { return };
    assert_eq!(planned.len(), mounts.len());
    let mut bytes = 0;
    for (index, mount) in planned.iter().enumerate() {
        let begin =
            if index + 1 == mounts.len() { "rootfs".to_owned() } else { format!("mounts/{index}") };
        assert!(inside(&mount.place, Path::new(&begin)), "{:?}", mount.place);
        for directory in &mount.directories {
            assert!(inside(&directory.place, Path::new("mounts")), "{directory:?}");
            assert!(
                directory.place != Path::new("mounts") && directory.mode <= 0o777,
                "{directory:?}"
            );
        }
        if let What::Bind { source } = &mount.what {
            assert!(source.is_absolute(), "{source:?}");
        }
        for (key, value) in &mount.options.data {
            let length = key.len() + value.as_ref().map_or(0, String::len);
            assert!(length <= MOUNT_TEXT_BYTES);
            bytes += length;
        }
    }
    assert!(bytes <= MOUNT_LIST_BYTES);
});

fn mount(line: &str) -> Mount {
    let mut fields = line.split('\t').map(str::to_owned);
    let mut next = || fields.next().unwrap_or_default();
    Mount { r#type: next(), source: next(), target: next(), options: fields.collect() }
}

fn inside(path: &Path, begin: &Path) -> bool {
    path.starts_with(begin) && path.components().all(|part| matches!(part, Component::Normal(_)))
}

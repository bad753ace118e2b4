//! What a list of rootfs mounts comes to: kinds, places and parameters, checked before anything is
//! mounted.
//!
//! Promises: mount *i* goes to `<bundle>/mounts/<i>`, the last to `<bundle>/rootfs`; a kind, a
//! source or an option that is not served is an error that names it, before the first mount.
//! Never: looks at the filesystem.

use std::path::{Path, PathBuf};

use vminitd_protocol::pb::containerd::types::Mount;

use super::options::{self, Options, Unsupported};
use crate::agent::block;
use crate::limits::{MOUNT_OPTIONS, ROOTFS_MOUNTS};

/// Why a list is refused. Always what the host asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More mounts, or options of one, than the limit.
    #[error("{count} {what} are more than {limit}")]
    TooMany {
        /// Mounts or options.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many may.
        limit: usize,
    },
    /// No filesystem that this guest mounts.
    #[error("rootfs mount {index}: type {kind:?} is not supported")]
    Kind {
        /// Place in the list.
        index: usize,
        /// The type.
        kind: String,
    },
    /// The source is none for the type.
    #[error("rootfs mount {index}: {source_name:?} is not {expected}")]
    Source {
        /// Place in the list.
        index: usize,
        /// The source.
        source_name: String,
        /// What it ought to be.
        expected: &'static str,
    },
    /// A place of its own, which mounts of a list do not have (yet).
    #[error("rootfs mount {index}: target {target:?} is not supported")]
    Target {
        /// Place in the list.
        index: usize,
        /// The target.
        target: String,
    },
    /// An option that is not served.
    #[error("rootfs mount {index}: {error}")]
    Option {
        /// Place in the list.
        index: usize,
        /// Which.
        error: Unsupported,
    },
}

/// One mount, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is mounted.
    pub what: What,
    /// Its place below the bundle: `mounts/<i>` or `rootfs`.
    pub place: PathBuf,
    /// Its options.
    pub options: Options,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A tree that is there already.
    Bind {
        /// Its root.
        source: PathBuf,
    },
    /// A filesystem.
    Filesystem {
        /// Its type, as the kernel calls it.
        kind: &'static str,
        /// Device, tag or whatever the type takes.
        source: String,
    },
}

/// Checks a list and works out what is to be done, in this order.
pub fn plan(mounts: &[Mount]) -> Result<Vec<Planned>, PlanError> {
    within("rootfs mounts", mounts.len(), ROOTFS_MOUNTS)?;
    let place = |index: usize| {
        if index + 1 == mounts.len() {
            PathBuf::from("rootfs")
        } else {
            Path::new("mounts").join(index.to_string())
        }
    };
    let planned = |(index, mount)| plan_one(index, mount, place(index));
    mounts.iter().enumerate().map(planned).collect()
}

fn plan_one(index: usize, mount: &Mount, place: PathBuf) -> Result<Planned, PlanError> {
    within("options of a rootfs mount", mount.options.len(), MOUNT_OPTIONS)?;
    let options =
        options::parse(&mount.options).map_err(|error| PlanError::Option { index, error })?;
    let source = |expected, right: bool| {
        let source_name = mount.source.clone();
        if right {
            Ok(source_name)
        } else {
            Err(PlanError::Source { index, source_name, expected })
        }
    };
    let what = match &*mount.r#type {
        _ if options.bind => bind(&source)?,
        "bind" | "rbind" => bind(&source)?,
        "tmpfs" => What::Filesystem { kind: "tmpfs", source: named(&mount.source, "tmpfs") },
        "overlay" => What::Filesystem { kind: "overlay", source: named(&mount.source, "overlay") },
        "virtiofs" => What::Filesystem {
            kind: "virtiofs",
            source: source("the tag of a virtiofs share", !mount.source.is_empty())?,
        },
        "erofs" => device("erofs", &source)?,
        "ext4" => device("ext4", &source)?,
        kind => return Err(PlanError::Kind { index, kind: kind.to_owned() }),
    };
    if !matches!(&*mount.target, "" | "/") {
        return Err(PlanError::Target { index, target: mount.target.clone() });
    }
    let recursive = options.recursive || mount.r#type == "rbind";
    Ok(Planned { what, place, options: Options { recursive, ..options } })
}

type Source<'a> = dyn Fn(&'static str, bool) -> Result<String, PlanError> + 'a;

fn bind(source: &Source<'_>) -> Result<What, PlanError> {
    let path = PathBuf::from(source("an absolute path", true)?);
    source("an absolute path", path.is_absolute())?;
    Ok(What::Bind { source: path })
}

fn device(kind: &'static str, source: &Source<'_>) -> Result<What, PlanError> {
    let expected = "a block device of this VM (/dev/vdX, serial:ID or serial:ID:PARTITION)";
    let name = source(expected, true)?;
    let right = block::source::Source::try_from(&*name).is_ok();
    Ok(What::Filesystem { kind, source: source(expected, right)? })
}

fn named(source: &str, default: &str) -> String {
    if source.is_empty() { default.to_owned() } else { source.to_owned() }
}

fn within(what: &'static str, count: usize, limit: usize) -> Result<(), PlanError> {
    if count > limit { Err(PlanError::TooMany { what, count, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn last_mount_is_the_rootfs_and_the_others_are_numbered() {
        let mounts = [
            mount("erofs", "/dev/vda", &["ro"]),
            mount("tmpfs", "", &[]),
            mount("overlay", "", &["lowerdir=/a"]),
        ];
        let planned = plan(&mounts).unwrap();
        let places: Vec<_> = planned.iter().map(|mount| mount.place.to_str().unwrap()).collect();
        assert_eq!(places, ["mounts/0", "mounts/1", "rootfs"]);
        assert_eq!(
            planned[0].what,
            What::Filesystem { kind: "erofs", source: "/dev/vda".to_owned() }
        );
        assert_eq!(plan(&[]), Ok(vec![]));
    }

    #[test]
    fn bind_is_one_by_type_and_by_option() {
        for (kind, options, recursive) in [
            ("bind", &[][..], false),
            ("none", &["bind"], false),
            ("", &["rbind"], true),
            ("rbind", &[], true),
        ] {
            let planned = plan(&[mount(kind, "/x", options)]).unwrap();
            assert_eq!(planned[0].what, What::Bind { source: "/x".into() });
            assert_eq!(planned[0].options.recursive, recursive);
        }
    }

    #[test]
    fn what_is_not_served_is_named_with_its_place() {
        let text = |list: &[Mount]| plan(list).unwrap_err().to_string();
        let good = mount("tmpfs", "", &[]);
        for kind in ["format/overlay", "mkdir/bind", "nfs", ""] {
            let text = text(&[good.clone(), mount(kind, "/x", &[])]);
            assert_eq!(text, format!("rootfs mount 1: type {kind:?} is not supported"));
        }
        assert!(text(&[mount("erofs", "/dev/sda", &[])]).contains("/dev/sda"));
        assert!(text(&[mount("ext4", "/dev/vd/../sda", &[])]).contains("is not a block device"));
        assert!(text(&[mount("ext4", "relative", &[])]).contains("is not a block device"));
        assert!(text(&[mount("bind", "relative", &[])]).contains("absolute path"));
        assert!(text(&[mount("virtiofs", "", &[])]).contains("tag"));
        assert!(text(&[mount("tmpfs", "", &["loop"])]).contains("\"loop\""));
        let placed = Mount { target: "/a/../../b".to_owned(), ..good.clone() };
        assert!(text(&[placed]).contains("target \"/a/../../b\""));
    }

    #[test]
    fn limit_on_mounts_and_options_holds() {
        let good = mount("tmpfs", "", &[]);
        assert!(plan(&vec![good.clone(); ROOTFS_MOUNTS]).is_ok());
        assert!(plan(&vec![good; ROOTFS_MOUNTS + 1]).is_err());
        assert!(plan(&[mount("tmpfs", "", &vec!["ro"; MOUNT_OPTIONS + 1])]).is_err());
    }
}

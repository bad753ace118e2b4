//! Where an entry of an extras archive may go.
//!
//! Promises: a [`Place`] is below the root, has no `..`, and is none of ours: not our program, not
//! what the agent keeps, not what a container has, nothing that is a view of the kernel.
//! Never: looks at the filesystem. Links that are there are the writer's affair.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::limits::{EXTRAS_NAME_BYTES, EXTRAS_NAME_DEPTH};

/// What is ours: each with all below it. Relative to the root.
const OURS: &[&str] = &["init", "sbin/vminitd", "run/vminitd", "run/bundles", "proc", "sys", "dev"];

/// A path in the guest, relative to its root, that extras may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(PathBuf);

/// Why a name is no place. The archive's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// It does not begin with a slash.
    #[error("its name is not absolute")]
    Relative,
    /// It has `..`.
    #[error("its name has `..`")]
    Up,
    /// It is the root itself.
    #[error("it names the root")]
    Root,
    /// It is longer or deeper than a path may be.
    #[error("its name is too long")]
    TooLong,
    /// It is vminitd's, a container's or the kernel's.
    #[error("it is not the extras' to have")]
    Ours,
    /// A link that leads to one of these, or above the root.
    #[error("its target is not the extras' to have")]
    Target,
}

impl Place {
    /// As the archive names it.
    pub fn new(name: &[u8]) -> Result<Place, Misplaced> {
        if name.len() > EXTRAS_NAME_BYTES {
            return Err(Misplaced::TooLong);
        }
        let name = Path::new(OsStr::from_bytes(name));
        if !name.is_absolute() {
            return Err(Misplaced::Relative);
        }
        let mut place = PathBuf::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => place.push(part),
                Component::ParentDir => return Err(Misplaced::Up),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        match place.components().count() {
            0 => Err(Misplaced::Root),
            depth if depth > EXTRAS_NAME_DEPTH => Err(Misplaced::TooLong),
            _ if is_ours(&place) => Err(Misplaced::Ours),
            _ => Ok(Place(place)),
        }
    }

    /// Whether a symbolic link here may have this target: where its words lead, links on the way not
    /// considered, has to be a place, too (or the root).
    pub fn may_link_to(&self, target: &[u8]) -> Result<(), Misplaced> {
        if target.is_empty() || target.len() > EXTRAS_NAME_BYTES {
            return Err(Misplaced::Target);
        }
        let target = Path::new(OsStr::from_bytes(target));
        let mut at = self.parent().to_owned();
        for part in target.components() {
            match part {
                Component::RootDir => at = PathBuf::new(),
                Component::Normal(part) => at.push(part),
                Component::ParentDir if !at.pop() => return Err(Misplaced::Target),
                Component::ParentDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if is_ours(&at) { Err(Misplaced::Target) } else { Ok(()) }
    }

    /// The directory that it is in.
    pub fn parent(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new(""))
    }

    /// Its last part.
    pub fn name(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }

    /// Relative to the root.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn is_ours(place: &Path) -> bool {
    OURS.iter().any(|ours| place.starts_with(ours))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_lead_elsewhere_or_are_ours_are_refused() {
        for (name, why) in [
            (&b"etc/x"[..], Misplaced::Relative),
            (b"", Misplaced::Relative),
            (b"../x", Misplaced::Relative),
            (b"/a/../../x", Misplaced::Up),
            (b"/..", Misplaced::Up),
            (b"/", Misplaced::Root),
            (b"/./.", Misplaced::Root),
            (b"/init", Misplaced::Ours),
            (b"//init/", Misplaced::Ours),
            (b"/sbin/./vminitd", Misplaced::Ours),
            (b"/run/vminitd/containers/x", Misplaced::Ours),
            (b"/run/bundles/x/rootfs/y", Misplaced::Ours),
            (b"/proc/sys/kernel/core_pattern", Misplaced::Ours),
            (b"/sys/power/state", Misplaced::Ours),
            (b"/dev", Misplaced::Ours),
        ] {
            assert_eq!(Place::new(name), Err(why), "{}", String::from_utf8_lossy(name));
        }
        assert_eq!(
            Place::new(&[b"/a".repeat(300), b"b".repeat(9)].concat()),
            Err(Misplaced::TooLong)
        );
        assert_eq!(Place::new(&[b"/", &b"b".repeat(5000)[..]].concat()), Err(Misplaced::TooLong));
        for name in ["/initial", "/run/vminitd2/x", "/run/spin-stack/spin-supervisor", "/a/./b//c/"]
        {
            Place::new(name.as_bytes()).unwrap();
        }
        assert_eq!(Place::new(b"/a/./b//c/").unwrap().path(), Path::new("a/b/c"));
    }

    #[test]
    fn links_lead_to_places_only() {
        let place = Place::new(b"/run/spin-stack/link").unwrap();
        for target in ["/etc/x", "x", "../x", "../../usr", "/", "../..", "./a/../b"] {
            place.may_link_to(target.as_bytes()).unwrap();
        }
        for target in [
            "",
            "/init",
            "../../init",
            "../vminitd/x",
            "../../..",
            "/dev/vda",
            "/../x",
            "x/../../../proc/1",
        ] {
            assert_eq!(place.may_link_to(target.as_bytes()), Err(Misplaced::Target), "{target}");
        }
    }

    proptest! {
        /// The model: parts that are joined again, none of them `..`, the first ones not ours.
        #[test]
        fn place_is_below_the_root_and_not_ours(parts in prop::collection::vec(prop::sample::select(vec![
            "a", "..", ".", "", "init", "sbin", "vminitd", "run", "bundles", "proc", "dev", "x y",
        ]), 0..6)) {
            let name = format!("/{}", parts.join("/"));
            let real: Vec<&str> = parts.iter().filter(|part| !matches!(**part, "" | ".")).copied().collect();
            let ours = matches!(real.as_slice(),
                ["init" | "proc" | "dev", ..] | ["sbin", "vminitd", ..] | ["run", "vminitd" | "bundles", ..]);
            let good = !real.is_empty() && !real.contains(&"..") && !ours;
            match Place::new(name.as_bytes()) {
                Ok(place) => {
                    prop_assert!(good);
                    prop_assert_eq!(place.path().to_str(), Some(&*real.join("/")));
                }
                Err(_) => prop_assert!(!good),
            }
        }
    }
}

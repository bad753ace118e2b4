//! Where programs and guest files are found: by flag, by environment, next to the running program, or where systems
//! put them; in this order.
//! Promises: an error lists every place that was looked at, and the variable that says another.
//! Never: opens what it finds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::vm::Arch;

/// Names another kernel.
pub const KERNEL_VARIABLE: &str = "VMINITD_KERNEL";
/// Names another initramfs.
pub const INITRAMFS_VARIABLE: &str = "VMINITD_INITRAMFS";
/// Names another vminit-vmm.
pub const VMM_VARIABLE: &str = "VMINITD_VMM";
/// Names another QEMU.
pub const QEMU_VARIABLE: &str = "VMINITD_QEMU";
/// Names another virtiofsd.
pub const VIRTIOFSD_VARIABLE: &str = "VMINITD_VIRTIOFSD";
/// Environment variable that names the toolbox image.
pub const TOOLBOX_VARIABLE: &str = "VMINITD_TOOLBOX";
/// Names another directory for what can be made again.
pub const CACHE_VARIABLE: &str = "VMINITD_CACHE";

/// Something that is needed was found nowhere. The installation's fault, or the caller's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found no {what}: looked at {}; set {variable} to where it is", list(.looked_at))]
pub struct LocateError {
    /// What was looked for.
    pub what: &'static str,
    /// The variable that names another place.
    pub variable: &'static str,
    /// Where it was looked for.
    pub looked_at: Vec<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The guest kernel: `flag` if it was given.
pub fn kernel(arch: Arch, flag: Option<PathBuf>) -> Result<PathBuf, LocateError> {
    let image = share(arch, arch.kernel_file());
    Search::new("guest kernel", KERNEL_VARIABLE).flag(flag).beside(&image).find()
}

/// The guest's initramfs: `flag` if it was given.
pub fn initramfs(arch: Arch, flag: Option<PathBuf>) -> Result<PathBuf, LocateError> {
    Search::new("initramfs", INITRAMFS_VARIABLE)
        .flag(flag)
        .beside(&share(arch, "initramfs.cpio.zst"))
        .find()
}

/// The program that owns a VM.
pub fn vmm() -> Result<PathBuf, LocateError> {
    Search::new("vminit-vmm", VMM_VARIABLE)
        .beside(Path::new("vminit-vmm"))
        .in_path("vminit-vmm")
        .find()
}

/// The QEMU for guests of this architecture. Where a distribution has another name for it, that is the machine's own.
pub fn qemu(arch: Arch) -> Result<PathBuf, LocateError> {
    let name = match arch {
        Arch::X86_64 => "qemu-system-x86_64",
        Arch::Arm64 => "qemu-system-aarch64",
    };
    let search = Search::new("QEMU", QEMU_VARIABLE).in_path(name);
    if arch == Arch::HOST { search.at("/usr/libexec/qemu-kvm").find() } else { search.find() }
}

/// The daemon that serves a directory to a guest. Distributions keep it out of PATH.
pub fn virtiofsd() -> Result<PathBuf, LocateError> {
    Search::new("virtiofsd", VIRTIOFSD_VARIABLE)
        .beside(Path::new("../libexec/vminitd/virtiofsd"))
        .at("/usr/libexec/virtiofsd")
        .at("/usr/lib/qemu/virtiofsd")
        .at("/usr/lib/virtiofsd")
        .in_path("virtiofsd")
        .find()
}

/// The image with tools for a look into a VM whose guest is of this architecture.
pub fn toolbox(arch: Arch) -> Result<PathBuf, LocateError> {
    Search::new("toolbox", TOOLBOX_VARIABLE).beside(&share(arch, "toolbox.erofs")).find()
}

/// The directory for what can be made again; `None` without a home.
pub fn cache_dir() -> Option<PathBuf> {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(CACHE_VARIABLE)
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("vminitd")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/vminitd")))
}

fn share(arch: Arch, name: &str) -> PathBuf {
    Path::new("../share/vminitd").join(arch.name()).join(name)
}

struct Search {
    what: &'static str,
    variable: &'static str,
    /// Set: nothing else is looked at.
    named: Option<OsString>,
    places: Vec<PathBuf>,
}

impl Search {
    fn new(what: &'static str, variable: &'static str) -> Self {
        let named = std::env::var_os(variable).filter(|value| !value.is_empty());
        Self { what, variable, named, places: Vec::new() }
    }

    /// What a person has said wins over the environment.
    fn flag(mut self, flag: Option<PathBuf>) -> Self {
        self.named = flag.map(PathBuf::into_os_string).or(self.named);
        self
    }

    /// Next to the running program.
    fn beside(mut self, name: &Path) -> Self {
        let program = std::env::current_exe().ok();
        if let Some(dir) = program.as_deref().and_then(Path::parent) {
            self.places.push(match name.strip_prefix("..") {
                Ok(name) => dir.parent().unwrap_or(dir).join(name),
                Err(_) => dir.join(name),
            });
        }
        self
    }

    fn at(mut self, path: &str) -> Self {
        self.places.push(path.into());
        self
    }

    fn in_path(mut self, name: &str) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.places.extend(
            std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)),
        );
        self
    }

    fn find(self) -> Result<PathBuf, LocateError> {
        let looked_at = match self.named {
            Some(path) => vec![path.into()],
            None => self.places,
        };
        match looked_at.iter().find(|path| path.is_file()) {
            Some(path) => Ok(path.clone()),
            None => Err(LocateError { what: self.what, variable: self.variable, looked_at }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_names_every_place_and_the_variable() {
        let error =
            Search { what: "thing", variable: "VMINITD_THING", named: None, places: Vec::new() }
                .at("/nowhere/a")
                .at("/nowhere/b")
                .find()
                .unwrap_err();
        assert_eq!(
            error.to_string(),
            "found no thing: looked at /nowhere/a, /nowhere/b; set VMINITD_THING to where it is"
        );
    }

    #[test]
    fn a_named_place_is_the_only_one() {
        let search = Search {
            what: "thing",
            variable: "V",
            named: Some("/nowhere".into()),
            places: Vec::new(),
        };
        assert_eq!(
            search.at("/proc/self/exe").find().unwrap_err().looked_at,
            [PathBuf::from("/nowhere")]
        );
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let search = Search {
            what: "thing",
            variable: "V",
            named: Some("/nowhere".into()),
            places: Vec::new(),
        };
        assert_eq!(
            search.flag(Some("/proc/self/exe".into())).find().unwrap(),
            Path::new("/proc/self/exe")
        );
    }

    #[test]
    fn the_first_place_that_has_it_wins() {
        let search = Search { what: "thing", variable: "V", named: None, places: Vec::new() };
        assert_eq!(
            search.at("/nowhere").at("/proc/self/exe").find().unwrap(),
            Path::new("/proc/self/exe")
        );
    }
}

//! A VM's files by path, for hypervisors that take no descriptors.
//! Promises: a path is used only while it leads to the very file that the owner has opened (and taken, where it is a
//! disk's); what cannot be one is said before a hypervisor says it worse.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::{fstat, stat};
use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::hypervisor::Refusal;
use super::server::Files;
use crate::vm::Description;

/// Checks that each path in `vm` leads to the file that came with it.
pub fn check(vm: &Description, files: &Files) -> Result<(), Refusal> {
    same(vm.kernel(), &files.kernel)?;
    if let (Some(path), Some(file)) = (vm.initramfs(), &files.initramfs) {
        same(path, file)?;
    }
    vm.disks().iter().zip(&files.disks).try_for_each(|(disk, file)| same(&disk.path, file))
}

fn same(path: &Path, file: &OwnedFd) -> Result<(), Refusal> {
    let refused = |why: String| {
        Refusal::new(
            ErrorCode::Invalid,
            format!("the hypervisor takes files by path only, and {path:?} {why}"),
        )
    };
    let of_path =
        stat(path).map_err(|errno| refused(format!("cannot be found: {}", errno.desc())))?;
    let of_file = fstat(file.as_raw_fd())
        .map_err(|errno| refused(format!("is no file: {}", errno.desc())))?;
    if (of_path.st_dev, of_path.st_ino) != (of_file.st_dev, of_file.st_ino) {
        return Err(refused("is another file than the one that was opened".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_that_leads_elsewhere_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, "one").unwrap();
        let file = OwnedFd::from(std::fs::File::open(&path).unwrap());
        assert_eq!(same(&path, &file), Ok(()));
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        assert!(same(&path, &file).unwrap_err().text.contains("cannot be found"));
        std::fs::write(&path, "other").unwrap();
        assert!(same(&path, &file).unwrap_err().text.contains("another file"));
    }
}

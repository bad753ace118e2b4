//! A VM's files by path, for hypervisors that take no descriptors.
//! Promises: a path is used only while it leads to the very file that the owner has opened; what cannot be one is said
//! before a hypervisor says it worse; a disk stays taken, by us or by the hypervisor.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::FlockArg;
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

/// The disks of a VM whose hypervisor opens them by itself. The owner has taken each image (flock(2)), and a hypervisor
/// that does so too would find it taken: it is let go before the VM is made, and taken again, where nobody else has it,
/// when the VM runs. In between another VM could take it, and then this one does not start.
#[derive(Debug)]
pub struct Disks(Vec<(OwnedFd, bool)>);

impl Disks {
    /// Lets them go.
    pub fn let_go(vm: &Description, images: Vec<OwnedFd>) -> Self {
        let disks =
            Self(images.into_iter().zip(vm.disks().iter().map(|disk| disk.read_only)).collect());
        disks.each(|_| FlockArg::Unlock);
        disks
    }

    /// Takes them again: the VM runs.
    pub fn take_again(&self) {
        self.each(|read_only| match read_only {
            true => FlockArg::LockSharedNonblock,
            false => FlockArg::LockExclusiveNonblock,
        });
    }

    fn each(&self, how: impl Fn(bool) -> FlockArg) {
        for (image, read_only) in &self.0 {
            // Whoever else has it is the hypervisor, or somebody whom it has met.
            let _ = lock(image, how(*read_only));
        }
    }
}

/// flock(2). Not [`nix::fcntl::Flock`], which unlocks when it is dropped: the fd is to be passed on.
pub(super) fn lock(fd: &OwnedFd, how: FlockArg) -> Result<(), Errno> {
    #[expect(deprecated, reason = "its successor owns the file and unlocks it when it is dropped")]
    nix::fcntl::flock(fd.as_raw_fd(), how)
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
    fn disk_is_anothers_only_between_its_vms_making_and_its_running() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, "").unwrap();
        let open =
            || OwnedFd::from(std::fs::File::options().read(true).write(true).open(&path).unwrap());
        let (image, other) = (open(), open());
        lock(&image, FlockArg::LockExclusiveNonblock).unwrap();
        let disk =
            crate::vm::Disk { serial: "a".parse().unwrap(), path: path.clone(), read_only: false };
        let draft = crate::vm::Draft { disks: vec![disk], ..crate::vm::tests::draft() };
        let disks = Disks::let_go(&draft.try_into().unwrap(), vec![image]);
        let taken = || lock(&other, FlockArg::LockExclusiveNonblock);
        assert_eq!(taken(), Ok(()));
        // A hypervisor has it: nothing is taken from it.
        disks.take_again();
        lock(&other, FlockArg::Unlock).unwrap();
        disks.take_again();
        assert_eq!(taken(), Err(Errno::EWOULDBLOCK));
    }

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

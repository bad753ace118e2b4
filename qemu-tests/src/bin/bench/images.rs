//! What the benchmark boots: the shipped initramfs, and images with its own programs added.

use std::path::{Path, PathBuf};

use host_shim::vm::{Disk, Draft, VmName};
use initramfs::compress::{Compression, Method};
use initramfs::{Tree, erofs, newc};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Failure, guest};

/// What a VM boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A read-only root on a disk, with the benchmark's programs.
    Erofs,
    /// An initramfs with the benchmark's programs.
    Initramfs,
    /// The initramfs that is shipped, as it is.
    Shipped,
    /// The yardstick of the boot alone.
    Yardstick,
    /// The initramfs of an older build.
    Baseline,
}

/// Directories of the containers' root filesystem, to be mounted on.
const DIRECTORIES: [&str; 7] = ["bin", "dev", "etc", "guest", "proc", "sys", "tmp"];

/// Where it is made.
const ROOTFS: &str = "rootfs";

/// Boots from the first disk.
const EROFS_ROOT: &str = "root=/dev/vda rootfstype=erofs ro init=/sbin/vminitd";

/// The images, for the length of the run.
pub struct Images {
    directory: TempDir,
    dist: PathBuf,
    crun: bool,
    baseline: PathBuf,
}

impl Images {
    /// Packs them; `baseline` is where an older build's initramfs is.
    pub fn make(crun: Option<&Path>, baseline: Option<&Path>) -> Result<Self, Failure> {
        let dist = variable("VMINITD_DIST")?;
        let programs = variable("VMINITD_TEST_BIN")?;
        let directory = tempfile::Builder::new().prefix("vminitd-bench-").tempdir()?;
        let rootfs = directory.path().join(ROOTFS);
        for name in DIRECTORIES {
            std::fs::create_dir_all(rootfs.join(name))?;
        }
        std::fs::copy(programs.join("bench-guest"), rootfs.join("bin/bench-guest"))?;
        let baseline = baseline.map(|at| at.join("initramfs.cpio.zst")).unwrap_or_default();
        let images = Self { directory, dist, crun: crun.is_some(), baseline };
        let add = |mut tree: Tree| -> Result<Tree, Failure> {
            tree.add(&rootfs, Path::new("/bench/rootfs"))?;
            if let Some(crun) = crun {
                tree.add(crun, Path::new("/usr/bin/crun"))?;
            }
            Ok(tree)
        };
        let vminitd = images.share().join("vminitd");
        erofs::write(&add(Tree::for_root(&vminitd)?)?, &images.path(Medium::Erofs))?;
        pack(&add(Tree::with_init(&vminitd)?)?, &images.path(Medium::Initramfs))?;
        let yardstick = Tree::with_init(&programs.join("yardstick"))?;
        pack(&yardstick, &images.path(Medium::Yardstick))?;
        Ok(images)
    }

    /// Whether there is a crun in them.
    pub fn has_crun(&self) -> bool {
        self.crun
    }

    /// The program that is the other side of a machine.
    pub fn vmm(&self) -> PathBuf {
        self.dist.join("bin/vminit-vmm")
    }

    /// The same with a QEMU that counts. Both sides of a comparison are started like this.
    pub fn counting_vmm(&self) -> Result<PathBuf, Failure> {
        Ok(qemu_tests::counting::vmm(self.directory.path(), &self.vmm())?)
    }

    /// The containers' root filesystem as a directory of the host.
    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join(ROOTFS)
    }

    /// A file for a VM's console.
    pub fn console(&self) -> PathBuf {
        self.directory.path().join("console.log")
    }

    /// Sizes of what is shipped.
    pub fn sizes(&self) -> Result<Value, Failure> {
        let size = |path: PathBuf| Ok::<_, Failure>(std::fs::metadata(path)?.len());
        Ok(json!({
            "vminitd": size(self.share().join("vminitd"))?,
            "initramfs_zstd": size(self.path(Medium::Shipped))?,
        }))
    }

    /// A VM that boots from one of them.
    pub fn draft(&self, medium: Medium) -> Result<Draft, Failure> {
        let image = self.path(medium);
        let erofs = medium == Medium::Erofs;
        let disk = Disk { serial: "root".parse()?, path: image.clone(), read_only: true };
        Ok(Draft {
            name: VmName::try_from("bench".to_owned())?,
            arch: Default::default(),
            kernel: self.share().join("vmlinux"),
            initramfs: (!erofs).then_some(image),
            cmdline: if erofs { EROFS_ROOT } else { "" }.parse()?,
            memory: guest::MEMORY.parse()?,
            // Each further one costs the host of an emulated guest, and one is enough to see what a life costs.
            cpus: 1,
            guest_cid: Default::default(),
            guest_dials: Default::default(),
            disks: if erofs { vec![disk] } else { Vec::new() },
            hotplug_slots: Default::default(),
            shares: Vec::new(),
            nics: Vec::new(),
            accelerator: Default::default(),
            options: Default::default(),
        })
    }

    fn path(&self, medium: Medium) -> PathBuf {
        match medium {
            Medium::Erofs => self.directory.path().join("root.erofs"),
            Medium::Initramfs => self.directory.path().join("bench.cpio.zst"),
            Medium::Yardstick => self.directory.path().join("yardstick.cpio.zst"),
            Medium::Baseline => self.baseline.clone(),
            Medium::Shipped => self.share().join("initramfs.cpio.zst"),
        }
    }

    fn share(&self) -> PathBuf {
        self.dist.join("share/vminitd/x86_64")
    }
}

fn pack(tree: &Tree, path: &Path) -> Result<(), Failure> {
    let method = Method::new(Compression::Zstd, None)?;
    let mut packed = method.writer(std::fs::File::create(path)?, newc::length(tree))?;
    newc::write(tree, &mut packed)?;
    packed.finish()?;
    Ok(())
}

fn variable(name: &str) -> Result<PathBuf, Failure> {
    let path = std::env::var_os(name).ok_or_else(|| format!("{name} is not set"))?;
    Ok(path.into())
}

//! A VM's description as vfkit's command line (its doc/usage.md, 0.6).
//! Promises: what it cannot do, and what its lists of options would take apart, is an error with a way out.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vminitd_protocol::ports::{DEFAULT_RPC_PORT, DEFAULT_STREAM_PORT};

use crate::limits::MAX_SOCKET_PATH_BYTES;
use crate::vm::{Accelerator, Arch, Cid, Cmdline, CmdlineError, Description, Network};
use crate::vz::plan::{MEMORY_UNIT, ROSETTA_TAG, VIRTIO_CONSOLE};

/// Ports of the guest that can be dialled: the program wants to know them beforehand.
pub const DIALLED: [u32; 2] = [DEFAULT_RPC_PORT, DEFAULT_STREAM_PORT];

/// What cannot be had from such a program. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// It has no such thing.
    #[error("{what} is not to be had from a program with vfkit's command line; {instead}")]
    Absent {
        /// What.
        what: String,
        /// What would do.
        instead: &'static str,
    },
    /// Its lists of options are parted by commas, and it knows no quotes.
    #[error("{0:?} has a comma, or is no text: it cannot be said on vfkit's command line")]
    Path(PathBuf),
    /// A socket's address is a path of so many bytes.
    #[error("{0:?} is too long for a socket; set TMPDIR to a short path")]
    Directory(PathBuf),
    /// The owner's words and ours do not fit a kernel's command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
}

/// The sockets of one VM, in a directory of its own.
#[derive(Clone, Debug)]
pub struct Sockets {
    directory: PathBuf,
}

impl Sockets {
    /// In `directory`.
    pub fn within(directory: &Path) -> Result<Self, ArgumentError> {
        let sockets = Self { directory: directory.to_owned() };
        match sockets.of_port(u32::MAX).as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
            true => Ok(sockets),
            false => Err(ArgumentError::Directory(directory.to_owned())),
        }
    }

    /// Where a port of the guest can be dialled, or one of the host's is dialled by the guest.
    pub fn of_port(&self, port: u32) -> PathBuf {
        self.directory.join(format!("vsock-{port}"))
    }

    /// Where the program is asked for its VM's state.
    pub fn rest(&self) -> PathBuf {
        self.directory.join("rest")
    }
}

/// The arguments.
pub fn arguments(vm: &Description, sockets: &Sockets) -> Result<Vec<OsString>, ArgumentError> {
    check(vm)?;
    let mut args: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: String| args.extend([name.into(), value.into()]);
    flag("--cpus", vm.cpus().to_string());
    flag("--memory", vm.memory().bytes().div_ceil(MEMORY_UNIT).to_string());
    flag("--kernel", text(vm.kernel())?.to_owned());
    let initramfs =
        vm.initramfs().ok_or_else(|| absent("booting from a disk", "give an initramfs"))?;
    flag("--initrd", text(initramfs)?.to_owned());
    let ours = Cmdline::parse(VIRTIO_CONSOLE)?;
    flag("--kernel-cmdline", vm.cmdline().after(ours)?.to_string());
    flag("--restful-uri", format!("unix://{}", text(&sockets.rest())?));
    // The terminal is ours, and hangs up when we end.
    flag("--device", "virtio-serial,stdio".to_owned());
    flag("--device", "virtio-rng".to_owned());
    flag("--device", "virtio-balloon".to_owned());
    for port in DIALLED {
        let socket = sockets.of_port(port);
        flag("--device", format!("virtio-vsock,port={port},socketURL={},connect", text(&socket)?));
    }
    for port in vm.guest_dials() {
        let socket = sockets.of_port(*port);
        flag("--device", format!("virtio-vsock,port={port},socketURL={},listen", text(&socket)?));
    }
    for disk in vm.disks() {
        let read_only = if disk.read_only { ",readonly" } else { "" };
        let (path, serial) = (text(&disk.path)?, &disk.serial);
        flag("--device", format!("virtio-blk,path={path},deviceId={serial}{read_only}"));
    }
    for share in vm.shares() {
        let (path, tag) = (text(&share.path)?, &share.tag);
        flag("--device", format!("virtio-fs,sharedDir={path},mountTag={tag}"));
    }
    if vm.options().rosetta {
        flag("--device", format!("rosetta,mountTag={ROSETTA_TAG}"));
    }
    for nic in vm.nics() {
        let network = match &nic.network {
            Network::Datagram { socket } => format!("unixSocketPath={}", text(socket)?),
            // The others were refused.
            Network::User { .. } | Network::Stream { .. } | Network::Bridged { .. } => {
                "nat".to_owned()
            }
        };
        flag("--device", format!("virtio-net,{network},mac={}", nic.mac));
    }
    if vm.options().nested {
        args.push("--nested".into());
    }
    Ok(args)
}

/// Refuses what it cannot do.
fn check(vm: &Description) -> Result<(), ArgumentError> {
    if vm.arch() != Arch::HOST {
        return Err(absent(&format!("a guest for {}", vm.arch()), "it emulates nothing"));
    }
    if vm.accelerator() == Accelerator::Emulation {
        return Err(absent("emulation", "leave the accelerator to us"));
    }
    if vm.guest_cid() != Cid::default() {
        return Err(absent("another vsock address of the guest", "leave it to us"));
    }
    if vm.options().save_and_restore || vm.options().restore.is_some() {
        return Err(absent("saving and restoring a VM's state", "vminit-vmm has it on macOS 14"));
    }
    if let Some(share) = vm.shares().iter().find(|share| share.read_only) {
        let what = format!("a share that is read-only ({:?})", share.path);
        return Err(absent(
            &what,
            "give the root filesystem as an image, or let the guest write it",
        ));
    }
    let dialled: BTreeSet<u32> = DIALLED.into();
    if let Some(port) = vm.guest_dials().intersection(&dialled).next() {
        return Err(absent(
            &format!("port {port} in both directions"),
            "let the guest dial another",
        ));
    }
    for nic in vm.nics() {
        match &nic.network {
            Network::User { published, .. } if published.is_empty() => {}
            Network::User { .. } => {
                return Err(absent("publishing ports", "reach the guest by its address"));
            }
            Network::Stream { .. } => {
                return Err(absent("a network of streams", "use a socket of datagrams"));
            }
            Network::Bridged { .. } => {
                return Err(absent("a bridge", "use a socket of datagrams and vmnet-helper"));
            }
            Network::Datagram { .. } => {}
        }
    }
    Ok(())
}

fn absent(what: &str, instead: &'static str) -> ArgumentError {
    ArgumentError::Absent { what: what.to_owned(), instead }
}

fn text(path: &Path) -> Result<&str, ArgumentError> {
    // Its URLs are not decoded.
    let plain = |text: &&str| !text.contains([',', '"', '%', '?', '#']);
    path.to_str().filter(plain).ok_or_else(|| ArgumentError::Path(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::draft;
    use crate::vm::{Disk, Draft, Nic, Options, Share};

    fn said(draft: Draft) -> Result<String, ArgumentError> {
        let sockets = Sockets::within(Path::new("/t")).unwrap();
        let args = arguments(&Description::try_from(draft).unwrap(), &sockets)?;
        Ok(args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    fn refused(draft: Draft, part: &str) {
        let told = said(draft).unwrap_err().to_string();
        assert!(told.contains(part), "{told}");
    }

    fn nic(network: Network) -> Vec<Nic> {
        vec![Nic { mac: "52:54:00:00:00:01".parse().unwrap(), network }]
    }

    fn share(read_only: bool) -> Vec<Share> {
        vec![Share { tag: "data".parse().unwrap(), path: "/s".into(), read_only }]
    }

    #[test]
    fn a_vm_is_said_as_its_manual_has_it() {
        let disk = Disk { serial: "a".parse().unwrap(), path: "/a".into(), read_only: true };
        let draft = Draft {
            cmdline: "loglevel=7".parse().unwrap(),
            guest_dials: [1027].into(),
            disks: vec![disk],
            shares: share(false),
            nics: nic(Network::User { published: Vec::new(), removable: false }),
            options: Options { rosetta: true, nested: true, ..Options::default() },
            ..draft()
        };
        assert_eq!(
            said(draft).unwrap(),
            "--cpus 1 --memory 512 --kernel /k/vmlinux --initrd /k/initramfs \
             --kernel-cmdline console=hvc0 quiet panic=-1 loglevel=7 --restful-uri unix:///t/rest \
             --device virtio-serial,stdio --device virtio-rng --device virtio-balloon \
             --device virtio-vsock,port=1024,socketURL=/t/vsock-1024,connect \
             --device virtio-vsock,port=1025,socketURL=/t/vsock-1025,connect \
             --device virtio-vsock,port=1027,socketURL=/t/vsock-1027,listen \
             --device virtio-blk,path=/a,deviceId=a,readonly \
             --device virtio-fs,sharedDir=/s,mountTag=data \
             --device rosetta,mountTag=rosetta \
             --device virtio-net,nat,mac=52:54:00:00:00:01 --nested"
        );
    }

    #[test]
    fn what_it_has_not_is_refused_with_a_way_out() {
        refused(Draft { shares: share(true), ..draft() }, "as an image");
        refused(Draft { guest_dials: [1024].into(), ..draft() }, "port 1024");
        refused(Draft { accelerator: Accelerator::Emulation, ..draft() }, "emulation");
        let published = vec!["8080:80".parse().unwrap()];
        refused(
            Draft { nics: nic(Network::User { published, removable: false }), ..draft() },
            "publishing",
        );
        let disk = Disk { serial: "a".parse().unwrap(), path: "/a,b".into(), read_only: true };
        refused(Draft { disks: vec![disk.clone()], ..draft() }, "comma");
        let disks = vec![Disk { path: "/a".into(), ..disk }];
        refused(Draft { initramfs: None, disks, ..draft() }, "booting from a disk");
        let options = Options { save_and_restore: true, ..Options::default() };
        refused(Draft { options, ..draft() }, "saving");
    }

    #[test]
    fn a_directory_that_is_too_deep_for_a_socket_is_refused() {
        let deep = |length: usize| PathBuf::from(format!("/{}", "d".repeat(length - 1)));
        // "/vsock-4294967295"
        assert!(Sockets::within(&deep(MAX_SOCKET_PATH_BYTES - 17)).is_ok());
        assert!(matches!(
            Sockets::within(&deep(MAX_SOCKET_PATH_BYTES - 16)),
            Err(ArgumentError::Directory(_))
        ));
    }
}

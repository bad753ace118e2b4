//! PID 1 of a VM that does the least that ours has to do before it serves: the same mounts, a fork, an exec of itself,
//! a listener. What our boot takes is measured in units of it, since a figure in milliseconds says more about the host.
//!
//! Prints the stamps that ours prints: `VMINITD_READY uptime_us=N phase=pid1-entry`, and `phase=serve` when the
//! exec'ed child is about to wait for its first connection. With the argument `reboot` it powers off instead of that, by
//! reboot(2) alone, behind `phase=reboot`: the yardstick of an end.
//!
//! Owns: the VM. Never: is built into an image that we ship.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket,
};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, chdir, chroot, execv, fork, pause};

const SUID: MsFlags = MsFlags::MS_NOSUID;
const DEV: MsFlags = MsFlags::MS_NODEV;
const EXEC: MsFlags = MsFlags::MS_NOEXEC;
const NONE: MsFlags = MsFlags::empty();

/// Kind, place, flags, options: what vminitd/src/init/boot/ mounts.
#[rustfmt::skip]
const MOUNTS: [(&str, &str, MsFlags, &str); 11] = [
    ("proc", "/proc", SUID.union(DEV).union(EXEC), ""),
    ("sysfs", "/sys", SUID.union(DEV).union(EXEC), ""),
    ("devtmpfs", "/dev", SUID.union(EXEC), "mode=0755"),
    ("devpts", "/dev/pts", SUID.union(EXEC), "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "/dev/shm", SUID.union(DEV), "mode=1777"),
    ("mqueue", "/dev/mqueue", SUID.union(DEV).union(EXEC), ""),
    ("tmpfs", "/tmp", SUID.union(DEV), "mode=1777"),
    ("tmpfs", "/run", SUID.union(DEV), "mode=0755"),
    ("tmpfs", "/run/vminitd", SUID.union(DEV).union(EXEC), "mode=0755"),
    ("tmpfs", "/run/bundles", NONE, "mode=0711"),
    ("cgroup2", "/sys/fs/cgroup", SUID.union(DEV).union(EXEC), "nsdelegate,memory_recursiveprot,favordynmods"),
];

const PORT: u32 = 1024;

fn main() {
    if std::process::id() != 1 {
        serve();
    }
    stamp("pid1-entry");
    let none = None::<&str>;
    // The initramfs' root, moved as ours is.
    mount(Some("/"), "/run", none, MsFlags::MS_BIND, none).expect("bind");
    chdir("/run").expect("enter");
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).expect("move");
    chroot(".").expect("chroot");
    for (kind, place, flags, options) in MOUNTS {
        let _ = fs::create_dir(place);
        if kind == "cgroup2" {
            // As ours: without it this mount alone waits 27 ms for RCU.
            let _ = fs::write("/sys/kernel/rcu_expedited", "1\n");
        }
        mount(Some(kind), place, Some(kind), flags, Some(options)).expect(place);
    }
    if std::env::args().nth(1).as_deref() == Some("reboot") {
        // By way of the kernel's log, where a line has the kernel's stamp.
        fs::write("/dev/kmsg", "<6>VMINITD_READY phase=reboot\n").expect("the log");
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    // SAFETY: this process has no other thread, so the child may do what it likes.
    if let ForkResult::Child = unsafe { fork() }.expect("fork") {
        let path = CString::new("/proc/self/exe").expect("no NUL");
        let _ = execv(&path, &[c"yardstick", c"serve"]);
    }
    loop {
        pause();
    }
}

fn serve() -> ! {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None).expect("socket");
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT)).expect("bind");
    listen(&listener, Backlog::new(16).expect("a backlog")).expect("listen");
    stamp("serve");
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
    }
}

fn stamp(phase: &str) {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    let microseconds = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000;
    eprintln!("VMINITD_READY uptime_us={microseconds} phase={phase}");
}

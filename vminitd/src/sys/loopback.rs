//! The loopback interface of this network namespace, see netdevice(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Brings `lo` up; its addresses come with it. SIOCGIFFLAGS, SIOCSIFFLAGS.
pub fn up() -> io::Result<()> {
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which all zero is valid: a name that is NUL-terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    // SAFETY: both requests take an ifreq, which outlives the calls; the first fills in the flags
    // that the second reads.
    unsafe {
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request))
    }
}

/// The same in the network namespace behind `namespace`, see setns(2). Blocks for a moment: a
/// thread of its own enters the namespace and ends there, since no other may be left in it.
pub fn up_in(namespace: impl AsFd + Send + 'static) -> io::Result<()> {
    let enter = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        up()
    };
    let entered = thread::Builder::new().name("netns".to_owned()).spawn(enter)?;
    entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

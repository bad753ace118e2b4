//! Tap devices, see Documentation/networking/tuntap.rst.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::numbered::check;

// linux/if_tun.h
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// Makes a tap in this thread's network namespace, down; it goes with the last copy of its descriptor. `template` is its
/// name, in which the kernel puts a number for `%d`. Frames have virtio's header in front. Needs CAP_NET_ADMIN.
pub fn make(template: &str) -> io::Result<(OwnedFd, String)> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: a struct of numbers, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(template.bytes())
    {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: the request reads and writes one ifreq, and the pointer is to one that lives through the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &mut request) })?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name: Vec<u8> = name.map(|byte| byte.cast_unsigned()).collect();
    Ok((device.into(), String::from_utf8_lossy(&name).into_owned()))
}

//! The kernel's random pool, see random(4) (RNDADDENTROPY, RNDRESEEDCRNG).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// What `struct rand_pool_info` of linux/random.h begins with.
const HEAD_BYTES: usize = 8;

/// Mixes the bytes in, credits all their bits, and has the generator reseed at once.
pub fn reseed(bytes: &[u8]) -> io::Result<()> {
    let length = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
    let pool = File::options().write(true).open("/dev/urandom")?;
    // Its alignment is that of int, which an array of them gives it.
    let mut info = vec![0 as libc::c_int; HEAD_BYTES / 4 + bytes.len().div_ceil(4)];
    (info[0], info[1]) = (length.saturating_mul(8), length);
    for (word, four) in info[2..].iter_mut().zip(bytes.chunks(4)) {
        let mut whole = [0; 4];
        whole[..four.len()].copy_from_slice(four);
        *word = libc::c_int::from_ne_bytes(whole);
    }
    // SAFETY: the request reads two ints and `length` bytes behind them, which `info` holds.
    let added = unsafe { libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) };
    // SAFETY: this request takes no argument.
    if added < 0 || unsafe { libc::ioctl(pool.as_raw_fd(), RNDRESEEDCRNG as _) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

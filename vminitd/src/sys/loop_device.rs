//! Loop devices: files as block devices, see loop(4).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;

// include/uapi/linux/loop.h
const LOOP_CONFIGURE: libc::c_int = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_int = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// struct loop_info64.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// How a file becomes a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; 0: to the file's end.
    pub size_limit: u64,
    /// Nothing is written to the file.
    pub read_only: bool,
    /// Reads and writes bypass the page cache of the file's filesystem.
    pub direct: bool,
}

/// A free loop device, given this file as its content. It goes when nobody has it open any more:
/// neither the descriptor nor a mount. LOOP_CTL_GET_FREE, LOOP_CONFIGURE (5.8).
pub fn attach(file: BorrowedFd<'_>, settings: Settings) -> io::Result<(PathBuf, OwnedFd)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    loop {
        // SAFETY: the request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        let number = Errno::result(number)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(!settings.read_only).open(&path)?;
        match configure(&device, file, settings) {
            // Somebody was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            done => return done.map(|()| (path, device.into())),
        }
    }
}

fn configure(device: &File, file: BorrowedFd<'_>, settings: Settings) -> io::Result<()> {
    // SAFETY: loop_config is plain data, for which all zero is valid.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    config.info.offset = settings.offset;
    config.info.size_limit = settings.size_limit;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    if settings.read_only {
        config.info.flags |= LO_FLAGS_READ_ONLY;
    }
    if settings.direct {
        config.info.flags |= LO_FLAGS_DIRECT_IO;
    }
    // SAFETY: the request takes a struct of this form, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    Errno::result(result)?;
    Ok(())
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

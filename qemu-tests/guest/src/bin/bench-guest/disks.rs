//! Disks as the guest itself has them: what reading one takes, and what the kernel takes to mount many layers.
//!
//! Promises: what is mounted is gone again when it was measured, also when that failed.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

/// Where layers are mounted; a tmpfs of the measure's own.
const PLACE: &str = "/run/bench-layers";

/// Writes back and forgets what is cached of files and disks.
pub fn drop_caches() -> io::Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// What read(2) takes for the first `bytes` of a file or device, a block after the other; what dd does.
pub fn read(path: &str, bytes: usize, block: usize) -> io::Result<Duration> {
    let mut buffer = vec![0; block];
    let begun = Instant::now();
    let mut file = File::open(path)?;
    let mut left = bytes;
    while left > 0 {
        let most = left.min(block);
        match file.read(&mut buffer[..most])? {
            0 => return Err(io::Error::other(format!("{path} lacks {left} bytes"))),
            read => left -= read,
        }
    }
    Ok(begun.elapsed())
}

/// The node of the disk with this serial.
pub fn node(serial: &str) -> io::Result<String> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let found = fs::read_to_string(format!("/sys/block/{name}/serial"));
        if found.is_ok_and(|found| found.trim() == serial) {
            return Ok(format!("/dev/{name}"));
        }
    }
    Err(io::Error::other(format!("no disk {serial}")))
}

/// What the kernel's own calls take to mount partitions 1 to `count` of a disk as erofs and an overlay of them with a tmpfs on top.
pub fn mount_layers(disk: &str, count: usize) -> io::Result<Duration> {
    fs::create_dir_all(PLACE)?;
    attach(&filesystem(c"tmpfs", &[])?, PLACE)?;
    let took = layers(disk, count);
    for place in ["root".to_owned()].into_iter().chain((0..=count).rev().map(|n| n.to_string())) {
        // What was not made is not there.
        let _ = umount2(&*format!("{PLACE}/{place}"), MntFlags::empty());
    }
    let gone = umount2(PLACE, MntFlags::empty());
    let took = took?;
    gone?;
    Ok(took)
}

fn layers(disk: &str, count: usize) -> io::Result<Duration> {
    let places: Vec<String> = (0..=count).map(|layer| format!("{PLACE}/{layer}")).collect();
    for place in &places {
        fs::create_dir(place)?;
    }
    let root = format!("{PLACE}/root");
    fs::create_dir(&root)?;
    let begun = Instant::now();
    attach(&filesystem(c"tmpfs", &[])?, &places[0])?;
    for (number, place) in places.iter().enumerate().skip(1) {
        attach(&filesystem(c"erofs", &[("source", &format!("{disk}{number}"))])?, place)?;
    }
    let (upper, work) = (format!("{}/upper", places[0]), format!("{}/work", places[0]));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let lower = places[1..].iter().rev().map(|place| ("lowerdir+", place.as_str()));
    let options: Vec<_> = lower.chain([("upperdir", &*upper), ("workdir", &*work)]).collect();
    attach(&filesystem(c"overlay", &options)?, &root)?;
    Ok(begun.elapsed())
}

// include/uapi/linux/mount.h
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// A mount that is attached to nothing yet; read-only, a tmpfs aside.
fn filesystem(kind: &CStr, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated string that outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 0) })?;
    let config = |command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>| {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        let (fd, key, value) = (context.as_raw_fd(), pointer(key), pointer(value));
        // SAFETY: each pointer is null or a NUL-terminated string that outlives the call.
        checked(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) })
    };
    if kind == c"erofs" {
        config(FSCONFIG_SET_FLAG, Some(c"ro"), None)?;
    }
    for (key, value) in options {
        let (key, value) = (CString::new(*key)?, CString::new(*value)?);
        config(FSCONFIG_SET_STRING, Some(&key), Some(&value))?;
    }
    config(FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: integers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, 0) })
}

fn attach(mount: &OwnedFd, place: &str) -> io::Result<()> {
    let place = CString::new(place)?;
    let (from, to) = (mount.as_raw_fd(), place.as_ptr());
    // SAFETY: NUL-terminated strings that outlive the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from,
            c"".as_ptr(),
            libc::AT_FDCWD,
            to,
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    checked(result)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(result).map_err(io::Error::other)?) })
}

//! Terminals, see ioctl_tty(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::{fstat, makedev};
use nix::sys::statfs::{FsType, fstatfs};

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Sets the size; the foreground process group gets SIGWINCH if it changes. TIOCSWINSZ.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, and `size` outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A pty of the devpts behind `ptmx`: its master and its terminal, close-on-exec. The path may be
/// anybody's, so what it leads to is looked at. pts(4), TIOCSPTLCK, TIOCGPTPEER (4.13).
pub fn open_pty(ptmx: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_NOCTTY;
    let master = File::options().read(true).write(true).custom_flags(flags).open(ptmx)?;
    let number = master.as_raw_fd();
    let is_pty = fstat(number)?.st_rdev == makedev(5, 2)
        && fstatfs(&master)?.filesystem_type() == FsType(DEVPTS_SUPER_MAGIC);
    if !is_pty {
        return Err(io::Error::other("it is no pty multiplexer"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one integer, which outlives the call.
    check(unsafe { libc::ioctl(number, libc::TIOCSPTLCK, &raw const unlocked) })?;
    let how = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags as open(2) does.
    let terminal = check(unsafe { libc::ioctl(number, libc::TIOCGPTPEER, how) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((master.into(), unsafe { OwnedFd::from_raw_fd(terminal) }))
}

/// Makes it the terminal of the session that this process leads. TIOCSCTTY.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// In linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

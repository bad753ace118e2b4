//! Terminals, see ioctl_tty(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

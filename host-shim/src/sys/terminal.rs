//! A terminal's size: ioctl_tty(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Columns and rows of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The size that `terminal` has: TIOCGWINSZ.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one winsize, and the pointer is to one that lives through the call.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Size { width: size.ws_col, height: size.ws_row })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::pty::{Winsize, openpty};

    use super::*;

    #[test]
    fn a_terminals_size_is_what_it_was_made_with_and_a_file_has_none() {
        let winsize = Winsize { ws_row: 24, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&winsize, None).unwrap();
        assert_eq!(size(pty.slave.as_fd()).unwrap(), Size { width: 99, height: 24 });
        assert!(size(tempfile::tempfile().unwrap().as_fd()).is_err());
    }
}

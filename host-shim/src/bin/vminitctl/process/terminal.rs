//! Our own terminal, raw while a command in the guest has one.
//!
//! Owns: the settings that the terminal had before.
//! Promises: they are put back when a [`Terminal`] is dropped, and before a panic prints. Signals that end programs are
//! handled here (signals.rs), so that every way out but SIGKILL goes through the drop.
//! Never: touches the terminal while another job has it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, Once, PoisonError};

use host_shim::sys::terminal::{Size, size};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// What the terminal was like, as long as it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Our terminal, in raw mode.
pub struct Terminal(());

impl Terminal {
    /// Makes the terminal at stdin raw: every key goes to the command, and nothing is echoed here.
    pub fn raw() -> io::Result<Self> {
        static PANICS: Once = Once::new();
        PANICS.call_once(|| {
            let print = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                print(panic);
            }));
        });
        let before = tcgetattr(stdin())?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let terminal = Self(());
        terminal.make_raw()?;
        Ok(terminal)
    }

    /// Once more, when we were stopped and the shell had the terminal meanwhile.
    pub fn again(&self) {
        if is_ours() {
            // A terminal that is gone needs no mode; its end shows on stdin.
            let _ = self.make_raw();
        }
    }

    /// How large it is now; nothing when it is gone.
    pub fn size(&self) -> Option<Size> {
        size(stdin()).ok()
    }

    fn make_raw(&self) -> io::Result<()> {
        let mut raw = tcgetattr(stdin())?;
        cfmakeraw(&mut raw);
        Ok(tcsetattr(stdin(), SetArg::TCSANOW, &raw)?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// The size of the terminal at stdin; an error when stdin is none.
pub fn stdin_size() -> io::Result<Size> {
    size(stdin())
}

/// Puts the settings back that the terminal had; does nothing when that has been done.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    // A job in the background would be stopped by SIGTTOU, and the terminal is somebody else's then.
    if let Some(before) = before.filter(|_| is_ours()) {
        // At once: output that nobody reads must not hold us up. It fails only when the terminal is gone.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &before);
    }
}

/// False when another job of the session has the terminal.
fn is_ours() -> bool {
    tcgetpgrp(stdin()).map_or(true, |group| group == getpgrp())
}

fn stdin() -> BorrowedFd<'static> {
    // SAFETY: 0 is open for the whole life of this process: Rust's start-up sees to it, and nobody closes it.
    unsafe { BorrowedFd::borrow_raw(0) }
}

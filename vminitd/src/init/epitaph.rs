//! The last words of PID 1.
//!
//! Owns: a ring of the latest events, and a buffer for the reason of the end; both exist from the
//! start, so that the end needs no memory.
//! Promises: whatever goes wrong in PID 1 ends in a message on the console and a power-off, also a
//! panic while one is being printed.
//! Never: returns.

use std::fmt::{self, Write as _};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::power;
use crate::log;
use crate::sys::clock;

/// What PID 1 remembers of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Moment {
    /// Nothing yet.
    Nothing,
    /// An agent was forked; its pid.
    AgentForked,
    /// An agent says that it serves; its pid.
    AgentServes,
    /// init killed an agent; its pid.
    AgentKilled,
    /// An agent was reaped; its pid and status.
    AgentExited,
    /// A launcher was forked; its pid and the request.
    LauncherForked,
    /// A launcher was reaped; its pid and status.
    LauncherExited,
    /// A launched process was reaped; its pid and status.
    ProcessExited,
    /// Another child was reaped; its pid and status.
    OrphanReaped,
    /// A signal came; its number.
    Signal,
    /// The supervisor was forked; its pid and how often before.
    SupervisorForked,
    /// The supervisor was reaped; its pid and status.
    SupervisorExited,
    /// The end of the VM was asked for.
    PowerOff,
}

/// Remembers.
pub fn remember(moment: Moment, a: i32, b: u32) {
    let place = &RING[NEXT.fetch_add(1, Ordering::Relaxed) % EVENTS];
    place.0.store(clock::boottime_us() << 8 | moment as u64, Ordering::Relaxed);
    place.1.store(u64::from(a as u32) << 32 | u64::from(b), Ordering::Relaxed);
}

/// Says why, and ends the VM.
pub fn fatal(reason: fmt::Arguments<'_>) -> ! {
    if ENTERED.swap(true, Ordering::Relaxed) {
        // The last words went wrong themselves.
        power::now(false);
    }
    let mut text = Text::new();
    // The buffer cuts what is too long, it does not fail.
    let _ = write!(text, "vminitd: fatal: {reason}");
    log::to_console(text.as_str());
    for index in 0..EVENTS {
        let place = &RING[(NEXT.load(Ordering::Relaxed) + index) % EVENTS];
        let (head, tail) = (place.0.load(Ordering::Relaxed), place.1.load(Ordering::Relaxed));
        if let Some(name) = NAMES.get((head & 0xff) as usize).filter(|name| !name.is_empty()) {
            text.clear();
            let (a, b) = ((tail >> 32) as i32, tail as u32);
            let _ = write!(text, "vminitd: at {} us: {name} {a} {b}", head >> 8);
            log::to_console(text.as_str());
        }
    }
    power::sync_within(power::LAST_SYNC);
    power::now(false)
}

/// Makes every panic of PID 1 fatal. In a fork of it, a panic is that fork's own affair.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic: &PanicHookInfo<'_>| {
        if log::is_init() {
            fatal(format_args!("{panic}"));
        }
        let mut text = Text::new();
        let _ = write!(text, "{panic}");
        log::keep_error(text.as_str());
        tracing::error!("{}", text.as_str());
    }));
}

const EVENTS: usize = 32;
/// Per event: microseconds since boot and kind; two figures.
static RING: [(AtomicU64, AtomicU64); EVENTS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; EVENTS];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static ENTERED: AtomicBool = AtomicBool::new(false);

/// By [`Moment`].
const NAMES: [&str; 13] = [
    "",
    "agent forked",
    "agent serves",
    "agent killed",
    "agent exited",
    "launcher forked",
    "launcher exited",
    "process exited",
    "orphan reaped",
    "signal",
    "supervisor forked",
    "supervisor exited",
    "power-off",
];

/// A line of bounded length that needs no heap.
struct Text {
    bytes: [u8; 512],
    used: usize,
}

impl Text {
    fn new() -> Text {
        Text { bytes: [0; 512], used: 0 }
    }

    fn clear(&mut self) {
        self.used = 0;
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.used]).unwrap_or("")
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            let end = self.used + character.len_utf8();
            if end > self.bytes.len() {
                break;
            }
            character.encode_utf8(&mut self.bytes[self.used..end]);
            self.used = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character_and_stays_one_line() {
        let mut text = Text::new();
        write!(text, "a\nb{}", "é".repeat(400)).unwrap();
        assert!(text.as_str().starts_with("a bé"));
        assert_eq!(text.as_str().len(), 511);
    }

    #[test]
    fn every_moment_has_a_name() {
        assert_eq!(NAMES[Moment::PowerOff as usize], "power-off");
        assert_eq!(NAMES.len(), Moment::PowerOff as usize + 1);
    }
}

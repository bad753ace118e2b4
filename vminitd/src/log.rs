//! Where `tracing` events go: one line each, `vminitd: <level> <role>: text key=value`.
//!
//! Every line goes into the kernel's log, which never blocks and which a diagnosis can read back.
//! Which of its lines the kernel then shows on the console is up to its console log level, and
//! `quiet` keeps most of them off. So a line that the kernel will not show is written to the
//! console as well, without ever waiting for it: what is not taken at once is dropped there.
//!
//! Events of libraries are shown at level debug only. In a launcher, though, libcontainer's errors
//! are also kept in memory that it shares with its forks: what fails in the container's init comes
//! back to the launcher as a text without its causes, and these are nowhere but in such lines.
//!
//! Owns: the two descriptors.
//! Promises: never blocks, never fails, never panics; usable after a fork.
//! Never: keeps spans; the house logs events with the container's id as a field.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::metadata::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::config::LogLevel;
use crate::limits::{LOG_CONSOLE_BYTES, LOG_KMSG_BYTES};
use crate::paths;
use crate::sys::shared_text::SharedText;
use crate::sys::stream_socket::unsent_bytes;

/// Which process writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// PID 1.
    Init,
    /// The agent.
    Agent,
    /// A fork of init at work.
    Launcher,
}

/// Opens the kernel's log and the console, and sends all events there from now on. For the second
/// call in a process only the role changes.
pub fn start(role: Role, level: LogLevel) {
    set_role(role);
    if SINK.set(Sink::open(level)).is_ok() {
        // Fails when there is a subscriber already: then somebody tests, and wants that one.
        let _ = tracing::subscriber::set_global_default(Lines);
    }
}

/// Names the process in every further line: for a fork.
pub fn set_role(role: Role) {
    ROLE.store(role as u8, Ordering::Relaxed);
}

/// Whether this process is still what [`start`] was told, for hooks that only PID 1 may run.
pub fn is_init() -> bool {
    ROLE.load(Ordering::Relaxed) == Role::Init as u8
}

/// Keeps the text of libraries' errors from now on, in this process and its forks.
pub fn keep_library_errors() {
    // Without memory for it, errors are reported without their causes.
    if let Ok(text) = SharedText::new() {
        let _ = LIBRARY_ERRORS.set(text);
    }
}

/// Adds a line to them: the text of a panic, for example.
pub fn keep_error(text: &str) {
    if let Some(errors) = LIBRARY_ERRORS.get() {
        errors.append(text);
    }
}

/// The libraries' errors since [`keep_library_errors`], a line each, oldest first.
pub fn library_errors() -> String {
    LIBRARY_ERRORS.get().map(SharedText::read).unwrap_or_default()
}

/// The descriptors that logging uses, for those who close all others.
pub fn descriptors() -> Vec<RawFd> {
    let Some(sink) = SINK.get() else { return Vec::new() };
    [&sink.kmsg, &sink.console].into_iter().flatten().map(AsRawFd::as_raw_fd).collect()
}

/// Writes a line to the console whatever its log level, and to the kernel's log: for the few lines
/// that a host reads.
pub fn to_console(line: &str) {
    let Some(sink) = SINK.get() else {
        // Before the start of the log, standard error is the console that the kernel opened.
        let _ = std::io::stderr().write(format!("{line}\r\n").as_bytes());
        return;
    };
    sink.kmsg(Severity::Info, line);
    if !sink.kernel_shows(Severity::Info) {
        sink.console(line);
    }
}

/// Waits until the console has taken what was written to it, so long at most: with the power goes what it still holds.
pub fn drain_console(limit: Duration) {
    let Some(console) = SINK.get().and_then(|sink| sink.console.as_ref()) else { return };
    let start = Instant::now();
    while unsent_bytes(console.as_fd()).is_ok_and(|bytes| bytes > 0) && start.elapsed() < limit {
        std::thread::sleep(DRAIN_LOOK);
    }
}

/// How often it is looked.
const DRAIN_LOOK: Duration = Duration::from_micros(300);

static SINK: OnceLock<Sink> = OnceLock::new();
static LIBRARY_ERRORS: OnceLock<SharedText> = OnceLock::new();
static ROLE: AtomicU8 = AtomicU8::new(Role::Init as u8);

struct Sink {
    kmsg: Option<File>,
    console: Option<File>,
    level: LogLevel,
    /// The kernel shows what is more severe than this.
    console_loglevel: u8,
}

/// syslog(2)'s figures.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Severity {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

/// syslog(3)'s LOG_DAEMON, in its place above the severity.
const FACILITY_DAEMON: u8 = 3 << 3;

impl Sink {
    fn open(level: LogLevel) -> Sink {
        let open = |path| {
            let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
            OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
        };
        let console_loglevel = std::fs::read_to_string(paths::PRINTK)
            .ok()
            .and_then(|levels| levels.split_ascii_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        Sink { kmsg: open(paths::KMSG), console: open(paths::CONSOLE), level, console_loglevel }
    }

    fn kernel_shows(&self, severity: Severity) -> bool {
        self.kmsg.is_some() && (severity as u8) < self.console_loglevel
    }

    fn kmsg(&self, severity: Severity, line: &str) {
        let Some(mut kmsg) = self.kmsg.as_ref() else { return };
        let line = cut(line, LOG_KMSG_BYTES);
        // Lost when the kernel's log refuses it: there is nowhere else to say so.
        let _ = kmsg.write(format!("<{}>{line}\n", FACILITY_DAEMON | severity as u8).as_bytes());
    }

    fn console(&self, line: &str) {
        let Some(mut console) = self.console.as_ref() else { return };
        // Not write_all: a console that takes no more would be waited for.
        let _ = console.write(format!("{}\r\n", cut(line, LOG_CONSOLE_BYTES)).as_bytes());
    }
}

/// The subscriber.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = level_of(metadata.level());
        let wanted = wanted();
        metadata.is_event()
            && *metadata.level() != Level::TRACE
            && if is_ours(metadata) {
                level <= wanted
            } else {
                level == LogLevel::Error || wanted == LogLevel::Debug
            }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match wanted() {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let Some(sink) = SINK.get() else { return };
        let (severity, level) = match *event.metadata().level() {
            Level::ERROR => (Severity::Error, "error"),
            Level::WARN => (Severity::Warning, "warn"),
            Level::INFO => (Severity::Info, "info"),
            _ => (Severity::Debug, "debug"),
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if !is_ours(event.metadata()) {
            if let Some(text) = LIBRARY_ERRORS.get()
                && level == "error"
            {
                text.append(&format!("{}{}", fields.text, fields.others));
            }
            if sink.level != LogLevel::Debug {
                return;
            }
        }
        let line = format!("vminitd: {level} {}: {}{}", role(), fields.text, fields.others);
        sink.kmsg(severity, &line);
        if !sink.kernel_shows(severity) {
            sink.console(&line);
        }
    }

    // No span is enabled, so none of these is called with one.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn role() -> &'static str {
    match ROLE.load(Ordering::Relaxed) {
        role if role == Role::Init as u8 => "init",
        role if role == Role::Agent as u8 => "agent",
        _ => "launcher",
    }
}

fn wanted() -> LogLevel {
    SINK.get().map_or(LogLevel::Error, |sink| sink.level)
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_PKG_NAME"))
}

fn level_of(level: &Level) -> LogLevel {
    match *level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}

/// An event's message, and its other fields as ` key=value`, on one line.
#[derive(Default)]
struct Fields {
    text: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = if field.name() == "message" {
            write!(OneLine(&mut self.text), "{value:?}")
        } else {
            write!(OneLine(&mut self.others), " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Makes control characters visible, so that no text of others can start a line that looks ours.
struct OneLine<'a>(&'a mut String);

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character.is_control() {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

/// The text's beginning, at most `bytes` long, at a character's end.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_stays_on_its_line() {
        let mut text = String::new();
        write!(OneLine(&mut text), "a\nvminitd: fatal: b\x1b[0m é").unwrap();
        assert_eq!(text, "a\\nvminitd: fatal: b\\u{1b}[0m é");
    }

    #[test]
    fn a_long_line_is_cut_at_a_character() {
        assert_eq!(cut("aéb", 2), "a");
        assert_eq!(cut("aéb", 3), "aé");
        assert_eq!(cut("aéb", 9), "aéb");
    }
}

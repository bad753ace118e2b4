//! How long each phase took, from the host's clock and the guest's boot stamps.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::console::Console;

/// A moment on the host's clock, in the order in which they come. One that is not reached has no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The hypervisor runs the VM.
    Spawned,
    /// The guest has answered.
    Serving,
    /// Create is about to be called.
    Creating,
    /// Create has returned.
    Created,
    /// Start has returned.
    Started,
    /// Wait has returned.
    Exited,
    /// All output is written.
    Drained,
    /// Delete has returned.
    Deleted,
    /// The VM is gone.
    Off,
}

/// Moments on the host's clock, and the guest's own share of the boot.
pub struct Timings {
    start: Instant,
    marks: Vec<(Mark, Instant)>,
    guest: Option<Duration>,
}

impl Timings {
    /// The VM is about to be spawned.
    pub fn start() -> Self {
        Self { start: Instant::now(), marks: Vec::new(), guest: None }
    }

    /// Something has come to pass, now. What comes a second time counts then.
    pub fn mark(&mut self, mark: Mark) {
        self.marks.retain(|(other, _)| *other != mark);
        self.marks.push((mark, Instant::now()));
    }

    fn at(&self, mark: Mark) -> Option<Instant> {
        self.marks.iter().find(|(other, _)| *other == mark).map(|(_, at)| *at)
    }

    /// All of them, in milliseconds since the start.
    pub fn marks(&self) -> Vec<(Mark, f64)> {
        self.marks.iter().map(|(mark, at)| (*mark, self.ms(*at))).collect()
    }

    /// A moment in milliseconds since the start.
    pub fn ms(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start).as_secs_f64() * 1e3
    }

    /// The guest has answered: its stamps of the boot are on the console.
    pub fn guest_boot(&mut self, console: &Console) {
        let text = console.text();
        let stamps = stamp(&text, "pid1-entry").zip(stamp(&text, "serve"));
        self.guest = stamps.map(|(entry, serve)| serve.saturating_sub(entry));
    }

    /// For a person: a line per phase that was reached, in milliseconds.
    pub fn table(&self, accelerator: &str) -> String {
        let span = |from, to| Some(self.at(to)?.saturating_duration_since(self.at(from)?));
        let up = self.at(Mark::Serving).map(|at| at - self.start);
        // The guest's clock starts with its kernel, so the host's part is what the guest's own leaves over.
        let before = up.map(|up| up.saturating_sub(self.guest.unwrap_or_default()));
        let rows = [
            ("spawn to PID 1", before),
            ("PID 1 to serving", self.guest),
            ("create", span(Mark::Creating, Mark::Created)),
            ("start", span(Mark::Created, Mark::Started)),
            ("run to exit", span(Mark::Started, Mark::Exited)),
            ("delete and power-off", span(Mark::Exited, Mark::Off)),
        ];
        let mut table = format!("vminitctl: phases ({accelerator})\n");
        for (name, took) in rows {
            if let Some(took) = took {
                writeln!(table, "  {name:<22}{:>9.1} ms", took.as_secs_f64() * 1e3)
                    .expect("a String takes everything");
            }
        }
        table
    }
}

/// The uptime in the console line `VMINITD_READY uptime_us=N phase=PHASE`.
fn stamp(console: &str, phase: &str) -> Option<Duration> {
    console.lines().find_map(|line| {
        let (_, stamp) = line.split_once("VMINITD_READY ")?;
        let mut words = stamp.split_whitespace();
        let uptime = words.next()?.strip_prefix("uptime_us=")?.parse().ok()?;
        (words.next()?.strip_prefix("phase=")? == phase).then_some(Duration::from_micros(uptime))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_is_found_between_other_lines_and_behind_the_kernels_time() {
        let text = "noise\r\n[    0.5] VMINITD_READY uptime_us=700 phase=pid1-entry\r\n\
                    VMINITD_READY uptime_us=900 phase=serve\r\nVMINITD_READY uptime_us=x phase=late\n";
        assert_eq!(stamp(text, "serve"), Some(Duration::from_micros(900)));
        assert_eq!(stamp(text, "pid1-entry"), Some(Duration::from_micros(700)));
        assert_eq!(stamp(text, "late"), None);
    }
}

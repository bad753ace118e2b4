//! How long each phase took, from the host's clock and the guest's boot stamps.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::console::Console;

/// Moments on the host's clock, and the guest's own share of the boot.
pub struct Timings {
    spawn: Instant,
    serving: Option<Instant>,
    guest: Option<Duration>,
    creating: Option<Instant>,
    created: Option<Instant>,
    started: Option<Instant>,
    exited: Option<Instant>,
    off: Option<Instant>,
}

impl Timings {
    /// The VM is about to be spawned.
    pub fn start() -> Self {
        Self {
            spawn: Instant::now(),
            serving: None,
            guest: None,
            creating: None,
            created: None,
            started: None,
            exited: None,
            off: None,
        }
    }

    /// The guest has answered.
    pub fn serving(&mut self, console: &Console) {
        self.serving = Some(Instant::now());
        let text = console.text();
        let stamps = stamp(&text, "pid1-entry").zip(stamp(&text, "serve"));
        self.guest = stamps.map(|(entry, serve)| serve.saturating_sub(entry));
    }

    /// Create is about to be called.
    pub fn creating(&mut self) {
        self.creating = Some(Instant::now());
    }

    /// Create has returned.
    pub fn created(&mut self) {
        self.created = Some(Instant::now());
    }

    /// Start has returned.
    pub fn started(&mut self) {
        self.started = Some(Instant::now());
    }

    /// Wait has returned.
    pub fn exited(&mut self) {
        self.exited = Some(Instant::now());
    }

    /// The VM is gone.
    pub fn off(&mut self) {
        self.off = Some(Instant::now());
    }

    /// For a person: a line per phase that was reached, in milliseconds.
    pub fn table(&self, accelerator: &str) -> String {
        let up = self.serving.map(|at| at - self.spawn);
        // The guest's clock starts with its kernel, so the host's part is what the guest's own leaves over.
        let before = up.map(|up| up.saturating_sub(self.guest.unwrap_or_default()));
        let rows = [
            ("spawn to PID 1", before),
            ("PID 1 to serving", self.guest),
            ("create", span(self.creating, self.created)),
            ("start", span(self.created, self.started)),
            ("run to exit", span(self.started, self.exited)),
            ("delete and power-off", span(self.exited, self.off)),
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

fn span(from: Option<Instant>, to: Option<Instant>) -> Option<Duration> {
    Some(to?.saturating_duration_since(from?))
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

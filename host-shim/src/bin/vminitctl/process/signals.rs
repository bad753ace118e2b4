//! Our own signals, passed on to the command, and those that tell of the terminal.
//!
//! Owns: the signal handlers of this process.
//! Promises: a second SIGINT or SIGTERM within two seconds kills, since a program that is PID 1 of its namespace
//! ignores the first unless it handles it (pid_namespaces(7)).

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use signal_hook::consts::{
    SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use tokio::sync::mpsc;

/// Within this time a second SIGINT or SIGTERM kills.
const TWICE: Duration = Duration::from_secs(2);

/// How long a command whose terminal went away has after its SIGHUP until it is killed: nobody could end it any more.
pub const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// A signal's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// The one that cannot be ignored.
    pub fn kill() -> Self {
        Self(SIGKILL)
    }

    /// True for SIGHUP: the terminal is gone, if there was one.
    pub fn is_hangup(self) -> bool {
        self.0 == SIGHUP
    }

    /// As in signal(7).
    pub fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The command.
    ToForward(Signal),
    /// Our terminal has another size.
    Resized,
    /// We were stopped, and others may have used the terminal.
    Continued,
}

/// Signals as they come.
pub struct Signals {
    arrivals: mpsc::UnboundedReceiver<i32>,
    escalation: Escalation,
}

/// From here on none of them ends this process.
pub fn watch() -> io::Result<Signals> {
    let mut handler = signal_hook::iterator::Signals::new([
        SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT,
    ])?;
    let (sender, arrivals) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in &mut handler {
            if sender.send(signal).is_err() {
                break;
            }
        }
    })?;
    Ok(Signals { arrivals, escalation: Escalation::default() })
}

impl Signals {
    /// The next one.
    pub async fn next(&mut self) -> Arrival {
        match self.arrivals.recv().await {
            Some(SIGWINCH) => Arrival::Resized,
            Some(SIGCONT) => Arrival::Continued,
            Some(signal) => Arrival::ToForward(self.escalation.handle(signal, Instant::now())),
            // The thread ended, which it does with the process only.
            None => std::future::pending().await,
        }
    }

    /// The next one that is for the command.
    pub async fn next_to_forward(&mut self) -> Signal {
        loop {
            if let Arrival::ToForward(signal) = self.next().await {
                return signal;
            }
        }
    }
}

/// When an asked-for end becomes an ordered one.
#[derive(Default)]
struct Escalation {
    last: Option<Instant>,
}

impl Escalation {
    fn handle(&mut self, signal: i32, now: Instant) -> Signal {
        if signal != SIGINT && signal != SIGTERM {
            return Signal(signal);
        }
        let twice = self.last.is_some_and(|last| now.duration_since(last) <= TWICE);
        self.last = Some(now);
        if twice { Signal::kill() } else { Signal(signal) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_request_to_end_within_two_seconds_kills() {
        let (mut escalation, start) = (Escalation::default(), Instant::now());
        let mut at =
            |signal, ms| escalation.handle(signal, start + Duration::from_millis(ms)).number();
        assert_eq!(at(SIGINT, 0), SIGINT);
        assert_eq!(at(SIGUSR1, 500), SIGUSR1);
        assert_eq!(at(SIGTERM, 2000), SIGKILL);
        assert_eq!(at(SIGTERM, 4001), SIGTERM);
    }
}

//! `vminitctl console` and `logs`: what a VM's guest has printed.
//!
//! Promises: nothing that would drive a terminal; --follow ends with the VM. Never: asks the guest, which may hang.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use host_shim::ctl::{self, Place};

use crate::cli::ConsoleArgs;
use crate::reach::{ReachError, plain, print, runtime};

/// Between two looks at a console that is followed.
const PAUSE: Duration = Duration::from_millis(200);

/// How every line of vminitd's begins, behind the kernel's time.
const OURS: &str = "vminitd: ";

/// Prints the console; returns the exit status.
pub fn console(args: &ConsoleArgs) -> Result<i32, ReachError> {
    show(args, |line| Some(plain(line)))
}

/// Prints what vminitd itself has said.
pub fn logs(args: &ConsoleArgs) -> Result<i32, ReachError> {
    show(args, ours)
}

/// A line of vminitd's, without the kernel's time before it.
fn ours(line: &str) -> Option<String> {
    line.find(OURS).map(|at| plain(&line[at..]))
}

fn show(args: &ConsoleArgs, pick: impl Fn(&str) -> Option<String>) -> Result<i32, ReachError> {
    let place = ctl::lookup(args.vm.name.as_ref())?;
    let fail = |source| ReachError::Console { place: place.clone(), source };
    let mut file = File::open(place.console()).map_err(fail)?;
    let mut lines = Lines::default();
    let mut picked: Vec<String> = read(&mut file, &mut lines).map_err(fail)?;
    if !args.follow {
        picked.extend(lines.rest());
    }
    let mut picked: Vec<String> = picked.iter().filter_map(|line| pick(line)).collect();
    if let Some(tail) = args.tail {
        picked.drain(..picked.len().saturating_sub(tail));
    }
    let mut wanted = print(&joined(&picked))?;
    while args.follow && wanted {
        // Asked before the last look, so that what it said at its end is not missed.
        let lives = lives(&place)?;
        let new: Vec<String> = read(&mut file, &mut lines).map_err(fail)?;
        let new: Vec<String> = new.iter().filter_map(|line| pick(line)).collect();
        wanted = print(&joined(&new))?;
        if !lives {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(0)
}

fn lives(place: &Place) -> Result<bool, ReachError> {
    let told = runtime()?.block_on(async { place.control().describe(false).await });
    Ok(told.is_ok())
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn read(file: &mut File, lines: &mut Lines) -> std::io::Result<Vec<String>> {
    // It is begun anew when it has become too large.
    if file.metadata()?.len() < file.stream_position()? {
        file.seek(SeekFrom::Start(0))?;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(lines.add(&bytes))
}

/// Bytes as they come, cut into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines that are complete now.
    fn add(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.0.split_off(end + 1);
        let whole = std::mem::replace(&mut self.0, rest);
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }

    /// What has no end yet.
    fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.0);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_however_it_comes() {
        let mut lines = Lines::default();
        assert!(lines.add(b"on").is_empty());
        assert_eq!(lines.add(b"e\r\ntwo\nth"), ["one", "two"]);
        assert_eq!(lines.rest().as_deref(), Some("th"));
    }

    #[test]
    fn logs_are_the_lines_of_vminitd() {
        assert_eq!(
            ours("[    1.2] vminitd: info agent: serving").unwrap(),
            "vminitd: info agent: serving"
        );
        assert_eq!(ours("[    1.2] Linux version 6.12"), None);
    }
}

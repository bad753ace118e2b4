//! Turns on the kernel's distribution of disk time by weight, which is off until somebody asks.
//!
//! Why: a weight in `io.weight` counts for nothing on a disk without it, and a device's own weight
//! is refused. Why not for every VM: what has a cost model is held to it.
//! Never: turns it off, or on for what is no disk of its own (loop, zram, device-mapper).
//!
//! See the kernel's Documentation/admin-guide/cgroup-v2.rst, `io.cost.qos`.

use std::fs;
use std::io;
use std::path::Path;

use crate::paths::{CGROUP_ROOT, SYS_BLOCK};

/// Turns it on for every disk that there is.
pub fn turn_on() -> io::Result<()> {
    let file = Path::new(CGROUP_ROOT).join("io.cost.qos");
    let on = fs::read_to_string(&file)?;
    for entry in fs::read_dir(SYS_BLOCK)?.flatten() {
        // A disk has a device of its own behind it.
        if !entry.path().join("device").exists() {
            continue;
        }
        let number = fs::read_to_string(entry.path().join("dev"))?;
        let number = number.trim();
        if !is_on(&on, number) {
            fs::write(&file, format!("{number} enable=1"))?;
        }
    }
    Ok(())
}

/// Of lines of `254:0 enable=1 ctrl=auto ...`.
fn is_on(text: &str, number: &str) -> bool {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.any(|(device, words)| device == number && words.split(' ').any(|w| w == "enable=1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_on_when_its_line_says_so() {
        let text = "254:0 enable=1 ctrl=auto rpct=0.00\n254:16 enable=0 ctrl=auto\n";
        assert!(is_on(text, "254:0") && !is_on(text, "254:16") && !is_on(text, "254:1"));
    }
}

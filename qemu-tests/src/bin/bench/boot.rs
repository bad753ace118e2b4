//! From PID 1's entry to serving, ours and the yardstick's, in turns.

use std::time::Instant;

use serde_json::{Value, json};

use crate::guest::{self, PATIENCE};
use crate::images::{Images, Medium};
use crate::{Failure, say};

/// Boots each kind so often. `{ours, yardstick}`, a list of [`Stamps`] each; the yardstick has not the last two.
pub async fn measure(images: &Images, boots: usize) -> Result<Value, Failure> {
    say("boots");
    let (mut ours, mut yardstick) = (Vec::new(), Vec::new());
    for _ in 0..boots {
        ours.push(stamps(images, Medium::Shipped, false).await?);
        yardstick.push(stamps(images, Medium::Yardstick, false).await?);
    }
    Ok(json!({ "ours": ours, "yardstick": yardstick }))
}

/// Entry, serving, system-init and vsock-listen, in microseconds since the kernel's start; 0 for what does not say it.
pub type Stamps = [u64; 4];

/// What the kernel says when the host gave its emulated timer no time while it was tried; another boot does.
const NO_TIMER: &str = "IO-APIC + timer doesn't work";

/// Of one boot; `counted`: a microsecond is a thousand instructions of the guest.
pub async fn stamps(images: &Images, medium: Medium, counted: bool) -> Result<Stamps, Failure> {
    for _ in 0..3 {
        if let Some(stamps) = boot(images, medium, counted).await? {
            return Ok(stamps);
        }
        say("the host was too busy for the guest's timer: another boot");
    }
    Err(format!("{medium:?} finds no timer: this machine is too busy").into())
}

/// `None` when the kernel found no timer.
async fn boot(images: &Images, medium: Medium, counted: bool) -> Result<Option<Stamps>, Failure> {
    let machine = if counted {
        guest::counted_machine(images, medium).await?
    } else {
        guest::machine(images, medium, Vec::new()).await?
    };
    let begun = Instant::now();
    loop {
        let console = std::fs::read(machine.console_path()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        if let (Some(entry), Some(serving)) =
            (stamp(&console, "pid1-entry"), stamp(&console, "serve"))
        {
            machine.kill().await;
            let between = |phase| stamp(&console, phase).unwrap_or(0);
            return Ok(Some([entry, serving, between("system-init"), between("vsock-listen")]));
        }
        if console.contains(NO_TIMER) {
            machine.kill().await;
            return Ok(None);
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{medium:?} does not come up:\n{console}").into());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn stamp(console: &str, phase: &str) -> Option<u64> {
    console.lines().find_map(|line| {
        let (time, name) = line.split_once("VMINITD_READY uptime_us=")?.1.split_once(" phase=")?;
        (name.trim() == phase).then(|| time.parse().ok())?
    })
}

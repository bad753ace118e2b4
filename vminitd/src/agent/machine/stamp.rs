//! The last of the boot's stamps on the console, by which spinbox's tests know that a host has come.
//!
//! Promises: it is printed once in a boot, and when the first caller was answered: a line on an emulated serial port
//! takes as long as an answer.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::limits::FIRST_ACCEPT_PRINTED;
use crate::log;
use crate::sys::clock;

/// Whether it is due.
#[derive(Debug)]
pub struct FirstAccept(AtomicBool);

impl FirstAccept {
    /// Due in a boot's first agent only.
    pub fn of(generation: u32) -> Self {
        Self(AtomicBool::new(generation == 1))
    }

    /// A connection was accepted.
    pub fn take(&self) {
        if !self.0.swap(false, Relaxed) {
            return;
        }
        let at = clock::boottime_us();
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_ACCEPT_PRINTED).await;
            log::to_console(&format!("VMINITD_READY uptime_us={at} phase=first-accept"));
        });
    }
}

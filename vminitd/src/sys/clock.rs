//! Clocks, see clock_gettime(2).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Microseconds since boot, time in suspend included. CLOCK_BOOTTIME.
pub fn boottime_us() -> u64 {
    read(ClockId::CLOCK_BOOTTIME).as_micros() as u64
}

/// Time since boot, time in suspend included. CLOCK_BOOTTIME.
pub fn boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Time since some moment. CLOCK_MONOTONIC.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Seconds and nanoseconds since 1970. CLOCK_REALTIME.
pub fn realtime() -> (i64, u32) {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map_or((0, 0), |time| (time.tv_sec(), time.tv_nsec() as u32))
}

/// These clocks exist on every Linux, so there is no error to tell.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

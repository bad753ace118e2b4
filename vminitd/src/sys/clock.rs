//! Clocks, see clock_gettime(2), adjtimex(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

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

/// Sets CLOCK_REALTIME. clock_settime(2).
pub fn set_realtime(seconds: i64, nanos: u32) -> io::Result<()> {
    let time = TimeSpec::new(seconds, i64::from(nanos));
    Ok(clock_settime(ClockId::CLOCK_REALTIME, time)?)
}

/// Seconds and nanoseconds that a clock device (/dev/ptpN) shows. clock_getres(2), "Dynamic clocks".
pub fn of_device(device: BorrowedFd<'_>) -> io::Result<(i64, u32)> {
    const CLOCKFD: i32 = 3;
    let clock = ClockId::from_raw((!device.as_raw_fd() << 3) | CLOCKFD);
    let time = clock_gettime(clock)?;
    Ok((time.tv_sec(), time.tv_nsec() as u32))
}

/// Lets CLOCK_REALTIME run faster or slower until it has gained (or lost) so many microseconds.
/// ADJ_OFFSET_SINGLESHOT, see adjtimex(2).
pub fn slew(microseconds: i64) -> io::Result<()> {
    // SAFETY: all-zero is a timex, of which the kernel reads and writes every field.
    let result = unsafe {
        let mut change: libc::timex = std::mem::zeroed();
        change.modes = libc::ADJ_OFFSET_SINGLESHOT;
        change.offset = microseconds;
        libc::adjtimex(&raw mut change)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// These clocks exist on every Linux, so there is no error to tell.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

//! Input devices, see linux/input.h (EVIOCGBIT, struct input_event).

use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// Bytes of the kernel's bit map of keys: KEY_CNT is 0x300.
const KEY_BYTES: usize = 0x300 / 8;
/// `_IOC(_IOC_READ, 'E', 0x20 + EV_KEY, KEY_BYTES)`.
const EVIOCGBIT_KEY: libc::c_ulong =
    2 << 30 | (KEY_BYTES as libc::c_ulong) << 16 | 0x45 << 8 | (0x20 + EV_KEY as libc::c_ulong);

/// A device that has a power button.
#[derive(Debug)]
pub struct PowerButton(File);

impl PowerButton {
    /// Opens the device, without blocking, if it has the button.
    pub fn open(path: &Path) -> io::Result<Option<PowerButton>> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let mut keys = [0u8; KEY_BYTES];
        // SAFETY: the request's size field says KEY_BYTES, and `keys` is that long.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), EVIOCGBIT_KEY as _, keys.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let has_it = keys[usize::from(KEY_POWER) / 8] & 1 << (KEY_POWER % 8) != 0;
        Ok(has_it.then_some(PowerButton(file)))
    }

    /// Whether it was pressed since the last call. An error: the device is gone.
    pub fn pressed(&mut self) -> io::Result<bool> {
        let mut pressed = false;
        let mut bytes = [0u8; 16 * size_of::<libc::input_event>()];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => pressed |= bytes[..read].chunks_exact(EVENT_BYTES).any(is_press),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(pressed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for PowerButton {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const EVENT_BYTES: usize = size_of::<libc::input_event>();

/// An event ends in type, code (16 bits each) and value (32): 1 is a press, 0 the release.
fn is_press(event: &[u8]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event else { return false };
    let (kind, code) = (u16::from_ne_bytes([t0, t1]), u16::from_ne_bytes([c0, c1]));
    (kind, code, i32::from_ne_bytes([v0, v1, v2, v3])) == (EV_KEY, KEY_POWER, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![7; EVENT_BYTES - 8];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_press_of_the_power_button_counts() {
        assert!(is_press(&event(EV_KEY, KEY_POWER, 1)));
        for (kind, code, value) in [(EV_KEY, KEY_POWER, 0), (EV_KEY, 30, 1), (0, 0, 0)] {
            assert!(!is_press(&event(kind, code, value)), "{kind} {code} {value}");
        }
        assert!(!is_press(&[1, 2]));
    }

    #[test]
    fn what_is_no_input_device_is_an_error() {
        assert!(PowerButton::open(Path::new("/dev/null")).is_err());
    }
}

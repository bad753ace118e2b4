//! What the kernel says of a device while something is tried with it: a filesystem that refuses an image tells the
//! reason to the kernel's log, and only an errno to who mounts. See kmsg in the kernel's Documentation/ABI/testing/dev-kmsg.
//!
//! Promises: takes lines that name the device and come after [`KernelLog::listen`], a few of them; a log that cannot be
//! read is silence.
//! Never: waits.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::limits::{COMPLAINT_LINES, KMSG_RECORD_BYTES};
use crate::paths::KMSG;

/// The log, from a moment on.
#[derive(Debug)]
pub struct KernelLog(Option<File>);

impl KernelLog {
    /// From now on.
    pub fn listen() -> Self {
        let open = || {
            let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(KMSG)?;
            log.seek(SeekFrom::End(0))?;
            std::io::Result::Ok(log)
        };
        Self(open().ok())
    }

    /// What was said since of the device with this name (`vda`), joined; empty when nothing was.
    pub fn said_of(mut self, device: &str) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut record = vec![0; KMSG_RECORD_BYTES];
        while let Some(log) = &mut self.0
            && lines.len() < COMPLAINT_LINES
        {
            match log.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let line = text_of(&record[..length]).filter(|line| names(line, device));
                    lines.extend(line.filter(|line| !lines.contains(line)));
                }
                // Some were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                // The end.
                Err(_) => break,
            }
        }
        lines.join("; ")
    }
}

/// The line of a record `priority,number,time,flags;line\n KEY=value\n`.
fn text_of(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (_, text) = record.split_once(';')?;
    Some(text.lines().next()?.trim_end().to_owned())
}

/// `EXT4-fs (vda): ...`, `erofs (device vda): ...`, `SQUASHFS error: vda: ...`.
fn names(line: &str, device: &str) -> bool {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    line.split(word).any(|found| found == device)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_its_line_and_a_device_is_a_whole_word() {
        let record =
            b"3,812,2049512,-;EXT4-fs (vdb1): bad geometry\n SUBSYSTEM=block\n DEVICE=b254:16\n";
        let line = text_of(record).unwrap();
        assert_eq!(line, "EXT4-fs (vdb1): bad geometry");
        assert!(names(&line, "vdb1") && !names(&line, "vdb") && !names(&line, "db1"));
        assert!(names("erofs (device dm-0): no", "dm-0"));
    }

    proptest! {
        #[test]
        fn any_record_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), device in "[a-z0-9-]{0,5}") {
            let _ = text_of(&bytes).map(|line| names(&line, &device));
        }
    }
}

//! CPUs and memory, off and on, as Linux numbers them in /sys/devices/system.
//!
//! Promises: what is so already is no error; an unknown number is NotFound.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::agent::errors::RpcError;
use crate::paths;

/// What can be taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A CPU of this number.
    Cpu(u32),
    /// A memory block of this number.
    Memory(u32),
}

/// Switches it.
pub async fn switch(part: Part, on: bool) -> Result<(), RpcError> {
    let switched =
        tokio::task::spawn_blocking(move || switch_below(Path::new(paths::SYS_DEVICES), part, on));
    switched.await.map_err(|error| RpcError::failed(&error))?
}

fn switch_below(devices: &Path, part: Part, on: bool) -> Result<(), RpcError> {
    let (kind, number) = match part {
        Part::Cpu(number) => ("cpu", number),
        Part::Memory(number) => ("memory", number),
    };
    let directory: PathBuf = devices.join(format!("{kind}/{kind}{number}"));
    if !directory.is_dir() {
        return Err(RpcError::NoDevice(format!("{kind} {number}")));
    }
    let file = directory.join("online");
    let is_on = match std::fs::read_to_string(&file) {
        Ok(text) => text.trim() == "1",
        // A CPU that cannot be taken off has no such file.
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => return Err(failed(kind, number, on, &error)),
    };
    if is_on == on {
        return Ok(());
    }
    match std::fs::write(&file, if on { "1" } else { "0" }) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            Err(RpcError::NoSwitch(format!("{kind} {number}")))
        }
        // Memory with a hole in it.
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            Err(RpcError::NoSwitch(format!("{kind} {number}")))
        }
        // Memory that holds what cannot be moved; the last CPU.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            Err(RpcError::NoSwitch(format!("{kind} {number} is in use and")))
        }
        Err(error) => Err(failed(kind, number, on, &error)),
    }
}

fn failed(kind: &str, number: u32, on: bool, error: &io::Error) -> RpcError {
    let way = if on { "online" } else { "offline" };
    RpcError::Failed(format!("take {kind} {number} {way}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_switched_and_what_is_not_there_or_fixed_says_so() {
        let devices = tempfile::tempdir().unwrap();
        for directory in ["cpu/cpu0", "cpu/cpu1", "memory/memory3"] {
            std::fs::create_dir_all(devices.path().join(directory)).unwrap();
        }
        let online = devices.path().join("cpu/cpu1/online");
        std::fs::write(&online, "1\n").unwrap();
        let switch =
            |part, on| switch_below(devices.path(), part, on).map_err(|error| error.to_string());
        assert_eq!(switch(Part::Cpu(1), false), Ok(()));
        assert_eq!(std::fs::read_to_string(&online).unwrap(), "0");
        assert_eq!(switch(Part::Cpu(1), false), Ok(()));
        assert_eq!(switch(Part::Cpu(1), true), Ok(()));
        assert_eq!(std::fs::read_to_string(&online).unwrap(), "1");
        assert_eq!(switch(Part::Cpu(0), true), Ok(()));
        assert_eq!(switch(Part::Cpu(7), true), Err("cpu 7 does not exist: not found".to_owned()));
        assert_eq!(
            switch(Part::Memory(4), false),
            Err("memory 4 does not exist: not found".to_owned())
        );
    }
}

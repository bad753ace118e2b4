//! A VM in another's program: one that is installed and signed, and takes the command line of vfkit.
//!
//! The way out for a Mac that lets no program of ours have the entitlement for VMs. It is driven from a process of its
//! own ([`serve`], a hidden command of each of our programs), never from vminit-vmm: that is the very program which
//! such a Mac kills at its start.
//!
//! ```text
//!   owner --- control socket --- life --- machine ---- command line ------> vfkit
//!                                            |-------- REST on a socket ----> its VM's state
//!                                            +-------- a socket per port ---> vsock
//! ```
//!
//! Promises: the program ends with its owner, also when this process is killed: its terminal hangs up. What it cannot
//! do is refused by name before it is started ([`arguments`]).
//! Never: has a command of the owner's run by a shell.

pub mod arguments;
mod machine;
mod process;
pub mod rest;

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

pub use machine::External;

use crate::machine::VmmProgram;
use crate::sys::inherited::{be_private_and_unbounded, take_fd};
use crate::vmm::life::{alarm, drive, owner};

/// The hidden command by which our programs run [`serve`].
pub const COMMAND: &str = "external-vmm";

/// What a wish for another's program begins with.
const PREFIX: &str = "external:";

/// Which program runs the VM, as people say it: `external:vfkit`, `external:/path/to/it`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The program, or its name, to be looked for in PATH.
    pub program: PathBuf,
}

/// Not what it was to be. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no program to run VMs; give external:vfkit, or external: and the path of a program with vfkit's command line"
)]
pub struct ChoiceError(String);

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text.strip_prefix(PREFIX) {
            Some(program) if !program.is_empty() => Ok(Self { program: program.into() }),
            _ => Err(ChoiceError(text.to_owned())),
        }
    }
}

impl Choice {
    /// What an owner starts for it: this very program, with the hidden command.
    pub fn vmm(&self) -> io::Result<VmmProgram> {
        let arguments = vec![OsString::from(COMMAND), self.program.clone().into()];
        Ok(VmmProgram { path: std::env::current_exe()?, arguments })
    }
}

/// The hidden command: `external-vmm PROGRAM --control-fd FD`. `arguments` are those behind the command.
pub fn serve(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "this command is for our own use");
    let program = PathBuf::from(arguments.next().ok_or_else(wrong)?);
    let number: RawFd = match (arguments.next(), arguments.next()) {
        (Some(flag), Some(number)) if flag == "--control-fd" => {
            number.to_str().and_then(|number| number.parse().ok()).ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let socket = UnixStream::from(take_fd(number)?);
    be_private_and_unbounded()?;
    let (waker, wait) = alarm();
    let owner = owner(socket, &waker)?;
    drive(External::new(program, waker), owner, wait);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_named_or_said_how() {
        let program = |text: &str| text.parse::<Choice>().map(|choice| choice.program);
        assert_eq!(program("external:vfkit"), Ok("vfkit".into()));
        assert_eq!(program("external:/opt/bin/vfkit"), Ok("/opt/bin/vfkit".into()));
        for wrong in ["vfkit", "external:", "", "internal:x"] {
            assert!(program(wrong).unwrap_err().to_string().contains("external:vfkit"), "{wrong}");
        }
    }
}

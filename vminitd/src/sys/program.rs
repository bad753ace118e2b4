//! A program with descriptors of its own beyond the three standard ones. fork(2), dup2(2), exec(3).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::descriptors::{duplicate_above, install};

/// Starts the command with `fds`: each descriptor is the number beside it there. The numbers are
/// below 16.
pub fn spawn(command: &mut Command, fds: Vec<(OwnedFd, RawFd)>) -> io::Result<Child> {
    // Above every number that is to be replaced, so that none is replaced before it is used.
    let moved = fds
        .into_iter()
        .map(|(fd, number)| Ok((duplicate_above(fd.as_fd(), HIGH)?, number)))
        .collect::<io::Result<Vec<_>>>()?;
    // The numbers themselves are taken meanwhile, or the library's own descriptors, by which the
    // child tells that its exec failed, could have them.
    let mut taken = vec![];
    for (fd, _) in &moved {
        loop {
            let low = duplicate_above(fd.as_fd(), 0)?;
            if low.as_raw_fd() >= HIGH {
                break;
            }
            taken.push(low);
        }
    }
    let own: Vec<(RawFd, RawFd)> =
        moved.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect();
    let replace = move || {
        for (fd, number) in &own {
            // SAFETY: open, since `moved` outlives the spawn, and the child has a copy of each.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            install(fd, *number)?;
        }
        Ok(())
    };
    // SAFETY: dup2(2) alone, on memory that was made before the fork.
    unsafe { command.pre_exec(replace) };
    let child = command.spawn();
    drop((moved, taken));
    child
}

/// No number that is asked for is as high.
const HIGH: RawFd = 16;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::process::Stdio;

    use super::*;
    use crate::sys::splice::pipe;

    #[test]
    fn program_has_the_descriptors_under_their_numbers() {
        let (read, write) = pipe().unwrap();
        let (answer, theirs) = pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat <&3 >&5"]).stdin(Stdio::null());
        let mut child = spawn(&mut command, vec![(read, 3), (theirs, 5)]).unwrap();
        drop(command);
        File::from(write).write_all(b"through\n").unwrap();
        let mut got = String::new();
        File::from(answer).read_to_string(&mut got).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(got, "through\n");
    }

    #[test]
    fn program_that_is_not_there_is_an_error() {
        let (read, _write) = pipe().unwrap();
        let error = spawn(&mut Command::new("/not/there"), vec![(read, 3)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

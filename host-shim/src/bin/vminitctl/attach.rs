//! `vminitctl attach`: takes part in the streams of a task that a shim owns.
//!
//! Owns: our terminal while the task's is on it. Promises: nothing is taken away from whoever runs the task; leaving
//! changes nothing. Never: ends the task's input.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use host_shim::ctl;
use host_shim::guest::{BOOT_DEADLINE, Guest, Ports, unlimited};
use host_shim::sys::terminal::Size;
use tokio::sync::oneshot;
use vminitd_protocol::pb::containerd::task::v3::ResizePtyRequest;

use crate::cli::AttachArgs;
use crate::process::ProcessError;
use crate::process::signals::{self, Arrival};
use crate::process::stdio::borrow;
use crate::process::terminal::Terminal;
use crate::reach::{ReachError, runtime};

/// Ctrl-]
const LEAVE: u8 = 0x1d;

/// Most bytes of a piece; the owner's are half of it.
const MAX_PIECE_BYTES: usize = 64 << 10;

/// How it came to its end.
enum End {
    /// The process has ended.
    Exit(i32),
    /// By Ctrl-].
    Left,
    /// Whoever reads our output is gone.
    NoReader,
}

/// Does it; returns the exit status.
pub fn attach(args: &AttachArgs) -> Result<i32, ReachError> {
    let place = ctl::lookup(args.vm.name.as_ref())?;
    let mut signals = signals::watch().map_err(ProcessError::Signals)?;
    runtime()?.block_on(async {
        let control = place.control();
        let attached = control.attach(&args.container, &args.exec).await;
        let (attached, stream) =
            attached.map_err(|source| ReachError::Control { place: place.clone(), source })?;
        let stream = UnixStream::from(stream);
        let input = attached.input && !args.no_stdin;
        let on_terminal = io::stdin().is_terminal();
        let terminal = match attached.terminal && input && on_terminal {
            true => Some(Terminal::raw().map_err(local("make the terminal raw"))?),
            false => None,
        };
        if on_terminal {
            say(&format!("attached to {}; Ctrl-] leaves", attached.container), &terminal);
        }
        let resize = async || {
            let size = terminal.as_ref().and_then(Terminal::size);
            let Some(Size { width, height }) = size else { return };
            // It matters to nobody but us; a task that has just ended needs none.
            let dial = Arc::new(control.clone());
            let Ok(guest) = Guest::connect(dial, Ports::default(), BOOT_DEADLINE).await else {
                return;
            };
            let request = ResizePtyRequest {
                id: attached.container.clone(),
                exec_id: args.exec.clone(),
                width: width.into(),
                height: height.into(),
            };
            let _ = guest.task().resize_pty(unlimited(), &request).await;
        };
        let mut ends = copy(stream, input, on_terminal).map_err(local("copy the socket"))?;
        resize().await;
        let end = loop {
            tokio::select! {
                end = ends.shown() => break end.map_err(local("the task's streams"))?,
                arrival = signals.next() => match arrival {
                    Arrival::ToForward(signal) => return Ok(128 + signal.number()),
                    Arrival::Resized => resize().await,
                    Arrival::Continued => if let Some(terminal) = &terminal {
                        terminal.again();
                        resize().await;
                    },
                },
            }
        };
        drop(terminal);
        match end {
            End::Exit(status) => Ok(status),
            End::Left => {
                say(&format!("left {}, which runs on", attached.container), &None);
                Ok(0)
            }
            End::NoReader => Ok(0),
        }
    })
}

fn local(what: &str) -> impl Fn(io::Error) -> ReachError + '_ {
    |source| ReachError::Local { what: what.to_owned(), source }
}

/// For people only. On a terminal that is raw a line's end does not lead to the line's beginning.
fn say(text: &str, raw: &Option<Terminal>) {
    if io::stderr().is_terminal() {
        let end = if raw.is_some() { "\r\n" } else { "\n" };
        eprint!("vminitctl: {text}{end}");
    }
}

/// The threads that copy.
struct Ends {
    shown: oneshot::Receiver<io::Result<End>>,
    left: oneshot::Receiver<()>,
}

impl Ends {
    /// Waits for the end.
    async fn shown(&mut self) -> io::Result<End> {
        tokio::select! {
            end = &mut self.shown => end.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(()) = &mut self.left => Ok(End::Left),
        }
    }
}

fn copy(stream: UnixStream, input: bool, on_terminal: bool) -> io::Result<Ends> {
    let (end, shown) = oneshot::channel();
    let (leave, left) = oneshot::channel();
    let mut to = stream.try_clone()?;
    std::thread::spawn(move || drop(end.send(show(stream, &mut borrow(1), &mut borrow(2)))));
    if input || on_terminal {
        std::thread::spawn(move || {
            // Whichever end it is: what is shown goes on without.
            if let Ok(true) = pass_on(&mut borrow(0), input.then_some(&mut to), on_terminal) {
                let _ = leave.send(());
            } else {
                std::mem::forget(leave);
            }
        });
    } else {
        std::mem::forget(leave);
    }
    Ok(Ends { shown, left })
}

/// Passes input on until it ends; true: somebody wants to leave.
fn pass_on(
    from: &mut impl Read,
    mut to: Option<&mut impl Write>,
    can_leave: bool,
) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let leave = read.iter().position(|byte| can_leave && *byte == LEAVE);
        if let Some(to) = &mut to {
            to.write_all(&read[..leave.unwrap_or(read.len())])?;
        }
        if leave.is_some() {
            return Ok(true);
        }
    }
}

/// Shows the pieces that come, to their end.
fn show(mut from: impl Read, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<End> {
    loop {
        let mut head = [0; 5];
        from.read_exact(&mut head).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other("whoever runs the VM has ended"),
            _ => error,
        })?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MAX_PIECE_BYTES {
            return Err(io::Error::other(format!("a piece of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        let written = match (head[0], &*bytes) {
            (1, bytes) => stdout.write_all(bytes).and_then(|()| stdout.flush()),
            (2, bytes) => stderr.write_all(bytes),
            (3, &[a, b, c, d]) => return Ok(End::Exit(u32::from_be_bytes([a, b, c, d]) as i32)),
            (4, _) => writeln!(stderr, "\r\nvminitctl: too slow: some output went by\r"),
            // Of an owner that is newer.
            _ => Ok(()),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::NoReader),
            written => written?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_where_they_belong_and_the_exit_is_the_last() {
        let stream = [
            &[1, 0, 0, 0, 3][..],
            b"out",
            &[2, 0, 0, 0, 3],
            b"err",
            &[9, 0, 0, 0, 1, 0],
            &[3, 0, 0, 0, 4, 0, 0, 0, 137],
            b"nothing",
        ];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let end = show(&*stream.concat(), &mut out, &mut err).unwrap();
        assert!(matches!(end, End::Exit(137)));
        assert_eq!((&*out, &*err), (&b"out"[..], &b"err"[..]));
        let cut = show(&stream.concat()[..9], &mut out, &mut err);
        assert!(cut.is_err());
        assert!(show(&[1, 255, 0, 0, 0][..], &mut out, &mut err).is_err());
    }

    #[test]
    fn leaving_passes_on_what_was_typed_before_and_only_a_terminal_leaves() {
        let mut to = Vec::new();
        assert!(pass_on(&mut &b"ab\x1dcd"[..], Some(&mut to), true).unwrap());
        assert_eq!(to, b"ab");
        assert!(!pass_on(&mut &b"\x1dcd"[..], Some(&mut to), false).unwrap());
        assert_eq!(to, b"ab\x1dcd");
    }
}

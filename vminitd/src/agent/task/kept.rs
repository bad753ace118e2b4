//! Under which keys init keeps what a process's stdio needs to outlive the agent.
//!
//! Closing takes two steps (the other side sees an end only when the last copy is closed), so what
//! is closed at different times has keys of its own.

use std::os::fd::{AsFd, BorrowedFd};

use crate::agent::Agent;
use crate::agent::stdio::input::Source;
use crate::agent::stdio::output::Sink;
use crate::agent::stdio::wiring::{CONSOLE, Ends, Pipes, STDERR_TO, STDIN, STDIN_FROM, STDOUT_TO};
use crate::link::agent::LinkError;
use crate::link::message::Target;

/// Of the read ends: until the process is deleted.
pub fn outputs(target: &Target) -> String {
    format!("process/{}/{}", target.container, target.exec)
}

/// Of the write end of stdin's pipe: until stdin ends.
pub fn stdin(target: &Target) -> String {
    format!("{STDIN}/{}/{}", target.container, target.exec)
}

/// Of the write end of the pipe behind a terminal: until the terminal hangs up.
pub fn console(target: &Target) -> String {
    format!("{CONSOLE}/{}/{}", target.container, target.exec)
}

/// Of what an output goes to, if that is in the guest: until the output ends. `name` is
/// [`STDOUT_TO`] or [`STDERR_TO`].
pub fn sink(target: &Target, name: &str) -> String {
    format!("{name}/{}/{}", target.container, target.exec)
}

/// All of them.
pub fn all(target: &Target) -> [String; 5] {
    [
        outputs(target),
        stdin(target),
        console(target),
        sink(target, STDOUT_TO),
        sink(target, STDERR_TO),
    ]
}

/// Puts a process's pipes, and what they lead to in the guest, into safe keeping.
pub async fn keep(
    agent: &Agent,
    target: &Target,
    pipes: &Pipes,
    ends: &Ends,
) -> Result<(), LinkError> {
    for (name, end) in [(STDOUT_TO, &ends.stdout), (STDERR_TO, &ends.stderr)] {
        if let Some(Sink::File(end)) = end {
            agent.init.keep(sink(target, name), vec![name.to_owned()], &[end.as_fd()]).await?;
        }
    }
    if let Some(Source::File(end) | Source::Fifo(end)) = &ends.stdin {
        agent.init.keep(stdin(target), vec![STDIN_FROM.to_owned()], &[end.as_fd()]).await?;
    }
    let (names, fds): (Vec<String>, Vec<BorrowedFd<'_>>) = pipes.read_ends().unzip();
    if !fds.is_empty() {
        agent.init.keep(outputs(target), names, &fds).await?;
    }
    if let Some(write) = &pipes.stdin {
        agent.init.keep(stdin(target), vec![STDIN.to_owned()], &[write.as_fd()]).await?;
    }
    if let Some(write) = &pipes.console_out {
        agent.init.keep(console(target), vec![CONSOLE.to_owned()], &[write.as_fd()]).await?;
    }
    Ok(())
}

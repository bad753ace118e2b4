//! Under which keys init keeps what a process's stdio needs to outlive the agent.
//!
//! Closing takes two steps (the other side sees an end only when the last copy is closed), so what
//! is closed at different times has keys of its own.

use std::os::fd::{AsFd, BorrowedFd};

use crate::agent::Agent;
use crate::agent::stdio::wiring::{CONSOLE, Pipes, STDIN};
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

/// All of them.
pub fn all(target: &Target) -> [String; 3] {
    [outputs(target), stdin(target), console(target)]
}

/// Puts a process's pipes into safe keeping.
pub async fn keep(agent: &Agent, target: &Target, pipes: &Pipes) -> Result<(), LinkError> {
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

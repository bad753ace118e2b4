//! What init tells every new agent before it goes on: listeners, kept fds, processes, exits.
//!
//! Owns: all of it, until the agent has rebuilt its state from it.
//! Promises: nothing of it is acted on before all of it is there.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use crate::link::agent::{Link, LinkError};
use crate::link::message::{Exit, Failure, ProcessHandle, RequestId, Target, ToAgent, ToInit};

/// Everything that init knows.
#[derive(Debug, Default)]
pub struct Handover {
    /// 1 for the first agent of this boot.
    pub generation: u32,
    /// First request number to use.
    pub first_request: RequestId,
    /// Nothing of the boot is left to do.
    pub boot_complete: bool,
    /// The RPC listener, then the stream listener.
    pub listeners: Vec<OwnedFd>,
    /// Kept fds by key, each with its name.
    pub kept: HashMap<String, Vec<(String, OwnedFd)>>,
    /// Processes that nobody told init to forget, by the request that launched them.
    pub launched: HashMap<RequestId, Process>,
    /// Launches under way, and for whom.
    pub launching: HashMap<RequestId, Target>,
    /// Launches that failed while there was no agent.
    pub failed: HashMap<RequestId, (Failure, String)>,
    /// Exits that are not acknowledged.
    pub exits: Vec<Exit>,
    /// The VM ends; what containers get between SIGTERM and SIGKILL, in milliseconds.
    pub shutting_down: Option<u64>,
}

/// A process that init knows.
#[derive(Debug)]
pub struct Process {
    /// Whose it is.
    pub target: Target,
    /// init's name for it.
    pub process: ProcessHandle,
    /// In the root pid namespace.
    pub pid: i32,
    /// Its pidfd first.
    pub fds: Vec<OwnedFd>,
}

/// Receives it, up to Caught.
pub async fn receive(link: &Link) -> Result<Handover, LinkError> {
    let mut all = Handover::default();
    loop {
        let (message, fds) = link.recv().await?;
        match message {
            ToAgent::Welcome { generation, first_request, boot_complete, stamps: _ } => {
                (all.generation, all.first_request, all.listeners) =
                    (generation, first_request, fds);
                all.boot_complete = boot_complete;
            }
            ToAgent::Kept { key, names } => {
                all.kept.entry(key).or_default().extend(names.into_iter().zip(fds));
            }
            ToAgent::Launched { request, target, process, pid } => {
                all.launched.insert(request, Process { target, process, pid, fds });
            }
            ToAgent::Launching { request, target } => {
                all.launching.insert(request, target);
            }
            ToAgent::LaunchFailed { request, target: _, failure, reason } => {
                all.failed.insert(request, (failure, reason));
            }
            ToAgent::Exited(exit) => all.exits.push(exit),
            // A start or delete with hooks that ended meanwhile: what it did shows by itself.
            ToAgent::Done { .. } | ToAgent::Released { .. } | ToAgent::Supervisor { .. } => {}
            ToAgent::BootComplete => all.boot_complete = true,
            ToAgent::Ping { beat } => link.send(&ToInit::Pong { beat }, &[]).await?,
            ToAgent::ShuttingDown { grace_ms } => all.shutting_down = Some(grace_ms),
            ToAgent::Caught => return Ok(all),
        }
    }
}

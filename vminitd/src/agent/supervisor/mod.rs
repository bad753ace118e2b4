//! The injected supervisor, as far as the agent has a part in it: when it is looked for, what
//! becomes of its output, and what a host may ask. The process is init's.
//!
//! Owns: this agent's end of its output.
//! Promises: nothing happens in a VM without one; it is looked for once the extras are there, or a
//! while after serving; its output is taken from the moment of its first start on, by each agent.
//! Never: starts or stops it (init does), or reads its configuration.

mod log;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{error, warn};
use vminitd_protocol::pb::vminitd::v1::SupervisorStatusResponse;

use super::Agent;
use super::errors::RpcError;
use super::extras;
use crate::chain;
use crate::config::LogLevel;
use crate::limits::SUPERVISOR_PIPE_BYTES;
use crate::link::message::{SupervisorOrder, SupervisorStatus};
use crate::paths;
use crate::sys::splice::{pipe, set_room};

/// The supervisor, for this agent.
#[derive(Debug, Default)]
pub struct Supervisor {
    /// init was told to start it, by this agent or one before.
    begun: AtomicBool,
    /// Held by who begins it: two would make two pipes.
    beginning: tokio::sync::Mutex<()>,
}

impl Supervisor {
    /// To be called once, when the agent serves. `output` is what init has kept, if an agent before
    /// has begun it.
    pub fn take_over(&self, agent: &Arc<Agent>, output: Option<Vec<(String, OwnedFd)>>) {
        if let Some((_, output)) = output.into_iter().flatten().next() {
            self.begun.store(true, Ordering::Relaxed);
            self.write_log(agent, output);
            return;
        }
        let agent = agent.clone();
        // As long as the agent: it looks once.
        tokio::spawn(async move {
            match agent.config.extras_disk {
                // It may be among them; however long they take.
                Some(_) => extras::extract(&agent).await,
                None => tokio::time::sleep(agent.config.supervisor_delay).await,
            }
            if let Err(error) = agent.supervisor.begin(&agent).await {
                error!(error = %chain(&error), "the supervisor is not started");
            }
        });
    }

    /// Has it started, unless it was. False when there is none.
    async fn begin(&self, agent: &Arc<Agent>) -> Result<bool, RpcError> {
        let _one = self.beginning.lock().await;
        if self.begun.load(Ordering::Relaxed) {
            return Ok(true);
        }
        // In memory, or on a disk that our own program comes from.
        if !paths::SUPERVISOR_PROGRAMS.iter().any(|path| std::fs::metadata(path).is_ok()) {
            return Ok(false);
        }
        let failed = |error| RpcError::Failed(format!("make a pipe for its output: {error}"));
        let (read, write) = pipe().map_err(failed)?;
        if let Err(error) = set_room(write.as_fd(), SUPERVISOR_PIPE_BYTES) {
            warn!(%error, "the supervisor's pipe keeps its usual size");
        }
        agent
            .init
            .supervise([read.as_fd(), write.as_fd()])
            .await
            .map_err(|error| RpcError::failed(&error))?;
        self.begun.store(true, Ordering::Relaxed);
        self.write_log(agent, read);
        Ok(true)
    }

    fn write_log(&self, agent: &Arc<Agent>, output: OwnedFd) {
        let show = agent.config.log == LogLevel::Debug;
        match log::Pump::new(output, show) {
            // As long as the agent.
            Ok(pump) => drop(tokio::spawn(pump.run())),
            Err(error) => error!(%error, "the supervisor's output is not taken"),
        }
    }
}

/// `Machine.SupervisorStatus`.
pub async fn status(agent: Arc<Agent>) -> Result<SupervisorStatusResponse, RpcError> {
    if !agent.supervisor.begun.load(Ordering::Relaxed) {
        return Err(RpcError::NoSupervisor);
    }
    ask(&agent, SupervisorOrder::Status).await
}

/// `Machine.SupervisorStart`.
pub async fn start(agent: Arc<Agent>) -> Result<SupervisorStatusResponse, RpcError> {
    if !agent.supervisor.begin(&agent).await? {
        return Err(RpcError::NoSupervisor);
    }
    ask(&agent, SupervisorOrder::Start).await
}

/// `Machine.SupervisorStop`.
pub async fn stop(agent: Arc<Agent>) -> Result<SupervisorStatusResponse, RpcError> {
    if !agent.supervisor.begun.load(Ordering::Relaxed) {
        return Err(RpcError::NoSupervisor);
    }
    ask(&agent, SupervisorOrder::Stop).await
}

async fn ask(agent: &Agent, order: SupervisorOrder) -> Result<SupervisorStatusResponse, RpcError> {
    let answer = agent.init.supervisor(order).await.map_err(|error| RpcError::failed(&error))?;
    let status = answer.map_err(RpcError::SupervisorRefused)?;
    let SupervisorStatus { state, pid, restarts, next_restart_ms, last_exit } = status;
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    Ok(SupervisorStatusResponse { state, pid, restarts, next_restart_ms, last_exit })
}

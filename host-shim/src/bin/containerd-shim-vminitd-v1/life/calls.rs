//! The calls about a container that is there: most are the guest's to answer.
//!
//! Promises: an agent that is replaced meanwhile is not noticed; without a VM, State, Wait and Delete answer from what is
//! known, and Kill says that it is over; Wait and Delete answer when the output is handed over.
//! Never: asks the guest about a container that containerd has not created.

use std::sync::Arc;

use host_shim::chain;
use host_shim::guest::{CallError, Guest, unlimited};
use tracing::warn;
use ttrpc::Code;
use vminitd_protocol::pb::containerd::task::v3::*;
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::pb::google::protobuf::Timestamp;

use super::create::connect;
use super::failure::Failure;
use super::process::{Container, Process};
use super::shim::Shim;
use super::stdio::{Stdio, Wish};
use crate::protocol::delete::{Exit, killed};

/// How often a call is tried that the agent was lost under.
const TRIES: usize = 5;

/// What a process that could not be started exits with.
const NOT_STARTED: u32 = 255;

/// Makes a call of the guest's Task service as often as it takes.
macro_rules! ask {
    ($shim:expr, $method:ident, $request:expr) => {{
        let (sandbox, request) = ($shim.vm()?, $request);
        let call = |guest: Guest| {
            let request = request.clone();
            async move { guest.task().$method(unlimited(), &request).await }
        };
        match sandbox.guest.call(call).await {
            Err(CallError::Gone(_)) => Err($shim.gone().await),
            other => other.map_err(Failure::from),
        }
    }};
}

/// Calls that the guest answers for a container that we know.
macro_rules! pass_on {
    ($($method:ident: $request:ident -> $answer:ty;)*) => {
        $(
            /// The call.
            pub async fn $method(self: &Arc<Self>, request: $request) -> Result<$answer, Failure> {
                self.container(&request.id)?;
                ask!(self, $method, request)
            }
        )*
    };
}

impl Shim {
    pass_on! {
        pause: PauseRequest -> vminitd_protocol::pb::google::protobuf::Empty;
        resume: ResumeRequest -> vminitd_protocol::pb::google::protobuf::Empty;
        checkpoint: CheckpointTaskRequest -> vminitd_protocol::pb::google::protobuf::Empty;
        resize_pty: ResizePtyRequest -> vminitd_protocol::pb::google::protobuf::Empty;
        update: UpdateTaskRequest -> vminitd_protocol::pb::google::protobuf::Empty;
        stats: StatsRequest -> StatsResponse;
    }

    /// The call. The init is in the answer under the pid by which containerd knows it.
    pub async fn pids(self: &Arc<Self>, request: PidsRequest) -> Result<PidsResponse, Failure> {
        let container = self.container(&request.id)?;
        let mut answer: PidsResponse = ask!(self, pids, request)?;
        let init = container.init.pid();
        for process in answer.processes.iter_mut().filter(|process| process.pid == init) {
            process.pid = self.host_pid(&container.id, "", init);
        }
        Ok(answer)
    }

    /// Waits until it is known how the VM ended; says it.
    async fn gone(&self) -> Failure {
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
        self.over()
    }

    /// The call.
    pub async fn state(self: &Arc<Self>, request: StateRequest) -> Result<StateResponse, Failure> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let state: Result<StateResponse, Failure> = ask!(self, state, request);
        let state = match state {
            Err(Failure::Ended(_)) => {
                let exit = process.exit().unwrap_or_else(killed);
                StateResponse {
                    pid: process.pid(),
                    status: Status::Stopped.into(),
                    exit_status: exit.status,
                    exited_at: Some(timestamp(exit)),
                    ..Default::default()
                }
            }
            state => state?,
        };
        let Wish { stdin, stdout, stderr, terminal, .. } = process.wish.clone();
        Ok(StateResponse {
            pid: self.host_pid(&container.id, &process.exec, state.pid),
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            stdin,
            stdout,
            stderr,
            terminal,
            exec_id: process.exec.clone(),
            ..state
        })
    }

    /// The call.
    pub async fn start(self: &Arc<Self>, request: StartRequest) -> Result<StartResponse, Failure> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let sandbox = self.vm()?;
        if process.exec.is_empty() {
            let up = self.network.bring_up(&sandbox, &container.bundle).await;
            up.map_err(|error| Failure::failed(&error))?;
        }
        process.stdio().begin_input().map_err(|error| Failure::failed(&error))?;
        for _ in 0..TRIES {
            let once = request.clone();
            let start = |guest: Guest| async move { guest.task().start(unlimited(), &once).await };
            let pid = match sandbox.guest.once(start).await {
                Ok(started) => started.pid,
                Err(CallError::Lost(_)) => {
                    let asked =
                        StateRequest { id: request.id.clone(), exec_id: request.exec_id.clone() };
                    let state: StateResponse = ask!(self, state, asked)?;
                    if state.status() == Status::Created {
                        continue;
                    }
                    state.pid
                }
                Err(CallError::Gone(_)) => return Err(self.gone().await),
                Err(error) => {
                    if !process.exec.is_empty() {
                        process.set_exit(Exit { status: NOT_STARTED, ..killed() });
                    }
                    return Err(error.into());
                }
            };
            process.set_pid(pid);
            process.set_started();
            if process.exec.is_empty() {
                run_hooks(&container, "poststart", "running").await;
                sandbox.started.send_if_modified(|id| {
                    let first = id.is_none();
                    id.get_or_insert_with(|| container.id.clone());
                    first
                });
            }
            return Ok(StartResponse { pid: self.host_pid(&request.id, &request.exec_id, pid) });
        }
        Err(Failure::Failed(format!("the guest's agent was lost {TRIES} times meanwhile")))
    }

    /// The call.
    pub async fn exec(self: &Arc<Self>, request: ExecProcessRequest) -> Result<(), Failure> {
        let container = self.container(&request.id)?;
        let sandbox = self.vm()?;
        if request.exec_id.is_empty() {
            return Err(Failure::Invalid("an exec has no id".to_owned()));
        }
        let wish = Wish {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            container: request.id.clone(),
            namespace: self.settings.namespace.clone(),
        };
        let process = Arc::new(Process::new(request.exec_id.clone(), wish, Stdio::default()));
        if !container.add(process.clone()) {
            return Err(Failure::Exists(format!("id {}", request.exec_id)));
        }
        let added = async {
            for _ in 0..TRIES {
                let Some(uris) = connect(&sandbox, &process).await? else { continue };
                let once = ExecProcessRequest {
                    stdin: uris.stdin,
                    stdout: uris.stdout,
                    stderr: uris.stderr,
                    ..request.clone()
                };
                let exec =
                    |guest: Guest| async move { guest.task().exec(unlimited(), &once).await };
                match sandbox.guest.once(exec).await {
                    Ok(_) => return Ok(()),
                    Err(CallError::Lost(_)) => {
                        // It may be there, with streams that are. If not, again.
                        let asked = StateRequest {
                            id: request.id.clone(),
                            exec_id: request.exec_id.clone(),
                        };
                        let state: Result<StateResponse, Failure> = ask!(self, state, asked);
                        match state {
                            Ok(_) => return Ok(()),
                            Err(error) if error.is_not_found() => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Err(CallError::Gone(_)) => return Err(self.gone().await),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Failure::Failed(format!("the guest's agent was lost {TRIES} times meanwhile")))
        };
        let added = added.await;
        if added.is_err() {
            container.remove(&request.exec_id);
        }
        added
    }

    /// The call.
    pub async fn kill(self: &Arc<Self>, request: KillRequest) -> Result<(), Failure> {
        self.process(&request.id, &request.exec_id)?;
        let killed: Result<_, Failure> = ask!(self, kill, request);
        match killed {
            Ok(_) => Ok(()),
            Err(Failure::Ended(_)) => Err(Failure::Finished),
            Err(error) => Err(error),
        }
    }

    /// The call. Input ends when nobody else holds its FIFO; where there is none, there is nothing to end.
    pub async fn close_io(self: &Arc<Self>, request: CloseIoRequest) -> Result<(), Failure> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.stdio().close_stdin();
        }
        Ok(())
    }

    /// The call: answered when the process has ended and what it wrote is handed over.
    pub async fn wait(self: &Arc<Self>, request: WaitRequest) -> Result<WaitResponse, Failure> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let answer = |exit: Exit| WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit)),
            ..Default::default()
        };
        let guest = async { ask!(self, wait, request) };
        let told: Result<WaitResponse, Failure> = tokio::select! {
            exit = process.exited() => return Ok(answer(exit)),
            told = guest => told,
        };
        match told {
            Ok(told) => {
                process.stdio().handed_over(told.stdout_bytes, told.stderr_bytes).await;
                Ok(WaitResponse { stdout_bytes: 0, stderr_bytes: 0, ..told })
            }
            Err(Failure::Ended(_)) => Ok(answer(process.exited().await)),
            Err(error) => Err(error),
        }
    }

    /// The call.
    pub async fn delete(
        self: &Arc<Self>,
        request: DeleteRequest,
    ) -> Result<DeleteResponse, Failure> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        if let Some(exit) = self.last_words(&container, &process) {
            process.stdio().ended().await;
            self.leave_to_guest(request);
            self.forget(&container).await?;
            let mut deleted = of(&process, exit);
            deleted.pid = self.host_pid(&container.id, "", deleted.pid);
            self.publish_delete(&container.id, &deleted);
            return Ok(deleted);
        }
        let deleted = match self.delete_in_guest(request).await {
            Ok(deleted) => deleted,
            Err(Failure::Ended(_)) => of(&process, process.exit().unwrap_or_else(killed)),
            // A Delete that was carried out and not answered, and so was made again.
            Err(Failure::Guest(status)) if status.code() == Code::NOT_FOUND => {
                of(&process, process.exit().unwrap_or_else(killed))
            }
            Err(error) => return Err(error),
        };
        let pid = self.host_pid(&container.id, &process.exec, deleted.pid);
        process.stdio().ended().await;
        if process.exec.is_empty() {
            self.forget(&container).await?;
        } else {
            container.remove(&process.exec);
        }
        Ok(DeleteResponse { pid, ..deleted })
    }

    async fn delete_in_guest(&self, request: DeleteRequest) -> Result<DeleteResponse, Failure> {
        ask!(self, delete, request)
    }

    /// How a container ended, if nothing of it in the guest matters to the host any more: its exit is published, its
    /// execs are deleted, it was the only one of its VM, which goes next, and no disk has to be let go by the guest before.
    fn last_words(&self, container: &Container, process: &Process) -> Option<Exit> {
        let last = process.exec.is_empty()
            && process.exit_is_told()
            && container.execs().is_empty()
            && container.disks.is_empty()
            && self.ended.borrow().is_none()
            && self.containers().len() == 1;
        last.then(|| process.exit()).flatten()
    }

    /// Has the guest delete a container while containerd goes on; the next Create waits for it.
    fn leave_to_guest(self: &Arc<Self>, request: DeleteRequest) {
        let shim = self.clone();
        let left = self.leave();
        self.lanes.tell_no_end(&request.id);
        tokio::spawn(async move {
            let id = request.id.clone();
            let deleted = shim.delete_in_guest(request).await;
            if let Err(error) = deleted {
                warn!(container = id, %error, "the guest does not delete a container; it goes with its VM");
            }
            drop(left);
        });
    }

    /// Gives up what a container that is deleted has on the host.
    async fn forget(&self, container: &Arc<Container>) -> Result<(), Failure> {
        self.release(&self.vm()?, &container.id, &container.disks).await;
        self.remove(&container.id);
        run_hooks(container, "poststop", "stopped").await;
        Ok(())
    }

    /// The call. An unknown container is no error.
    pub fn connect(&self, request: &ConnectRequest) -> ConnectResponse {
        let task_pid = self
            .container(&request.id)
            .map_or(0, |container| self.host_pid(&container.id, "", container.init.pid()));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        ConnectResponse { shim_pid: std::process::id(), task_pid, version }
    }
}

/// Those that come too late to be refused.
async fn run_hooks(container: &Container, kind: &str, status: &str) {
    if let Some(hooks) = &container.hooks
        && let Err(error) = hooks.run(kind, status).await
    {
        warn!(container = container.id, error = chain(&error), "a hook failed");
    }
}

fn of(process: &Process, exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid: process.pid(),
        exit_status: exit.status,
        exited_at: Some(timestamp(exit)),
    }
}

fn timestamp(exit: Exit) -> Timestamp {
    Timestamp { seconds: exit.seconds, nanos: exit.nanos }
}

//! Further processes in a test's container.
//!
//! Promises: as with containers, output is read from the beginning, so that no test blocks its own process by accident.

use std::time::Duration;

use host_shim::guest::unlimited;
use host_shim::vmm::GuestStream;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::{
    DeleteRequest, ExecProcessRequest, KillRequest, StartRequest, StateRequest, StateResponse,
    WaitRequest, WaitResponse,
};
use vminitd_protocol::pb::google::protobuf::Any;

use crate::container::{Output, Task};
use crate::{Exit, PATIENCE_S, Vm};

/// A further process as a test wants it.
#[derive(Clone, Debug)]
pub struct ExecWish {
    /// The OCI process, to be changed at will.
    pub process: Value,
    /// Connect stdin.
    pub stdin: bool,
    /// Give it a terminal.
    pub terminal: bool,
    /// Where stdout goes; `None`: a stream that the harness reads.
    pub stdout_uri: Option<String>,
    /// Where stderr goes; likewise.
    pub stderr_uri: Option<String>,
}

impl ExecWish {
    /// A process with these arguments, root, with the container's capabilities.
    pub fn new(args: &[&str]) -> Self {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let process = json!({ "args": args, "env": [path], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true });
        Self { process, stdin: false, terminal: false, stdout_uri: None, stderr_uri: None }
    }

    /// A shell script.
    pub fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Connects stdin.
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// Gives it a terminal, and connects stdin to it.
    pub fn with_terminal(mut self) -> Self {
        (self.stdin, self.terminal) = (true, true);
        self
    }
}

/// An exec that was added.
pub struct Exec<'vm> {
    vm: &'vm Vm,
    /// Its container.
    pub container: String,
    /// Its id.
    pub id: String,
    /// Write to it, and shut it down or drop it to end the input.
    pub stdin: Option<GuestStream>,
    output: Output,
}

/// An exec that was started, of which Wait was asked before Start.
pub struct RunningExec<'vm> {
    /// The exec.
    pub exec: Exec<'vm>,
    /// Its pid in the guest.
    pub pid: u32,
    waiting: JoinHandle<ttrpc::Result<WaitResponse>>,
    answer: Option<WaitResponse>,
}

impl<'vm> Task<'vm> {
    /// Streams and Exec.
    pub async fn exec(&self, id: &str, wish: ExecWish) -> ttrpc::Result<Exec<'vm>> {
        self.vm.exec_in(&self.id, id, wish).await
    }

    /// A further process's whole life.
    pub async fn run_exec(&self, id: &str, wish: ExecWish) -> Exit {
        let exec = self.exec(id, wish).await.unwrap_or_else(|error| panic!("exec {id}: {error}"));
        let running =
            exec.start().await.unwrap_or_else(|error| panic!("start of exec {id}: {error}"));
        running.finish().await
    }
}

impl Vm {
    /// Streams and Exec in the container of this id.
    pub async fn exec_in(
        &self,
        container: &str,
        id: &str,
        wish: ExecWish,
    ) -> ttrpc::Result<Exec<'_>> {
        let name = format!("{container}-{id}");
        let stdin = match wish.stdin {
            true => Some(self.stream(&format!("{name}-stdin")).await),
            false => None,
        };
        let (stdout_uri, stdout) = self.output(wish.stdout_uri, &format!("{name}-out")).await;
        let stderr_uri = if wish.terminal { Some(String::new()) } else { wish.stderr_uri };
        let (stderr_uri, stderr) = self.output(stderr_uri, &format!("{name}-err")).await;
        let request = ExecProcessRequest {
            id: container.to_owned(),
            exec_id: id.to_owned(),
            terminal: wish.terminal,
            stdin: stdin.as_ref().map_or_else(String::new, |_| format!("stream://{name}-stdin")),
            stdout: stdout_uri,
            stderr: stderr_uri,
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: serde_json::to_vec(&wish.process).expect("a value is JSON"),
            }),
        };
        self.guest().task().exec(unlimited(), &request).await?;
        let output = Output { stdout, stderr };
        Ok(Exec { vm: self, container: container.to_owned(), id: id.to_owned(), stdin, output })
    }
}

impl<'vm> Exec<'vm> {
    /// Asks Wait, then starts.
    pub async fn start(self) -> ttrpc::Result<RunningExec<'vm>> {
        let task = self.vm.guest().task();
        let request = WaitRequest { id: self.container.clone(), exec_id: self.id.clone() };
        let waiting = tokio::spawn(async move { task.wait(unlimited(), &request).await });
        let request = StartRequest { id: self.container.clone(), exec_id: self.id.clone() };
        let pid = self.vm.guest().task().start(unlimited(), &request).await?.pid;
        Ok(RunningExec { exec: self, pid, waiting, answer: None })
    }

    /// State.
    pub async fn state(&self) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: self.container.clone(), exec_id: self.id.clone() };
        self.vm.guest().task().state(unlimited(), &request).await
    }

    /// Sends a signal.
    pub async fn kill(&self, signal: i32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.container.clone(),
            exec_id: self.id.clone(),
            signal: signal as u32,
            ..Default::default()
        };
        self.vm.guest().task().kill(unlimited(), &request).await.map(drop)
    }

    /// Asks Wait, on the connection that the VM has now.
    pub async fn wait(&self) -> ttrpc::Result<WaitResponse> {
        let request = WaitRequest { id: self.container.clone(), exec_id: self.id.clone() };
        self.vm.guest().task().wait(unlimited(), &request).await
    }

    /// Deletes, and returns the output.
    pub async fn delete(self) -> ttrpc::Result<(Vec<u8>, Vec<u8>)> {
        drop(self.stdin);
        let request = DeleteRequest { id: self.container.clone(), exec_id: self.id.clone() };
        self.vm.guest().task().delete(unlimited(), &request).await?;
        Ok(self.output.collected(&self.id).await)
    }
}

impl RunningExec<'_> {
    /// Waits for the exit, for [`PATIENCE_S`] at most.
    pub async fn exit(&mut self) -> WaitResponse {
        if let Some(answer) = self.answer {
            return answer;
        }
        let answer = timeout(Duration::from_secs(PATIENCE_S), &mut self.waiting).await;
        let answer = answer
            .unwrap_or_else(|_| panic!("{}: no exit", self.exec.id))
            .expect("Wait does not panic");
        let answer = match answer {
            Ok(answer) => answer,
            // The agent was killed meanwhile: ask the next.
            Err(_) => self
                .exec
                .wait()
                .await
                .unwrap_or_else(|error| panic!("wait of {}: {error}", self.exec.id)),
        };
        self.answer = Some(answer);
        answer
    }

    /// Waits for the exit, deletes, and collects the output.
    pub async fn finish(mut self) -> Exit {
        let wait = self.exit().await;
        let id = self.exec.id.clone();
        let (stdout, stderr) =
            self.exec.delete().await.unwrap_or_else(|error| panic!("delete of exec {id}: {error}"));
        Exit { status: wait.exit_status, stdout, stderr, wait }
    }
}

//! A test's containers: a wish becomes a task, a task runs, and its exit has all of its output.
//!
//! Promises: output is read from the moment of Create on, so that no test blocks its own container by accident.

use std::time::Duration;

use host_shim::container::{ProcessWish, default_spec, shared_rootfs};
use host_shim::guest::unlimited;
use host_shim::vmm::GuestStream;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::{
    CreateTaskRequest, DeleteRequest, KillRequest, StartRequest, StateRequest, StateResponse,
    WaitRequest, WaitResponse,
};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::google::protobuf::Any;

use crate::vm::ROOTFS_TAG;
use crate::{PATIENCE_S, Vm};

/// A container as a test wants it.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The OCI spec, to be changed at will.
    pub spec: Value,
    /// Connect stdin.
    pub stdin: bool,
    /// Give it a terminal.
    pub terminal: bool,
    /// Further files of the bundle.
    pub files: Vec<(String, Vec<u8>)>,
    /// The rootfs's mounts; `None`: the shared busybox below a tmpfs.
    pub mounts: Option<Vec<Mount>>,
    /// Where stdin comes from, when the test itself has opened that.
    pub stdin_uri: Option<String>,
    /// Where stdout goes; `None`: a stream that the harness reads.
    pub stdout_uri: Option<String>,
    /// Where stderr goes; likewise.
    pub stderr_uri: Option<String>,
    /// `Some`: used as config.json instead of the spec.
    pub raw_config: Option<Vec<u8>>,
    /// Runtime options of Create.
    pub options: Option<Any>,
}

/// A mount of a root filesystem's list.
pub fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

impl Wish {
    /// The default container with these arguments.
    pub fn new(args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let wish = ProcessWish { args, env: Vec::new(), hostname: "test".to_owned() };
        let spec = serde_json::to_value(default_spec(&wish)).expect("a spec is JSON");
        Self {
            spec,
            stdin: false,
            stdin_uri: None,
            terminal: false,
            files: Vec::new(),
            mounts: None,
            stdout_uri: None,
            stderr_uri: None,
            raw_config: None,
            options: None,
        }
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

    /// Adds a file to the bundle.
    pub fn with_file(mut self, name: &str, content: &[u8]) -> Self {
        self.files.push((name.to_owned(), content.to_vec()));
        self
    }

    /// Shares the guest's pid namespace.
    pub fn in_guest_pid_namespace(mut self) -> Self {
        let namespaces =
            self.spec["linux"]["namespaces"].as_array_mut().expect("the default spec has some");
        namespaces.retain(|namespace| namespace["type"] != "pid");
        self
    }

    /// Gives it every capability that there is, as a privileged container has them.
    pub fn with_all_capabilities(mut self) -> Self {
        for set in ["bounding", "effective", "permitted"] {
            self.spec["process"]["capabilities"][set] = json!(ALL_CAPABILITIES.as_slice());
        }
        self
    }

    /// Mounts the guest's root on /guest, and keeps nothing from the container but what the kernel does.
    pub fn with_guest_root(mut self) -> Self {
        let mounts = self.spec["mounts"].as_array_mut().expect("the default spec has some");
        mounts.push(json!({
            "destination": "/guest", "type": "bind", "source": "/", "options": ["rbind", "rprivate"],
        }));
        self.spec["linux"]["maskedPaths"] = json!([]);
        self.spec["linux"]["readonlyPaths"] = json!([]);
        let all = [
            "CAP_SYS_PTRACE",
            "CAP_SYS_ADMIN",
            "CAP_KILL",
            "CAP_DAC_OVERRIDE",
            "CAP_DAC_READ_SEARCH",
        ];
        for set in ["bounding", "effective", "permitted"] {
            let caps = self.spec["process"]["capabilities"][set].as_array_mut().expect("a set");
            caps.extend(
                all.iter()
                    .filter(|cap| !caps.contains(&json!(cap)))
                    .map(|cap| json!(cap))
                    .collect::<Vec<_>>(),
            );
        }
        self
    }
}

/// Every capability, by name.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A created container.
pub struct Task<'vm> {
    pub(crate) vm: &'vm Vm,
    /// Its id.
    pub id: String,
    /// Its pid in the guest.
    pub pid: u32,
    /// Write to it, and shut it down or drop it to end the input.
    pub stdin: Option<GuestStream>,
    output: Output,
}

/// What a process writes, read as it comes.
pub(crate) struct Output {
    pub(crate) stdout: JoinHandle<Vec<u8>>,
    pub(crate) stderr: JoinHandle<Vec<u8>>,
}

/// A started container, of which Wait was asked before Start.
pub struct Running<'vm> {
    /// The container.
    pub task: Task<'vm>,
    waiting: JoinHandle<ttrpc::Result<WaitResponse>>,
    /// Wait's answer, once it has come.
    answer: Option<WaitResponse>,
}

/// How it ended.
#[derive(Debug)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: Vec<u8>,
    /// What Wait answered.
    pub wait: WaitResponse,
}

impl Exit {
    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Vm {
    /// Bundle, streams and Create; an error is Create's.
    pub async fn create(&self, id: &str, wish: Wish) -> ttrpc::Result<Task<'_>> {
        let bundle = self.make_bundle(id, &wish).await?;
        self.create_in(id, &bundle, wish).await
    }

    /// Bundle.Create alone; returns its directory in the guest.
    pub async fn make_bundle(&self, id: &str, wish: &Wish) -> ttrpc::Result<String> {
        let config = match &wish.raw_config {
            Some(raw) => raw.clone(),
            None => serde_json::to_vec(&wish.spec).expect("a value is JSON"),
        };
        let mut files = wish.files.clone();
        files.push(("config.json".to_owned(), config));
        let request = CreateRequest { id: id.to_owned(), files: files.into_iter().collect() };
        Ok(self.guest().bundle().create(unlimited(), &request).await?.bundle)
    }

    /// Streams and Create for a bundle that is there.
    pub async fn create_in(&self, id: &str, bundle: &str, wish: Wish) -> ttrpc::Result<Task<'_>> {
        let stdin = match wish.stdin {
            true => Some(self.stream(&format!("{id}-stdin")).await),
            false => None,
        };
        let (stdout_uri, stdout) = self.output(wish.stdout_uri, &format!("{id}-out")).await;
        let stderr_uri = if wish.terminal { Some(String::new()) } else { wish.stderr_uri };
        let (stderr_uri, stderr) = self.output(stderr_uri, &format!("{id}-err")).await;
        let output = Output { stdout, stderr };
        let request = CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            rootfs: wish.mounts.unwrap_or_else(|| shared_rootfs(ROOTFS_TAG, bundle)),
            stdin: match &stdin {
                Some(_) => format!("stream://{id}-stdin"),
                None => wish.stdin_uri.unwrap_or_default(),
            },
            stdout: stdout_uri,
            stderr: stderr_uri,
            terminal: wish.terminal,
            options: wish.options,
            ..Default::default()
        };
        let pid = self.guest().task().create(unlimited(), &request).await?.pid;
        Ok(Task { vm: self, id: id.to_owned(), pid, stdin, output })
    }

    /// Create for the bundle of a container that exists, without streams.
    pub async fn create_again(&self, id: &str) -> ttrpc::Result<u32> {
        let bundle = format!("/run/bundles/{id}");
        let request = CreateTaskRequest { id: id.to_owned(), bundle, ..Default::default() };
        Ok(self.guest().task().create(unlimited(), &request).await?.pid)
    }

    /// Ends a container in whatever state, and waits until it is gone.
    pub async fn delete_by_force(&self, id: &str) {
        let id = id.to_owned();
        let kill = KillRequest { id: id.clone(), signal: 9, ..Default::default() };
        // Gone already is as good.
        let _ = self.guest().task().kill(unlimited(), &kill).await;
        let wait = WaitRequest { id: id.clone(), ..Default::default() };
        let _ =
            timeout(Duration::from_secs(PATIENCE_S), self.guest().task().wait(unlimited(), &wait))
                .await;
        let _ = self
            .guest()
            .task()
            .delete(unlimited(), &DeleteRequest { id, ..Default::default() })
            .await;
    }

    /// A container's whole life.
    pub async fn run(&self, id: &str, wish: Wish) -> Exit {
        let task =
            self.create(id, wish).await.unwrap_or_else(|error| panic!("create of {id}: {error}"));
        let running = task.start().await.unwrap_or_else(|error| panic!("start of {id}: {error}"));
        running.finish().await
    }

    /// The URI to ask for, and who reads it.
    pub(crate) async fn output(
        &self,
        uri: Option<String>,
        stream: &str,
    ) -> (String, JoinHandle<Vec<u8>>) {
        match uri {
            // The test reads it, or nobody does.
            Some(uri) => (uri, tokio::spawn(async { Vec::new() })),
            None => (format!("stream://{stream}"), collect(self.stream(stream).await)),
        }
    }

    /// Opens a stream.
    pub async fn stream(&self, id: &str) -> GuestStream {
        self.guest().stream(id).await.unwrap_or_else(|error| panic!("stream {id}: {error}"))
    }
}

fn collect(mut stream: GuestStream) -> JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let mut bytes = Vec::new();
        // A reset ends the output like an end of file does; what is missing shows in the bytes.
        let _ = stream.read_to_end(&mut bytes).await;
        bytes
    })
}

impl<'vm> Task<'vm> {
    /// Asks Wait, then starts.
    pub async fn start(self) -> ttrpc::Result<Running<'vm>> {
        let task = self.vm.guest().task();
        let request = WaitRequest { id: self.id.clone(), ..Default::default() };
        let waiting = tokio::spawn(async move { task.wait(unlimited(), &request).await });
        let request = StartRequest { id: self.id.clone(), ..Default::default() };
        self.vm.guest().task().start(unlimited(), &request).await?;
        Ok(Running { task: self, waiting, answer: None })
    }

    /// State.
    pub async fn state(&self) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        self.vm.guest().task().state(unlimited(), &request).await
    }

    /// Sends a signal to the init.
    pub async fn kill(&self, signal: i32) -> ttrpc::Result<()> {
        self.signal(signal, false).await
    }

    /// Sends a signal to every process of the container.
    pub async fn kill_all(&self, signal: i32) -> ttrpc::Result<()> {
        self.signal(signal, true).await
    }

    async fn signal(&self, signal: i32, all: bool) -> ttrpc::Result<()> {
        let request =
            KillRequest { id: self.id.clone(), signal: signal as u32, all, ..Default::default() };
        self.vm.guest().task().kill(unlimited(), &request).await.map(drop)
    }

    /// Asks Wait, on the connection that the VM has now.
    pub async fn wait(&self) -> ttrpc::Result<WaitResponse> {
        let request = WaitRequest { id: self.id.clone(), ..Default::default() };
        self.vm.guest().task().wait(unlimited(), &request).await
    }

    /// Deletes, and returns the output.
    pub async fn delete(self) -> ttrpc::Result<(Vec<u8>, Vec<u8>)> {
        drop(self.stdin);
        let request = DeleteRequest { id: self.id.clone(), ..Default::default() };
        self.vm.guest().task().delete(unlimited(), &request).await?;
        Ok(self.output.collected(&self.id).await)
    }
}

impl Output {
    /// Both, once they have ended, as they do with a Delete.
    pub(crate) async fn collected(self, whose: &str) -> (Vec<u8>, Vec<u8>) {
        let output =
            async { (self.stdout.await.expect("a reader"), self.stderr.await.expect("a reader")) };
        let output = timeout(Duration::from_secs(PATIENCE_S), output).await;
        output.unwrap_or_else(|_| panic!("{whose}: the output does not end after Delete"))
    }
}

impl Running<'_> {
    /// Waits for the exit, for [`PATIENCE_S`] at most.
    pub async fn exit(&mut self) -> WaitResponse {
        if let Some(answer) = self.answer {
            return answer;
        }
        let answer = timeout(Duration::from_secs(PATIENCE_S), &mut self.waiting).await;
        let answer = answer
            .unwrap_or_else(|_| panic!("{}: no exit", self.task.id))
            .expect("Wait does not panic");
        let answer = answer.unwrap_or_else(|error| panic!("wait of {}: {error}", self.task.id));
        self.answer = Some(answer);
        answer
    }

    /// Waits for the exit, deletes, and collects the output.
    pub async fn finish(mut self) -> Exit {
        let wait = self.exit().await;
        let id = self.task.id.clone();
        let (stdout, stderr) =
            self.task.delete().await.unwrap_or_else(|error| panic!("delete of {id}: {error}"));
        Exit { status: wait.exit_status, stdout, stderr, wait }
    }
}

//! Lives of containers and execs as a host leads them whose agent may be killed under any call.
//!
//! A call whose connection broke is asked about, and made again where that is what it takes: this is what docs/wire.md
//! tells a host to do. Whatever else comes is a failure of the guest and panics, with the console.
//!
//! Promises: what returns was whole: every byte, the exit's status, and nothing left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use host_shim::container::shared_rootfs;
use host_shim::guest::{CallError, SteadyGuest, unlimited};
use host_shim::vmm::GuestStream;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use ttrpc::Code;
use vminitd_protocol::pb::containerd::task::v3 as task;
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::google::protobuf::Any;

use crate::vm::ROOTFS_TAG;
use crate::{ExecWish, PATIENCE_S, Vm, Wish};

/// A host that goes on.
#[derive(Clone)]
pub struct Steady {
    guest: SteadyGuest,
}

/// A process that a host of this kind has started.
pub struct Life {
    /// Its container.
    pub id: String,
    /// Its exec id, or nothing.
    pub exec: String,
    stdin: Option<GuestStream>,
    stdout: Reader,
    stderr: Reader,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: Vec<u8>,
}

struct Wires {
    stdin: Option<GuestStream>,
    stdout: Reader,
    stderr: Reader,
    uris: [String; 3],
}

/// Reads a stream to its end; closes it when dropped.
struct Reader(JoinHandle<(Vec<u8>, bool)>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Steady {
    /// For the guest of this VM.
    pub fn new(vm: &Vm) -> Self {
        Self { guest: SteadyGuest::new(vm.guest(), Duration::from_secs(PATIENCE_S)) }
    }

    /// A call that may be made twice; what the guest refuses is the code and the text.
    pub async fn ask<T, F>(&self, call: impl Fn(task::TaskClient) -> F) -> Result<T, (Code, String)>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let answer = self.guest.call(|guest| call(guest.task()));
        match timeout(Duration::from_secs(PATIENCE_S), answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(CallError::Refused(status))) => Err((status.code(), status.message)),
            Ok(Err(error)) => panic!("{error:?}"),
            Err(_) => panic!("a call for a {} hangs", std::any::type_name::<T>()),
        }
    }

    async fn once<T, F>(&self, call: impl FnOnce(task::TaskClient) -> F) -> Result<T, CallError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let answer = self.guest.once(|guest| call(guest.task()));
        timeout(Duration::from_secs(PATIENCE_S), answer).await.expect("a call hangs")
    }

    /// Makes and starts a container, however often that takes.
    pub async fn run(&self, id: &str, wish: &Wish) -> Life {
        let (mut tries, mut wires) = (0, None);
        loop {
            let bundle = self.bundle(id, wish).await;
            let own = match wires.take() {
                Some(wires) => wires,
                None => self.wires(wish.stdin, wish.terminal).await,
            };
            let request = task::CreateTaskRequest {
                id: id.to_owned(),
                bundle: bundle.clone(),
                rootfs: shared_rootfs(ROOTFS_TAG, &bundle),
                stdin: own.uris[0].clone(),
                stdout: own.uris[1].clone(),
                stderr: own.uris[2].clone(),
                terminal: wish.terminal,
                ..Default::default()
            };
            let made =
                self.once(|client| async move { client.create(unlimited(), &request).await });
            match made.await {
                Ok(_) => {}
                // It is there, or it is not, or it is just being removed.
                Err(CallError::Lost(_)) if self.state(id, "").await.is_some() => {}
                Err(CallError::Lost(_)) => continue,
                Err(CallError::Refused(status)) => {
                    let text = &status.message;
                    // What a Create before this one left is still being removed, with its bundle;
                    // a stream's registration died with the agent.
                    let removing = status.code() == Code::ALREADY_EXISTS;
                    let again = removing
                        || text.contains("unable to get stream")
                        || text.contains("No such file");
                    assert!(again && tries < 500, "create of {id}: {text}");
                    if removing {
                        wires = Some(own);
                    }
                    tries += 1;
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            }
            return self.start(id, "", own).await;
        }
    }

    /// Makes and starts an exec, however often that takes.
    pub async fn exec(&self, id: &str, exec: &str, wish: &ExecWish) -> Life {
        let mut wires = self.wires(wish.stdin, wish.terminal).await;
        loop {
            let request = task::ExecProcessRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                terminal: wish.terminal,
                stdin: wires.uris[0].clone(),
                stdout: wires.uris[1].clone(),
                stderr: wires.uris[2].clone(),
                spec: Some(process(&wish.process)),
            };
            match self.once(|client| async move { client.exec(unlimited(), &request).await }).await
            {
                Ok(_) => break,
                Err(CallError::Lost(_)) if self.state(id, exec).await.is_some() => break,
                Err(CallError::Lost(_)) => wires = self.wires(wish.stdin, wish.terminal).await,
                Err(error) => panic!("exec {exec} in {id}: {error:?}"),
            }
        }
        self.start(id, exec, wires).await
    }

    async fn start(&self, id: &str, exec: &str, wires: Wires) -> Life {
        loop {
            let request = task::StartRequest { id: id.to_owned(), exec_id: exec.to_owned() };
            match self.once(|client| async move { client.start(unlimited(), &request).await }).await
            {
                Ok(_) => break,
                Err(CallError::Lost(_)) => {
                    let state = self.state(id, exec).await;
                    let state =
                        state.unwrap_or_else(|| panic!("{id} {exec} was created and is gone"));
                    if state.status() != Status::Created {
                        break;
                    }
                }
                // The Start before was carried out, or is being.
                Err(CallError::Refused(status)) if status.message.starts_with("cannot start a") => {
                    break;
                }
                Err(error) => panic!("start of {id} {exec}: {error:?}"),
            }
        }
        let Wires { stdin, stdout, stderr, .. } = wires;
        Life { id: id.to_owned(), exec: exec.to_owned(), stdin, stdout, stderr }
    }

    /// What it is at; nothing if there is no such process.
    pub async fn state(&self, id: &str, exec: &str) -> Option<task::StateResponse> {
        let request = task::StateRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        match self
            .ask(|client| {
                let request = request.clone();
                async move { client.state(unlimited(), &request).await }
            })
            .await
        {
            Ok(state) => Some(state),
            Err((Code::NOT_FOUND, _)) => None,
            Err((code, text)) => panic!("state of {id} {exec}: {code:?} {text}"),
        }
    }

    async fn bundle(&self, id: &str, wish: &Wish) -> String {
        let config = serde_json::to_vec(&wish.spec).expect("a value is JSON");
        let files =
            [("config.json".to_owned(), config)].into_iter().chain(wish.files.clone()).collect();
        let request = CreateRequest { id: id.to_owned(), files };
        let made = self.guest.call(|guest| {
            let request = request.clone();
            async move { guest.bundle().create(unlimited(), &request).await }
        });
        match made.await {
            Ok(made) => made.bundle,
            Err(CallError::Refused(status)) if status.code() == Code::ALREADY_EXISTS => {
                format!("/run/bundles/{id}")
            }
            Err(error) => panic!("bundle {id}: {error:?}"),
        }
    }

    async fn wires(&self, stdin: bool, terminal: bool) -> Wires {
        let (stdin_uri, stdin) = match stdin {
            true => self
                .stream()
                .await
                .map_or_else(|| panic!("no stream"), |(uri, stream)| (uri, Some(stream))),
            false => (String::new(), None),
        };
        let (stdout_uri, stdout) = self.output().await;
        let (stderr_uri, stderr) = match terminal {
            true => (String::new(), Reader(tokio::spawn(async { (Vec::new(), true) }))),
            false => self.output().await,
        };
        Wires { stdin, stdout, stderr, uris: [stdin_uri, stdout_uri, stderr_uri] }
    }

    async fn output(&self) -> (String, Reader) {
        let (uri, mut stream) = self.stream().await.expect("a stream");
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            let whole = stream.read_to_end(&mut bytes).await.is_ok();
            (bytes, whole)
        });
        (uri, Reader(reader))
    }

    /// A stream under an id that was never tried before.
    async fn stream(&self) -> Option<(String, GuestStream)> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        for _ in 0..1000 {
            let id = format!("steady{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let guest = self.guest.guest().await;
            let opened = timeout(Duration::from_secs(10), guest.stream(&id)).await;
            if let Ok(Ok(stream)) = opened {
                return Some((format!("stream://{id}"), stream));
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

impl Life {
    /// Sends this as stdin and ends it.
    pub async fn feed(&mut self, bytes: &[u8]) {
        let mut stdin = self.stdin.take().expect("connected");
        stdin.write_all(bytes).await.expect("the stream outlives the agent");
        stdin.shutdown().await.expect("the stream outlives the agent");
    }

    /// Whether it has ended.
    pub async fn has_ended(&self, host: &Steady) -> bool {
        let state = host.state(&self.id, &self.exec).await;
        state.is_none_or(|state| state.status() == Status::Stopped)
    }

    /// Waits for its exit, deletes it, and looks at what it left behind.
    pub async fn end(self, host: &Steady) -> Ended {
        let Self { id, exec, stdin, stdout, stderr } = self;
        let request = task::WaitRequest { id: id.clone(), exec_id: exec.clone() };
        let wait = host.ask(|client| {
            let request = request.clone();
            async move { client.wait(unlimited(), &request).await }
        });
        let wait = wait.await.unwrap_or_else(|error| panic!("wait of {id} {exec}: {error:?}"));
        drop(stdin);
        let request = task::DeleteRequest { id: id.clone(), exec_id: exec.clone() };
        let deleted = host.ask(|client| {
            let request = request.clone();
            async move { client.delete(unlimited(), &request).await }
        });
        match deleted.await {
            // The Delete before was carried out.
            Ok(_) | Err((Code::NOT_FOUND, _)) => {}
            Err(error) => panic!("delete of {id} {exec}: {error:?}"),
        }
        let whole = async |mut output: Reader, name: &str| {
            let read = timeout(Duration::from_secs(PATIENCE_S), &mut output.0).await;
            let (bytes, whole) = read
                .unwrap_or_else(|_| panic!("{name} of {id} {exec} does not end"))
                .expect("a reader");
            assert!(whole, "{name} of {id} {exec} was cut off after {} bytes", bytes.len());
            bytes
        };
        let (stdout, stderr) = (whole(stdout, "stdout").await, whole(stderr, "stderr").await);
        assert!(
            wait.stdout_bytes <= stdout.len() as u64 && wait.stderr_bytes <= stderr.len() as u64
        );
        Ended { status: wait.exit_status, stdout, stderr }
    }
}

fn process(json: &Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: serde_json::to_vec(json).expect("a value is JSON"),
    }
}

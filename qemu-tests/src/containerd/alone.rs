//! A shim without a containerd: started and asked as a containerd does that cannot be had here, by what is known of it.
//!
//! Promises: what is sent is assembled field by field, not by the shim's own code. Never: guesses; each message says
//! which containerd it is of.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use ttrpc::r#asynchronous::Client;
use ttrpc::context::with_duration;
use vminitd_protocol::pb::containerd::task::v3::{
    CreateTaskRequest, DeleteRequest, ShutdownRequest, StartRequest, TaskClient, WaitRequest,
};
use vminitd_protocol::pb::containerd::types::Mount;

use super::host::Host;
use crate::PATIENCE_S;

/// Its name in containerd.
const NAMESPACE: &str = "rig";

/// A started shim.
pub struct LoneShim<'a> {
    host: &'a Host,
    /// The container that it was started for.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What `start` printed, on both outputs.
    pub told: String,
}

/// A field of a protobuf message with text or a message in it.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(bytes);
    field
}

/// BootstrapParams as containerd 2.3 and later write them to standard input: `options` is an Any of runtime options,
/// `socket_dir` of 2.4.
pub fn bootstrap_params(
    id: &str,
    options: Option<(&str, &[u8])>,
    socket_dir: Option<&str>,
) -> Vec<u8> {
    let mut params = [field(1, id.as_bytes()), field(2, NAMESPACE.as_bytes())].concat();
    // log_level: a number.
    params.extend([3 << 3, 3]);
    params.extend(field(4, b"v2.3.0"));
    params.extend(field(5, b"/run/containerd/containerd.sock.ttrpc"));
    params.extend(field(6, b"/run/containerd/containerd.sock"));
    params.extend(field(7, b"/usr/bin/containerd"));
    if let Some((kind, value)) = options {
        let any = [field(1, kind.as_bytes()), field(2, value)].concat();
        params.extend(field(8, &field(1, &any)));
    }
    if let Some(directory) = socket_dir {
        params.extend(field(9, directory.as_bytes()));
    }
    params
}

/// A config.json that runs a line of shell, with an annotation or two.
pub fn config(script: &str, annotations: &Value) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
        ],
        "annotations": annotations,
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }] },
    })
}

fn shim() -> PathBuf {
    let dist = std::env::var_os("VMINITD_DIST").expect("VMINITD_DIST is not set; use `./dev test`");
    PathBuf::from(dist).join("bin/containerd-shim-vminitd-v1")
}

/// Calls the shim's program with `flags` and `input`, as nobody's child in particular.
pub fn call_shim(host: &Host, flags: &str, input: &[u8]) -> Output {
    let line = format!("exec {} {flags}", shim().display());
    let mut command = host.limited("sh");
    command.args(["-c", &line]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nsenter");
    // One that does not want it may be gone before it has it.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("our child")
}

impl<'a> LoneShim<'a> {
    /// `start`, with `input` on its standard input.
    pub fn start(host: &'a Host, id: &str, config: &Value, input: &[u8]) -> Self {
        let bundle = host.dir().join("bundles").join(id);
        fs::create_dir_all(bundle.join("rootfs")).expect("a directory");
        fs::write(bundle.join("config.json"), config.to_string()).expect("a new file");
        // Nobody reads its log: the FIFO of containerd is not there, which is no reason to fail.
        let flags = format!(
            "-namespace {NAMESPACE} -address /run/containerd/containerd.sock -publish-binary /bin/true -id {id} start 2>&1"
        );
        let line = format!("cd {} && exec {} {flags}", bundle.display(), shim().display());
        let mut command = host.limited("sh");
        command.args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("nsenter");
        child.stdin.take().expect("piped").write_all(input).expect("a pipe");
        let told = child.wait_with_output().expect("our child").stdout;
        let told = String::from_utf8(told).expect("text");
        Self { host, id: id.to_owned(), bundle, told }
    }

    /// The path in what `start` printed, as containerd finds it.
    pub fn address(&self) -> String {
        let json: Option<Value> = serde_json::from_str(&self.told).ok();
        let address = json.as_ref().and_then(|told| told["address"].as_str()).unwrap_or(&self.told);
        address.strip_prefix("unix://").unwrap_or_else(|| panic!("{:?}", self.told)).to_owned()
    }

    /// Runs its container with these mounts as the root filesystem, to its end and the shim's; returns the exit status
    /// and the output, or the error of Create.
    pub fn run(&self, rootfs: Vec<Mount>) -> Result<(u32, String), String> {
        let out = self.host.dir().join(format!("{}.out", self.id));
        let request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs,
            stdout: format!("file://{}", out.display()),
            stderr: format!("file://{}", out.display()),
            ..Default::default()
        };
        let done = self.talk(request);
        let what = "the shim has ended";
        let gone = || self.host.running("containerd-shim-vminitd-v1").is_empty().then_some(());
        self.host.wait_for(what, gone);
        Ok((done?, fs::read_to_string(out).expect("its output")))
    }

    fn talk(&self, request: CreateTaskRequest) -> Result<u32, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let socket = self.host.path(&self.address());
            let client = Client::connect(&format!("unix://{}", socket.display())).await;
            let tasks = TaskClient::new(client.expect("the shim listens"));
            let within = || with_duration(Duration::from_secs(PATIENCE_S));
            let id = || self.id.clone();
            let made = tasks.create(within(), &request).await.map_err(|error| error.to_string());
            let status = match made {
                Err(error) => Err(error),
                Ok(_) => {
                    let start = StartRequest { id: id(), ..Default::default() };
                    tasks.start(within(), &start).await.expect("Start");
                    let wait = WaitRequest { id: id(), ..Default::default() };
                    let exit = tasks.wait(within(), &wait).await.expect("Wait").exit_status;
                    let delete = DeleteRequest { id: id(), ..Default::default() };
                    tasks.delete(within(), &delete).await.expect("Delete");
                    Ok(exit)
                }
            };
            let shutdown = ShutdownRequest { id: id(), now: true };
            tasks.shutdown(within(), &shutdown).await.expect("Shutdown");
            status
        })
    }
}

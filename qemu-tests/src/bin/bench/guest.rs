//! A VM of the benchmark: its containers by plain RPCs, and the driver that measures from inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use host_shim::guest::{Guest, Ports, unlimited};
use host_shim::machine::{BootOptions, Machine, console_tail};
use host_shim::vm::{Accelerator, Description, Disk};
use host_shim::vmm::GuestStream;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Mutex;
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::{
    CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::google::protobuf::{Any, Empty};

use crate::images::{Images, Medium};
use crate::{Failure, specs};

/// Of every VM.
pub const MEMORY: &str = "1G";

/// Against hanging only; emulation on a loaded machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A guest that serves, with the driver in it.
pub struct Bench {
    machine: Arc<Machine>,
    /// Its services.
    pub guest: Guest,
    driver: Mutex<Driver>,
    next: AtomicU64,
}

struct Driver {
    commands: GuestStream,
    answers: BufReader<GuestStream>,
}

/// One life's times as the host sees them, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub create: f64,
    pub start: f64,
    pub delete: f64,
    pub whole: f64,
}

/// Boots and returns when the hypervisor runs the VM.
pub async fn machine(
    images: &Images,
    medium: Medium,
    disks: Vec<Disk>,
) -> Result<Machine, Failure> {
    let mut draft = images.draft(medium)?;
    draft.disks.extend(disks);
    let options = BootOptions { vmm: images.vmm().into(), console: images.console() };
    Ok(Machine::boot(Description::try_from(draft)?, options).await?)
}

/// The same, emulated, at a nanosecond an instruction.
pub async fn counted_machine(images: &Images, medium: Medium) -> Result<Machine, Failure> {
    let mut draft = images.draft(medium)?;
    draft.accelerator = Accelerator::Emulation;
    let options = BootOptions { vmm: images.counting_vmm()?.into(), console: images.console() };
    Ok(Machine::boot(Description::try_from(draft)?, options).await?)
}

impl Bench {
    /// Boots, waits until the guest serves, and starts the driver.
    pub async fn boot(images: &Images, medium: Medium) -> Result<Self, Failure> {
        Self::boot_with(images, medium, Vec::new()).await
    }

    /// The same with these disks besides.
    pub async fn boot_with(
        images: &Images,
        medium: Medium,
        disks: Vec<Disk>,
    ) -> Result<Self, Failure> {
        let machine = Arc::new(machine(images, medium, disks).await?);
        let guest =
            Guest::connect(machine.clone(), Ports::default(), PATIENCE).await.map_err(|error| {
                let console = console_tail(machine.console_path(), 20).join("\n");
                format!("{error}: {}\n{console}", error.last)
            })?;
        let commands = guest.stream("driver-in").await?;
        let answers = guest.stream("driver-out").await?;
        let errors = guest.stream("driver-err").await?;
        tokio::spawn(show(errors));
        let driver = Mutex::new(Driver { commands, answers: BufReader::new(answers) });
        let bench = Self { machine, guest, driver, next: AtomicU64::new(0) };
        let bundle = bench.bundle("driver", &specs::driver()).await?;
        let uri = |name: &str| format!("stream://driver-{name}");
        let request = CreateTaskRequest {
            id: "driver".to_owned(),
            bundle,
            stdin: uri("in"),
            stdout: uri("out"),
            stderr: uri("err"),
            ..Default::default()
        };
        bench.guest.task().create(unlimited(), &request).await?;
        bench.start("driver", "").await?;
        match bench.answer().await?.as_str() {
            "ready" => Ok(bench),
            other => Err(format!("the driver says {other:?}").into()),
        }
    }

    /// `tcg` or `kvm`.
    pub fn accelerator(&self) -> &str {
        self.machine.accelerator()
    }

    /// How long the hypervisor has run so far, in milliseconds of the host's CPUs: what nobody else's load changes.
    pub fn hypervisor_ms(&self) -> Option<f64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.machine.qemu_pid()?)).ok()?;
        let spent = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        });
        Some(spent.sum::<f64>() / 1e6)
    }

    /// Gives the driver a command; its answer.
    pub async fn drive(&self, command: &str) -> Result<String, Failure> {
        self.command(command).await?;
        self.answer().await
    }

    /// Gives the driver a command.
    pub async fn command(&self, command: &str) -> Result<(), Failure> {
        let mut driver = self.driver.lock().await;
        driver.commands.write_all(format!("{command}\n").as_bytes()).await?;
        Ok(())
    }

    /// The driver's next answer.
    pub async fn answer(&self) -> Result<String, Failure> {
        let mut driver = self.driver.lock().await;
        let mut line = Vec::new();
        let read = async {
            // By bytes: the stream is the guest's, and a line of it is short.
            loop {
                match driver.answers.read_u8().await? {
                    b'\n' => return Ok::<_, std::io::Error>(()),
                    byte => line.push(byte),
                }
            }
        };
        timeout(PATIENCE, read).await.map_err(|_| "the driver does not answer")??;
        let line = String::from_utf8_lossy(&line).into_owned();
        match line.strip_prefix("error ") {
            Some(error) => Err(format!("the driver: {error}").into()),
            None => Ok(line),
        }
    }

    /// Numbers of the driver's answer.
    pub async fn numbers(&self, command: &str) -> Result<Vec<u64>, Failure> {
        let answer = self.drive(command).await?;
        Ok(answer.split(' ').map(str::parse).collect::<Result<_, _>>()?)
    }

    /// A name that no container had.
    pub fn name(&self) -> String {
        format!("c{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Bundle.Create.
    pub async fn bundle(&self, id: &str, spec: &Value) -> Result<String, Failure> {
        let files = [("config.json".to_owned(), serde_json::to_vec(spec)?)].into();
        let request = CreateRequest { id: id.to_owned(), files };
        Ok(self.guest.bundle().create(unlimited(), &request).await?.bundle)
    }

    /// Create, without stdio; in milliseconds.
    pub async fn create(&self, id: &str, bundle: &str) -> Result<f64, Failure> {
        let (id, bundle) = (id.to_owned(), bundle.to_owned());
        let request = CreateTaskRequest { id, bundle, ..Default::default() };
        let begun = Instant::now();
        self.guest.task().create(unlimited(), &request).await?;
        Ok(ms(begun.elapsed()))
    }

    /// Start; in milliseconds.
    pub async fn start(&self, id: &str, exec: &str) -> Result<f64, Failure> {
        let request = StartRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        let begun = Instant::now();
        self.guest.task().start(unlimited(), &request).await?;
        Ok(ms(begun.elapsed()))
    }

    /// Delete; in milliseconds.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<f64, Failure> {
        let request = DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        let begun = Instant::now();
        self.guest.task().delete(unlimited(), &request).await?;
        Ok(ms(begun.elapsed()))
    }

    /// SIGKILL, the exit, and Delete.
    pub async fn end_container(&self, id: &str) -> Result<(), Failure> {
        let kill = KillRequest { id: id.to_owned(), signal: 9, ..Default::default() };
        let exit = self.exit(id, "");
        self.guest.task().kill(unlimited(), &kill).await?;
        exit.await??;
        self.delete(id, "").await.map(drop)
    }

    /// The exit, and Delete.
    pub async fn end_exited(&self, id: &str) -> Result<(), Failure> {
        self.exit(id, "").await??;
        self.delete(id, "").await.map(drop)
    }

    /// Asks Wait now; the exit status.
    fn exit(&self, id: &str, exec: &str) -> tokio::task::JoinHandle<ttrpc::Result<u32>> {
        let task = self.guest.task();
        let request = WaitRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        tokio::spawn(async move { Ok(task.wait(unlimited(), &request).await?.exit_status) })
    }

    /// A container that ends at once: from Create's request to Delete's answer.
    pub async fn life(&self, spec: &Value) -> Result<Life, Failure> {
        let id = self.name();
        let bundle = self.bundle(&id, spec).await?;
        let begun = Instant::now();
        let create = self.create(&id, &bundle).await?;
        let exit = self.exit(&id, "");
        let start = self.start(&id, "").await?;
        match exit.await?? {
            0 => {}
            status => return Err(format!("{id}: exit status {status}").into()),
        }
        let delete = self.delete(&id, "").await?;
        Ok(Life { create, start, delete, whole: ms(begun.elapsed()) })
    }

    /// A program that ends at once in a container that runs: from Exec's request to Delete's answer.
    pub async fn exec(&self, container: &str) -> Result<f64, Failure> {
        let exec = self.name();
        let process = json!({
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/bench-guest", "exit"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        });
        let value = serde_json::to_vec(&process)?;
        let request = ExecProcessRequest {
            id: container.to_owned(),
            exec_id: exec.clone(),
            spec: Some(Any { type_url: String::new(), value }),
            ..Default::default()
        };
        let begun = Instant::now();
        self.guest.task().exec(unlimited(), &request).await?;
        let exit = self.exit(container, &exec);
        self.start(container, &exec).await?;
        match exit.await?? {
            0 => {}
            status => return Err(format!("{exec}: exit status {status}").into()),
        }
        self.delete(container, &exec).await?;
        Ok(ms(begun.elapsed()))
    }

    /// System.Info; in milliseconds.
    pub async fn info(&self) -> Result<f64, Failure> {
        let begun = Instant::now();
        self.guest.system().info(unlimited(), &Empty {}).await?;
        Ok(ms(begun.elapsed()))
    }

    /// Ends the VM.
    pub async fn end(self) {
        self.machine.kill().await;
    }
}

async fn show(mut errors: GuestStream) {
    let mut text = Vec::new();
    let _ = errors.read_to_end(&mut text).await;
    if !text.is_empty() {
        eprintln!("driver: {}", String::from_utf8_lossy(&text));
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

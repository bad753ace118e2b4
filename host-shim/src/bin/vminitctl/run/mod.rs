//! `vminitctl run`: a VM, a container in it, and our own stdio and signals connected to both.
//!
//! ```text
//! boot -> serving -> streams, bundle, Create -> Wait asked -> Start -> signals, stdio ... -> exit
//!                                                              -> output drained -> Delete -> power-off
//! ```
//!
//! Owns: the VM, from boot to power-off, and its directory with the control socket; both end with this function,
//! whatever happens.
//! Promises: output that the command wrote before it exited is written before we exit; the host's directories stay
//! as they are. Never: decides what the guest does.

mod around;
mod bundle;
mod chart;
mod console;
mod drawing;
mod error;
mod network;
mod storage;
mod timings;
mod volumes;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use host_shim::ctl::{self, About, Claim, DirectoryError};
use host_shim::guest::{BOOT_DEADLINE, CallError, Guest, Ports, SteadyGuest, unlimited, wake};
use host_shim::images::{ROOT_IMAGE_CMDLINE, ROOT_IMAGE_SERIAL};
use host_shim::locate;
use host_shim::machine::{BootOptions, Machine};
use host_shim::vm::{Cmdline, Description, Disk, Draft, VmName};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::{CreateTaskRequest, DeleteRequest};
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::google::protobuf::Empty;

use crate::cli::RunArgs;
use crate::process::signals::{self, Signals};
use crate::process::stdio::{self, Stdio};
use crate::process::{Connected, Moment, ProcessError, TRIES, Target, attend, terminal};
use bundle::Container;
use console::Console;
use drawing::Drawing;
pub use error::RunError;
use timings::{Mark, Timings};

/// How long a guest that was asked to power off may take before it is killed.
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(30);

/// How long what a VM has said before its end may take to be passed on.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// How long those who wait for the VM's end may take to be told.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// The id of the one container in the VM.
const CONTAINER: &str = "main";

/// Runs the command; returns its exit status.
pub fn run(args: RunArgs) -> Result<i32, RunError> {
    let mut container = Container::from_args(&args)?;
    if container.tty {
        let wanted_by = if args.tty { "--tty" } else { "--bundle: process.terminal is true" };
        let size = terminal::stdin_size()
            .map_err(|source| ProcessError::NoTerminal { wanted_by, source })?;
        container.set_console_size(size);
    }
    // Before anything is started, so that no signal is lost or kills us without clean-up.
    let signals = signals::watch().map_err(ProcessError::Signals)?;
    let drawing = args.chart.as_deref().map(Drawing::begin).transpose()?;
    let (name, claim, listener) = claim(args.name.as_ref())?;
    let vm = Vm { args, container, name, claim };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProcessError::Runtime)?;
    let outcome = runtime.block_on(boot_and_run(&vm, listener, signals, drawing));
    // A thread may still sit in a read of our stdin; it goes with the process.
    runtime.shutdown_background();
    outcome
}

/// What is to run.
struct Vm {
    args: RunArgs,
    container: Container,
    name: VmName,
    /// Goes last: with it the name is free again.
    claim: Claim,
}

/// The VM's name and directory. One that is made up is made up until it is free.
fn claim(wanted: Option<&VmName>) -> Result<(VmName, Claim, UnixListener), RunError> {
    let pid = std::process::id();
    let mut made_up = (1..).map(|n| match n {
        1 => format!("run-{pid}"),
        n => format!("run-{pid}-{n}"),
    });
    loop {
        let name = match wanted {
            Some(name) => name.clone(),
            None => made_up.next().and_then(|name| name.parse().ok()).expect("a VM name"),
        };
        match ctl::claim(&name) {
            Ok((claim, listener)) => return Ok((name, claim, listener)),
            Err(DirectoryError::InUse { .. }) if wanted.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn boot_and_run(
    vm: &Vm,
    listener: UnixListener,
    mut signals: Signals,
    mut drawing: Option<Drawing>,
) -> Result<i32, RunError> {
    let console = Console::new(vm.args.console.as_deref(), &vm.claim).map_err(RunError::Console)?;
    let vmm = match &vm.args.vmm {
        Some(choice) => choice.vmm().map_err(RunError::Control)?,
        None => locate::vmm()?.into(),
    };
    let options = BootOptions { vmm, console: console.path().to_owned() };
    let mut timings = Timings::start();
    let (machine, dials) = Machine::boot_with_dials(describe(vm)?, options).await?;
    let (machine, dials) = (Arc::new(machine), around::connect_dials(&vm.args, dials));
    timings.mark(Mark::Spawned);
    let (started, is_started) = watch::channel(None);
    let process = vm.container.process_file().map_err(RunError::Control)?;
    let (ended, has_ended) = watch::channel(None);
    let kill = Arc::new(Notify::new());
    let about = About {
        process,
        arch: vm.args.arch,
        container: is_started,
        ended: has_ended,
        kill: kill.clone(),
        attach: None,
    };
    let (killed, kills) = (machine.clone(), kill);
    let killer = tokio::spawn(async move {
        kills.notified().await;
        killed.kill().await;
    });
    let server = listen(listener, machine.clone(), about).map_err(RunError::Control)?;

    let guest = tokio::select! {
        guest = Guest::connect(machine.clone(), Ports::default(), BOOT_DEADLINE) => match guest {
            Ok(guest) => guest,
            // The guest's last words say more than that it is gone.
            Err(source) if source.is_over() => {
                let exited = machine.exited().await;
                return Err(RunError::died("the VM ended before it served", &exited, &console));
            }
            Err(source) => return Err(RunError::NotServing { source, console: console.story() }),
        },
        exited = machine.exited() => {
            return Err(RunError::died("the VM ended before it served", &exited, &console));
        }
        signal = signals.next_to_forward() => return Err(RunError::Interrupted(signal)),
    };
    timings.mark(Mark::Serving);
    timings.guest_boot(&console);
    if let Some(drawing) = &mut drawing {
        drawing.follow(&guest).await;
    }

    let guest = SteadyGuest::new(guest, BOOT_DEADLINE);
    let wakes = wake::follow(machine.wakes(), guest.clone(), |error| {
        eprintln!("vminitctl: this machine has slept; the guest's clock is not set: {error}");
    });
    let wakes = tokio::spawn(wakes);
    let status = {
        let mut life = std::pin::pin!(life(vm, &guest, &mut signals, &mut timings, started));
        tokio::select! {
            status = &mut life => status,
            // What the guest has said before (the last output, how the command ended) is still on its way through us.
            exited = machine.exited() => timeout(LAST_WORDS, life).await.unwrap_or_else(|_| {
                Err(RunError::died("the VM ended while the command ran", &exited, &console))
            }),
        }
    };
    let status = match status {
        // The same, seen by a call first.
        Err(RunError::Process(ProcessError::Gone(lost))) if lost.is_over() => {
            let exited = machine.exited().await;
            Err(RunError::died("the VM ended while the command ran", &exited, &console))
        }
        status => status,
    };
    power_off(&machine, &guest).await;
    killer.abort();
    ended.send_replace(Some(machine.exited().await));
    // Who waits for that (`vminitctl stop`) is told before we are gone.
    server.abort();
    dials.abort();
    wakes.abort();
    let _ = timeout(LAST_ANSWERS, ended.closed()).await;
    timings.mark(Mark::Off);
    if vm.args.timings {
        eprint!("{}", timings.table(machine.accelerator()));
    }
    if let Some(drawing) = drawing {
        drawing.finish(vm, &machine, &console, &timings)?;
    }
    status
}

fn listen(
    listener: UnixListener,
    machine: Arc<Machine>,
    about: About,
) -> std::io::Result<tokio::task::JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok(tokio::spawn(ctl::serve(listener, machine, about)))
}

fn describe(vm: &Vm) -> Result<Description, RunError> {
    let args = &vm.args;
    // For a chart the kernel tells of its phases. What a person says comes later and wins.
    let talkative = args.chart.as_ref().map(|_| "loglevel=7");
    let of_network = network::words(vm.container.spec(), vm.container.network);
    let words: Vec<&str> = talkative
        .into_iter()
        .chain(of_network.iter().map(String::as_str))
        .chain(args.append.iter().map(String::as_str))
        .collect();
    let mut cmdline: Cmdline = words.join(" ").parse().map_err(RunError::Cmdline)?;
    let mut disks = vm.container.storage.disks.clone();
    let initramfs = match &args.root_image {
        Some(path) => {
            let ours = ROOT_IMAGE_CMDLINE.parse().expect("a constant that is a command line");
            cmdline = cmdline.after(ours).map_err(RunError::Cmdline)?;
            let serial = ROOT_IMAGE_SERIAL.parse().expect("a constant that is a serial");
            disks.insert(0, Disk { serial, path: path.clone(), read_only: true });
            None
        }
        None => Some(locate::initramfs(args.arch, args.initramfs.clone())?),
    };
    let mut draft = Draft {
        name: vm.name.clone(),
        arch: args.arch,
        kernel: locate::kernel(args.arch, args.kernel.clone())?,
        initramfs,
        cmdline,
        nics: network::nics(args, vm.container.network),
        memory: args.memory,
        cpus: args.cpus,
        guest_cid: Default::default(),
        guest_dials: args.guest_dials.iter().map(|dial| dial.port).collect(),
        disks,
        hotplug_slots: Default::default(),
        shares: vm.container.storage.shares.clone(),
        accelerator: Default::default(),
        options: Default::default(),
    };
    around::add_extras(&mut draft, &args.extras, &vm.claim)?;
    Ok(Description::try_from(draft)?)
}

/// The container's life: from its streams to its deletion.
async fn life(
    vm: &Vm,
    guest: &SteadyGuest,
    signals: &mut Signals,
    timings: &mut Timings,
    started: watch::Sender<Option<String>>,
) -> Result<i32, RunError> {
    let (target, stdio) = create(vm, guest, timings).await?;
    let connected = Connected { stdio, tty: vm.container.tty };
    let note = |moment| match moment {
        Moment::Started => {
            timings.mark(Mark::Started);
            started.send_replace(Some(target.container.clone()));
        }
        Moment::Exited => timings.mark(Mark::Exited),
        Moment::Drained => timings.mark(Mark::Drained),
    };
    let exit = attend(guest, &target, connected, signals, note).await?;

    let request = DeleteRequest { id: target.container.clone(), ..Default::default() };
    let delete = |guest: Guest| {
        let request = request.clone();
        async move { guest.task().delete(unlimited(), &request).await }
    };
    match guest.once(delete).await {
        // It may have been carried out or not: the VM ends now, or (`vminitctl stop`) has ended.
        Ok(_) | Err(CallError::Lost(_) | CallError::Gone(_)) => {}
        Err(source) => return Err(RunError::Call { call: "Task.Delete", source }),
    }
    timings.mark(Mark::Deleted);
    Ok(exit.exit_status as i32)
}

/// Makes the container, and its streams before it. When the agent is lost meanwhile, it is tried again under another
/// name, so that nothing of the first try is in its way.
async fn create(
    vm: &Vm,
    guest: &SteadyGuest,
    timings: &mut Timings,
) -> Result<(Target, Stdio), RunError> {
    for number in 1..=TRIES {
        let container = match number {
            1 => CONTAINER.to_owned(),
            again => format!("{CONTAINER}-{again}"),
        };
        let target = Target { container, exec: String::new() };
        match try_to_create(vm, guest, &target, timings).await? {
            Some(stdio) => return Ok((target, stdio)),
            None => continue,
        }
    }
    Err(ProcessError::Unmade(TRIES).into())
}

/// `None`: the agent was lost.
async fn try_to_create(
    vm: &Vm,
    guest: &SteadyGuest,
    target: &Target,
    timings: &mut Timings,
) -> Result<Option<Stdio>, RunError> {
    let interactive = vm.args.interactive || vm.container.tty;
    let Some(stdio) = stdio::open(guest, target, interactive, vm.container.tty).await? else {
        return Ok(None);
    };
    let files = [("config.json".to_owned(), vm.container.config())];
    let request = CreateRequest { id: target.container.clone(), files: files.into() };
    let made =
        guest.once(|guest| async move { guest.bundle().create(unlimited(), &request).await });
    let bundle = match made.await {
        Ok(made) => made.bundle,
        Err(CallError::Lost(_)) => return Ok(None),
        Err(source) => return Err(RunError::Call { call: "Bundle.Create", source }),
    };
    timings.mark(Mark::Creating);
    let request = CreateTaskRequest {
        id: target.container.clone(),
        rootfs: vm.container.rootfs().mounts(&bundle),
        bundle,
        terminal: vm.container.tty,
        stdin: stdio.stdin_uri(),
        stdout: stdio.stdout_uri(),
        stderr: stdio.stderr_uri(),
        ..Default::default()
    };
    let made = guest.once(|guest| async move { guest.task().create(unlimited(), &request).await });
    match made.await {
        Ok(_) => {}
        Err(CallError::Lost(_)) => return Ok(None),
        Err(error) => return Err(ProcessError::create("Task.Create")(error).into()),
    }
    if vm.container.network {
        network::wait(&guest.guest().await).await;
    }
    timings.mark(Mark::Created);
    Ok(Some(stdio))
}

/// Asks the guest to end; whoever does not, is killed when the machine is dropped.
async fn power_off(machine: &Machine, guest: &SteadyGuest) {
    let ended = async {
        // The connection may break before the answer comes: the exit is what counts.
        let _ = guest.guest().await.system().prepare_shutdown(unlimited(), &Empty {}).await;
        machine.exited().await
    };
    if timeout(POWER_OFF_DEADLINE, ended).await.is_err() {
        eprintln!(
            "vminitctl: the guest did not power off within {} s and was killed",
            POWER_OFF_DEADLINE.as_secs()
        );
        machine.kill().await;
    }
}

//! `vminitctl run`: a VM, a container in it, and our own stdio and signals connected to both.
//!
//! ```text
//! boot -> serving -> streams, bundle, Create -> Wait asked -> Start -> signals, stdio ... -> exit
//!                                                              -> output drained -> Delete -> power-off
//! ```
//!
//! Owns: the VM, from boot to power-off; it ends with this function, whatever happens.
//! Promises: output that the command wrote before it exited is written before we exit; the host's directories stay
//! as they are. Never: decides what the guest does.

mod bundle;
mod console;
mod error;
mod signals;
mod stdio;
mod timings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use host_shim::container::shared_rootfs;
use host_shim::guest::{BOOT_DEADLINE, Guest, Ports, unlimited};
use host_shim::locate;
use host_shim::machine::{BootOptions, Machine};
use host_shim::vm::{Description, Draft, Share, Tag, VmName};
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::{
    CreateTaskRequest, DeleteRequest, StartRequest, WaitRequest, WaitResponse,
};
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::google::protobuf::Empty;

use crate::cli::RunArgs;
use bundle::Container;
pub use error::RunError;
use timings::Timings;

/// How long a guest that was asked to power off may take before it is killed.
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(30);

/// The id of the one container in the VM.
const CONTAINER: &str = "main";

/// The tag of the share that holds the root filesystem.
const ROOTFS_TAG: &str = "rootfs";

/// Runs the command; returns its exit status.
pub fn run(args: RunArgs) -> Result<i32, RunError> {
    let container = Container::from_args(&args)?;
    // Before anything is started, so that no signal is lost or kills us without clean-up.
    let signals = signals::watch().map_err(RunError::Signals)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let outcome = runtime.block_on(boot_and_run(args, container, signals));
    // A thread may still sit in a read of our stdin; it goes with the process.
    runtime.shutdown_background();
    outcome
}

async fn boot_and_run(
    args: RunArgs,
    container: Container,
    mut signals: signals::Signals,
) -> Result<i32, RunError> {
    let console = console::Console::new(args.console.as_deref()).map_err(RunError::Console)?;
    let options = BootOptions { vmm: locate::vmm()?, console: console.path().to_owned() };
    let mut timings = Timings::start();
    let machine = Arc::new(Machine::boot(describe(&args, &container)?, options).await?);

    let mut guest = tokio::select! {
        guest = Guest::connect(machine.clone(), Ports::default(), BOOT_DEADLINE) => {
            guest.map_err(|source| RunError::NotServing { source, console: console.story() })?
        }
        exited = machine.exited() => {
            return Err(RunError::died("the VM ended before it served", &exited, &console));
        }
        signal = signals.next() => return Err(RunError::Interrupted(signal)),
    };
    timings.serving(&console);

    let status = tokio::select! {
        status = life(&args, &container, &mut guest, &mut signals, &mut timings) => status,
        exited = machine.exited() => {
            Err(RunError::died("the VM ended while the command ran", &exited, &console))
        }
    };
    power_off(&machine, &guest).await;
    timings.off();
    if args.timings {
        eprint!("{}", timings.table(machine.accelerator()));
    }
    status
}

fn describe(args: &RunArgs, container: &Container) -> Result<Description, RunError> {
    let mut cmdline: Vec<String> = Vec::new();
    cmdline.extend(args.append.iter().cloned());
    let name = args.name.clone().unwrap_or_else(|| format!("run-{}", std::process::id()));
    let draft = Draft {
        name: VmName::try_from(name).map_err(RunError::Name)?,
        kernel: locate::kernel(args.kernel.clone())?,
        initramfs: Some(locate::initramfs(args.initramfs.clone())?),
        cmdline: cmdline.join(" ").parse().map_err(RunError::Cmdline)?,
        memory: args.memory,
        cpus: args.cpus,
        guest_cid: Default::default(),
        guest_dials: Default::default(),
        disks: Vec::new(),
        shares: vec![Share {
            tag: Tag::try_from(ROOTFS_TAG.to_owned()).expect("a constant that is a tag"),
            path: PathBuf::from(&container.rootfs),
            read_only: true,
        }],
        accelerator: Default::default(),
    };
    Ok(Description::try_from(draft)?)
}

/// The container's life: from its streams to its deletion.
async fn life(
    args: &RunArgs,
    container: &Container,
    guest: &mut Guest,
    signals: &mut signals::Signals,
    timings: &mut Timings,
) -> Result<i32, RunError> {
    let stdio = stdio::open(guest, CONTAINER, args.interactive).await?;
    let files = [("config.json".to_owned(), container.config.clone())];
    let bundle = guest
        .bundle()
        .create(unlimited(), &CreateRequest { id: CONTAINER.to_owned(), files: files.into() })
        .await
        .map_err(RunError::rpc("Bundle.Create"))?
        .bundle;
    timings.creating();
    let create = CreateTaskRequest {
        id: CONTAINER.to_owned(),
        rootfs: shared_rootfs(ROOTFS_TAG, &bundle),
        bundle,
        stdin: stdio.stdin_uri(),
        stdout: stdio.stdout_uri(),
        stderr: stdio.stderr_uri(),
        ..Default::default()
    };
    guest.task().create(unlimited(), &create).await.map_err(RunError::create)?;
    timings.created();

    // Asked before Start, so that no exit can come unseen.
    let waiting = ask_for_exit(guest);
    let start = StartRequest { id: CONTAINER.to_owned(), ..Default::default() };
    guest.task().start(unlimited(), &start).await.map_err(RunError::create)?;
    timings.started();

    let mut running = stdio.run();
    let exit = wait_and_forward(guest, waiting, signals, &mut running).await?;
    timings.exited();
    let copied = running.finish(exit.stdout_bytes, exit.stderr_bytes).await;

    let delete = DeleteRequest { id: CONTAINER.to_owned(), ..Default::default() };
    guest.task().delete(unlimited(), &delete).await.map_err(RunError::rpc("Task.Delete"))?;
    copied.map_err(RunError::Output)?;
    Ok(exit.exit_status as i32)
}

type Waiting = tokio::task::JoinHandle<ttrpc::Result<WaitResponse>>;

fn ask_for_exit(guest: &Guest) -> Waiting {
    let task = guest.task();
    let request = WaitRequest { id: CONTAINER.to_owned(), ..Default::default() };
    tokio::spawn(async move { task.wait(unlimited(), &request).await })
}

/// Waits for the exit; meanwhile passes signals on, and ends a command whose reader went away. The agent may be
/// replaced under it: the command runs on, and its exit is asked for again on a new connection.
async fn wait_and_forward(
    guest: &mut Guest,
    mut waiting: Waiting,
    signals: &mut signals::Signals,
    running: &mut stdio::Running,
) -> Result<WaitResponse, RunError> {
    loop {
        tokio::select! {
            answer = &mut waiting => match answer.expect("Wait does not panic") {
                Ok(exit) => return Ok(exit),
                Err(error @ ttrpc::Error::RpcStatus(_)) => return Err(RunError::rpc("Task.Wait")(error)),
                Err(_) => {
                    *guest = guest.reconnect(BOOT_DEADLINE).await.map_err(RunError::AgentGone)?;
                    waiting = ask_for_exit(guest);
                }
            },
            signal = signals.next() => signals::forward(guest, CONTAINER, signal).await,
            () = running.reader_gone() => {
                // A local command would die of SIGPIPE; PID 1 of a namespace ignores that.
                signals::forward(guest, CONTAINER, signals::Signal::kill()).await;
            }
        }
    }
}

/// Asks the guest to end; whoever does not, is killed when the machine is dropped.
async fn power_off(machine: &Machine, guest: &Guest) {
    let ended = async {
        // The connection may break before the answer comes: the exit is what counts.
        let _ = guest.system().prepare_shutdown(unlimited(), &Empty {}).await;
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

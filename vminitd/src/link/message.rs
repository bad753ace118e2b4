//! What init and the agent say to each other: one message per datagram of a seqpacket socketpair.
//!
//! Owns: the vocabulary. Both ends are the same binary, so there is no versioning.
//! Promises: every request that carries a `request` is answered once by a message that carries the
//! same number, unless the asking agent has died; then the answer goes to the next agent.
//! Never: carries bytes of a container's stdio, or anything that init would have to interpret.
//!
//! File descriptors ride along as SCM_RIGHTS, in the order that a variant's doc gives.

use serde::{Deserialize, Serialize};

/// Number of a request, chosen by the agent; unique over all agents of one boot, because an agent
/// starts counting where [`ToAgent::Welcome`] tells it to.
pub type RequestId = u64;

/// init's name for a launched process. Pids are recycled by the kernel, these never are.
pub type ProcessHandle = u64;

/// From the agent to init.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToInit {
    /// The agent accepts connections: its restart back-off starts anew.
    Serving,
    /// Answer to [`ToAgent::Ping`].
    Pong {
        /// The ping's number.
        beat: u64,
    },
    /// Fork a launcher. Fds: see [`Launch::fds`]. Answered by [`ToAgent::Launched`],
    /// [`ToAgent::Done`] or [`ToAgent::LaunchFailed`].
    Launch {
        /// Names the answer.
        request: RequestId,
        /// What to launch.
        launch: Launch,
    },
    /// A launch is near: a launcher may be forked ahead. Not answered.
    Expect {
        /// CLONE_NEW* of net, ipc and uts: what it gets of its own, for the launcher to make ahead.
        namespaces: i32,
    },
    /// Kill the launcher of `request`, if it still runs; its `LaunchFailed` follows.
    CancelLaunch {
        /// The launch request.
        request: RequestId,
    },
    /// Drop the memory of a launched process of which the agent no longer wants to hear (its
    /// container was deleted): its pidfd, its pty master, its exit.
    Forget {
        /// The process.
        process: ProcessHandle,
    },
    /// Put the fds that ride along into safe keeping under `key`. A key in use is added to.
    Keep {
        /// For example `stdio/<container>/<exec>` or `stream/<id>`.
        key: String,
        /// What each fd is, in order, for the next agent.
        names: Vec<String>,
    },
    /// Close what is kept under these keys; answered by [`ToAgent::Released`] after the close.
    Release {
        /// Names the answer.
        request: RequestId,
        /// At most [`KEPT_PER_MESSAGE`](crate::limits::KEPT_PER_MESSAGE); an unknown one is passed over.
        keys: Vec<String>,
    },
    /// The exits up to and including this number are recorded; init may forget them.
    AckExits {
        /// [`Exit::number`].
        number: u64,
    },
    /// Start the injected supervisor, and start it again when it ends; it exists. Fds: the read end of
    /// its output's pipe, which init keeps under [`SUPERVISOR_KEY`], and the write end. Done once in a
    /// boot: a second one changes nothing.
    Supervise,
    /// Something about the supervisor. Answered by [`ToAgent::Supervisor`].
    Supervisor {
        /// Names the answer.
        request: RequestId,
        /// What.
        order: SupervisorOrder,
    },
    /// The VM is to end; answered by [`ToAgent::ShuttingDown`], unless it has begun already.
    ShutDown {
        /// Restart instead of power-off.
        reboot: bool,
        /// What containers get between SIGTERM and SIGKILL, in milliseconds; else what is configured.
        grace_ms: Option<u64>,
        /// For the console.
        reason: String,
    },
    /// The agent has done its part of the end.
    Stopped {
        /// What was still dirty or busy, for the stop report.
        left: Vec<String>,
    },
}

/// From init to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// First message to every agent. Fds: the RPC listener, then the stream listener. Followed by
    /// what init knows: [`ToAgent::Kept`] for each key, [`ToAgent::Launched`] for each process that
    /// nobody has told init to forget, [`ToAgent::Done`] and [`ToAgent::LaunchFailed`] of what
    /// ended while there was no agent, [`ToAgent::Launching`] for what is under way,
    /// [`ToAgent::Exited`] for each exit that is not acknowledged, and by [`ToAgent::Caught`].
    /// A launch that was asked for and is in none of these failed, or never reached init.
    Welcome {
        /// 1 for the first agent of this boot.
        generation: u32,
        /// First request number to use.
        first_request: RequestId,
        /// [`ToAgent::BootComplete`] will not come.
        boot_complete: bool,
        /// [`Phase`] stamps, CLOCK_BOOTTIME in microseconds.
        stamps: Vec<(Phase, u64)>,
    },
    /// Fds kept under a key, handed back (as duplicates; init keeps its own).
    Kept {
        /// The key.
        key: String,
        /// What each fd is, in order.
        names: Vec<String>,
    },
    /// The agent now knows all that init knows.
    Caught,
    /// What serving did not need is there too: cgroups, directories, settings, loopback.
    BootComplete,
    /// Are you there? Answer with [`ToInit::Pong`].
    Ping {
        /// Number of the ping.
        beat: u64,
    },
    /// The launcher succeeded. Fds: a pidfd of the process, then, if a terminal was wanted, the
    /// master of its pty. Repeated to every later agent until [`ToInit::Forget`], also when the
    /// process has exited since; its [`ToAgent::Exited`] never comes before this.
    Launched {
        /// The launch request.
        request: RequestId,
        /// What was launched, for an agent that did not ask for it.
        target: Target,
        /// init's name for the process.
        process: ProcessHandle,
        /// Its pid in the root pid namespace.
        pid: i32,
    },
    /// The job that makes no process ([`Job::StartWithHooks`], [`Job::DeleteWithHooks`]) is done.
    Done {
        /// The launch request.
        request: RequestId,
        /// Whose.
        target: Target,
    },
    /// A launch that an earlier agent asked for is under way; its answer will come to this one.
    Launching {
        /// The launch request.
        request: RequestId,
        /// What is being launched.
        target: Target,
    },
    /// The launcher failed, hung or was killed; nothing of it is left but what it may have put on
    /// disk, which the agent removes.
    LaunchFailed {
        /// The launch request.
        request: RequestId,
        /// What was to be launched.
        target: Target,
        /// Whose fault.
        failure: Failure,
        /// The whole cause chain, `a: b: c`.
        reason: String,
    },
    /// A launched process exited.
    Exited(Exit),
    /// Answer to [`ToInit::Release`].
    Released {
        /// The release request.
        request: RequestId,
    },
    /// Answer to [`ToInit::Supervisor`]; to a stop when it is down.
    Supervisor {
        /// The request.
        request: RequestId,
        /// How things are, or why the order does not fit.
        answer: Result<SupervisorStatus, String>,
    },
    /// The VM ends: the agent stops what runs and then sends [`ToInit::Stopped`]. init goes on alone
    /// when that takes too long. Told to each agent that comes up meanwhile.
    ShuttingDown {
        /// What containers get between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u64,
    },
}

/// Under which key init keeps the pipe with the supervisor's output: a new agent that finds it knows
/// that [`ToInit::Supervise`] is done.
pub const SUPERVISOR_KEY: &str = "supervisor";

/// What init can be asked about the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupervisorOrder {
    /// Only say how things are.
    Status,
    /// Start it, with a clean slate.
    Start,
    /// SIGTERM, then SIGKILL; it stays down.
    Stop,
}

/// The supervisor, as init sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorStatus {
    /// Name of the state, see `supervisor_monitor::State`.
    pub state: String,
    /// The process, if there is one.
    pub pid: Option<i32>,
    /// Restarts since its start was last asked for.
    pub restarts: u32,
    /// Milliseconds until the next one, if it waits for that.
    pub next_restart_ms: Option<u64>,
    /// How it last ended: exit code, or 128 + signal.
    pub last_exit: Option<u32>,
}

/// How a launched process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Ascending in the order of death, without gaps.
    pub number: u64,
    /// Which process.
    pub process: ProcessHandle,
    /// Its pid in the root pid namespace.
    pub pid: i32,
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When init saw it: CLOCK_REALTIME, seconds and nanoseconds.
    pub at: (i64, u32),
}

/// What a launcher is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// The container, or the exec in it.
    pub target: Target,
    /// The order of the fds that ride along. They become the process's fds 0 to 2 (absent:
    /// /dev/null). With a terminal none is needed.
    pub fds: Vec<FdRole>,
    /// How long it may take in milliseconds, hooks included.
    pub deadline_ms: u64,
    /// What to run.
    pub job: Job,
}

/// A process as the host names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// Container id.
    pub container: String,
    /// Exec id; empty for the container's init.
    pub exec: String,
}

/// The launcher's job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// A container's init, which waits for its start.
    Create {
        /// Directory with config.json, as libcontainer is to see it; empty: there is a
        /// [`Plan`](super::plan::Plan) beside the container's record, and libcontainer has no part in it.
        bundle: String,
        /// chroot-like MS_MOVE instead of pivot_root.
        no_pivot: bool,
        /// Keep the session keyring of init.
        no_new_keyring: bool,
        /// Let the container make AF_VSOCK sockets.
        allow_vsock: bool,
        /// CLONE_NEW*: the namespaces that it gets of its own.
        new_namespaces: i32,
        /// A pty is wanted (the spec's `process.terminal` says the same): its master comes with
        /// [`ToAgent::Launched`], and init keeps it too.
        terminal: bool,
    },
    /// A further process in a running container.
    Exec {
        /// Directory with an [`ExecProgram`](super::exec_program::ExecProgram).
        program: String,
        /// CLONE_NEW*: the namespaces that the container's config names.
        namespaces: i32,
        /// The execution domain of the container, if its config names one.
        personality: Option<u32>,
        /// A pty is wanted: its master comes with [`ToAgent::Launched`], and init keeps it too.
        terminal: bool,
        /// Keep the session keyring of init.
        no_new_keyring: bool,
        /// Let the process make AF_VSOCK sockets.
        allow_vsock: bool,
    },
    /// A program of the guest that takes a container's output, in the guest's own namespaces.
    Log {
        /// Its path.
        program: String,
        /// Its arguments, behind the program's name.
        args: Vec<String>,
        /// The container's namespace, for its environment.
        namespace: String,
    },
    /// libcontainer's start, for a container with poststart hooks.
    StartWithHooks,
    /// libcontainer's delete, for a container with poststop hooks.
    DeleteWithHooks,
}

/// What an fd of a launch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FdRole {
    /// Read end for the process's fd 0.
    Stdin,
    /// Write end for the process's fd 1.
    Stdout,
    /// Write end for the process's fd 2.
    Stderr,
    /// Write end for a logger's fd 5, by which it says that it is ready; its fds 3 and 4 are read
    /// ends in place of [`FdRole::Stdout`] and [`FdRole::Stderr`].
    Ready,
    /// A pidfd of the init of the container that an exec joins.
    Init,
}

/// Why a launch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// libcontainer refused or failed: the reason says what.
    Runtime,
    /// The launcher was still running at its deadline and was killed.
    Deadline,
    /// The launcher died without a result.
    Died,
    /// The agent cancelled it.
    Cancelled,
    /// fork or socketpair failed: the VM is out of something.
    Fork,
}

/// Moments of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// First instruction of ours in PID 1.
    Pid1Entry,
    /// Early mounts and cgroups are done.
    SystemInit,
    /// Both listeners are open.
    Listening,
    /// This agent was forked.
    AgentForked,
    /// The first agent served.
    Serving,
}

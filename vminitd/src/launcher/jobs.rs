//! The jobs, in libcontainer's words.

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::Command;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;

use super::console::{Console, ConsoleError};
use super::create::{Create, CreateError};
use super::executor::Program;
use super::join::{Join, JoinError};
use super::outcome::Outcome;
use super::scratch::{Scratch, ScratchError};
use super::settle::Settle;
use super::{Stdio, confined, reason};
use crate::link::exec_program::ExecProgram;
use crate::link::left::Left;
use crate::link::message::{Job, Launch};
use crate::link::plan::Plan;
use crate::log;
use crate::paths;
use crate::sys::program::spawn;

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Libcontainer(#[from] LibcontainerError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error("execute")]
    Program(#[source] std::io::Error),
    #[error("open /dev/null")]
    Null(#[source] std::io::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error("libcontainer made a container without a process")]
    NoProcess,
}

/// Does the job. On success, with the pty's master if there is one; else with the reason.
pub fn perform(
    launch: &Launch,
    stdio: Stdio,
    result: RawFd,
    ahead: i32,
) -> Result<(Outcome, Option<OwnedFd>), String> {
    let mut descriptors_to_close = log::descriptors();
    descriptors_to_close.push(result);
    let confinement = confined::of(&launch.target.container, &launch.job);
    let confinement = confinement.map_err(|error| reason::of(&error))?;
    let new_network = matches!(launch.job, Job::Create { new_namespaces, .. }
        if new_namespaces & libc::CLONE_NEWNET != 0);
    let program = Program { descriptors_to_close, confinement, new_network };
    job(launch, stdio, program, ahead).map_err(|error| reason::of(&error))
}

fn job(
    launch: &Launch,
    stdio: Stdio,
    program: Program,
    ahead: i32,
) -> Result<(Outcome, Option<OwnedFd>), JobError> {
    let container = &launch.target.container;
    let terminal = launch.job.terminal();
    let (pid, console) = match &launch.job {
        Job::Create { bundle, .. } if bundle.is_empty() => {
            let record = Path::new(paths::CONTAINERS_DIR).join(container);
            let mut plan = Plan::read(&record).map_err(CreateError::from)?;
            let settle = Settle {
                program: std::mem::take(&mut plan.program),
                personality: plan.personality,
                confinement: program.confinement,
            };
            let stdio = [stdio.stdin, stdio.stdout, stdio.stderr];
            let pid = Create { container, ahead, plan, settle, stdio }.launch()?;
            return Ok((Outcome::Launched { pid }, None));
        }
        Job::Create { bundle, no_pivot, .. } => {
            let console = if terminal { Some(Console::listen(&Scratch::make()?)?) } else { None };
            let made = builder(container, stdio, program, console.as_ref())?
                .with_root_path(paths::LIBCONTAINER_DIR)?
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .with_no_pivot(*no_pivot)
                .build()?;
            (made.pid().ok_or(JobError::NoProcess)?, console)
        }
        Job::Exec { program: path, namespaces, personality, .. } => {
            let wanted = ExecProgram::read(Path::new(path)).map_err(JoinError::from)?;
            let mut confinement = program.confinement;
            confinement.capabilities = wanted.capabilities;
            let join = Join {
                container,
                init: stdio.init.ok_or(JoinError::NoInit)?,
                namespaces: *namespaces,
                settle: Settle { program: wanted, personality: *personality, confinement },
                stdio: [stdio.stdin, stdio.stdout, stdio.stderr],
                terminal,
            };
            let (pid, master) = join.launch()?;
            return Ok((Outcome::Launched { pid }, master));
        }
        Job::Log { program, args, namespace } => {
            let pid = log_with(container, namespace, program, args, stdio)?;
            return Ok((Outcome::Launched { pid }, None));
        }
        Job::StartWithHooks => {
            load(container)?.start()?;
            return Ok((Outcome::Done, None));
        }
        Job::DeleteWithHooks => {
            load(container)?.delete(true)?;
            return Ok((Outcome::Done, None));
        }
    };
    let master = console.map(Console::take).transpose()?;
    Ok((Outcome::Launched { pid: pid.as_raw() }, master))
}

fn builder(
    container: &str,
    stdio: Stdio,
    program: Program,
    console: Option<&Console>,
) -> Result<ContainerBuilder, JobError> {
    let builder = ContainerBuilder::new(container.to_owned(), SyscallType::default())
        .with_executor(program)
        .validate_id()?;
    if let Some(console) = console {
        return Ok(builder.with_console_socket(Some(console.path())));
    }
    // Each of the three is given, because the container would inherit the launcher's otherwise.
    Ok(builder
        .with_stdin(or_null(stdio.stdin)?)
        .with_stdout(or_null(stdio.stdout)?)
        .with_stderr(or_null(stdio.stderr)?))
}

/// Starts a program as containerd's shims start loggers: output on 3 and 4, and 5 to say that it is
/// ready.
fn log_with(
    container: &str,
    namespace: &str,
    program: &str,
    args: &[String],
    stdio: Stdio,
) -> Result<i32, JobError> {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("CONTAINER_ID", container)
        .env("CONTAINER_NAMESPACE", namespace)
        .current_dir("/");
    let mut fds = vec![(or_null(stdio.stdout)?, 3), (or_null(stdio.stderr)?, 4)];
    fds.extend(stdio.ready.map(|ready| (ready, 5)));
    let child = spawn(&mut command, fds).map_err(JobError::Program)?;
    // Its pid is init's to know; it becomes init's child when this process ends.
    i32::try_from(child.id()).map_err(|_| JobError::NoProcess)
}

fn or_null(fd: Option<OwnedFd>) -> Result<OwnedFd, JobError> {
    match fd {
        Some(fd) => Ok(fd),
        None => std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
            .map_err(JobError::Null),
    }
}

fn load(container: &str) -> Result<Container, JobError> {
    Ok(Container::load(Path::new(paths::LIBCONTAINER_DIR).join(container))?)
}

//! `vminitctl exec`: a further process in the container of a VM that a `vminitctl run` or a shim owns.
//!
//! Owns: the exec in the guest, from Exec to Delete, and the connections to it, which that run has handed over.
//! Promises: what `vminitctl run` promises of bytes, status, signals and the terminal.
//! Never: changes the container or the VM.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;

use host_shim::ctl::{self, Control, ControlError, LookupError};
use host_shim::guest::{
    BOOT_DEADLINE, CallError, Guest, NotServing, Ports, SteadyGuest, unlimited,
};
use host_shim::sys::terminal::Size;
use oci_spec::runtime::{BoxBuilder, Process, UserBuilder};
use vminitd_protocol::pb::containerd::task::v3::{DeleteRequest, ExecProcessRequest};
use vminitd_protocol::pb::google::protobuf::Any;

use crate::cli::ExecArgs;
use crate::process::signals::{self, Signals};
use crate::process::stdio::{self, Stdio};
use crate::process::{
    Connected, ProcessError, TRIES, Target, attend, resolve_env, set_env, term_entry, terminal,
};

/// The type of an exec's spec, as containerd writes it. The guest looks at the JSON only.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The VM is not found, or is not unique.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The VM cannot be asked what runs in it.
    #[error("VM {name}")]
    Control {
        /// The VM.
        name: String,
        /// Why not.
        #[source]
        source: ControlError,
    },
    /// The container's process is none that we can read.
    #[error("VM {name}: the container's process")]
    Template {
        /// The VM.
        name: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The guest cannot be reached.
    #[error("VM {name}")]
    NotServing {
        /// The VM.
        name: String,
        /// How long it was tried, and what happened.
        #[source]
        source: NotServing,
    },
    /// The command's own failure, or its stdio's.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl ExecError {
    /// Our exit status for it.
    pub fn status(&self) -> i32 {
        match self {
            Self::Process(error) => error.status(),
            _ => crate::FAILED,
        }
    }
}

/// Runs the command; returns its exit status.
pub fn exec(args: ExecArgs) -> Result<i32, ExecError> {
    let size = match args.tty {
        true => Some(terminal::stdin_size().map_err(no_terminal)?),
        false => None,
    };
    let vm = ctl::lookup(args.name.as_ref())?;
    let signals = signals::watch().map_err(ProcessError::Signals)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProcessError::Runtime)?;
    runtime.block_on(reach_and_run(&args, vm.to_string(), vm.control(), size, signals))
}

fn no_terminal(source: io::Error) -> ProcessError {
    ProcessError::NoTerminal { wanted_by: "--tty", source }
}

async fn reach_and_run(
    args: &ExecArgs,
    name: String,
    control: Control,
    size: Option<Size>,
    mut signals: Signals,
) -> Result<i32, ExecError> {
    let ready = async {
        let told = control.describe(true).await;
        let told = told.map_err(|source| ExecError::Control { name: name.clone(), source })?;
        let guest =
            Guest::connect(Arc::new(control.clone()), Ports::default(), BOOT_DEADLINE).await;
        let guest = guest.map_err(|source| ExecError::NotServing { name: name.clone(), source })?;
        Ok::<_, ExecError>((told, guest))
    };
    let (told, guest) = tokio::select! {
        ready = ready => ready?,
        // As long as nothing runs, it ends us as it would have by itself.
        signal = signals.next_to_forward() => return Ok(128 + signal.number()),
    };
    let template: Process = serde_json::from_slice(&told.process)
        .map_err(|source| ExecError::Template { name: name.clone(), source })?;
    let process = process(args, template, size)?;
    let guest = SteadyGuest::new(guest, BOOT_DEADLINE);
    let (target, stdio) = add(&guest, &told.container, args, &process).await?;
    let connected = Connected { stdio, tty: args.tty };
    let exit = attend(&guest, &target, connected, &mut signals, |_| {}).await;
    // Also of one that could not be started. Whatever comes of it: the VM may end at the same moment.
    let request = DeleteRequest { id: target.container, exec_id: target.exec };
    let delete = |guest: Guest| async move { guest.task().delete(unlimited(), &request).await };
    let _ = guest.once(delete).await;
    Ok(exit?.exit_status as i32)
}

/// The container's own process with what the options change.
fn process(
    args: &ExecArgs,
    mut process: Process,
    size: Option<Size>,
) -> Result<Process, ProcessError> {
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    let size = size.map(|size| BoxBuilder::default().height(size.height).width(size.width).build());
    process.set_console_size(size.and_then(Result::ok));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(ids) = args.user {
        let user = UserBuilder::default().uid(ids.uid).gid(ids.gid).build();
        process.set_user(user.expect("every field has a value"));
    }
    let env = process.env_mut().get_or_insert_default();
    if args.tty {
        // Our window may be another than the one that the container was started in.
        set_env(env, [term_entry()]);
    }
    let entries = args.env.iter().map(|entry| resolve_env(entry)).collect::<Result<Vec<_>, _>>()?;
    set_env(env, entries);
    Ok(process)
}

/// Makes the exec, and its streams before it. When the agent is lost meanwhile, it is tried again under another id.
async fn add(
    guest: &SteadyGuest,
    container: &str,
    args: &ExecArgs,
    process: &Process,
) -> Result<(Target, Stdio), ProcessError> {
    let spec = serde_json::to_vec(process).expect("a process is JSON");
    for _ in 0..TRIES {
        let target = Target { container: container.to_owned(), exec: unique_id() };
        let interactive = args.interactive || args.tty;
        let Some(stdio) = stdio::open(guest, &target, interactive, args.tty).await? else {
            continue;
        };
        let request = ExecProcessRequest {
            id: target.container.clone(),
            exec_id: target.exec.clone(),
            terminal: args.tty,
            stdin: stdio.stdin_uri(),
            stdout: stdio.stdout_uri(),
            stderr: stdio.stderr_uri(),
            spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: spec.clone() }),
        };
        let add = |guest: Guest| async move { guest.task().exec(unlimited(), &request).await };
        match guest.once(add).await {
            Ok(_) => return Ok((target, stdio)),
            Err(CallError::Lost(_)) => {}
            Err(error) => return Err(ProcessError::create("Task.Exec")(error)),
        }
    }
    Err(ProcessError::Unmade(TRIES))
}

/// An id that no other exec of the VM has, whoever on this host makes it.
fn unique_id() -> String {
    // Keys of the system's random numbers: the only ones that std gives out.
    format!("exec-{:016x}", RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &[&str]) -> ExecArgs {
        let cli = Cli::parse_from([&["vminitctl", "exec"], line].concat());
        let Command::Exec(args) = cli.command else { panic!("exec is exec") };
        *args
    }

    fn template() -> Process {
        let json = r#"{"args":["sleep"],"cwd":"/srv","env":["A=1","TERM=dumb"],"noNewPrivileges":true,
            "user":{"uid":5,"gid":6,"additionalGids":[7]},"terminal":true,"consoleSize":{"height":1,"width":2}}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_exec_is_the_containers_process_but_for_its_command() {
        let made = process(&args(&["ls", "-l"]), template(), None).unwrap();
        let mut expected = template();
        expected.set_args(Some(vec!["ls".into(), "-l".into()])).set_terminal(Some(false));
        expected.set_console_size(None);
        assert_eq!(made, expected);
    }

    #[test]
    fn options_replace_what_the_container_has() {
        let line = ["-t", "--user", "8:9", "--cwd", "/tmp", "-e", "A=2", "-e", "B=3", "ls"];
        let size = Size { width: 80, height: 24 };
        let made = process(&args(&line), template(), Some(size)).unwrap();
        assert_eq!((made.user().uid(), made.user().gid()), (8, 9));
        assert_eq!(made.user().additional_gids(), &None);
        assert_eq!(made.cwd(), std::path::Path::new("/tmp"));
        let term = term_entry();
        assert_eq!(made.env().as_deref().unwrap(), [term.as_str(), "A=2", "B=3"]);
        let console = made.console_size().unwrap();
        assert_eq!((made.terminal(), console.width(), console.height()), (Some(true), 80, 24));
        assert_eq!(made.no_new_privileges(), Some(true));
    }
}

//! `Task.Exec`: reserves an id for a further process of a running container.
//!
//! Promises: nothing runs yet, and no stream is looked for, before its Start; on failure nothing is
//! left. What the request leaves open (capabilities) is the container's.

use std::path::Path;
use std::sync::Arc;

use tracing::{debug, warn};
use vminitd_protocol::pb::containerd::task::v3::ExecProcessRequest;

use super::container::Container;
use super::io;
use super::process::Process;
use super::record::{self, Counters, ProcessRecord, RecordError, Saved};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::exec_spec::{self, ExecProcess};
use crate::agent::id::ExecId;
use crate::agent::process::lifecycle::{Refusal, State};
use crate::limits::EXECS;
use crate::link::confinement::Confinement;
use crate::link::exec_program::ExecProgram;
use crate::link::left::{Left, LeftError};

/// The call.
pub fn exec(agent: &Arc<Agent>, request: ExecProcessRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let id = ExecId::try_from(&*request.exec_id)?;
    joinable(&container)?;
    let record = ProcessRecord {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        ..Default::default()
    };
    io::uris(&record)?;
    let json = request.spec.map(|any| any.value).unwrap_or_default();
    let wanted = exec_spec::exec_process(&json).map_err(|error| RpcError::invalid(&error))?;
    let program = program(&container, &wanted).map_err(|error| RpcError::failed(&error))?;
    if container.process(id.as_str()).is_ok() {
        return Err(RpcError::Exists { what: "id", id: id.to_string() });
    }
    if container.processes().len() > EXECS {
        return Err(RpcError::Exhausted(format!("{EXECS} execs are there")));
    }
    // Nothing here waits, so that nobody can take the id meanwhile.
    let directory = record::exec_directory(&container.directory, &id);
    let saved = save(&directory, &record, &program).inspect_err(|error| {
        warn!(container = %container.id, exec = %id, %error, "not added");
        let _ = record::remove_directory(&directory);
    });
    let counters = saved?;
    let process = Process::exec(&container.id, id.clone(), directory, record, counters);
    if let Some(size) = wanted.size {
        process.resize(size)?;
    }
    container.add_exec(&id, process.clone());
    debug!(container = %container.id, exec = %id, "added");
    container.publish_added(agent, &process);
    Ok(())
}

/// What it does not say of its capabilities is the container's.
fn program(container: &Container, wanted: &ExecProcess) -> Result<ExecProgram, LeftError> {
    let capabilities = match wanted.capabilities {
        Some(capabilities) => capabilities,
        None => Confinement::read(&container.directory)?.capabilities,
    };
    Ok(ExecProgram { capabilities, ..wanted.program.clone() })
}

fn save(
    directory: &Path,
    record: &ProcessRecord,
    program: &ExecProgram,
) -> Result<Counters, RpcError> {
    let failed = |error: RecordError| RpcError::failed(&error);
    record::make_directory(directory).map_err(failed)?;
    program.save(directory).map_err(|error| RpcError::failed(&error))?;
    record.save_first(directory).map_err(failed)?;
    Counters::open(directory).map_err(failed)
}

/// Whether a process may join the container as it is.
pub fn joinable(container: &Container) -> Result<(), Refusal> {
    let cannot = |state| Err(Refusal::CannotExec { state });
    match container.init.state() {
        State::Created { .. } | State::Starting { exit: None, .. } | State::Running { .. } => {
            Ok(())
        }
        State::Pausing { .. } | State::Paused { .. } => cannot("paused"),
        State::Starting { exit: Some(_), .. } | State::Draining { .. } | State::Stopped { .. } => {
            Err(Refusal::InitGone { container: container.id.to_string() })
        }
        State::Creating | State::Deleting { .. } | State::Deleted => Err(Refusal::Gone),
        // An init is none of these.
        State::Added | State::Launching | State::Failed => Err(Refusal::Gone),
    }
}

//! `Task.Start`: tells a container's waiting init to go on; an exec is launched.
//!
//! Promises: TaskStart is published before the process's TaskExit, also when it exits before this
//! call returns. Never: forks; only poststart hooks and execs ([`start_exec`](super::start_exec))
//! need a launcher.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tracing::{debug, warn};
use vminitd_protocol::pb::containerd::task::v3::{StartRequest, StartResponse};

use super::container::Container;
use super::start_exec;
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::init_client::Outcome;
use crate::agent::process::lifecycle::Event;
use crate::link::message::{Job, Launch, Target};
use crate::paths::{NOTIFY_SOCKET, OWN_FDS, START_PIPE};
use crate::sys::stream_socket::connect_and_send;

/// What libcontainer's own start sends; the process waits for the end of the connection and does
/// not look at it.
const GO_ON: &[u8] = b"start container";

/// The call.
pub async fn start(agent: Arc<Agent>, request: StartRequest) -> Result<StartResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    if process.exec.is_some() {
        return start_exec::start(&agent, &container, &process).await;
    }
    container.init.apply(Event::StartAsked)?;
    let sent = send(&agent, &container).await;
    let event = if sent.is_ok() { Event::StartSent } else { Event::StartFailed };
    let actions = container.init.note(event);
    container.perform(&agent, &process, &actions);
    sent?;
    let pid = container.init.pid();
    debug!(container = %container.id, pid, "started");
    Ok(StartResponse { pid })
}

async fn send(agent: &Arc<Agent>, container: &Arc<Container>) -> Result<(), RpcError> {
    // Before, so that the next agent knows to do it (again) if this one dies in between.
    container.init.note_in_record(|record| record.started = true);
    let sent = if container.record().poststart {
        send_with_hooks(agent, container).await
    } else {
        notify(agent, container)
            .map_err(|error| RpcError::Failed(format!("start the container's process: {error}")))
    };
    if sent.is_err() {
        container.init.note_in_record(|record| record.started = false);
    }
    sent
}

/// Tells the process that waits: by the pipe that it waits on, or by libcontainer's socket. An error
/// if nobody listens any more.
pub fn notify(agent: &Agent, container: &Container) -> io::Result<()> {
    let pipe = container.directory.join(START_PIPE);
    match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(pipe) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        pipe => return pipe?.write_all(&[0]),
    }
    let directory = agent.dirs.libcontainer(&container.id);
    let directory = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(directory)?;
    // A socket's path has at most 107 bytes; through the descriptor any id fits.
    let path = Path::new(OWN_FDS).join(directory.as_raw_fd().to_string());
    connect_and_send(&path.join(NOTIFY_SOCKET), GO_ON)
}

async fn send_with_hooks(agent: &Agent, container: &Container) -> Result<(), RpcError> {
    let launch = Launch {
        target: Target { container: container.id.to_string(), exec: String::new() },
        fds: vec![],
        deadline_ms: agent.launch_deadline_ms(0),
        job: Job::StartWithHooks,
    };
    let outcome = agent.init.launch(agent.init.next_request(), launch, &[]).await;
    match outcome.map_err(|error| RpcError::failed(&error))? {
        Outcome::Done | Outcome::Launched(_) => Ok(()),
        // The process was told before its hooks ran; nobody listens any more then.
        Outcome::Failed(error) if notify(agent, container).is_err() => {
            warn!(container = %container.id, %error, "a poststart hook failed; the container runs");
            Ok(())
        }
        Outcome::Failed(error) => {
            warn!(container = %container.id, %error, "started without its poststart hooks");
            Ok(())
        }
    }
}

//! Programs of the guest that take containers' output (`binary:` URIs).
//!
//! Owns: each of them until its container or exec is deleted.
//! Promises: a process is made only when its logger says that it is ready; a logger that ends or
//! hangs holds up nobody: what it does not take is discarded once it is gone; Delete ends it when
//! it has read its input to the end, or after a while.
//! Never: reads or writes what goes to one, or starts one again.
//!
//! init knows a logger by a target of its own, so that the next agent finds it: below the process's,
//! with a name that no exec can have.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::init_client::{InitClient, Launched, Outcome};
use crate::agent::lock;
use crate::agent::stdio::end::End;
use crate::agent::stdio::wiring::Logger;
use crate::chain;
use crate::limits::{LOGGER_END, LOGGER_READY};
use crate::link::message::{FdRole, Job, Launch, Target};
use crate::sys::pidfd::send_signal;
use crate::sys::splice::pipe;

/// All of them, by whose output they take.
#[derive(Default)]
pub struct Loggers(Mutex<HashMap<Target, Vec<Running>>>);

struct Running {
    pidfd: OwnedFd,
    /// Ends when it has ended and init has forgotten it.
    watch: JoinHandle<()>,
}

/// What makes a logger's target of a process's; a slash is in no id.
const SUFFIX: &str = "/logger";

/// Whose output a launched process takes; None if it is no logger.
pub fn process_of(target: &Target) -> Option<Target> {
    let exec = target.exec.strip_suffix(SUFFIX)?.to_owned();
    Some(Target { container: target.container.clone(), exec })
}

impl Loggers {
    /// Starts one, and waits until it is ready.
    pub async fn start(
        &self,
        agent: &Agent,
        target: &Target,
        namespace: &str,
        logger: Logger,
    ) -> Result<(), RpcError> {
        let program = logger.program.path.display().to_string();
        let failed = |why: String| RpcError::Failed(format!("start logger {program}: {why}"));
        let (ready, theirs) = pipe().map_err(|error| failed(error.to_string()))?;
        let fds = [
            (FdRole::Stdout, logger.stdout),
            (FdRole::Stderr, logger.stderr),
            (FdRole::Ready, Some(theirs)),
        ];
        let (roles, fds): (Vec<_>, Vec<_>) =
            fds.into_iter().filter_map(|(role, fd)| Some((role, fd?))).unzip();
        let launch = Launch {
            target: Target {
                container: target.container.clone(),
                exec: format!("{}{SUFFIX}", target.exec),
            },
            fds: roles,
            deadline_ms: agent.launch_deadline_ms(0),
            job: Job::Log {
                program: program.clone(),
                args: logger.program.args,
                namespace: namespace.to_owned(),
            },
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let outcome = agent.init.launch(agent.init.next_request(), launch, &borrowed).await;
        drop(fds);
        match outcome.map_err(|error| failed(chain(&error)))? {
            Outcome::Launched(launched) => self.watch(&agent.init, target, launched),
            Outcome::Failed(error) => return Err(failed(error.reason)),
            Outcome::Done => return Err(failed("init launched no process".to_owned())),
        }
        // A byte, or the end: it has closed the descriptor, or is gone.
        let ready = End::new(ready).map_err(|error| failed(error.to_string()))?;
        match timeout(LOGGER_READY, ready.readable()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(failed(format!("not ready after {} s", LOGGER_READY.as_secs()))),
        }
    }

    /// Takes one over from the agent before.
    pub fn adopt(&self, init: &Arc<InitClient>, target: &Target, launched: Launched) {
        self.watch(init, target, launched);
    }

    /// Whether a container has any.
    pub fn has(&self, container: &str) -> bool {
        lock(&self.0).keys().any(|target| target.container == container)
    }

    fn watch(&self, init: &Arc<InitClient>, target: &Target, launched: Launched) {
        let Launched { process, pid, pidfd, exit, .. } = launched;
        let (init, container) = (init.clone(), target.container.clone());
        let watch = tokio::spawn(async move {
            let Ok(exit) = exit.wait().await else { return };
            match exit.status {
                0 => debug!(container, pid, "a logger has ended"),
                status => warn!(container, pid, status, "a logger has failed"),
            }
            if let Err(error) = init.forget(process).await {
                warn!(container, error = %chain(&error), "a logger is not forgotten");
            }
        });
        lock(&self.0).entry(target.clone()).or_default().push(Running { pidfd, watch });
    }

    /// Waits until those of a process have ended, whose input has been closed; kills what does not.
    pub async fn end(&self, target: &Target) {
        let loggers = lock(&self.0).remove(target).unwrap_or_default();
        for mut logger in loggers {
            if timeout(LOGGER_END, &mut logger.watch).await.is_ok() {
                continue;
            }
            warn!(container = target.container, "a logger does not end: killed");
            let _ = send_signal(logger.pidfd.as_fd(), libc::SIGKILL);
            let _ = logger.watch.await;
        }
    }

    /// The same for all processes of a container.
    pub async fn end_all(&self, container: &str) {
        let targets: Vec<Target> =
            lock(&self.0).keys().filter(|target| target.container == container).cloned().collect();
        for target in targets {
            self.end(&target).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::id::ExecId;

    #[test]
    fn loggers_target_is_no_execs_and_leads_back_to_its_process() {
        for exec in ["", "e1"] {
            let process = Target { container: "c".into(), exec: exec.into() };
            let logger = Target { container: "c".into(), exec: format!("{exec}{SUFFIX}") };
            assert!(ExecId::try_from(&*logger.exec).is_err());
            assert_eq!(process_of(&logger), Some(process.clone()));
            assert_eq!(process_of(&process), None);
        }
    }
}

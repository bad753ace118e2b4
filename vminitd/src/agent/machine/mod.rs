//! The guest as a machine: its end, its clock, its devices, and what it tells of itself.
//!
//! | part | does |
//! |---|---|
//! | [`service`] | `vminitd.v1.Machine`: routes |
//! | [`features`], [`metrics`], [`diagnostics`] | look inside |
//! | [`freezer`] | freezes filesystems, and sees to it that they thaw |
//! | [`hotplug`] | CPUs and memory, off and on |
//! | [`time`] | the wall clock and the random pool |
//! | [`stamp`] | the last of the boot's stamps |

pub mod diagnostics;
pub mod features;
pub mod freezer;
pub mod hotplug;
pub mod metrics;
pub mod service;
pub mod stamp;
pub mod time;

/// Runs what only reads on a thread of its own: the pool for what can block may be full of what hangs, and that is when
/// people ask.
async fn aside<T: Send + 'static>(
    name: &'static str,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, super::errors::RpcError> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    let run = move || drop(sender.send(look()));
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| super::errors::RpcError::Failed(format!("start a thread: {error}")))?;
    answer.await.map_err(|_| super::errors::RpcError::Failed(format!("{name} panicked")))
}

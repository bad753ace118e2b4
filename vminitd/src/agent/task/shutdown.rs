//! `Task.Shutdown`: nothing while there are containers, else the end of the VM.

use std::sync::Arc;

use crate::agent::Agent;
use crate::agent::power;

/// The call.
pub async fn shutdown(agent: &Arc<Agent>) {
    if agent.tasks.is_empty() {
        power::ask(agent, false, None, "the last task is gone (Task.Shutdown)").await;
    }
}

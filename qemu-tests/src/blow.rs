//! What a test does to the agent, and what of it ends with another agent that serves.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::{Vm, inspector};

/// A blow to the agent, from inside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGABRT, which is how a process that cannot go on ends itself.
    Abort,
    /// SIGSTOP: it is there and does nothing.
    Stop,
}

impl Blow {
    fn signal(self) -> &'static str {
        match self {
            Self::Kill => "9",
            Self::Abort => "6",
            Self::Stop => "19",
        }
    }

    /// Strikes, and returns how long it took until another agent answered.
    pub async fn strike(self, vm: &Vm) -> Duration {
        let before = vm.agents();
        let id = format!("blow{before}");
        let wish = inspector(&["inspect", "signal", self.signal()]);
        let task = vm.create(&id, wish).await.expect("create");
        let started = Instant::now();
        // The answer dies with the agent, or comes before it.
        let _ = timeout(Duration::from_secs(5), task.start()).await;
        // Not before the old agent is gone: it may well answer until then.
        vm.reconnect_to_another_than(before).await;
        let took = started.elapsed();
        vm.delete_by_force(&id).await;
        took
    }
}

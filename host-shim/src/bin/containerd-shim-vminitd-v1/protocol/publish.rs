//! Events for containerd: told in order, and again until it has heard them.
//!
//! ```text
//! publish --> Queue --> Forward over containerd's ttrpc socket --> told
//!               ^                      |
//!               +---- not reached: wait 50 ms, doubling to 2 s
//! ```
//!
//! Owns: the events that containerd has not heard yet, and the connection to it.
//! Promises: a containerd that is restarted hears all of them, in order, exits before all others if there are more
//! than [`MAX_EVENTS`]; one that refuses an event five times does not hold up those behind.
//! Never: blocks who publishes.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;
use vminitd_protocol::pb::containerd::services::events::ttrpc::v1::{EventsClient, ForwardRequest};
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::topics::TASK_EXIT;

/// Events that wait for a containerd that is away: some minutes of a busy pod.
const MAX_EVENTS: usize = 4096;

/// How long containerd may take for one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Between attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How often an event may be refused.
const REFUSALS: u32 = 5;

/// Where events go.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// containerd's ttrpc socket; empty: the program has to do.
    pub ttrpc: String,
    /// containerd's socket, for the program.
    pub address: String,
    /// The program.
    pub binary: PathBuf,
}

/// Publishes. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued, or told.
    changed: Notify,
}

impl Publisher {
    /// Starts the task that tells.
    pub fn start(target: Target) -> Self {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Notify::new() });
        tokio::spawn(tell(shared.clone(), target));
        Self(shared)
    }

    /// Queues an event.
    pub fn publish(&self, event: Envelope) {
        if let Some(dropped) = self.queue().push(event) {
            warn!(topic = dropped.topic, "containerd is away for too long: an event is left out");
        }
        self.0.changed.notify_waiters();
    }

    /// Waits until all are told.
    pub async fn flushed(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.queue().is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits. The first stays until it is told.
#[derive(Debug, Default)]
struct Queue(VecDeque<Envelope>);

impl Queue {
    /// Adds one; returns the one that had to go for it: the oldest that is no exit and not being told.
    fn push(&mut self, event: Envelope) -> Option<Envelope> {
        self.0.push_back(event);
        if self.0.len() <= MAX_EVENTS {
            return None;
        }
        let other = (1..self.0.len()).find(|place| self.0[*place].topic != TASK_EXIT);
        self.0.remove(other.unwrap_or(1))
    }

    fn first(&self) -> Option<&Envelope> {
        self.0.front()
    }

    fn told(&mut self) {
        self.0.pop_front();
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why an event was not told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    /// Nobody is there.
    #[error("containerd is not reached: {0}")]
    Away(String),
    /// It said no.
    #[error("containerd refuses: {0}")]
    Refused(String),
}

async fn tell(shared: Arc<Shared>, target: Target) {
    let mut connection = None;
    let (mut pause, mut refusals) = (PAUSES.0, 0);
    loop {
        let changed = shared.changed.notified();
        let first = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).first().cloned();
        let Some(event) = first else {
            changed.await;
            continue;
        };
        let outcome = match target.ttrpc.as_str() {
            "" => run(&target, &event).await,
            _ => forward(&target, &mut connection, &event).await,
        };
        let give_up = match outcome {
            Ok(()) => true,
            Err(error) => {
                debug!(topic = event.topic, %error, "event not told yet");
                connection = None;
                refusals += u32::from(matches!(error, Untold::Refused(_)));
                if refusals >= REFUSALS {
                    warn!(topic = event.topic, %error, "an event is left out");
                }
                refusals >= REFUSALS
            }
        };
        if give_up {
            shared.queue.lock().unwrap_or_else(PoisonError::into_inner).told();
            shared.changed.notify_waiters();
            (pause, refusals) = (PAUSES.0, 0);
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn forward(
    target: &Target,
    connection: &mut Option<EventsClient>,
    event: &Envelope,
) -> Result<(), Untold> {
    let away = |error: &dyn std::fmt::Display| Untold::Away(error.to_string());
    let client = match connection {
        Some(client) => client,
        None => {
            let path = target.ttrpc.trim_start_matches("unix://");
            let socket = UnixStream::connect(path).await.map_err(|error| away(&error))?;
            connection.insert(EventsClient::new(Client::new(Socket::new(socket))))
        }
    };
    let request = ForwardRequest { envelope: Some(event.clone()) };
    let limit = i64::try_from(FORWARD_TIMEOUT.as_nanos()).unwrap_or(i64::MAX);
    match client.forward(context::with_timeout(limit), &request).await {
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) => Err(Untold::Refused(status.message)),
        Err(error) => Err(away(&error)),
    }
}

/// `containerd publish`, with the event on its standard input.
async fn run(target: &Target, event: &Envelope) -> Result<(), Untold> {
    let refused = |error: &dyn std::fmt::Display| Untold::Refused(error.to_string());
    let mut child = Command::new(&target.binary)
        .args(["--address", &target.address, "publish", "--topic", &event.topic])
        .args(["--namespace", &event.namespace])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| refused(&error))?;
    let body = event.event.as_ref().map(Message::encode_to_vec).unwrap_or_default();
    let told = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&body).await?;
        }
        child.wait().await
    };
    match timeout(FORWARD_TIMEOUT, told).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(refused(&status)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(Untold::Away("it takes too long".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(topic: &str, number: usize) -> Envelope {
        Envelope { topic: topic.to_owned(), seq: number as u64, ..Default::default() }
    }

    proptest! {
        /// The model: what is told is what was queued, in order, less what was said to be left out, which is no exit as
        /// long as there is anything else.
        #[test]
        fn events_are_told_in_order_and_exits_are_not_left_out(exits in proptest::collection::vec(any::<bool>(), 1..64), repeat in 64usize..90) {
            let mut queue = Queue::default();
            let mut expected = Vec::new();
            for number in 0..exits.len() * repeat {
                let topic = if exits[number % exits.len()] { TASK_EXIT } else { "/tasks/start" };
                expected.push(number as u64);
                if let Some(gone) = queue.push(event(topic, number)) {
                    prop_assert!(gone.topic != TASK_EXIT || queue.0.iter().skip(1).all(|left| left.topic == TASK_EXIT));
                    prop_assert!(gone.seq != 0, "the first may be told at this moment");
                    expected.retain(|seq| *seq != gone.seq);
                }
                prop_assert!(queue.0.len() <= MAX_EVENTS);
            }
            let mut told = Vec::new();
            while let Some(first) = queue.first() {
                told.push(first.seq);
                queue.told();
            }
            prop_assert_eq!(told, expected);
        }
    }
}

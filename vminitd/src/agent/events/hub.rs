//! Numbers events and hands them to whoever subscribed.
//!
//! Owns: the last number, which outlives the agent, and the queue of each subscriber.
//! Promises: subscribers see events in the order of their numbers, from 1 on, without gaps for as
//! long as they keep up; one whose queue is full is dropped, with a log line, and blocks nobody.
//! Never: waits; keeps an event that was handed out (the ring that replays them is still to come,
//! and belongs here).

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::warn;
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::pb::google::protobuf::{Any, Timestamp};

use crate::limits::SUBSCRIBER_EVENTS;
use crate::sys::numbers::Numbers;

/// Index of the last event's number among the agent's numbers.
const LAST_SEQ: usize = 0;

/// The one publisher of a guest.
pub struct Hub {
    boot_id: Vec<u8>,
    numbers: Numbers,
    subscribers: Mutex<Vec<mpsc::Sender<Encoded>>>,
}

/// An [`Envelope`] as it goes over the wire, encoded once for all subscribers.
pub type Encoded = Arc<[u8]>;

/// An event message, and what containerd calls it.
pub trait Event: Message {
    /// The proto name, which is the type URL.
    const NAME: &'static str;
    /// The topic.
    const TOPIC: &'static str;
}

impl Hub {
    /// Goes on from the last number in `numbers`.
    pub fn new(numbers: Numbers, boot_id: &str) -> Self {
        Self { boot_id: boot_id.trim().as_bytes().to_vec(), numbers, subscribers: Mutex::default() }
    }

    /// Gives the event the next number and hands it out.
    pub fn publish<E: Event>(&self, namespace: &str, event: &E) {
        let mut subscribers = crate::agent::lock(&self.subscribers);
        let seq = self.numbers.get(LAST_SEQ).fetch_add(1, Relaxed) + 1;
        let envelope = Envelope {
            timestamp: Some(now()),
            namespace: namespace.to_owned(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any { type_url: E::NAME.to_owned(), value: event.encode_to_vec() }),
            seq,
            boot_id: self.boot_id.clone(),
        };
        let encoded: Encoded = envelope.encode_to_vec().into();
        subscribers.retain(|subscriber| match subscriber.try_send(encoded.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                warn!(seq, "an event subscriber does not keep up: dropped");
                false
            }
            Err(TrySendError::Closed(_)) => false,
        });
    }

    /// From now on, until the receiver is dropped. The channel's end says that this subscriber was
    /// too slow.
    pub fn subscribe(&self) -> mpsc::Receiver<Encoded> {
        let (sender, receiver) = mpsc::channel(SUBSCRIBER_EVENTS);
        let mut subscribers = crate::agent::lock(&self.subscribers);
        // Else those who left would pile up while nothing is published.
        subscribers.retain(|subscriber| !subscriber.is_closed());
        subscribers.push(sender);
        receiver
    }
}

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or(0),
    }
}

macro_rules! events {
    ($($message:ident: $topic:ident),* $(,)?) => {$(
        impl Event for vminitd_protocol::pb::containerd::events::$message {
            const NAME: &'static str = concat!("containerd.events.", stringify!($message));
            const TOPIC: &'static str = vminitd_protocol::topics::$topic;
        }
    )*};
}
events! {
    TaskCreate: TASK_CREATE,
    TaskStart: TASK_START,
    TaskExit: TASK_EXIT,
    TaskDelete: TASK_DELETE,
    TaskPaused: TASK_PAUSED,
    TaskResumed: TASK_RESUMED,
}

#[cfg(test)]
mod tests {
    use vminitd_protocol::pb::containerd::events::TaskStart;

    use super::*;

    fn hub(dir: &tempfile::TempDir) -> Hub {
        Hub::new(Numbers::open(&dir.path().join("numbers")).unwrap(), "boot-1\n")
    }

    fn start(id: usize) -> TaskStart {
        TaskStart { container_id: id.to_string(), pid: 7 }
    }

    fn received(receiver: &mut mpsc::Receiver<Encoded>) -> Vec<Envelope> {
        let mut all = Vec::new();
        while let Ok(encoded) = receiver.try_recv() {
            all.push(Envelope::decode(&*encoded).unwrap());
        }
        all
    }

    #[test]
    fn event_carries_bare_type_name_topic_namespace_number_and_boot() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&dir);
        let mut receiver = hub.subscribe();
        hub.publish("k8s.io", &start(1));
        let [envelope] = &received(&mut receiver)[..] else { panic!("not one event") };
        let event = envelope.event.as_ref().unwrap();
        assert_eq!(event.type_url, "containerd.events.TaskStart");
        assert_eq!(TaskStart::decode(&*event.value).unwrap(), start(1));
        assert_eq!(envelope.topic, "/tasks/start");
        assert_eq!(envelope.namespace, "k8s.io");
        assert_eq!((envelope.seq, &*envelope.boot_id), (1, &b"boot-1"[..]));
        assert!(envelope.timestamp.as_ref().unwrap().seconds > 1_600_000_000);
    }

    #[test]
    fn numbers_go_on_in_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        hub(&dir).publish("", &start(1));
        let next = hub(&dir);
        let mut receiver = next.subscribe();
        next.publish("", &start(2));
        assert_eq!(received(&mut receiver)[0].seq, 2);
    }

    #[test]
    fn subscriber_that_does_not_read_is_dropped_and_the_other_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&dir);
        let (mut slow, mut quick) = (hub.subscribe(), hub.subscribe());
        let mut seen = 0;
        for id in 0..SUBSCRIBER_EVENTS + 10 {
            hub.publish("", &start(id));
            seen += received(&mut quick).len();
        }
        assert_eq!(seen, SUBSCRIBER_EVENTS + 10);
        let kept = received(&mut slow);
        assert_eq!(kept.len(), SUBSCRIBER_EVENTS);
        assert!(kept.iter().zip(1..).all(|(envelope, seq)| envelope.seq == seq));
        assert!(matches!(slow.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }
}

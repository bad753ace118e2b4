//! Numbers events, keeps the last of them, and wakes whoever subscribed.
//!
//! Owns: the ring of events, which outlives the agent, and how far each subscriber has come.
//! Promises: a subscriber sees every event from where it began, in the order of their numbers and
//! without a gap, across agents too; one that is so far behind that its next event has left the ring
//! is dropped, with a log line, and blocks nobody; an event with a mark is published once, whenever
//! the agent that publishes it dies.
//! Never: waits, or keeps an event anywhere but in the ring.
//!
//! A subscriber is a place in the ring, so that its queue costs nothing and a slow one holds no
//! memory: the queue's bound is the ring's.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use tokio::sync::watch;
use tracing::{error, warn};
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::pb::google::protobuf::{Any, Timestamp};

use super::ring::{Memory, Missing, Ring, Size};
use crate::agent::init_client::InitClient;
use crate::agent::lock;
use crate::limits::{EVENT_BYTES, RING_BYTES, RING_EVENTS};
use crate::link::agent::LinkError;
use crate::sys::shared_memory::SharedMemory;

/// How much is kept.
const SIZE: Size = Size { slots: RING_EVENTS, bytes: RING_BYTES };

/// Under which key init keeps the ring's memory.
const KEPT: &str = "events";

/// The one publisher of a guest.
pub struct Hub {
    boot_id: Vec<u8>,
    ring: Mutex<Ring<SharedMemory>>,
    newest: watch::Sender<u64>,
    subscribers: Mutex<Vec<Weak<Place>>>,
}

/// How far a subscriber has come.
#[derive(Debug)]
struct Place {
    /// The next event that it wants.
    next: AtomicU64,
    /// Becomes true when that has left the ring.
    dropped: watch::Sender<bool>,
}

/// One that is told every event from some number on.
pub struct Subscriber {
    hub: Arc<Hub>,
    place: Arc<Place>,
    newest: watch::Receiver<u64>,
    dropped: watch::Receiver<bool>,
}

/// An event message, and what containerd calls it.
pub trait Event: Message {
    /// The proto name, which is the type URL.
    const NAME: &'static str;
    /// The topic.
    const TOPIC: &'static str;
}

/// Why there are no events to keep.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The memory was not made.
    #[error("make memory for events")]
    Memory(#[source] io::Error),
    /// init does not keep it.
    #[error("have the events kept")]
    Link(#[from] LinkError),
}

impl Memory for SharedMemory {
    fn word(&self, index: usize) -> u64 {
        self.word(index)
    }

    fn set_word(&mut self, index: usize, value: u64) {
        self.set_word(index, value);
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        self.read(at, into);
    }

    fn write(&mut self, at: usize, from: &[u8]) {
        self.write(at, from);
    }
}

impl Hub {
    /// Goes on with the ring that init kept, or makes one and has it kept, before anything is
    /// published.
    pub async fn take_over(
        init: &InitClient,
        kept: &mut HashMap<String, Vec<(String, OwnedFd)>>,
        boot_id: &str,
    ) -> Result<Self, HubError> {
        let found = kept.remove(KEPT).and_then(|fds| fds.into_iter().next());
        if let Some((_, fd)) = found {
            match SharedMemory::open(fd, SIZE.memory()) {
                Ok(memory) => return Ok(Self::new(memory, boot_id)),
                Err(error) => {
                    error!(%error, "the events so far are lost");
                    init.release(KEPT.to_owned()).await?;
                }
            }
        }
        let memory = SharedMemory::make(c"events", SIZE.memory()).map_err(HubError::Memory)?;
        init.keep(KEPT.to_owned(), vec!["ring".to_owned()], &[memory.as_fd()]).await?;
        Ok(Self::new(memory, boot_id))
    }

    /// One whose events end with it.
    #[cfg(test)]
    pub fn unkept(boot_id: &str) -> Self {
        let memory = SharedMemory::make(c"test", SIZE.memory()).expect("memory");
        Self::new(memory, boot_id)
    }

    /// Goes on with the ring in this memory.
    fn new(memory: SharedMemory, boot_id: &str) -> Self {
        let ring = Ring::open(memory, SIZE);
        Self {
            boot_id: boot_id.trim().as_bytes().to_vec(),
            newest: watch::Sender::new(ring.newest()),
            ring: Mutex::new(ring),
            subscribers: Mutex::default(),
        }
    }

    /// Gives the event the next number and tells it.
    pub fn publish<E: Event>(&self, namespace: &str, event: &E) {
        self.append(namespace, event, |_| ());
    }

    /// The same, once in this boot: not if `mark` says that it was, in this agent's time or before.
    /// The mark is 0 at first, and lies where the next agent finds it.
    pub fn publish_once<E: Event>(&self, mark: &AtomicU64, namespace: &str, event: &E) {
        if !self.was_published(mark) {
            self.append(namespace, event, |ticket| mark.store(ticket, Relaxed));
        }
    }

    /// Whether the event of this mark was published, in this agent's time or before.
    pub fn was_published(&self, mark: &AtomicU64) -> bool {
        lock(&self.ring).was_appended(mark.load(Relaxed))
    }

    fn append<E: Event>(&self, namespace: &str, event: &E, mark: impl FnOnce(u64)) {
        let mut ring = lock(&self.ring);
        let newest = ring.append(|seq| self.encode(namespace, event, seq), mark);
        let oldest = ring.oldest();
        drop(ring);
        self.newest.send_replace(newest);
        lock(&self.subscribers).retain(|place| {
            let Some(place) = place.upgrade() else { return false };
            let next = place.next.load(Relaxed);
            if next < oldest {
                warn!(next, oldest, "an event subscriber does not keep up: dropped");
                place.dropped.send_replace(true);
            }
            next >= oldest
        });
    }

    fn encode<E: Event>(&self, namespace: &str, event: &E, seq: u64) -> Vec<u8> {
        let mut envelope = Envelope {
            timestamp: Some(now()),
            namespace: namespace.to_owned(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any { type_url: E::NAME.to_owned(), value: event.encode_to_vec() }),
            seq,
            boot_id: self.boot_id.clone(),
        };
        if envelope.encoded_len() > EVENT_BYTES {
            error!(seq, topic = E::TOPIC, "an event is too large: told without its content");
            envelope.event = Some(Any { type_url: E::NAME.to_owned(), value: vec![] });
            envelope.namespace.clear();
        }
        envelope.encode_to_vec()
    }

    /// Subscribes: to what comes, or to all after the number.
    pub fn subscribe(self: &Arc<Self>, after: Option<u64>) -> Result<Subscriber, Missing> {
        let ring = lock(&self.ring);
        let (oldest, newest) = (ring.oldest(), ring.newest());
        let after = after.unwrap_or(newest);
        if after > newest {
            return Err(Missing::Ahead { newest });
        }
        if after + 1 < oldest {
            return Err(Missing::Gone { oldest });
        }
        let next = AtomicU64::new(after + 1);
        let place = Arc::new(Place { next, dropped: watch::Sender::new(false) });
        let mut subscribers = lock(&self.subscribers);
        // Else those who left would pile up while nothing is published.
        subscribers.retain(|place| place.strong_count() > 0);
        subscribers.push(Arc::downgrade(&place));
        let (newest, dropped) = (self.newest.subscribe(), place.dropped.subscribe());
        Ok(Subscriber { hub: self.clone(), place, newest, dropped })
    }
}

impl Hub {
    /// The newest event's number, and how many subscribers there are with how many events between
    /// them that they were not given yet.
    pub fn progress(&self) -> (u64, usize, u64) {
        let newest = lock(&self.ring).newest();
        let subscribers = lock(&self.subscribers);
        let places = subscribers.iter().filter_map(Weak::upgrade);
        let behind = places.map(|place| (newest + 1).saturating_sub(place.next.load(Relaxed)));
        behind
            .fold((newest, 0, 0), |(newest, count, sum), behind| (newest, count + 1, sum + behind))
    }
}

impl Subscriber {
    /// The next event, an [`Envelope`] as it goes over the wire; None when this subscriber was too
    /// slow and is dropped.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let number = self.place.next.load(Relaxed);
        // The hub is the sender, and lives as long as this does.
        self.newest.wait_for(|newest| *newest >= number).await.ok()?;
        let event = lock(&self.hub.ring).get(number).ok()?;
        self.place.next.store(number + 1, Relaxed);
        Some(event)
    }

    /// Returns when this subscriber is dropped; whoever waits for something else meanwhile gives
    /// that up.
    pub async fn dropped(&self) {
        let mut dropped = self.dropped.clone();
        let _ = dropped.wait_for(|dropped| *dropped).await;
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
    TaskExecAdded: TASK_EXEC_ADDED,
    TaskExecStarted: TASK_EXEC_STARTED,
    TaskOom: TASK_OOM,
    TaskPaused: TASK_PAUSED,
    TaskResumed: TASK_RESUMED,
}

#[cfg(test)]
mod tests {
    use vminitd_protocol::pb::containerd::events::TaskStart;

    use super::*;

    fn memory() -> SharedMemory {
        SharedMemory::make(c"test", SIZE.memory()).unwrap()
    }

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::unkept("boot-1\n"))
    }

    fn start(id: usize) -> TaskStart {
        TaskStart { container_id: id.to_string(), pid: 7 }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    async fn envelope(subscriber: &mut Subscriber) -> Envelope {
        Envelope::decode(&*subscriber.next().await.unwrap()).unwrap()
    }

    #[test]
    fn event_carries_bare_type_name_topic_namespace_number_and_boot() {
        block_on(async {
            let hub = hub();
            let mut subscriber = hub.subscribe(None).unwrap();
            hub.publish("k8s.io", &start(1));
            let envelope = envelope(&mut subscriber).await;
            let event = envelope.event.as_ref().unwrap();
            assert_eq!(event.type_url, "containerd.events.TaskStart");
            assert_eq!(TaskStart::decode(&*event.value).unwrap(), start(1));
            assert_eq!(envelope.topic, "/tasks/start");
            assert_eq!(envelope.namespace, "k8s.io");
            assert_eq!((envelope.seq, &*envelope.boot_id), (1, &b"boot-1"[..]));
            assert!(envelope.timestamp.as_ref().unwrap().seconds > 1_600_000_000);
        });
    }

    #[test]
    fn numbers_and_marks_go_on_in_the_next_agent_and_what_was_missed_is_told() {
        block_on(async {
            let (mark, memory) = (AtomicU64::new(0), memory());
            let fd = memory.as_fd().try_clone_to_owned().unwrap();
            let first = Hub::new(memory, "b");
            first.publish("", &start(1));
            first.publish_once(&mark, "", &start(2));
            drop(first);
            let next = Arc::new(Hub::new(SharedMemory::open(fd, SIZE.memory()).unwrap(), "b"));
            next.publish_once(&mark, "", &start(2));
            next.publish("", &start(3));
            let mut subscriber = next.subscribe(Some(1)).unwrap();
            assert_eq!(envelope(&mut subscriber).await.seq, 2);
            assert_eq!(envelope(&mut subscriber).await.seq, 3);
            assert_eq!(*next.newest.borrow(), 3);
        });
    }

    #[test]
    fn subscriber_that_does_not_read_is_dropped_and_the_other_misses_nothing() {
        block_on(async {
            let hub = hub();
            let mut slow = hub.subscribe(None).unwrap();
            let mut quick = hub.subscribe(None).unwrap();
            for id in 0..RING_EVENTS {
                hub.publish("", &start(id));
                assert_eq!(envelope(&mut quick).await.seq, id as u64 + 1);
            }
            // It is as far behind as can be, and not dropped yet.
            assert!(!*slow.dropped.borrow());
            hub.publish("", &start(0));
            slow.dropped().await;
            assert_eq!(slow.next().await, None);
            assert_eq!(envelope(&mut quick).await.seq, RING_EVENTS as u64 + 1);
            assert_eq!(lock(&hub.subscribers).len(), 1);
        });
    }

    #[test]
    fn resume_is_refused_for_what_is_gone_and_for_what_is_not_there_yet() {
        let hub = hub();
        let missing = |after| hub.subscribe(Some(after)).err();
        assert_eq!(missing(0), None);
        assert_eq!(missing(1), Some(Missing::Ahead { newest: 0 }));
        for id in 0..RING_EVENTS + 3 {
            hub.publish("", &start(id));
        }
        assert_eq!(missing(2), Some(Missing::Gone { oldest: 4 }));
        assert_eq!(missing(3), None);
        assert_eq!(missing(u64::MAX), Some(Missing::Ahead { newest: RING_EVENTS as u64 + 3 }));
    }

    #[test]
    fn event_larger_than_the_limit_is_told_without_its_content() {
        block_on(async {
            let hub = hub();
            let mut subscriber = hub.subscribe(None).unwrap();
            let id = "x".repeat(EVENT_BYTES);
            hub.publish("", &TaskStart { container_id: id, pid: 7 });
            let envelope = envelope(&mut subscriber).await;
            assert_eq!(envelope.topic, "/tasks/start");
            assert_eq!(envelope.event.unwrap().value, b"");
        });
    }
}

//! Streams that the host has opened, by id.
//!
//! Owns: each stream's socket until a process claims it; the id until the stream is closed.
//! Promises: an id names one stream at a time; a stream is claimed once; the number of unclaimed
//! streams is bounded, and one whose host has gone gives way.
//! Never: reads or writes a byte of a stream.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vminitd_protocol::handshake::StreamId;

use super::end::End;
use crate::agent::lock;
use crate::limits::{UNCLAIMED_STREAM_AGE, UNCLAIMED_STREAMS};
use crate::sys::stream_socket::peer_is_gone;

/// The streams of this guest.
#[derive(Debug, Default)]
pub struct Streams {
    table: Mutex<HashMap<StreamId, Entry>>,
}

#[derive(Debug)]
enum Entry {
    /// Nobody has asked for it yet.
    Unclaimed { end: Arc<End>, since: Instant },
    /// A process has it, or it is being closed; the id stays taken until then.
    Claimed,
}

/// Why a stream is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The id is taken.
    Duplicate,
    /// The id is taken by a stream whose host has gone: close that one and try again.
    Dead,
    /// There are too many; this one can be closed for the new one.
    Full {
        /// One whose host has gone, or the oldest if it is old enough.
        evict: Option<StreamId>,
    },
}

impl Streams {
    /// Takes a stream in.
    pub fn register(&self, id: &StreamId, end: Arc<End>) -> Result<(), Refused> {
        let mut table = lock(&self.table);
        match table.get(id) {
            Some(Entry::Unclaimed { end, .. }) if peer_is_gone(end.as_fd()) => {
                return Err(Refused::Dead);
            }
            Some(Entry::Unclaimed { .. } | Entry::Claimed) => return Err(Refused::Duplicate),
            None => {}
        }
        let unclaimed = table.values().filter(|entry| matches!(entry, Entry::Unclaimed { .. }));
        if unclaimed.count() >= UNCLAIMED_STREAMS {
            return Err(Refused::Full { evict: evictable(&table) });
        }
        table.insert(id.clone(), Entry::Unclaimed { end, since: Instant::now() });
        Ok(())
    }

    /// Gives a stream away; its id stays taken. None when it is not there, or given away already.
    pub fn claim(&self, id: &StreamId) -> Option<Arc<End>> {
        let mut table = lock(&self.table);
        match table.get_mut(id)? {
            Entry::Claimed => None,
            entry @ Entry::Unclaimed { .. } => match std::mem::replace(entry, Entry::Claimed) {
                Entry::Unclaimed { end, .. } => Some(end),
                Entry::Claimed => None,
            },
        }
    }

    /// Ids of streams that wait for their process.
    pub fn unclaimed(&self) -> Vec<String> {
        let table = lock(&self.table);
        let waiting = table.iter().filter(|(_, entry)| matches!(entry, Entry::Unclaimed { .. }));
        waiting.map(|(id, _)| id.as_str().to_owned()).collect()
    }

    /// Undoes a claim of which nothing has come.
    pub fn give_back(&self, id: &StreamId, end: Arc<End>) {
        lock(&self.table).insert(id.clone(), Entry::Unclaimed { end, since: Instant::now() });
    }

    /// Frees the id, once the stream is closed.
    pub fn forget(&self, id: &StreamId) {
        lock(&self.table).remove(id);
    }
}

fn evictable(table: &HashMap<StreamId, Entry>) -> Option<StreamId> {
    let unclaimed = || {
        table.iter().filter_map(|(id, entry)| match entry {
            Entry::Unclaimed { end, since } => Some((id, end, since)),
            Entry::Claimed => None,
        })
    };
    let dead = unclaimed().find(|(_, end, _)| peer_is_gone(end.as_fd()));
    let oldest = || {
        unclaimed()
            .filter(|(_, _, since)| since.elapsed() >= UNCLAIMED_STREAM_AGE)
            .min_by_key(|(_, _, since)| **since)
    };
    dead.or_else(oldest).map(|(id, _, _)| id.clone())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn id(name: &str) -> StreamId {
        StreamId::try_from(name.to_owned()).unwrap()
    }

    fn in_runtime(test: impl FnOnce()) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        let _entered = runtime.enter();
        test();
    }

    fn stream() -> (Arc<End>, UnixStream) {
        let (ours, host) = UnixStream::pair().unwrap();
        (Arc::new(End::new(ours.into()).unwrap()), host)
    }

    #[test]
    fn stream_is_claimed_once_and_its_id_is_taken_until_it_is_closed() {
        in_runtime(|| {
            let streams = Streams::default();
            let ((end, _host), (other, _other_host)) = (stream(), stream());
            streams.register(&id("a"), end).unwrap();
            assert_eq!(streams.register(&id("a"), other.clone()), Err(Refused::Duplicate));
            assert!(streams.claim(&id("b")).is_none());
            assert!(streams.claim(&id("a")).is_some());
            assert!(streams.claim(&id("a")).is_none());
            assert_eq!(streams.register(&id("a"), other.clone()), Err(Refused::Duplicate));
            streams.forget(&id("a"));
            streams.register(&id("a"), other).unwrap();
        });
    }

    #[test]
    fn id_of_a_stream_whose_host_has_gone_can_be_had_again() {
        in_runtime(|| {
            let streams = Streams::default();
            let ((end, host), (other, _other_host)) = (stream(), stream());
            streams.register(&id("a"), end).unwrap();
            drop(host);
            assert_eq!(streams.register(&id("a"), other.clone()), Err(Refused::Dead));
            streams.forget(&id("a"));
            streams.register(&id("a"), other).unwrap();
        });
    }

    #[test]
    fn unclaimed_streams_are_bounded_and_claimed_ones_do_not_count() {
        in_runtime(|| {
            let streams = Streams::default();
            let (end, host) = stream();
            for n in 0..UNCLAIMED_STREAMS {
                streams.register(&id(&n.to_string()), end.clone()).unwrap();
            }
            let full = Err(Refused::Full { evict: None });
            assert_eq!(streams.register(&id("x"), end.clone()), full);
            streams.claim(&id("7")).unwrap();
            streams.register(&id("x"), end.clone()).unwrap();
            drop(host);
            let refused = streams.register(&id("y"), end).unwrap_err();
            assert!(matches!(refused, Refused::Full { evict: Some(_) }), "{refused:?}");
        });
    }
}

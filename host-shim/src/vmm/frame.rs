//! Frames of the control socket, as a core without I/O: `u32be length` and that many bytes of a message.
//!
//! ```text
//!              4 bytes            length bytes, `fds` descriptors
//! ExpectLength ------> ExpectBody -------------------------------> (Message, fds) -> ExpectLength
//!      | length above MAX_MESSAGE_BYTES |  no message of this kind, or descriptors missing or too many
//!      +---------> FrameError <---------+
//! ```
//!
//! Calling order: hand what was received to [`Decoder::handle`], then call [`Decoder::poll`] until it returns `None`.
//! After an error the stream makes no sense any more: close it.
//! Promises: any splitting and gluing of what was sent gives the same messages; a hostile length allocates nothing.
//! Never: reads, writes or keeps time.

use std::collections::VecDeque;

use prost::Message;
use vminitd_protocol::pb::vminitd::vmm::v1::{Notice, Request};

use crate::limits::{MAX_MESSAGE_BYTES, MAX_MESSAGE_FDS};

/// Bytes of the length in front of a message.
const PREFIX_BYTES: usize = 4;

/// A message that says how many descriptors ride along with it.
pub trait Framed: Message + Default {
    /// How many.
    fn fds(&self) -> u32;

    /// Says how many.
    fn set_fds(&mut self, count: u32);
}

impl Framed for Request {
    fn fds(&self) -> u32 {
        self.fds
    }

    fn set_fds(&mut self, count: u32) {
        self.fds = count;
    }
}

impl Framed for Notice {
    fn fds(&self) -> u32 {
        self.fds
    }

    fn set_fds(&mut self, count: u32) {
        self.fds = count;
    }
}

/// What came is not what a peer of ours sends. The peer's fault; the socket is closed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// More than a message may have.
    #[error("message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")]
    Length {
        /// The announced length in bytes.
        length: u32,
    },
    /// The bytes are no message of this kind.
    #[error("bytes are no message")]
    Decode(#[from] prost::DecodeError),
    /// Fewer descriptors came than the message counts.
    #[error("message counts {counted} file descriptors, {came} came")]
    MissingFds {
        /// What the message says.
        counted: u32,
        /// What was there.
        came: usize,
    },
    /// Descriptors came that no message counts.
    #[error("{count} file descriptors came that no message counts")]
    StrayFds {
        /// How many.
        count: usize,
    },
}

/// The frame of a message with `fds` descriptors.
///
/// # Panics
/// When the message is longer than its reader takes, or has more descriptors: both are limited where it is made.
pub fn encode<M: Framed>(message: &mut M, fds: usize) -> Vec<u8> {
    assert!(fds <= MAX_MESSAGE_FDS, "more file descriptors than a message may carry");
    message.set_fds(fds as u32);
    let length = message.encoded_len();
    assert!(length <= MAX_MESSAGE_BYTES, "message is longer than its reader takes");
    let mut frame = (length as u32).to_be_bytes().to_vec();
    message.encode(&mut frame).expect("a vector takes every length");
    frame
}

/// Takes bytes and descriptors in, gives messages out. `F` is a descriptor ([`std::os::fd::OwnedFd`]).
#[derive(Debug)]
pub struct Decoder<M, F> {
    bytes: Vec<u8>,
    /// Descriptors that came and belong to a message not yet whole; dropped, so closed, with the decoder.
    fds: VecDeque<F>,
    message: std::marker::PhantomData<fn() -> M>,
}

impl<M: Framed, F> Default for Decoder<M, F> {
    fn default() -> Self {
        Self { bytes: Vec::new(), fds: VecDeque::new(), message: std::marker::PhantomData }
    }
}

impl<M: Framed, F> Decoder<M, F> {
    /// Takes what one receive has brought.
    pub fn handle(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = F>) {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
    }

    /// The next whole message and its descriptors.
    pub fn poll(&mut self) -> Result<Option<(M, Vec<F>)>, FrameError> {
        if self.fds.len() > MAX_MESSAGE_FDS {
            return Err(FrameError::StrayFds { count: self.fds.len() });
        }
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<PREFIX_BYTES>() else {
            return self.incomplete();
        };
        let length = u32::from_be_bytes(*prefix);
        if length as usize > MAX_MESSAGE_BYTES {
            return Err(FrameError::Length { length });
        }
        let Some(body) = rest.get(..length as usize) else {
            return self.incomplete();
        };
        let message = M::decode(body)?;
        let counted = message.fds();
        if counted as usize > self.fds.len() {
            return Err(FrameError::MissingFds { counted, came: self.fds.len() });
        }
        self.bytes.drain(..PREFIX_BYTES + length as usize);
        Ok(Some((message, self.fds.drain(..counted as usize).collect())))
    }

    /// True when the stream may end here: nothing has come of a next message.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.fds.is_empty()
    }

    fn incomplete(&self) -> Result<Option<(M, Vec<F>)>, FrameError> {
        // Descriptors ride on a first byte: between two messages there are none.
        if self.bytes.is_empty() && !self.fds.is_empty() {
            return Err(FrameError::StrayFds { count: self.fds.len() });
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vminitd_protocol::pb::vminitd::vmm::v1::{Connect, request};

    use super::*;

    fn request(id: u64, port: u32) -> Request {
        Request { id, fds: 0, kind: Some(request::Kind::Connect(Connect { port })) }
    }

    /// What was sent, byte by byte, each with the descriptors that ride on it.
    fn stream(messages: &[(u64, u32, usize)]) -> Vec<(u8, Vec<usize>)> {
        let mut next_fd = 0;
        let mut sent = Vec::new();
        for (id, port, fds) in messages {
            let frame = encode(&mut request(*id, *port), *fds);
            for (index, byte) in frame.into_iter().enumerate() {
                let riding =
                    if index == 0 { (next_fd..next_fd + fds).collect() } else { Vec::new() };
                sent.push((byte, riding));
            }
            next_fd += fds;
        }
        sent
    }

    #[test]
    fn a_hostile_length_is_refused_at_its_fourth_byte() {
        let mut decoder = Decoder::<Request, ()>::default();
        decoder.handle(&[0xff, 0xff, 0xff], []);
        assert_eq!(decoder.poll().unwrap(), None);
        decoder.handle(&[0xff], []);
        assert_eq!(decoder.poll(), Err(FrameError::Length { length: u32::MAX }));
        assert!(decoder.bytes.capacity() < 64);
    }

    #[test]
    fn a_length_at_the_limit_is_waited_for_and_one_beyond_is_not() {
        let mut decoder = Decoder::<Request, ()>::default();
        decoder.handle(&(MAX_MESSAGE_BYTES as u32).to_be_bytes(), []);
        assert_eq!(decoder.poll(), Ok(None));
        let mut decoder = Decoder::<Request, ()>::default();
        decoder.handle(&(MAX_MESSAGE_BYTES as u32 + 1).to_be_bytes(), []);
        assert!(decoder.poll().is_err());
    }

    #[test]
    fn descriptors_that_are_missing_or_stray_are_refused() {
        let mut decoder = Decoder::<Request, ()>::default();
        decoder.handle(&encode(&mut request(1, 2), 2), [()]);
        assert_eq!(decoder.poll(), Err(FrameError::MissingFds { counted: 2, came: 1 }));
        let mut decoder = Decoder::<Request, ()>::default();
        decoder.handle(&encode(&mut request(1, 2), 0), [()]);
        assert!(decoder.poll().unwrap().is_some());
        assert_eq!(decoder.poll(), Err(FrameError::StrayFds { count: 1 }));
        let mut decoder = Decoder::<Request, ()>::default();
        decoder.handle(&[0], vec![(); MAX_MESSAGE_FDS + 1]);
        assert!(decoder.poll().is_err());
    }

    proptest! {
        #[test]
        fn any_splitting_gives_the_messages_that_were_sent(
            messages in proptest::collection::vec((any::<u64>(), any::<u32>(), 0usize..4), 0..6),
            sizes in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let (sent, mut sizes) = (stream(&messages), sizes.into_iter().cycle());
            let (mut decoder, mut rest, mut came) = (Decoder::<Request, usize>::default(), &sent[..], Vec::new());
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                rest = tail;
                let bytes: Vec<u8> = chunk.iter().map(|(byte, _)| *byte).collect();
                decoder.handle(&bytes, chunk.iter().flat_map(|(_, fds)| fds.clone()));
                while let Some((message, fds)) = decoder.poll().unwrap() {
                    came.push((message, fds));
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(came.len(), messages.len());
            let mut next_fd = 0;
            for ((message, fds), (id, port, count)) in came.into_iter().zip(messages) {
                prop_assert_eq!(message, Request { fds: count as u32, ..request(id, port) });
                prop_assert_eq!(fds, (next_fd..next_fd + count).collect::<Vec<_>>());
                next_fd += count;
            }
        }

        #[test]
        fn random_bytes_never_panic(chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..99), 0usize..3), 0..20)) {
            let mut decoder = Decoder::<Notice, ()>::default();
            for (bytes, fds) in chunks {
                decoder.handle(&bytes, vec![(); fds]);
                loop {
                    match decoder.poll() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }
}

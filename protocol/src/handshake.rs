//! The handshake that opens a stdio stream, as a core without I/O.
//!
//! The host sends `u32be length` and an id of that many bytes of UTF-8; the guest answers with the
//! same bytes once the stream is registered, or with a frame of the same form that holds an error
//! text, and closes. What follows the ack belongs to the process.
//!
//! ```text
//!             4 bytes            length bytes
//! ExpectLength ------> ExpectId -------------> Done(StreamId)
//!      |  length 0 or above MAX_ID_LEN   |  not UTF-8
//!      +-----------------> HandshakeError <--------+
//! ```
//!
//! Owns: the bytes read so far. Promises: never asks for a byte past the id, never allocates more
//! than [`MAX_ID_LEN`]. Never: reads, writes or keeps time (the driver has the deadline).

use thiserror::Error;

/// The longest stream id in bytes. containerd's ids have at most 76 characters; a stream id is
/// such an id, an exec id and a suffix.
pub const MAX_ID_LEN: usize = 512;

/// The name under which a stream is registered: 1 to [`MAX_ID_LEN`] bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(String);

impl StreamId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StreamId {
    type Error = HandshakeError;

    fn try_from(id: String) -> Result<Self, HandshakeError> {
        if id.is_empty() || id.len() > MAX_ID_LEN {
            return Err(HandshakeError::Length { length: id.len() as u64 });
        }
        Ok(Self(id))
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the peer sent is no handshake. Always the peer's fault; the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The announced length is none that an id can have.
    #[error("stream id of {length} bytes is not between 1 and {MAX_ID_LEN}")]
    Length {
        /// The announced length in bytes.
        length: u64,
    },
    /// The id is not UTF-8.
    #[error("stream id is not UTF-8")]
    Encoding,
}

/// The guest's side. Ask [`Acceptor::wants`] how many bytes to read, hand them to
/// [`Acceptor::handle_bytes`], and repeat until that returns an id.
#[derive(Debug)]
pub struct Acceptor {
    state: State,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ExpectLength,
    ExpectId { length: usize },
}

impl State {
    fn total(self) -> usize {
        match self {
            Self::ExpectLength => 4,
            Self::ExpectId { length } => length,
        }
    }
}

impl Default for Acceptor {
    fn default() -> Self {
        Self::new()
    }
}

impl Acceptor {
    /// A handshake of which nothing has been read.
    pub fn new() -> Self {
        Self { state: State::ExpectLength, buffer: Vec::new() }
    }

    /// How many bytes to read at most; never more than belong to the handshake.
    pub fn wants(&self) -> usize {
        self.state.total() - self.buffer.len()
    }

    /// Takes at most [`Self::wants`] bytes; returns the id once it is whole.
    ///
    /// # Panics
    /// When given more than was wanted: the excess would be the process's data.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<StreamId>, HandshakeError> {
        assert!(bytes.len() <= self.wants(), "read past the handshake");
        self.buffer.extend_from_slice(bytes);
        if self.wants() > 0 {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.buffer);
        match self.state {
            State::ExpectLength => {
                let length = bytes.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
                let id_len = usize::try_from(length)
                    .ok()
                    .filter(|n| (1..=MAX_ID_LEN).contains(n))
                    .ok_or(HandshakeError::Length { length })?;
                self.state = State::ExpectId { length: id_len };
                Ok(None)
            }
            State::ExpectId { .. } => {
                let id = String::from_utf8(bytes).map_err(|_| HandshakeError::Encoding)?;
                StreamId::try_from(id).map(Some)
            }
        }
    }
}

/// The bytes with which a host opens the stream `id`, and with which the guest acknowledges it.
pub fn encode_id(id: &StreamId) -> Vec<u8> {
    encode(id.as_str())
}

/// The bytes with which the guest refuses a stream whose id is taken.
pub fn encode_duplicate(id: &StreamId) -> Vec<u8> {
    encode(&format!("stream \"{id}\" already exists"))
}

fn encode(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("ids and refusals are short");
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accept(mut bytes: &[u8], step: usize) -> Result<(Option<StreamId>, usize), HandshakeError> {
        let (mut acceptor, mut used) = (Acceptor::new(), 0);
        while !bytes.is_empty() {
            let n = acceptor.wants().min(step).min(bytes.len());
            let (chunk, rest) = bytes.split_at(n);
            (bytes, used) = (rest, used + n);
            if let Some(id) = acceptor.handle_bytes(chunk)? {
                return Ok((Some(id), used));
            }
        }
        Ok((None, used))
    }

    #[test]
    fn length_zero_and_above_the_limit_are_refused_before_allocating() {
        for length in [0, MAX_ID_LEN as u32 + 1, u32::MAX] {
            let error = accept(&length.to_be_bytes(), 4).unwrap_err();
            assert_eq!(error, HandshakeError::Length { length: length.into() });
        }
        let longest = StreamId::try_from("x".repeat(MAX_ID_LEN)).unwrap();
        assert_eq!(accept(&encode_id(&longest), 4096).unwrap().0, Some(longest));
    }

    #[test]
    fn id_that_is_not_utf8_is_refused() {
        assert_eq!(accept(&[0, 0, 0, 2, 0xff, 0xfe], 6), Err(HandshakeError::Encoding));
    }

    #[test]
    fn refusal_of_a_duplicate_has_the_text_that_hosts_match_on() {
        let id = StreamId::try_from("a".to_owned()).unwrap();
        let frame = encode_duplicate(&id);
        assert_eq!(&frame[4..], b"stream \"a\" already exists");
        assert_eq!(frame[..4], (frame.len() as u32 - 4).to_be_bytes());
    }

    proptest! {
        #[test]
        fn any_chunking_yields_the_id_and_leaves_the_data(
            id in "\\PC{1,100}", data in proptest::collection::vec(any::<u8>(), 0..64), step in 1usize..9,
        ) {
            let id = StreamId::try_from(id).unwrap();
            let frame = encode_id(&id);
            let bytes = [frame.clone(), data].concat();
            let (got, used) = accept(&bytes, step).unwrap();
            prop_assert_eq!(got, Some(id));
            prop_assert_eq!(used, frame.len());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700), step in 1usize..99) {
            let _ = accept(&bytes, step);
        }
    }
}

//! Messages to bytes and back.
//!
//! Promises: what [`encode`] made is at most [`LINK_MESSAGE_BYTES`] long and [`decode`] gives it
//! back unchanged.
//! Never: does I/O.

use serde::{Serialize, de::DeserializeOwned};

use crate::limits::{LINK_MESSAGE_BYTES, REASON_BYTES};

/// Why a message did not become bytes, or bytes no message. Always a defect of ours: both ends
/// are the same binary.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The sender's message is longer than any message may be.
    #[error("message of {0} bytes is too long for the link")]
    TooLong(usize),
    /// A message that cannot be encoded.
    #[error("encode message")]
    Encode(#[source] postcard::Error),
    /// A datagram that is no message.
    #[error("decode message")]
    Decode(#[source] postcard::Error),
}

/// A message's bytes.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, CodecError> {
    let bytes = postcard::to_stdvec(message).map_err(CodecError::Encode)?;
    if bytes.len() > LINK_MESSAGE_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// The bytes of what goes into a file, which may be as long as it likes.
pub fn encode_file<M: Serialize>(content: &M) -> Result<Vec<u8>, CodecError> {
    postcard::to_stdvec(content).map_err(CodecError::Encode)
}

/// The message in a datagram, or what is in a file.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, CodecError> {
    postcard::from_bytes(bytes).map_err(CodecError::Decode)
}

/// The text, cut at a character's end so that it fits into a message's `reason`.
pub fn bounded_reason(mut text: String) -> String {
    if text.len() > REASON_BYTES {
        let mut end = REASON_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::{Failure, Target, ToAgent};

    #[test]
    fn longest_reason_fits_into_a_message() {
        let reason = bounded_reason("é".repeat(REASON_BYTES));
        let target = Target { container: "c".repeat(1024), exec: "e".repeat(1024) };
        let failure = Failure::Runtime;
        let message = ToAgent::LaunchFailed { request: u64::MAX, target, failure, reason };
        let bytes = encode(&message).unwrap();
        assert_eq!(decode::<ToAgent>(&bytes).unwrap(), message);
    }

    #[test]
    fn message_beyond_the_limit_is_refused() {
        let key = "k".repeat(LINK_MESSAGE_BYTES);
        let error = encode(&ToAgent::Kept { key, names: Vec::new() }).unwrap_err();
        assert!(matches!(error, CodecError::TooLong(_)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = decode::<ToAgent>(&bytes);
        }
    }
}

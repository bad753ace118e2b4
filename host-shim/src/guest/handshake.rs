//! The host's side of a stream's handshake.
//!
//! Promises: not a byte past the acknowledgement is read; that is the process's output.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vminitd_protocol::handshake::{Acceptor, HandshakeError, StreamId, encode_id};

/// A stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The guest's stream port could not be reached.
    #[error("cannot reach the guest's stream port")]
    Dial(#[source] io::Error),
    /// The connection broke during the handshake.
    #[error("handshake of stream {id:?}")]
    Io {
        /// The stream.
        id: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The id is none, or the guest's answer is no handshake.
    #[error("handshake of stream {id:?}")]
    Handshake {
        /// The stream.
        id: String,
        /// What is wrong with it.
        #[source]
        source: HandshakeError,
    },
    /// The guest said no, for example because the id is in use.
    #[error("the guest refuses stream {id:?}: {text}")]
    Refused {
        /// The stream.
        id: String,
        /// The guest's words.
        text: String,
    },
}

pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: S,
    id: &str,
) -> Result<S, StreamError> {
    let on_handshake = |source| StreamError::Handshake { id: id.to_owned(), source };
    let on_io = |source| StreamError::Io { id: id.to_owned(), source };
    let wanted = StreamId::try_from(id.to_owned()).map_err(on_handshake)?;
    connection.write_all(&encode_id(&wanted)).await.map_err(on_io)?;
    let mut acceptor = Acceptor::new();
    let mut buffer = [0; 64];
    loop {
        let want = acceptor.wants().min(buffer.len());
        connection.read_exact(&mut buffer[..want]).await.map_err(on_io)?;
        match acceptor.handle_bytes(&buffer[..want]).map_err(on_handshake)? {
            None => {}
            Some(got) if got == wanted => return Ok(connection),
            Some(text) => {
                return Err(StreamError::Refused { id: id.to_owned(), text: text.to_string() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;
    use vminitd_protocol::handshake::encode_duplicate;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn open_leaves_the_output_behind_the_ack() {
        runtime().block_on(async {
            let (host, mut guest) = UnixStream::pair().unwrap();
            let id = StreamId::try_from("a-stdout".to_owned()).unwrap();
            guest.write_all(&[encode_id(&id), b"hello".to_vec()].concat()).await.unwrap();
            let mut stream = open(host, "a-stdout").await.unwrap();
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"hello");
        });
    }

    #[test]
    fn open_reports_the_guests_words_when_refused() {
        runtime().block_on(async {
            let (host, mut guest) = UnixStream::pair().unwrap();
            let id = StreamId::try_from("a".to_owned()).unwrap();
            guest.write_all(&encode_duplicate(&id)).await.unwrap();
            let error = open(host, "a").await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "the guest refuses stream \"a\": stream \"a\" already exists"
            );
        });
    }
}

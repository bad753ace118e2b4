//! What a host asks a process's stdin, stdout or stderr to be.
//!
//! Promises: each URI is one of the kinds below or an error that hosts know.
//! Never: opens anything.

use std::path::PathBuf;

use vminitd_protocol::handshake::StreamId;

use super::output::Loss;
use crate::agent::errors::RpcError;

/// One end of a process's stdio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uri {
    /// `""`: /dev/null.
    Null,
    /// `stream://ID`: a stream that the host opened on the stream port. `stream+keep://ID`: the same,
    /// of a host that comes back when it is lost.
    Stream(StreamId, Loss),
    /// A bare path or `fifo:PATH`: a named pipe in the guest.
    Fifo(PathBuf),
    /// `file:PATH`: a file in the guest, written at its end.
    File(PathBuf),
}

impl Uri {
    /// Reads a URI as it stands in a request.
    pub fn parse(text: &str) -> Result<Self, RpcError> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        if text.starts_with('/') {
            return Ok(Self::Fifo(text.into()));
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(RpcError::Invalid(format!("stdio path {text:?} is not absolute")));
        };
        match scheme {
            "stream" => stream(rest, Loss::Discard),
            KEEP => stream(rest, Loss::Keep),
            "fifo" => path(rest).map(Self::Fifo),
            "file" => path(rest).map(Self::File),
            _ => Err(RpcError::Scheme(scheme.to_owned())),
        }
    }
}

fn stream(rest: &str, loss: Loss) -> Result<Uri, RpcError> {
    let id = rest.strip_prefix("//").unwrap_or(rest);
    let id = StreamId::try_from(id.to_owned()).map_err(|error| RpcError::invalid(&error))?;
    Ok(Uri::Stream(id, loss))
}

/// The URI of a stream, as a request would have it.
pub fn of_stream(id: &StreamId, loss: Loss) -> String {
    match loss {
        Loss::Discard => format!("stream://{id}"),
        Loss::Keep => format!("{KEEP}://{id}"),
    }
}

/// The scheme of a stream whose host may come back.
const KEEP: &str = "stream+keep";

/// `///path`, `//path` and `/path` all occur.
fn path(rest: &str) -> Result<PathBuf, RpcError> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(RpcError::Invalid(format!("stdio path {path:?} is not absolute")));
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_from_the_others() {
        let stream = StreamId::try_from("c1-stdout".to_owned()).unwrap();
        assert_eq!(Uri::parse("").unwrap(), Uri::Null);
        for loss in [Loss::Discard, Loss::Keep] {
            let uri = Uri::Stream(stream.clone(), loss);
            assert_eq!(Uri::parse(&of_stream(&stream, loss)).unwrap(), uri);
        }
        for text in ["/a/b", "fifo:///a/b", "fifo:/a/b"] {
            assert_eq!(Uri::parse(text).unwrap(), Uri::Fifo("/a/b".into()), "{text}");
        }
        assert_eq!(Uri::parse("file:///var/log/x").unwrap(), Uri::File("/var/log/x".into()));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let text = |uri| Uri::parse(uri).unwrap_err().to_string();
        assert_eq!(text("binary:///bin/logger?a=b"), "unsupported STDIO scheme binary");
        assert_eq!(text("http://x"), "unsupported STDIO scheme http");
        assert!(text("relative/path").contains("not absolute"));
        assert!(text("file:x").contains("not absolute"));
        assert!(text("stream://").contains("stream id of 0 bytes"));
    }
}

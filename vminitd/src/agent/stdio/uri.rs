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
    /// `binary:PATH?key=value&...`: a program in the guest that takes the output.
    Binary(Program),
}

/// A program that takes a process's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Absolute.
    pub path: PathBuf,
    /// Keys and values of the query, in its order.
    pub args: Vec<String>,
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
            "binary" => program(rest).map(Self::Binary),
            _ => Err(RpcError::Scheme(scheme.to_owned())),
        }
    }
}

fn stream(rest: &str, loss: Loss) -> Result<Uri, RpcError> {
    let id = rest.strip_prefix("//").unwrap_or(rest);
    let id = StreamId::try_from(id.to_owned()).map_err(|error| RpcError::invalid(&error))?;
    Ok(Uri::Stream(id, loss))
}

fn program(rest: &str) -> Result<Program, RpcError> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let place = path(&decoded(place)?)?;
    let mut args = vec![];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        for word in pair.splitn(2, '=') {
            args.push(decoded(&word.replace('+', " "))?);
        }
    }
    Ok(Program { path: place, args })
}

/// Without percent-encoding. RFC 3986, 2.1.
fn decoded(text: &str) -> Result<String, RpcError> {
    let wrong = || RpcError::Invalid(format!("stdio URI with a wrong % in {text:?}"));
    let mut bytes = vec![];
    let mut parts = text.split('%');
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let hex = part.get(..2).filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or_else(wrong)?;
        bytes.push(byte);
        bytes.extend(part.bytes().skip(2));
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(wrong)
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
        for (text, path, args) in [
            ("binary:///bin/logger", "/bin/logger", &[][..]),
            ("binary:/b%20in?", "/b in", &[]),
            (
                "binary:///b?id=c%3d1&flag&empty=&a+b=c=d",
                "/b",
                &["id", "c=1", "flag", "empty", "", "a b", "c=d"],
            ),
        ] {
            let args = args.iter().map(|arg| String::from(*arg)).collect();
            assert_eq!(Uri::parse(text).unwrap(), Uri::Binary(Program { path: path.into(), args }));
        }
        assert_eq!(Uri::parse("file:///var/log/x").unwrap(), Uri::File("/var/log/x".into()));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let text = |uri| Uri::parse(uri).unwrap_err().to_string();
        assert_eq!(text("http://x"), "unsupported STDIO scheme http");
        assert!(text("relative/path").contains("not absolute"));
        assert!(text("file:x").contains("not absolute"));
        assert!(text("binary:logger").contains("not absolute"));
        for wrong in ["%", "%1", "%zz", "%+1", "%ff", "%00", "%é"] {
            let uri = format!("binary:///a?k={wrong}");
            let error = Uri::parse(&uri).unwrap_err().to_string();
            assert!(error.contains("with a wrong %"), "{wrong}: {error}");
        }
        assert!(text("stream://").contains("stream id of 0 bytes"));
    }
}

//! vfkit's RESTful service on a Unix socket: one short HTTP/1.1 exchange per call.
//! Promises: bounded in bytes and time, whoever answers. Never: keeps a connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::limits::{EXTERNAL_ANSWER_TIMEOUT, MAX_EXTERNAL_ANSWER_BYTES};

/// What its VM is, in its own words: `VirtualMachineStateRunning`.
pub fn state(socket: &Path) -> io::Result<String> {
    let body = exchange(socket, "GET", "")?;
    let answer: serde_json::Value = serde_json::from_slice(&body)?;
    let state = answer.get("state").and_then(|state| state.as_str());
    state.map(ToOwned::to_owned).ok_or_else(|| io::Error::other("an answer without a state"))
}

/// Asks for another state: `Stop` (the power button), `HardStop`.
pub fn change(socket: &Path, state: &str) -> io::Result<()> {
    exchange(socket, "POST", &format!("{{\"state\": {state:?}}}")).map(drop)
}

fn exchange(socket: &Path, method: &str, body: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(EXTERNAL_ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(request(method, body).as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_EXTERNAL_ANSWER_BYTES).read_to_end(&mut answer)?;
    parse(&answer)
}

fn request(method: &str, body: &str) -> String {
    format!(
        "{method} /vm/state HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The body of an answer of 2xx; another's is in the error.
fn parse(answer: &[u8]) -> io::Result<Vec<u8>> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| wrong("no answer in HTTP".to_owned()))?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = &answer[end + 4..];
    let status = head.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let chunked = head
        .lines()
        .any(|line| line.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    match status.len() == 3 && status.starts_with('2') {
        // Short answers have a length; we ask for no connection that would have to be parted.
        true if chunked => Err(wrong("an answer in pieces".to_owned())),
        true => Ok(body.to_vec()),
        false => Err(wrong(format!("status {status}: {}", String::from_utf8_lossy(body).trim()))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_is_its_body_or_the_reason() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}").unwrap(), b"{}");
        assert_eq!(parse(b"HTTP/1.1 202 Accepted\r\n\r\n").unwrap(), b"");
        let error = parse(b"HTTP/1.1 500 No\r\n\r\n{\"error\": \"cannot\"}\n").unwrap_err();
        assert_eq!(error.to_string(), "status 500: {\"error\": \"cannot\"}");
        assert!(parse(b"nonsense").is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(answer in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&answer);
            let _ = parse(&[b"HTTP/1.1 200 OK\r\n\r\n", &answer[..]].concat());
        }
    }
}

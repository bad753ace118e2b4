//! A program that takes a process's output: `binary:///PATH?KEY=VALUE&...`, as containerd's clients name it (`nerdctl`
//! keeps its logs this way).
//!
//! It has stdout as its descriptor 3, stderr as 4, and says on 5 that it is ready, by a byte or by closing it. Its
//! arguments are the keys and values; its environment says whose output it is.
//! Promises: nothing is started before it is ready; it is left alone to end by itself when the output has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use host_shim::sys::numbered::numbered;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::timeout;

/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(10);

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Absolute.
    pub path: PathBuf,
    /// Keys and values, in order.
    pub args: Vec<String>,
}

impl Program {
    /// Reads what stands behind `binary://`.
    pub fn parse(rest: &str) -> Self {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let words = pairs.flat_map(|pair| pair.splitn(2, '=')).filter(|word| !word.is_empty());
        let args = words.map(|word| decoded(&word.replace('+', " "))).collect();
        Self { path: decoded(path).into(), args }
    }

    /// Starts it; returns where stdout and stderr go.
    pub async fn start(
        &self,
        container: &str,
        namespace: &str,
    ) -> io::Result<(pipe::Sender, pipe::Sender)> {
        let (stdout, to_stdout) = io::pipe()?;
        let (stderr, to_stderr) = io::pipe()?;
        let (is_ready, ready) = io::pipe()?;
        let mut command = std::process::Command::new(&self.path);
        command.args(&self.args).env_clear();
        command.env("CONTAINER_ID", container).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        numbered(&mut command, vec![stdout.into(), stderr.into(), ready.into()]);
        let mut command = Command::from(command);
        // Reaped by the runtime when it ends.
        let child = command.spawn()?;
        // With it go our copies of its ends.
        drop((command, child));
        let mut is_ready = pipe::Receiver::from_owned_fd(is_ready.into())?;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not say that it is ready");
        timeout(READY, is_ready.read(&mut [0])).await.map_err(late)??;
        let sender = |fd: OwnedFd| pipe::Sender::from_owned_fd(fd);
        Ok((sender(to_stdout.into())?, sender(to_stderr.into())?))
    }
}

/// Without percent-encoding (RFC 3986, 2.1); what is none stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_program_and_its_arguments_are_read() {
        let got = Program::parse("/usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib&debug");
        let args = ["_NERDCTL_INTERNAL_LOGGING", "/var/lib", "debug"].map(str::to_owned).to_vec();
        assert_eq!(got, Program { path: "/usr/bin/nerdctl".into(), args });
        assert_eq!(Program::parse("/a%zzb").path, PathBuf::from("/a%zzb"));
    }

    #[test]
    fn it_gets_both_outputs_and_knows_whose_they_are() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let log = directory.path().join("log");
            let script = format!(
                "PATH=/usr/bin:/bin; exec 5>&-; (cat <&3; cat <&4; echo $CONTAINER_NAMESPACE/$CONTAINER_ID) >{}",
                log.display()
            );
            let program = Program { path: "/bin/sh".into(), args: vec!["-c".into(), script] };
            let (mut stdout, mut stderr) = program.start("c1", "default").await.unwrap();
            stdout.write_all(b"out\n").await.unwrap();
            stderr.write_all(b"err\n").await.unwrap();
            drop((stdout, stderr));
            for _ in 0..500 {
                let told = std::fs::read_to_string(&log).unwrap_or_default();
                if told == "out\nerr\ndefault/c1\n" {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("{:?}", std::fs::read_to_string(&log));
        });
    }
}

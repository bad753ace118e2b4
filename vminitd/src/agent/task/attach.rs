//! `Streams.Attach`: other streams for a process that runs, because the host has lost those that it
//! had.
//!
//! Promises: all that the call names is changed, or nothing; no byte is lost or told twice between
//! the old and the new stream, and the answer says where the new one begins; the next agent goes on
//! with the new ones.
//! Never: waits for either host.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tracing::{debug, warn};
use vminitd_protocol::handshake::StreamId;
use vminitd_protocol::pb::vminitd::v1::{AttachRequest, AttachResponse};

use super::io;
use super::process::{Io, Process};
use super::record::{Count, ProcessRecord};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::process::lifecycle::Refusal;
use crate::agent::stdio::end::End;
use crate::agent::stdio::input::Source;
use crate::agent::stdio::listener;
use crate::agent::stdio::output::{Loss, Sink};
use crate::agent::stdio::uri::{Uri, of_stream};
use crate::chain;

/// The streams that a call names, each with what becomes of it when it is lost in its turn.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    stdin: Option<(StreamId, Loss)>,
    stdout: Option<(StreamId, Loss)>,
    stderr: Option<(StreamId, Loss)>,
}

/// The call.
pub async fn attach(agent: Arc<Agent>, request: AttachRequest) -> Result<AttachResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let io = process.io().ok_or(Refusal::NotStarted)?;
    let wanted = Wanted::of(&request, &process.record())?;
    // No await from here on until all is changed: two calls do not mix.
    let claimed = claim(&agent, &wanted)?;
    if let Err(error) = process.update_record(|record| wanted.note(record)) {
        give_back(&agent, claimed);
        return Err(RpcError::failed(&error));
    }
    wanted.switch(io, &claimed);
    let named = io::uris(&process.record()).map(|uris| uris.streams()).unwrap_or_default();
    let old = process.change_streams(claimed, &named);
    let answer = answer(&process, io);
    debug!(container = %container.id, exec = request.exec_id, "other streams");
    for (id, end) in old {
        if let Err(error) = listener::close(&id, Some(end), &agent.streams, &agent.init).await {
            warn!(stream = %id, error = %chain(&error), "an old stream is not closed");
        }
    }
    Ok(answer)
}

impl Wanted {
    fn of(request: &AttachRequest, record: &ProcessRecord) -> Result<Self, RpcError> {
        let uris = io::uris(record)?;
        let wanted = |name: &str, id: &str, uri: &Uri| match (id, uri) {
            ("", _) => Ok(None),
            (id, Uri::Stream(_, loss)) => StreamId::try_from(id.to_owned())
                .map(|id| Some((id, *loss)))
                .map_err(|error| RpcError::invalid(&error)),
            _ => Err(RpcError::NotAStream(name.to_owned())),
        };
        let stdout = wanted("stdout", &request.stdout, &uris.stdout)?;
        let stderr = match uris.merged() && request.stderr == request.stdout {
            true => None,
            false if uris.merged() && !request.stderr.is_empty() => {
                return Err(RpcError::NotAStream("stderr".to_owned()));
            }
            false => wanted("stderr", &request.stderr, &uris.stderr)?,
        };
        let stdin = wanted("stdin", &request.stdin, &uris.stdin)?;
        if stdout.is_some() && stdout == stderr {
            return Err(RpcError::Invalid("one stream for stdout and stderr".to_owned()));
        }
        Ok(Self { stdin, stdout, stderr })
    }

    fn streams(&self) -> impl Iterator<Item = &StreamId> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(|(id, _)| id)
    }

    fn note(&self, record: &mut ProcessRecord) {
        let merged = io::uris(record).is_ok_and(|uris| uris.merged());
        let note = |uri: &mut String, wanted: &Option<(StreamId, Loss)>| {
            if let Some((id, loss)) = wanted {
                *uri = of_stream(id, *loss);
            }
        };
        note(&mut record.stdin, &self.stdin);
        note(&mut record.stdout, &self.stdout);
        note(&mut record.stderr, if merged { &self.stdout } else { &self.stderr });
    }

    fn switch(&self, io: &Io, claimed: &HashMap<StreamId, Arc<End>>) {
        let end = |id| claimed.get(id).cloned();
        if let (Some((id, loss)), Some(stdin)) = (&self.stdin, &io.stdin) {
            stdin.attach(Source::Stream(end(id), *loss));
        }
        for (wanted, output) in [(&self.stdout, &io.stdout), (&self.stderr, &io.stderr)] {
            if let (Some((id, loss)), Some(output)) = (wanted, output) {
                output.attach(Sink::Stream(end(id), *loss));
            }
        }
    }
}

/// Claims all streams, or none.
fn claim(agent: &Agent, wanted: &Wanted) -> Result<HashMap<StreamId, Arc<End>>, RpcError> {
    let mut claimed = HashMap::new();
    for id in wanted.streams() {
        if claimed.contains_key(id) {
            continue;
        }
        match agent.streams.claim(id) {
            Some(end) => drop(claimed.insert(id.clone(), end)),
            None => {
                give_back(agent, claimed);
                return Err(RpcError::NoStream(id.to_string()));
            }
        }
    }
    Ok(claimed)
}

fn give_back(agent: &Agent, claimed: HashMap<StreamId, Arc<End>>) {
    for (id, end) in claimed {
        agent.streams.give_back(&id, end);
    }
}

fn answer(process: &Process, io: &Io) -> AttachResponse {
    let count = |count| process.counters.get(count).load(Relaxed);
    AttachResponse {
        stdin_bytes: count(Count::Stdin),
        stdout_bytes: count(Count::Stdout),
        stderr_bytes: count(Count::Stderr),
        stdin_ended: io.stdin.as_ref().is_none_or(|stdin| stdin.has_ended()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stdin: &str, stdout: &str, stderr: &str) -> ProcessRecord {
        let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(str::to_owned);
        ProcessRecord { stdin, stdout, stderr, ..ProcessRecord::default() }
    }

    fn request(stdin: &str, stdout: &str, stderr: &str) -> AttachRequest {
        let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(str::to_owned);
        AttachRequest { id: "c".to_owned(), stdin, stdout, stderr, ..AttachRequest::default() }
    }

    #[test]
    fn what_is_named_is_changed_and_stays_of_its_kind() {
        let mut record = record("stream://i", "stream+keep://o", "stream://e");
        Wanted::of(&request("", "o2", "e2"), &record).unwrap().note(&mut record);
        assert_eq!(
            (&*record.stdin, &*record.stdout, &*record.stderr),
            ("stream://i", "stream+keep://o2", "stream://e2")
        );
    }

    #[test]
    fn merged_output_stays_one_stream() {
        for stderr in ["", "new"] {
            let mut record = record("", "stream://both", "stream://both");
            Wanted::of(&request("", "new", stderr), &record).unwrap().note(&mut record);
            assert_eq!((&*record.stdout, &*record.stderr), ("stream://new", "stream://new"));
        }
        let record = record("", "stream://both", "stream://both");
        assert!(Wanted::of(&request("", "new", "other"), &record).is_err());
    }

    #[test]
    fn what_is_no_stream_is_refused_by_name() {
        let record = record("", "file:///log", "/fifo");
        for (request, name) in [
            (request("i", "", ""), "stdin"),
            (request("", "o", ""), "stdout"),
            (request("", "", "e"), "stderr"),
        ] {
            let error = Wanted::of(&request, &record).unwrap_err().to_string();
            assert_eq!(error, format!("{name} of the process is no stream: failed precondition"));
        }
        assert_eq!(Wanted::of(&request("", "", ""), &record).unwrap(), Wanted::default());
    }
}

//! `vminitctl events`: what happens to the containers of a VM.
//!
//! Promises: an event is one line, for people or as JSON; it ends with the VM, without an error.

use host_shim::guest::{resume_after, unlimited};
use prost::Message;
use serde_json::{Value, json};
use vminitd_protocol::pb::containerd::events as event;
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::pb::google::protobuf::{Any, Empty, Timestamp};

use crate::cli::EventsArgs;
use crate::reach::{ReachError, plain, print, with_guest};
use crate::time;

/// Prints them as they come; returns the exit status.
pub fn events(args: &EventsArgs) -> Result<i32, ReachError> {
    with_guest(args.vm.name.as_ref(), async |vm| {
        let from = if args.all { resume_after(0) } else { unlimited() };
        let events = vm.guest.events();
        let mut stream = events.stream(from, &Empty {}).await.map_err(|error| vm.refused(error))?;
        // The stream ends with the VM; that is no failure of ours.
        while let Ok(Some(envelope)) = stream.recv().await {
            let line = if args.json { json_line(&envelope) } else { text_line(&envelope) };
            if !print(&line)? {
                break;
            }
        }
        Ok(0)
    })
}

fn json_line(envelope: &Envelope) -> String {
    let mut value = json!({
        "seq": envelope.seq,
        "time": envelope.timestamp.as_ref().map(rfc3339),
        "topic": envelope.topic,
    });
    value["event"] = envelope.event.as_ref().and_then(fields).unwrap_or(Value::Null);
    format!("{value}\n")
}

fn text_line(envelope: &Envelope) -> String {
    let time = envelope.timestamp.as_ref().map(rfc3339).unwrap_or_default();
    let mut line = format!("{time} {}", envelope.topic);
    if let Some(Value::Object(fields)) = envelope.event.as_ref().and_then(fields) {
        for (name, value) in fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !value.is_empty() {
                line += &format!(" {name}={value}");
            }
        }
    }
    plain(&line) + "\n"
}

fn rfc3339(stamp: &Timestamp) -> String {
    time::rfc3339(stamp.seconds, stamp.nanos)
}

/// An event's fields, those that say something to people and programs.
fn fields(any: &Any) -> Option<Value> {
    let name = any.type_url.rsplit(['.', '/']).next()?;
    let bytes = &any.value[..];
    fn read<T: Message + Default>(bytes: &[u8], show: impl FnOnce(T) -> Value) -> Option<Value> {
        T::decode(bytes).ok().map(show)
    }
    match name {
        "TaskCreate" => {
            read(bytes, |e: event::TaskCreate| json!({ "container": e.container_id, "pid": e.pid }))
        }
        "TaskStart" => {
            read(bytes, |e: event::TaskStart| json!({ "container": e.container_id, "pid": e.pid }))
        }
        "TaskDelete" => read(bytes, |e: event::TaskDelete| {
            let at = e.exited_at.as_ref().map(rfc3339);
            json!({ "container": e.container_id, "id": e.id, "pid": e.pid, "status": e.exit_status, "exited": at })
        }),
        "TaskExit" => read(bytes, |e: event::TaskExit| {
            let at = e.exited_at.as_ref().map(rfc3339);
            json!({ "container": e.container_id, "id": e.id, "pid": e.pid, "status": e.exit_status, "exited": at })
        }),
        "TaskOOM" => read(bytes, |e: event::TaskOom| json!({ "container": e.container_id })),
        "TaskExecAdded" => read(
            bytes,
            |e: event::TaskExecAdded| json!({ "container": e.container_id, "id": e.exec_id }),
        ),
        "TaskExecStarted" => read(
            bytes,
            |e: event::TaskExecStarted| json!({ "container": e.container_id, "id": e.exec_id, "pid": e.pid }),
        ),
        "TaskPaused" => read(bytes, |e: event::TaskPaused| json!({ "container": e.container_id })),
        "TaskResumed" => {
            read(bytes, |e: event::TaskResumed| json!({ "container": e.container_id }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_for_people_and_one_for_programs() {
        let exit = event::TaskExit {
            container_id: "web".into(),
            id: "web".into(),
            pid: 7,
            exit_status: 3,
            exited_at: Some(Timestamp { seconds: 0, nanos: 5_000_000 }),
            ..Default::default()
        };
        let any =
            Any { type_url: "containerd.events.TaskExit".into(), value: exit.encode_to_vec() };
        let envelope = Envelope {
            timestamp: Some(Timestamp { seconds: 86_400, nanos: 0 }),
            topic: "/tasks/exit".into(),
            event: Some(any),
            seq: 4,
            ..Default::default()
        };
        assert_eq!(
            text_line(&envelope),
            "1970-01-02T00:00:00.000Z /tasks/exit container=web exited=1970-01-01T00:00:00.005Z id=web pid=7 status=3\n"
        );
        let value: Value = serde_json::from_str(&json_line(&envelope)).unwrap();
        assert_eq!((&value["seq"], &value["event"]["status"]), (&json!(4), &json!(3)));
    }

    #[test]
    fn an_event_that_nobody_knows_is_told_by_its_topic() {
        let any = Any { type_url: "x.Y".into(), value: vec![255] };
        let envelope =
            Envelope { topic: "/x\u{1b}[2J".into(), event: Some(any), ..Default::default() };
        assert_eq!(text_line(&envelope), " /x[2J\n");
    }
}

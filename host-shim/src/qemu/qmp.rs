//! QMP, QEMU's control protocol, as far as we speak it: a line of JSON per message. A core without I/O.
//! Promises: a line that is too long or no JSON is an error, never a wait or a growing buffer.
//! Never: reads or writes.

use serde_json::Value;

use crate::limits::MAX_QMP_LINE_BYTES;

/// Ends QEMU; it writes back what disks hold first.
pub const QUIT: &str = "{\"execute\":\"quit\"}\n";

/// Presses the guest's power button.
pub const POWER_BUTTON: &str = "{\"execute\":\"system_powerdown\"}\n";

/// Leaves the negotiation: QEMU takes commands only after this.
pub const CAPABILITIES: &str = "{\"execute\":\"qmp_capabilities\",\"id\":\"capabilities\"}\n";

/// Asks why the guest does not run.
pub const STATUS: &str = "{\"execute\":\"query-status\",\"id\":\"status\"}\n";

/// What QEMU says, as far as it matters to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// QEMU is there, and has opened everything that its command line names.
    Greeting,
    /// It takes commands now, and the guest runs.
    Ready,
    /// The guest stopped running; [`STATUS`] says why.
    Stopped,
    /// The answer to [`STATUS`]: `running`, `paused`, `internal-error`, `io-error`...
    Status(String),
    /// QEMU is about to end.
    Shutdown(Cause),
    /// The guest said that it panicked.
    Panicked,
    /// The answer to a command of a number: that it is done, or why not.
    Answer(u64, Result<(), String>),
    /// A device is gone, by its name.
    Deleted(String),
    /// The guest keeps a device that it was asked to let go, by its name.
    Kept(String),
    /// It refused another command.
    Error(String),
    /// Something else.
    Other,
}

/// Why QEMU ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset itself (`-no-reboot`).
    GuestReset,
    /// The guest panicked and said so.
    GuestPanic,
    /// We said quit, or sent a signal.
    Host,
    /// Anything else that QEMU knows.
    Other,
}

/// QEMU's bytes make no sense.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// A line without an end.
    #[error("QMP line is longer than {MAX_QMP_LINE_BYTES} bytes")]
    LineTooLong,
    /// A line that is no JSON.
    #[error("QMP line is no JSON")]
    Json(#[from] serde_json::Error),
}

/// Splits bytes into messages: hand in with [`Reader::handle`], take out with [`Reader::poll`] until `None`.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// Takes what was read.
    pub fn handle(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message.
    pub fn poll(&mut self) -> Result<Option<Message>, QmpError> {
        match self.bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                Ok(Some(Message::read(&serde_json::from_slice(&line)?)))
            }
            None if self.bytes.len() > MAX_QMP_LINE_BYTES => Err(QmpError::LineTooLong),
            None => Ok(None),
        }
    }
}

impl Message {
    fn read(line: &Value) -> Self {
        if line.get("QMP").is_some() {
            return Self::Greeting;
        }
        if let Some(id) = line.get("id").and_then(Value::as_u64) {
            let result = line.get("error").map_or(Ok(()), |error| Err(text(error, "desc")));
            return Self::Answer(id, result);
        }
        if let Some(error) = line.get("error") {
            return Self::Error(text(error, "desc"));
        }
        if let Some(value) = line.get("return") {
            return match text(line, "id").as_str() {
                "capabilities" => Self::Ready,
                "status" => Self::Status(text(value, "status")),
                _ => Self::Other,
            };
        }
        match text(line, "event").as_str() {
            "STOP" => Self::Stopped,
            "GUEST_PANICKED" => Self::Panicked,
            "SHUTDOWN" => Self::Shutdown(Cause::read(&text(&line["data"], "reason"))),
            // Parts of a device have no name.
            "DEVICE_DELETED" => Self::Deleted(text(&line["data"], "device")),
            "DEVICE_UNPLUG_GUEST_ERROR" => Self::Kept(text(&line["data"], "device")),
            _ => Self::Other,
        }
    }
}

impl Cause {
    fn read(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            reason if reason.starts_with("host-") => Self::Host,
            _ => Self::Other,
        }
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SESSION: &str = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}"#,
        "\r\n",
        r#"{"return": {}, "id": "capabilities"}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
        "\r\n",
        r#"{"return": {"status": "internal-error", "running": false}, "id": "status"}"#,
        "\r\n",
        r#"{"event": "RTC_CHANGE", "data": {"offset": 0}}"#,
        "\r\n",
        r#"{"error": {"class": "GenericError", "desc": "no"}}"#,
        "\r\n",
        r#"{"return": {"fdset-id": 1000, "fd": 9}, "id": 7}"#,
        "\r\n",
        r#"{"id": 8, "error": {"class": "GenericError", "desc": "in use"}}"#,
        "\r\n",
        r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/hot0/virtio-backend"}}"#,
        "\r\n",
        r#"{"event": "DEVICE_DELETED", "data": {"device": "hot0", "path": "/machine/peripheral/hot0"}}"#,
        "\r\n",
        r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
        "\r\n",
    );

    fn expected() -> Vec<Message> {
        vec![
            Message::Greeting,
            Message::Ready,
            Message::Stopped,
            Message::Status("internal-error".into()),
            Message::Other,
            Message::Error("no".into()),
            Message::Answer(7, Ok(())),
            Message::Answer(8, Err("in use".into())),
            Message::Deleted(String::new()),
            Message::Deleted("hot0".into()),
            Message::Shutdown(Cause::GuestShutdown),
        ]
    }

    #[test]
    fn each_cause_of_an_end_is_told_apart() {
        for (reason, cause) in [
            ("guest-reset", Cause::GuestReset),
            ("guest-panic", Cause::GuestPanic),
            ("host-qmp-quit", Cause::Host),
            ("host-signal", Cause::Host),
            ("subsystem-reset", Cause::Other),
        ] {
            assert_eq!(Cause::read(reason), cause);
        }
    }

    #[test]
    fn a_line_without_an_end_is_an_error() {
        let mut reader = Reader::default();
        reader.handle(&vec![b'x'; MAX_QMP_LINE_BYTES + 1]);
        assert!(matches!(reader.poll(), Err(QmpError::LineTooLong)));
    }

    proptest! {
        #[test]
        fn any_splitting_gives_the_same_messages(size in 1usize..200) {
            let (mut reader, mut messages) = (Reader::default(), Vec::new());
            for chunk in SESSION.as_bytes().chunks(size) {
                reader.handle(chunk);
                while let Some(message) = reader.poll().unwrap() {
                    messages.push(message);
                }
            }
            prop_assert_eq!(messages, expected());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::default();
            reader.handle(&bytes);
            while let Ok(Some(_)) = reader.poll() {}
        }
    }
}

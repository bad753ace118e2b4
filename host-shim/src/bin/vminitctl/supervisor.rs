//! `vminitctl supervisor`: how the injected supervisor of a running VM is, and its stop and start.
//!
//! Promises: with --json one line of JSON on stdout, whatever was asked; the exit status says what a script wants to
//! know. Never: goes past the VM's owner: its ctl.sock gives us a connection to the guest.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use host_shim::ctl::{self, LookupError};
use host_shim::guest::{BOOT_DEADLINE, Guest, NotServing, Ports, unlimited};
use ttrpc::Code;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::SupervisorStatusResponse;

use crate::cli::{SupervisorArgs, SupervisorWish};

/// It does not run; as systemctl says it.
const NOT_RUNNING: i32 = 3;
/// There is none; likewise.
const NONE: i32 = 4;

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The VM is not found, or is not unique.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// The guest cannot be reached.
    #[error("VM {name}")]
    NotServing {
        /// The VM.
        name: String,
        /// How long it was tried, and what happened.
        #[source]
        source: NotServing,
    },
    /// The guest refused or failed.
    #[error("VM {name}: {text}")]
    Call {
        /// The VM.
        name: String,
        /// What it said.
        text: String,
    },
    /// Our stdout could not be written.
    #[error("output")]
    Output(#[source] io::Error),
}

/// Does as asked; returns the exit status.
pub fn supervisor(args: &SupervisorArgs) -> Result<i32, SupervisorError> {
    let vm = ctl::lookup(args.name.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SupervisorError::Runtime)?;
    let name = vm.to_string();
    let control = Arc::new(vm.control());
    let answer = runtime.block_on(async {
        let guest = Guest::connect(control, Ports::default(), BOOT_DEADLINE).await;
        let guest =
            guest.map_err(|source| SupervisorError::NotServing { name: name.clone(), source })?;
        let machine = guest.machine();
        Ok::<_, SupervisorError>(match args.what {
            SupervisorWish::Status => machine.supervisor_status(unlimited(), &Empty {}).await,
            SupervisorWish::Stop => machine.supervisor_stop(unlimited(), &Empty {}).await,
            SupervisorWish::Start => machine.supervisor_start(unlimited(), &Empty {}).await,
        })
    })?;
    match answer {
        Ok(status) => {
            print(&if args.json { json(&status) } else { text(&status) })?;
            let is_up = status.pid.is_some();
            Ok(if args.what == SupervisorWish::Status && !is_up { NOT_RUNNING } else { 0 })
        }
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => {
            eprintln!("vminitctl: VM {name}: no supervisor was injected");
            Ok(NONE)
        }
        Err(ttrpc::Error::RpcStatus(status)) => {
            Err(SupervisorError::Call { name, text: status.message })
        }
        Err(error) => Err(SupervisorError::Call { name, text: error.to_string() }),
    }
}

fn print(line: &str) -> Result<(), SupervisorError> {
    match writeln!(io::stdout(), "{line}") {
        // Who reads no further wants no more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(SupervisorError::Output),
    }
}

fn json(status: &SupervisorStatusResponse) -> String {
    let SupervisorStatusResponse { state, pid, restarts, next_restart_ms, last_exit } = status;
    serde_json::json!({
        "state": state, "pid": pid, "restarts": restarts,
        "next_restart_ms": next_restart_ms, "last_exit": last_exit,
    })
    .to_string()
}

fn text(status: &SupervisorStatusResponse) -> String {
    let SupervisorStatusResponse { state, pid, restarts, next_restart_ms, last_exit } = status;
    let mut text = state.clone();
    if let Some(pid) = pid {
        text += &format!(", process {pid}");
    }
    if let Some(millis) = next_restart_ms {
        text += &format!(", next start in {:.1} s", *millis as f64 / 1000.0);
    }
    text += &match restarts {
        1 => ", 1 restart".to_owned(),
        restarts => format!(", {restarts} restarts"),
    };
    if let Some(exit) = last_exit {
        text += &format!(", last exit {exit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_a_line_for_people_and_one_for_programs() {
        let status = SupervisorStatusResponse {
            state: "backoff".to_owned(),
            restarts: 3,
            next_restart_ms: Some(3900),
            last_exit: Some(137),
            ..Default::default()
        };
        assert_eq!(text(&status), "backoff, next start in 3.9 s, 3 restarts, last exit 137");
        let value: serde_json::Value = serde_json::from_str(&json(&status)).unwrap();
        let expected =
            r#"{"state":"backoff","pid":null,"restarts":3,"next_restart_ms":3900,"last_exit":137}"#;
        assert_eq!(value, serde_json::from_str::<serde_json::Value>(expected).unwrap());
    }
}

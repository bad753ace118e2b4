//! `vminitctl supervisor`: how the injected supervisor of a running VM is, and its stop and start.
//!
//! Promises: with --json one line of JSON on stdout, whatever was asked; the exit status says what a script wants to
//! know. Never: goes past the VM's owner: its ctl.sock gives us a connection to the guest.

use host_shim::guest::unlimited;
use ttrpc::Code;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::SupervisorStatusResponse;

use crate::cli::{SupervisorArgs, SupervisorWish};
use crate::reach::{ReachError, plain, print, with_guest};

/// It does not run; as systemctl says it.
const NOT_RUNNING: i32 = 3;
/// There is none; likewise.
const NONE: i32 = 4;

/// Does as asked; returns the exit status.
pub fn supervisor(args: &SupervisorArgs) -> Result<i32, ReachError> {
    with_guest(args.name.as_ref(), async |vm| {
        let machine = vm.guest.machine();
        let answer = match args.what {
            SupervisorWish::Status => machine.supervisor_status(unlimited(), &Empty {}).await,
            SupervisorWish::Stop => machine.supervisor_stop(unlimited(), &Empty {}).await,
            SupervisorWish::Start => machine.supervisor_start(unlimited(), &Empty {}).await,
        };
        match answer {
            Ok(status) => {
                let line = if args.json { json(&status) } else { text(&status) };
                print(&plain(&format!("{line}\n")))?;
                let is_up = status.pid.is_some();
                Ok(if args.what == SupervisorWish::Status && !is_up { NOT_RUNNING } else { 0 })
            }
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => {
                eprintln!("vminitctl: VM {}: no supervisor was injected", vm.place);
                Ok(NONE)
            }
            Err(error) => Err(vm.refused(error)),
        }
    })
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

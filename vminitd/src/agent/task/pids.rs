//! `Task.Pids`: every process of the container, by its cgroup; an exec's own carries the exec's id.

use std::collections::HashMap;

use prost::Message;
use vminitd_protocol::pb::containerd::runc::v1::ProcessDetails;
use vminitd_protocol::pb::containerd::task::v3::{PidsRequest, PidsResponse};
use vminitd_protocol::pb::containerd::v1::types::ProcessInfo;
use vminitd_protocol::pb::google::protobuf::Any;

use crate::agent::Agent;
use crate::agent::cgroup::CgroupError;
use crate::agent::errors::RpcError;

/// The type of what an exec's pid carries.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The call.
pub fn pids(agent: &Agent, request: &PidsRequest) -> Result<PidsResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let pids = container.cgroup.pids().map_err(|error| match error {
        CgroupError::Absent(_) => RpcError::NoCgroup,
        error => RpcError::failed(&error),
    })?;
    let execs: HashMap<u32, String> = container
        .processes()
        .iter()
        .filter(|process| process.exec.is_some() && process.state().exit().is_none())
        .map(|process| (process.pid(), process.target.exec.clone()))
        .collect();
    let details = |exec: &String| Any {
        type_url: PROCESS_DETAILS.to_owned(),
        value: ProcessDetails { exec_id: exec.clone() }.encode_to_vec(),
    };
    let info = |pid| ProcessInfo { pid, info: execs.get(&pid).map(details) };
    Ok(PidsResponse { processes: pids.into_iter().map(info).collect() })
}

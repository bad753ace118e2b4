//! `Task.ResizePty`: a terminal's size. Without a terminal it succeeds and does nothing.

use vminitd_protocol::pb::containerd::task::v3::ResizePtyRequest;

use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::sys::terminal::Size;

/// The call.
pub fn resize_pty(agent: &Agent, request: &ResizePtyRequest) -> Result<(), RpcError> {
    let process = agent.tasks.get(&request.id)?.process(&request.exec_id)?;
    let side = |what, size| {
        u16::try_from(size).map_err(|_| RpcError::Invalid(format!("{what} {size} is above 65535")))
    };
    let size =
        Size { width: side("width", request.width)?, height: side("height", request.height)? };
    process.resize(size)
}

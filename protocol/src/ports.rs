//! vsock ports and context ids.
//! Promises: the defaults that our hosts and guests share; every one can be set otherwise.
//! Never: decides who may dial what (the VMM process and the agent's peer check do).

/// The host's context id, see vsock(7).
pub const HOST_CID: u32 = 2;

/// The guest's context id unless a host says otherwise.
pub const DEFAULT_GUEST_CID: u32 = 3;

/// The port on which the guest serves ttrpc.
pub const DEFAULT_RPC_PORT: u32 = 1024;

/// The port on which the guest takes stdio streams.
pub const DEFAULT_STREAM_PORT: u32 = 1025;

/// The host port from which an injected supervisor fetches its configuration.
pub const SUPERVISOR_METADATA_PORT: u32 = 1027;

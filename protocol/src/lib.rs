//! What two vminitd processes must agree on: messages and services, ports, the stream handshake.
//!
//! Owns: the `.proto` files and the code made from them, and the numbers and names on the wire.
//! Promises: field numbers, names and types of other projects' messages are theirs, so that their
//! hosts and clients work unchanged; fields from 100 on are ours and may be skipped by a reader.
//! Never: does I/O, looks at a clock, or knows which side of the wire it is on.

pub mod handshake;
pub mod metadata;
pub mod ports;
pub mod templates;
pub mod topics;

/// Messages and ttrpc bindings, a module per protobuf package (`containerd.task.v3` is
/// `pb::containerd::task::v3`).
#[allow(
    missing_docs,
    unused_imports,
    unused_mut,
    unused_qualifications,
    clippy::all,
    reason = "generated; the documentation is in proto/"
)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

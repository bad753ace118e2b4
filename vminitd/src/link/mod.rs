//! The socketpair between init and the agent: a seqpacket, so that a message is a datagram.
//!
//! [`message`] is the vocabulary, [`codec`] its bytes, [`sync`] init's end, which never blocks, and
//! [`agent`] the agent's end, for tokio.

pub mod agent;
pub mod codec;
pub mod message;
pub mod sync;

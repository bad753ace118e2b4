//! The socketpair between init and the agent: a seqpacket, so that a message is a datagram.
//!
//! [`message`] is the vocabulary, [`codec`] its bytes, [`sync`] init's end, which never blocks, and
//! [`agent`] the agent's end, for tokio. [`confinement`], [`exec_program`] and [`plan`] are files
//! that the agent leaves for launchers ([`left`]).

pub mod agent;
pub mod codec;
pub mod confinement;
pub mod exec_program;
pub mod left;
pub mod message;
pub mod plan;
pub mod sync;

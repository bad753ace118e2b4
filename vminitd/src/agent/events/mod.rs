//! What the guest publishes: [`hub`] numbers and distributes, [`service`] streams to a host.

pub mod hub;
pub mod service;

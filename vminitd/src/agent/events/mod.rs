//! What the guest publishes: [`ring`] numbers and keeps, [`hub`] distributes, [`service`] streams to
//! a host.

pub mod hub;
pub mod ring;
pub mod service;

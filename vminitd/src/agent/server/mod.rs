//! The ttrpc server: connections in, service calls out.
//!
//! [`accept`] takes connections from a listener, [`socket`] is one of them, [`connection`] serves
//! it with the services of [`services`], [`body`] runs what a call does, [`unbuilt`] answers for
//! what is not built yet.

pub mod accept;
pub mod body;
pub mod connection;
pub mod services;
pub mod socket;
pub mod unbuilt;

#[cfg(test)]
mod tests;

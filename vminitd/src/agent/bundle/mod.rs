//! Bundles: an OCI config and files, put into the guest by its host.
//!
//! [`create`] is what the RPC of [`service`] does, [`remove`] takes a bundle away again, whatever a container left in it.

pub mod create;
pub mod remove;
pub mod service;

/// The config as the host sent it; `config.json` is what the container is made from.
pub const ORIGINAL_CONFIG: &str = "config.original.json";

/// Before an id: a bundle that is being made. No id has a colon.
const UNFINISHED: &str = "new:";
/// Before an id: a bundle that is being removed.
const DOOMED: &str = "old:";

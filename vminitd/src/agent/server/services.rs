//! Every service that a host can call, for one connection.
//!
//! Promises: all names that hosts know are there, also those whose calls are not built yet.

use std::sync::Arc;

use super::connection::Services;
use super::socket::Gone;
use super::unbuilt;
use crate::agent::{Agent, bundle, events, host_mounts, machine, network, system, task};

/// All of them.
pub fn services(agent: &Arc<Agent>, gone: &Gone) -> Services {
    let mut services = unbuilt::services();
    services.extend(built(agent, gone));
    services
}

/// Those that do something.
pub fn built(agent: &Arc<Agent>, gone: &Gone) -> Services {
    let mut services = Services::new();
    services.extend(task::service::services(agent));
    services.extend(task::streams_service::services(agent));
    services.extend(bundle::service::services(agent));
    services.extend(host_mounts::service::services(agent));
    services.extend(system::services(agent));
    services.extend(machine::service::services(agent, gone));
    services.extend(network::service::services(agent));
    services.extend(events::service::services(&agent.events, gone));
    services
}

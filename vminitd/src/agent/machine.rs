//! The Machine service: what is around the containers. Each call is its part's; here it is routed.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{Machine, SupervisorStatusResponse, create_machine};

use super::Agent;
use super::server::body::{to_its_end, with_its_call};
use super::server::connection::Services;
use super::supervisor;

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_machine(Arc::new(MachineService(agent.clone())))
}

struct MachineService(Arc<Agent>);

#[async_trait]
impl Machine for MachineService {
    async fn supervisor_status(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<SupervisorStatusResponse> {
        with_its_call(supervisor::status(self.0.clone())).await
    }

    async fn supervisor_start(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<SupervisorStatusResponse> {
        to_its_end(supervisor::start(self.0.clone())).await
    }

    async fn supervisor_stop(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<SupervisorStatusResponse> {
        to_its_end(supervisor::stop(self.0.clone())).await
    }
}

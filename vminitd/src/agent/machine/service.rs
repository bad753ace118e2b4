//! `vminitd.v1.Machine`: each call is its part's; here it is routed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{
    FeaturesResponse, Machine, MachineShutdownRequest, MachineText, ReseedRequest, SetTimeRequest,
    SetTimeResponse, SupervisorStatusResponse, create_machine,
};

use super::{diagnostics, features, metrics, time};
use crate::agent::server::body::{to_its_end, with_its_call};
use crate::agent::server::connection::Services;
use crate::agent::server::socket::Gone;
use crate::agent::{Agent, power, supervisor};

/// The service.
pub fn services(agent: &Arc<Agent>, gone: &Gone) -> Services {
    create_machine(Arc::new(MachineService { agent: agent.clone(), gone: gone.clone() }))
}

struct MachineService {
    agent: Arc<Agent>,
    /// Features lists what this connection can call.
    gone: Gone,
}

#[async_trait]
impl Machine for MachineService {
    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: MachineShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        let agent = self.agent.clone();
        let shutdown = async move {
            let grace = request.grace_ms.map(Duration::from_millis);
            let why = "the host asked for it (Machine.Shutdown)";
            power::ask(&agent, request.reboot, grace, why).await;
            Ok(Empty {})
        };
        to_its_end(shutdown).await
    }

    async fn features(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<FeaturesResponse> {
        with_its_call(features::features(self.agent.clone(), self.gone.clone())).await
    }

    async fn metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MachineText> {
        with_its_call(metrics::metrics(self.agent.clone())).await
    }

    async fn diagnostics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MachineText> {
        with_its_call(diagnostics::diagnostics(self.agent.clone())).await
    }

    async fn set_time(
        &self,
        _: &TtrpcContext,
        request: SetTimeRequest,
    ) -> ttrpc::Result<SetTimeResponse> {
        to_its_end(async move { time::set(&request) }).await
    }

    async fn reseed(&self, _: &TtrpcContext, request: ReseedRequest) -> ttrpc::Result<Empty> {
        to_its_end(async move { time::reseed(&request) }).await
    }
    async fn supervisor_status(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<SupervisorStatusResponse> {
        with_its_call(supervisor::status(self.agent.clone())).await
    }

    async fn supervisor_start(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<SupervisorStatusResponse> {
        to_its_end(supervisor::start(self.agent.clone())).await
    }

    async fn supervisor_stop(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<SupervisorStatusResponse> {
        to_its_end(supervisor::stop(self.agent.clone())).await
    }
}

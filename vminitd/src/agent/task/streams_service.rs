//! The Streams service: streams of processes that run.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::vminitd::v1::{AttachRequest, AttachResponse, Streams, create_streams};

use super::attach::attach;
use crate::agent::Agent;
use crate::agent::server::body::to_its_end;
use crate::agent::server::connection::Services;

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_streams(Arc::new(StreamsService(agent.clone())))
}

struct StreamsService(Arc<Agent>);

#[async_trait]
impl Streams for StreamsService {
    async fn attach(
        &self,
        _: &TtrpcContext,
        request: AttachRequest,
    ) -> ttrpc::Result<AttachResponse> {
        to_its_end(attach(self.0.clone(), request)).await
    }
}

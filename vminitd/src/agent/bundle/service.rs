//! The Bundle service.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::debug;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::{
    Bundle, CreateRequest, CreateResponse, create_bundle,
};

use super::create::{Wanted, create};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::server::body::to_its_end;
use crate::agent::server::connection::Services;

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_bundle(Arc::new(BundleService(agent.clone())))
}

struct BundleService(Arc<Agent>);

#[async_trait]
impl Bundle for BundleService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateRequest,
    ) -> ttrpc::Result<CreateResponse> {
        let agent = self.0.clone();
        let body = async move {
            let wanted = Wanted::try_from(&request.id, request.files)?;
            // Megabytes to a tmpfs: not on the agent's thread.
            let made = tokio::task::spawn_blocking({
                let agent = agent.clone();
                move || {
                    let bundle = create(&agent.dirs, &wanted)?;
                    let namespaces = agent.foreseen.look(&bundle);
                    Ok::<_, RpcError>((bundle, namespaces))
                }
            });
            let (bundle, namespaces) = made
                .await
                .map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))??;
            // Its Create comes next.
            if let Err(error) = agent.init.expect_launch(namespaces).await {
                debug!(%error, "init is not told");
            }
            Ok(CreateResponse { bundle: bundle.display().to_string() })
        };
        to_its_end(body).await
    }
}

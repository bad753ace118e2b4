//! The Mount service.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::containerd::types;
use vminitd_protocol::pb::containerd::vminitd::services::mount::v1::{
    Mount, MountAllRequest, MountAllResponse, MountSpec, UnmountAllRequest, UnmountAllResponse,
    UnmountRequest, UnmountResponse, create_mount,
};

use super::Wanted;
use super::ledger::Spec;
use super::target::place;
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::mounts::plan::plan_alone;
use crate::agent::server::body::to_its_end;
use crate::agent::server::connection::Services;
use crate::limits::HOST_MOUNTS;

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_mount(Arc::new(MountService(agent.clone())))
}

struct MountService(Arc<Agent>);

#[async_trait]
impl Mount for MountService {
    async fn mount_all(
        &self,
        _: &TtrpcContext,
        request: MountAllRequest,
    ) -> ttrpc::Result<MountAllResponse> {
        let agent = self.0.clone();
        to_its_end(async move {
            let wanted = wanted(request.mounts)?;
            agent.host_mounts.mount_all(&agent, wanted).await?;
            Ok(MountAllResponse {})
        })
        .await
    }

    async fn unmount(
        &self,
        _: &TtrpcContext,
        request: UnmountRequest,
    ) -> ttrpc::Result<UnmountResponse> {
        let agent = self.0.clone();
        to_its_end(async move {
            // What is refused as a target is mounted by nobody.
            let unknown = |_| RpcError::NotMounted(request.target.clone());
            let place = place(&request.target).map_err(unknown)?;
            agent.host_mounts.unmount(&place).await?;
            Ok(UnmountResponse {})
        })
        .await
    }

    async fn unmount_all(
        &self,
        _: &TtrpcContext,
        _: UnmountAllRequest,
    ) -> ttrpc::Result<UnmountAllResponse> {
        let agent = self.0.clone();
        to_its_end(async move {
            agent.host_mounts.unmount_all().await?;
            Ok(UnmountAllResponse {})
        })
        .await
    }
}

/// All of a request, before any of it is done.
fn wanted(mounts: Vec<MountSpec>) -> Result<Vec<Wanted>, RpcError> {
    if mounts.len() > HOST_MOUNTS {
        let count = mounts.len();
        return Err(RpcError::Invalid(format!("{count} mounts are more than {HOST_MOUNTS}")));
    }
    let one = |(index, spec): (usize, MountSpec)| {
        let MountSpec { r#type: kind, source, target, options } = spec;
        let place =
            place(&target).map_err(|error| RpcError::Invalid(format!("mount {index}: {error}")))?;
        let spec = Spec { kind, source, options };
        let mount = types::Mount {
            r#type: spec.kind.clone(),
            source: spec.source.clone(),
            target,
            options: spec.options.clone(),
        };
        let planned =
            plan_alone(index, &mount, place).map_err(|error| RpcError::invalid(&error))?;
        Ok(Wanted { spec, planned })
    };
    mounts.into_iter().enumerate().map(one).collect()
}

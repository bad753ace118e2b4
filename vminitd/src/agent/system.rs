//! The System service: the guest as a machine.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::containerd::vminitd::services::system::v1::{
    CpuRequest, FreezeFilesystemsResponse, InfoResponse, MemoryRequest, System, create_system,
};
use vminitd_protocol::pb::google::protobuf::Empty;

use super::errors::RpcError;
use super::server::body::to_its_end;
use super::server::connection::Services;
use super::{Agent, power};

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_system(Arc::new(SystemService(agent.clone())))
}

struct SystemService(Arc<Agent>);

fn unbuilt<T>(what: &str) -> ttrpc::Result<T> {
    Err(RpcError::Unimplemented(what.to_owned()).into())
}

#[async_trait]
impl System for SystemService {
    async fn info(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<InfoResponse> {
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_owned());
        Ok(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_version: kernel.unwrap_or_default().to_string_lossy().into_owned(),
        })
    }

    async fn prepare_shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let agent = self.0.clone();
        let shutdown = async move {
            power::begin(&agent, false, "the host asked for it (System.PrepareShutdown)");
            Ok(Empty {})
        };
        to_its_end(shutdown).await
    }

    async fn freeze_filesystems(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<FreezeFilesystemsResponse> {
        unbuilt("freezing filesystems")
    }

    async fn thaw_filesystems(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        unbuilt("thawing filesystems")
    }

    async fn offline_cpu(&self, _: &TtrpcContext, _: CpuRequest) -> ttrpc::Result<Empty> {
        unbuilt("taking a CPU offline")
    }

    async fn online_cpu(&self, _: &TtrpcContext, _: CpuRequest) -> ttrpc::Result<Empty> {
        unbuilt("taking a CPU online")
    }

    async fn offline_memory(&self, _: &TtrpcContext, _: MemoryRequest) -> ttrpc::Result<Empty> {
        unbuilt("taking memory offline")
    }

    async fn online_memory(&self, _: &TtrpcContext, _: MemoryRequest) -> ttrpc::Result<Empty> {
        unbuilt("taking memory online")
    }
}

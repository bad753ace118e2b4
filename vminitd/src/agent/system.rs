//! The System service: the guest as a machine.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::containerd::vminitd::services::system::v1::{
    CpuRequest, FreezeFilesystemsResponse, InfoResponse, MemoryRequest, System, create_system,
};
use vminitd_protocol::pb::google::protobuf::Empty;

use super::machine::freezer;
use super::machine::hotplug::{self, Part};
use super::server::body::to_its_end;
use super::server::connection::Services;
use super::{Agent, power};

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_system(Arc::new(SystemService(agent.clone())))
}

struct SystemService(Arc<Agent>);

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
            power::ask(&agent, false, None, "the host asked for it (System.PrepareShutdown)").await;
            Ok(Empty {})
        };
        to_its_end(shutdown).await
    }

    async fn freeze_filesystems(
        &self,
        _: &TtrpcContext,
        _: Empty,
    ) -> ttrpc::Result<FreezeFilesystemsResponse> {
        let agent = self.0.clone();
        to_its_end(async move {
            Ok(FreezeFilesystemsResponse { frozen: freezer::freeze_all(&agent).await? })
        })
        .await
    }

    async fn thaw_filesystems(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let agent = self.0.clone();
        to_its_end(async move {
            freezer::thaw_all(&agent).await;
            Ok(Empty {})
        })
        .await
    }

    async fn offline_cpu(&self, _: &TtrpcContext, request: CpuRequest) -> ttrpc::Result<Empty> {
        switch(Part::Cpu(request.cpu_id), false).await
    }

    async fn online_cpu(&self, _: &TtrpcContext, request: CpuRequest) -> ttrpc::Result<Empty> {
        switch(Part::Cpu(request.cpu_id), true).await
    }

    async fn offline_memory(
        &self,
        _: &TtrpcContext,
        request: MemoryRequest,
    ) -> ttrpc::Result<Empty> {
        switch(Part::Memory(request.memory_id), false).await
    }

    async fn online_memory(
        &self,
        _: &TtrpcContext,
        request: MemoryRequest,
    ) -> ttrpc::Result<Empty> {
        switch(Part::Memory(request.memory_id), true).await
    }
}

async fn switch(part: Part, on: bool) -> ttrpc::Result<Empty> {
    let switch = async move { hotplug::switch(part, on).await.map(|()| Empty {}) };
    to_its_end(switch).await
}

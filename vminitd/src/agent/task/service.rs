//! The Task service, version 2 and version 3: one set of calls under two names.
//!
//! Promises: calls that change something run to their end, calls that look or wait end with their
//! connection; an exec's or container's own errors come from the calls, nothing is decided here.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::containerd::task::v3::{
    CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use vminitd_protocol::pb::containerd::task::{v2, v3};
use vminitd_protocol::pb::google::protobuf::Empty;

use super::{
    close_io, connect, create, delete, exec, kill, pause, pids, resize_pty, shutdown, start, state,
    stats, update, wait,
};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::profile::Profile;
use crate::agent::server::body::{to_its_end, with_its_call};
use crate::agent::server::connection::Services;
use crate::limits::NAMESPACE_BYTES;

/// containerd's name for the namespace in a call's metadata.
const NAMESPACE: &str = "containerd-namespace-ttrpc";

/// The service, under both names.
pub fn services(agent: &Arc<Agent>) -> Services {
    let mut services = v3::create_task(Arc::new(TaskService(agent.clone())));
    services.extend(v2::create_task(Arc::new(TaskService(agent.clone()))));
    services
}

struct TaskService(Arc<Agent>);

/// The namespace that a call carries, else the profile's.
fn namespace(context: &TtrpcContext, profile: &Profile) -> Result<String, RpcError> {
    let given = context.metadata.get(NAMESPACE).and_then(|values| values.first());
    let namespace = given.map_or(profile.default_namespace, String::as_str);
    match namespace.len() {
        ..=NAMESPACE_BYTES => Ok(namespace.to_owned()),
        bytes => Err(RpcError::Invalid(format!("a namespace of {bytes} bytes"))),
    }
}

/// A body that does not wait.
async fn at_once<T>(result: Result<T, RpcError>) -> Result<T, RpcError> {
    result
}

fn empty(result: Result<(), RpcError>) -> Result<Empty, RpcError> {
    result.map(|()| Empty {})
}

macro_rules! serve {
    ($version:ident) => {
        #[async_trait]
        impl $version::Task for TaskService {
            async fn state(
                &self,
                _: &TtrpcContext,
                request: StateRequest,
            ) -> ttrpc::Result<StateResponse> {
                let agent = self.0.clone();
                with_its_call(async move { state::state(&agent, &request) }).await
            }

            async fn create(
                &self,
                context: &TtrpcContext,
                request: CreateTaskRequest,
            ) -> ttrpc::Result<CreateTaskResponse> {
                let namespace = namespace(context, &self.0.profile)?;
                to_its_end(create::create(self.0.clone(), namespace, request)).await
            }

            async fn start(
                &self,
                _: &TtrpcContext,
                request: StartRequest,
            ) -> ttrpc::Result<StartResponse> {
                to_its_end(start::start(self.0.clone(), request)).await
            }

            async fn delete(
                &self,
                _: &TtrpcContext,
                request: DeleteRequest,
            ) -> ttrpc::Result<DeleteResponse> {
                to_its_end(delete::delete(self.0.clone(), request)).await
            }

            async fn pids(
                &self,
                _: &TtrpcContext,
                request: PidsRequest,
            ) -> ttrpc::Result<PidsResponse> {
                let agent = self.0.clone();
                with_its_call(async move { pids::pids(&agent, &request) }).await
            }

            async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                to_its_end(async move { empty(pause::pause(agent, request).await) }).await
            }

            async fn resume(
                &self,
                _: &TtrpcContext,
                request: ResumeRequest,
            ) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                to_its_end(async move { empty(pause::resume(agent, request).await) }).await
            }

            async fn checkpoint(
                &self,
                _: &TtrpcContext,
                request: CheckpointTaskRequest,
            ) -> ttrpc::Result<Empty> {
                let known = self.0.tasks.get(&request.id).map(drop);
                let refusal = RpcError::Unimplemented(
                    "checkpoint: a process in a VM is saved with its VM".to_owned(),
                );
                with_its_call(at_once(known.and(Err(refusal)))).await
            }

            async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                to_its_end(async move { empty(kill::kill(&agent, &request)) }).await
            }

            async fn exec(
                &self,
                _: &TtrpcContext,
                request: ExecProcessRequest,
            ) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                let body = async move {
                    exec::exec(&agent, request)?;
                    // Its Start comes next; without this the launch takes a little longer.
                    let _ = agent.init.expect_launch(0).await;
                    Ok(Empty {})
                };
                to_its_end(body).await
            }

            async fn resize_pty(
                &self,
                _: &TtrpcContext,
                request: ResizePtyRequest,
            ) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                to_its_end(async move { empty(resize_pty::resize_pty(&agent, &request)) }).await
            }

            async fn close_io(
                &self,
                _: &TtrpcContext,
                request: CloseIoRequest,
            ) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                to_its_end(async move { empty(close_io::close_io(&agent, &request)) }).await
            }

            async fn update(
                &self,
                _: &TtrpcContext,
                request: UpdateTaskRequest,
            ) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                to_its_end(async move { empty(update::update(agent, request).await) }).await
            }

            async fn wait(
                &self,
                _: &TtrpcContext,
                request: WaitRequest,
            ) -> ttrpc::Result<WaitResponse> {
                with_its_call(wait::wait(self.0.clone(), request)).await
            }

            async fn stats(
                &self,
                _: &TtrpcContext,
                request: StatsRequest,
            ) -> ttrpc::Result<StatsResponse> {
                with_its_call(stats::stats(self.0.clone(), request)).await
            }

            async fn connect(
                &self,
                _: &TtrpcContext,
                request: ConnectRequest,
            ) -> ttrpc::Result<ConnectResponse> {
                let agent = self.0.clone();
                with_its_call(async move { Ok(connect::connect(&agent, &request)) }).await
            }

            async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
                let agent = self.0.clone();
                let shutdown = async move {
                    shutdown::shutdown(&agent).await;
                    Ok(Empty {})
                };
                to_its_end(shutdown).await
            }
        }
    };
}
serve!(v2);
serve!(v3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::profile::NATIVE;

    #[test]
    fn namespace_is_the_calls_or_empty() {
        let mut context = TtrpcContext::default();
        assert_eq!(namespace(&context, &NATIVE).unwrap(), "");
        for (value, taken) in [("k8s.io", true), (&"x".repeat(NAMESPACE_BYTES + 1), false)] {
            context.metadata.insert(NAMESPACE.to_owned(), vec![value.to_owned()]);
            assert_eq!(namespace(&context, &NATIVE).ok(), taken.then(|| value.to_owned()));
        }
    }
}

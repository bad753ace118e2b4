//! The Task service, under both names that containerds use; their messages are the same.
//!
//! Promises: what changes something runs to its end, whatever becomes of containerd or its connection; a panic is that
//! call's error. Never: decides anything.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tracing::debug;
use ttrpc::asynchronous::{Service, TtrpcContext};
use vminitd_protocol::pb::containerd::task::v3::*;
use vminitd_protocol::pb::containerd::task::{v2, v3};
use vminitd_protocol::pb::google::protobuf::Empty;

use crate::life::Shim;
use crate::life::failure::Failure;

/// Both services.
pub fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let tasks = Arc::new(Tasks(shim.clone()));
    let mut services = v2::create_task(tasks.clone());
    services.extend(v3::create_task(tasks));
    services
}

struct Tasks(Arc<Shim>);

/// Each call, with whether it changes something, its name here and in the shim, and its messages.
macro_rules! tasks {
    ($trait:path, $($how:ident $method:ident($request:ty) -> $answer:ty $(, $map:expr)?;)*) => {
        #[async_trait]
        impl $trait for Tasks {
            $(
                async fn $method(&self, _: &TtrpcContext, request: $request) -> ttrpc::Result<$answer> {
                    let shim = self.0.clone();
                    let body = async move { shim.$method(request).await$(.map($map))? };
                    timed(stringify!($method), $how(body)).await
                }
            )*

            async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
                Ok(self.0.connect(&request))
            }
        }
    };
}

macro_rules! both {
    ($($trait:path),*) => {
        $(tasks! { $trait,
            with_its_call state(StateRequest) -> StateResponse;
            to_its_end create(CreateTaskRequest) -> CreateTaskResponse;
            to_its_end start(StartRequest) -> StartResponse;
            to_its_end delete(DeleteRequest) -> DeleteResponse;
            with_its_call pids(PidsRequest) -> PidsResponse;
            to_its_end pause(PauseRequest) -> Empty;
            to_its_end resume(ResumeRequest) -> Empty;
            to_its_end checkpoint(CheckpointTaskRequest) -> Empty;
            to_its_end kill(KillRequest) -> Empty, empty;
            to_its_end exec(ExecProcessRequest) -> Empty, empty;
            to_its_end resize_pty(ResizePtyRequest) -> Empty;
            to_its_end close_io(CloseIoRequest) -> Empty, empty;
            to_its_end update(UpdateTaskRequest) -> Empty;
            with_its_call wait(WaitRequest) -> WaitResponse;
            with_its_call stats(StatsRequest) -> StatsResponse;
            to_its_end shutdown(ShutdownRequest) -> Empty, empty;
        })*
    };
}

both!(v2::Task, v3::Task);

/// Tells the log how long a call took.
async fn timed<T>(call: &str, body: impl Future<Output = ttrpc::Result<T>>) -> ttrpc::Result<T> {
    let begun = Instant::now();
    let done = body.await;
    debug!(call, ms = begun.elapsed().as_millis(), ok = done.is_ok(), "answered");
    done
}

fn empty((): ()) -> Empty {
    Empty {}
}

/// Runs a body that changes something, to its end: ttrpc drops a call with its connection and its deadline.
async fn to_its_end<T: Send + 'static>(
    body: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ttrpc::Result<T> {
    answer(tokio::spawn(body).await)
}

/// Runs a body that only looks or waits; it is dropped with the call.
async fn with_its_call<T: Send + 'static>(
    body: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ttrpc::Result<T> {
    struct AbortOnDrop<T>(JoinHandle<T>);
    impl<T> Drop for AbortOnDrop<T> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    answer((&mut AbortOnDrop(tokio::spawn(body)).0).await)
}

fn answer<T>(joined: Result<Result<T, Failure>, tokio::task::JoinError>) -> ttrpc::Result<T> {
    match joined {
        Ok(done) => Ok(done?),
        Err(failed) => Err(Failure::Failed(format!("defect in the shim: {failed}")).into()),
    }
}

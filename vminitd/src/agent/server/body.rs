//! Runs what a call does, apart from the call.
//!
//! Promises: a panic is that call's error and nobody else's; a mutating body runs to its end
//! whatever becomes of its connection or deadline; a waiting body ends with its call.
//! Never: looks into a request.
//!
//! Both are needed since the ttrpc crate drops a handler's future on disconnect and on deadline,
//! and leaves the client without any answer when it panics.

use tokio::task::JoinHandle;
use tracing::error;

use crate::agent::errors::RpcError;

/// Runs a body that changes something, to its end.
pub async fn to_its_end<T: Send + 'static>(
    body: impl Future<Output = Result<T, RpcError>> + Send + 'static,
) -> ttrpc::Result<T> {
    answer(tokio::spawn(body).await)
}

/// Runs a body that only looks or waits; it is dropped with the call.
pub async fn with_its_call<T: Send + 'static>(
    body: impl Future<Output = Result<T, RpcError>> + Send + 'static,
) -> ttrpc::Result<T> {
    answer((&mut AbortOnDrop(tokio::spawn(body)).0).await)
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn answer<T>(joined: Result<Result<T, RpcError>, tokio::task::JoinError>) -> ttrpc::Result<T> {
    match joined {
        Ok(done) => Ok(done?),
        Err(failed) => {
            error!(%failed, "an RPC's body ended without an answer");
            Err(RpcError::Failed(format!("defect in the agent: {failed}")).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn panic_is_the_calls_error() {
        block_on(async {
            let error = to_its_end::<()>(async { panic!("boom") }).await.unwrap_err();
            assert!(format!("{error}").contains("boom"), "{error}");
        });
    }

    #[test]
    fn mutating_body_outlives_its_call_and_a_waiting_one_does_not() {
        block_on(async {
            let done = Arc::new(Notify::new());
            let signal = done.clone();
            let call = to_its_end(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                signal.notify_one();
                Ok(())
            });
            assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
            tokio::time::timeout(Duration::from_secs(5), done.notified()).await.unwrap();

            let (alive, held) = tokio::sync::oneshot::channel::<()>();
            let call = with_its_call(async move {
                let _alive = alive;
                std::future::pending::<Result<(), RpcError>>().await
            });
            assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
            tokio::time::timeout(Duration::from_secs(5), held).await.unwrap().unwrap_err();
        });
    }
}

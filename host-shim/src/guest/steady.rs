//! A guest whose agent may be replaced at any moment, as a host that does not want to notice sees it.
//!
//! ```text
//! call -> answer, or a refusal of the guest's        -> back to the caller
//!      -> the connection broke -> dial until it serves -> call again (call), or say that it is unknown (once)
//! ```
//!
//! Owns: the one connection that all clones share; who first finds it broken replaces it for all.
//! Promises: a guest that is gone for good is told from one that is being replaced. Never: hides a guest's refusal.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use ttrpc::Error as RpcError;

use super::{Guest, NotServing};

/// Calls that outlive the agent. Cheap to clone.
#[derive(Clone)]
pub struct SteadyGuest {
    current: Arc<Mutex<Current>>,
    patience: Duration,
}

struct Current {
    guest: Guest,
    /// Counts connections, so that one that broke is replaced once.
    generation: u64,
}

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The guest says no.
    #[error("{}", .0.message)]
    Refused(ttrpc::Status),
    /// The connection broke under a call that must not be made twice; the guest serves again. What became of the call
    /// is for the caller to find out.
    #[error("the connection broke during the call")]
    Lost(#[source] RpcError),
    /// No agent came back, or there is no VM any more.
    #[error("lost the guest")]
    Gone(#[source] NotServing),
}

impl SteadyGuest {
    /// Tries for `patience` to reach an agent again.
    pub fn new(guest: Guest, patience: Duration) -> Self {
        Self { current: Arc::new(Mutex::new(Current { guest, generation: 0 })), patience }
    }

    /// The connection as it is now.
    pub async fn guest(&self) -> Guest {
        self.current.lock().await.guest.clone()
    }

    /// Makes a call that may be made twice: as often as it takes.
    pub async fn call<T, F, Fut>(&self, call: F) -> Result<T, CallError>
    where
        F: Fn(Guest) -> Fut,
        Fut: Future<Output = ttrpc::Result<T>>,
    {
        loop {
            match self.once(&call).await {
                Err(CallError::Lost(_)) => {}
                done => return done,
            }
        }
    }

    /// Makes a call that must not be made twice. [`CallError::Lost`] comes when the guest serves again.
    pub async fn once<T, F, Fut>(&self, call: F) -> Result<T, CallError>
    where
        F: FnOnce(Guest) -> Fut,
        Fut: Future<Output = ttrpc::Result<T>>,
    {
        let (guest, generation) = {
            let current = self.current.lock().await;
            (current.guest.clone(), current.generation)
        };
        match call(guest).await {
            Ok(answer) => Ok(answer),
            Err(RpcError::RpcStatus(status)) => Err(CallError::Refused(status)),
            Err(error) => {
                self.replace(generation).await?;
                Err(CallError::Lost(error))
            }
        }
    }

    /// Asks the guest whether it is there, and connects anew when it does not answer in `patience`: a connection may be
    /// dead without an end.
    pub async fn check(&self, patience: Duration) -> Result<(), CallError> {
        let (guest, generation) = {
            let current = self.current.lock().await;
            (current.guest.clone(), current.generation)
        };
        match tokio::time::timeout(patience, guest.info()).await {
            // Also a refusal is an answer.
            Ok(Ok(_) | Err(RpcError::RpcStatus(_))) => Ok(()),
            Ok(Err(_)) | Err(_) => self.replace(generation).await,
        }
    }

    async fn replace(&self, broken: u64) -> Result<(), CallError> {
        // Others who find it broken wait here, and then find it replaced.
        let mut current = self.current.lock().await;
        if current.generation == broken {
            current.guest =
                current.guest.reconnect(self.patience).await.map_err(CallError::Gone)?;
            current.generation += 1;
        }
        Ok(())
    }
}

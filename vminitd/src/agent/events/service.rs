//! The Events service, under each name that hosts call.
//!
//! Promises: a stream starts whatever its request's payload (an empty one has zero bytes, for which
//! the crate's generated handler may wait for ever); it ends with its connection.
//! Never: waits for a host that does not read.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use ttrpc::r#async::{Service, StreamHandler, StreamInner, TtrpcContext};
use ttrpc::{Code, Response, get_status};

use super::hub::{Encoded, Hub};
use crate::agent::server::connection::Services;
use crate::agent::server::socket::Gone;

/// The names under which hosts look for it.
const NAMES: [&str; 3] = [
    "vminitd.v1.Events",
    "nerdbox.services.vmevents.v1.Events",
    "spinbox.services.vmevents.v1.Events",
];

/// The service, for one connection.
pub fn services(hub: &Arc<Hub>, gone: &Gone) -> Services {
    let stream: Arc<dyn StreamHandler + Send + Sync> =
        Arc::new(Stream { hub: hub.clone(), gone: gone.clone() });
    let service = |name: &&str| {
        let streams = HashMap::from([("Stream".to_owned(), stream.clone())]);
        ((*name).to_owned(), Service { methods: HashMap::new(), streams })
    };
    NAMES.iter().map(service).collect()
}

struct Stream {
    hub: Arc<Hub>,
    gone: Gone,
}

#[async_trait]
impl StreamHandler for Stream {
    async fn handler(
        &self,
        _: TtrpcContext,
        stream: StreamInner,
    ) -> ttrpc::Result<Option<Response>> {
        let events = self.hub.subscribe();
        tokio::select! {
            answer = forward(events, stream) => Ok(answer),
            () = self.gone.clone().wait() => Ok(None),
        }
    }
}

async fn forward(mut events: mpsc::Receiver<Encoded>, stream: StreamInner) -> Option<Response> {
    while let Some(event) = events.recv().await {
        // The host has gone, or its connection broke: nobody is left to be told.
        stream.send(event.to_vec()).await.ok()?;
    }
    let status = get_status(
        Code::RESOURCE_EXHAUSTED,
        "subscriber too slow, events were dropped: resource exhausted",
    );
    Some(Response { status: Some(status), payload: vec![] })
}

//! The RPC port: every connection is a ttrpc server of its own.
//!
//! Owns: the connections, each by a task of one set.
//! Promises: what belongs to a connection ends with it (the crate alone leaves a streaming handler
//! behind when its client goes away); what belongs to the VM does not: state is the agent's.
//! Never: more than the limit of connections at once; one too many is closed, not queued.
//!
//! One ttrpc server for all connections was the obvious way. It gives a handler nothing by which
//! to tell its connection, so an idle event stream would never learn that its client is gone.
//! Registering the services anew costs some sixty small allocations a connection.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::JoinSet;
use tracing::{debug, warn};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, Service};

use super::accept::HostListener;
use super::socket::{Gone, RpcSocket};
use crate::limits::RPC_CONNECTIONS;

/// Services by name, as the generated code makes them.
pub type Services = HashMap<String, Service>;

/// Serves until dropped. `services` makes what one connection can call.
pub async fn serve(listener: HostListener, services: impl Fn(Gone) -> Services) {
    let mut connections = JoinSet::new();
    loop {
        let connection = tokio::select! {
            connection = listener.next() => connection,
            Some(_ended) = connections.join_next() => continue,
        };
        if connections.len() >= RPC_CONNECTIONS {
            warn!(limit = RPC_CONNECTIONS, "too many RPC connections: closed one");
            continue;
        }
        match RpcSocket::new(connection) {
            Ok((socket, gone)) => {
                connections.spawn(converse(socket, services(gone.clone()), gone));
            }
            Err(error) => debug!(%error, "a connection could not be set up"),
        }
    }
}

async fn converse(socket: RpcSocket, services: Services, gone: Gone) {
    let mut server =
        Server::new().add_listener(Listener::new(Once(Some(socket)))).register_service(services);
    match server.start().await {
        // The server's drop tells the crate's own tasks to end.
        Ok(()) => gone.wait().await,
        Err(error) => debug!(%error, "a connection could not be served"),
    }
}

/// A stream of one connection.
struct Once(Option<RpcSocket>);

impl futures_core::Stream for Once {
    type Item = io::Result<RpcSocket>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

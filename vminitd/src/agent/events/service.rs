//! The Events service, under each name that hosts call.
//!
//! Promises: a stream starts whatever its request's payload (an empty one has zero bytes, for which
//! the crate's generated handler may wait for ever); with the number of an event in the request's
//! metadata it goes on behind that; it ends with its connection.
//! Never: waits for a host that does not read.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{Service, StreamHandler, StreamInner, TtrpcContext};
use ttrpc::{Response, get_status};
use vminitd_protocol::metadata::RESUME_AFTER;

use super::hub::{Hub, Subscriber};
use super::ring::Missing;
use crate::agent::errors::RpcError;
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
        context: TtrpcContext,
        stream: StreamInner,
    ) -> ttrpc::Result<Option<Response>> {
        let subscribed =
            resume_after(&context.metadata).and_then(|after| Ok(self.hub.subscribe(after)?));
        let events = match subscribed {
            Ok(events) => events,
            Err(error) => return Ok(Some(failed(error))),
        };
        tokio::select! {
            answer = forward(events, stream) => Ok(answer),
            () = self.gone.clone().wait() => Ok(None),
        }
    }
}

/// The number after which the host wants to go on, if it wants that.
fn resume_after(metadata: &HashMap<String, Vec<String>>) -> Result<Option<u64>, RpcError> {
    let Some(values) = metadata.get(RESUME_AFTER) else { return Ok(None) };
    let [value] = &values[..] else {
        let count = values.len();
        return Err(RpcError::Invalid(format!("{RESUME_AFTER} has {count} values")));
    };
    let number = value.parse().map_err(|_| {
        let value: String = value.chars().take(32).collect();
        RpcError::Invalid(format!("{RESUME_AFTER}: {value:?} is no event's number"))
    })?;
    Ok(Some(number))
}

impl From<Missing> for RpcError {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Gone { oldest } => Self::EventsGone { oldest },
            Missing::Ahead { newest } => Self::Invalid(format!(
                "{RESUME_AFTER} is ahead of the newest event, which is {newest}"
            )),
        }
    }
}

async fn forward(mut events: Subscriber, stream: StreamInner) -> Option<Response> {
    while let Some(event) = events.next().await {
        tokio::select! {
            // The host has gone, or its connection broke: nobody is left to be told.
            sent = stream.send(event) => sent.ok()?,
            // It may read again some day, and is told then.
            () = events.dropped() => break,
        }
    }
    Some(failed(RpcError::Exhausted("subscriber too slow, events were dropped".to_owned())))
}

fn failed(error: RpcError) -> Response {
    Response { status: Some(get_status(error.code(), error)), payload: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(values: &[&str]) -> HashMap<String, Vec<String>> {
        let values = values.iter().map(|value| String::from(*value)).collect();
        HashMap::from([("vminitd-resume-after".to_owned(), values)])
    }

    #[test]
    fn number_is_read_and_what_is_none_is_named() {
        assert_eq!(resume_after(&HashMap::new()).unwrap(), None);
        assert_eq!(resume_after(&metadata(&["0"])).unwrap(), Some(0));
        assert_eq!(resume_after(&metadata(&["18446744073709551615"])).unwrap(), Some(u64::MAX));
        for values in [&["-1"][..], &[""], &["18446744073709551616"], &["1", "2"], &["x"], &[]] {
            let error = resume_after(&metadata(values)).unwrap_err().to_string();
            assert!(error.starts_with("vminitd-resume-after"), "{values:?}: {error}");
        }
    }
}

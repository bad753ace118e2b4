//! Services that hosts know and this guest does not have yet: each method answers Unimplemented
//! and says so.
//!
//! Why they are registered at all: the ttrpc crate answers INVALID_ARGUMENT for a service that it
//! does not know, and hosts try again on any code but Unimplemented.
//! Never: does anything else. A row goes when its service comes.

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Code, Request, Response, get_status};

use super::connection::Services;

/// Services and their methods. A streaming method need not be listed: an unknown method of a known
/// service is Unimplemented already.
const UNBUILT: [(&str, &[&str]); 2] = [
    ("nerdbox.services.socketforward.v1.SocketForward", &["Bind"]),
    ("containerd.services.transfer.v1.Transfer", &["Transfer"]),
];

/// All of them.
pub fn services() -> Services {
    let service = |(name, methods): &(&str, &[&str])| {
        let methods = methods.iter().map(|method| (String::from(*method), handler())).collect();
        (String::from(*name), Service { methods, streams: Default::default() })
    };
    UNBUILT.iter().map(service).collect()
}

fn handler() -> Box<dyn MethodHandler + Send + Sync> {
    Box::new(Unbuilt)
}

struct Unbuilt;

#[async_trait]
impl MethodHandler for Unbuilt {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let text = format!(
            "{}/{} is not part of this guest: not implemented",
            request.service, request.method
        );
        Ok(Response { status: Some(get_status(Code::UNIMPLEMENTED, text)), payload: vec![] })
    }
}

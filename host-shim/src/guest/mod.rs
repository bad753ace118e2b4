//! The guest as its host sees it: ttrpc clients and stdio streams over connections that somebody else dials.
//!
//! Owns: one RPC connection, on which all calls run side by side.
//! Promises: "serving" means that the guest has answered a call, nothing less.
//! Never: knows what runs the VM; [`Dial`] is all that it asks of it.

mod attach;
mod handshake;
mod steady;
pub mod wake;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};
use vminitd_protocol::metadata::RESUME_AFTER;
use vminitd_protocol::pb::containerd::task::v3::TaskClient;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::BundleClient;
use vminitd_protocol::pb::containerd::vminitd::services::mount::v1::MountClient;
use vminitd_protocol::pb::containerd::vminitd::services::system::v1::{InfoResponse, SystemClient};
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{
    EventsClient, MachineClient, NetworkClient, StreamsClient,
};
use vminitd_protocol::ports::{DEFAULT_RPC_PORT, DEFAULT_STREAM_PORT};

use crate::vmm::GuestStream;

pub use attach::{AttachError, Attached, Streams, Which};
pub use handshake::StreamError;
pub use steady::{CallError, SteadyGuest};

/// How long a booting guest is dialled before it counts as not coming up.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(30);

/// Between two attempts to reach a booting guest.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How long one attempt may take: a guest that accepts but never answers is tried anew.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);

/// Makes vsock connections to a guest.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Connects to the guest's `port`, once. `ConnectionRefused` when nobody listens there (yet), `NotConnected` when
    /// there is no guest any more.
    async fn dial(&self, port: u32) -> io::Result<GuestStream>;
}

/// Where a guest listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// ttrpc.
    pub rpc: u32,
    /// stdio streams.
    pub stream: u32,
}

impl Default for Ports {
    fn default() -> Self {
        Self { rpc: DEFAULT_RPC_PORT, stream: DEFAULT_STREAM_PORT }
    }
}

/// A guest that serves. Cheap to clone; the connection closes with the last clone.
#[derive(Clone)]
pub struct Guest {
    dial: Arc<dyn Dial>,
    ports: Ports,
    rpc: Client,
}

/// The guest did not come up in time, or has ended.
#[derive(Debug, thiserror::Error)]
#[error("{}", said(.last, .deadline))]
pub struct NotServing {
    /// How long it was tried.
    pub deadline: Duration,
    /// What the last attempt met.
    #[source]
    pub last: io::Error,
}

impl NotServing {
    /// True when there is no guest to wait for.
    pub fn is_over(&self) -> bool {
        self.last.kind() == io::ErrorKind::NotConnected
    }
}

fn said(last: &io::Error, deadline: &Duration) -> String {
    match last.kind() {
        io::ErrorKind::NotConnected => "there is no guest any more".to_owned(),
        _ => format!("the guest did not serve within {} s", deadline.as_secs()),
    }
}

impl Guest {
    /// Dials until the guest answers `System.Info`, for `deadline` at most.
    pub async fn connect(
        dial: Arc<dyn Dial>,
        ports: Ports,
        deadline: Duration,
    ) -> Result<Self, NotServing> {
        let until = Instant::now() + deadline;
        loop {
            let attempt = timeout(ATTEMPT_DEADLINE, Self::attempt(dial.clone(), ports)).await;
            let last = match attempt {
                Ok(Ok(guest)) => return Ok(guest),
                Ok(Err(error)) => error,
                Err(_) => {
                    io::Error::new(io::ErrorKind::TimedOut, "the guest accepted and did not answer")
                }
            };
            let failure = NotServing { deadline, last };
            if failure.is_over() || Instant::now() >= until {
                return Err(failure);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(dial: Arc<dyn Dial>, ports: Ports) -> io::Result<Self> {
        let stream = dial.dial(ports.rpc).await?;
        let rpc = Client::new(Socket::new(stream));
        let guest = Self { dial, ports, rpc };
        guest.info().await.map_err(io::Error::other)?;
        Ok(guest)
    }

    /// The guest's version and kernel.
    pub async fn info(&self) -> ttrpc::Result<InfoResponse> {
        self.system().info(unlimited(), &Empty {}).await
    }

    /// A further RPC connection to the same guest, for example after the agent was restarted.
    pub async fn reconnect(&self, deadline: Duration) -> Result<Self, NotServing> {
        Self::connect(self.dial.clone(), self.ports, deadline).await
    }

    /// containerd's Task API.
    pub fn task(&self) -> TaskClient {
        TaskClient::new(self.rpc.clone())
    }

    /// Bundles.
    pub fn bundle(&self) -> BundleClient {
        BundleClient::new(self.rpc.clone())
    }

    /// Mounts that belong to no container.
    pub fn mounts(&self) -> MountClient {
        MountClient::new(self.rpc.clone())
    }

    /// The guest as a machine, as existing hosts know it.
    pub fn system(&self) -> SystemClient {
        SystemClient::new(self.rpc.clone())
    }

    /// Published events.
    pub fn events(&self) -> EventsClient {
        EventsClient::new(self.rpc.clone())
    }

    /// What is around the guest's containers.
    pub fn machine(&self) -> MachineClient {
        MachineClient::new(self.rpc.clone())
    }

    /// The VM's networks.
    pub fn network(&self) -> NetworkClient {
        NetworkClient::new(self.rpc.clone())
    }

    /// Streams of running processes.
    pub fn streams(&self) -> StreamsClient {
        StreamsClient::new(self.rpc.clone())
    }

    /// The raw RPC connection, for a service that has no method here.
    pub fn rpc(&self) -> Client {
        self.rpc.clone()
    }

    /// A connection of one's own to any port of the guest.
    pub async fn dial(&self, port: u32) -> io::Result<GuestStream> {
        self.dial.dial(port).await
    }

    /// Opens a stdio stream; `stream://<id>` then names it in Create. Returns once the guest has registered it.
    pub async fn stream(&self, id: &str) -> Result<GuestStream, StreamError> {
        handshake::open(self.dial(self.ports.stream).await.map_err(StreamError::Dial)?, id).await
    }
}

/// The context of a call without a deadline.
pub fn unlimited() -> Context {
    context::with_timeout(0)
}

/// The context of an event stream that goes on behind event `seq`; 0 begins with the first.
pub fn resume_after(seq: u64) -> Context {
    let mut context = unlimited();
    context.add(RESUME_AFTER.to_owned(), seq.to_string());
    context
}

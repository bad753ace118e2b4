//! The RPC port from outside: a real server on a local socket, spoken to by the crate's client and by
//! bytes that no client would send.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::with_duration;
use vminitd_protocol::pb::containerd::events::TaskStart;
use vminitd_protocol::pb::containerd::task::v2;
use vminitd_protocol::pb::containerd::task::v3::{StateRequest, TaskClient};
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::{
    BundleClient, CreateRequest,
};
use vminitd_protocol::pb::containerd::vminitd::services::system::v1::SystemClient;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::EventsClient;

use super::accept::HostListener;
use super::connection::serve;
use super::services::services;
use crate::agent::Agent;
use crate::agent::dirs::Dirs;
use crate::agent::events::hub::Hub;
use crate::agent::host_mounts::HostMounts;
use crate::agent::init_client::InitClient;
use crate::config::Config;
use crate::limits::RPC_CONNECTIONS;
use crate::link::agent::Link;
use crate::sys::seqpacket;

const PATIENCE: Duration = Duration::from_secs(20);

struct Setup {
    agent: Arc<Agent>,
    path: PathBuf,
    dir: tempfile::TempDir,
    /// init's end of the link: there, and silent.
    _init: OwnedFd,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let below = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let dirs = Dirs {
        bundles: below("bundles"),
        containers: below("containers"),
        libcontainer: below("lc"),
        cgroups: below("cgroups"),
    };
    let (ours, init) = seqpacket::pair(false).unwrap();
    let config = Config::default();
    let agent = Arc::new(Agent {
        guard: Arc::default(),
        filters: Arc::default(),
        foreseen: Arc::default(),
        host_mounts: HostMounts::new(dir.path().to_owned()),
        supervisor: Default::default(),
        network: crate::agent::network::Network::new(&config),
        profile: config.profile.into(),
        config,
        dirs,
        init: Arc::new(InitClient::new(Link::new(ours).unwrap(), 1, true, [])),
        tasks: Arc::default(),
        pending: Default::default(),
        loggers: Default::default(),
        streams: Arc::default(),
        events: Arc::new(Hub::unkept("boot")),
        connections: Default::default(),
        freezer: Default::default(),
        generation: 1,
    });
    let path = dir.path().join("rpc");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let listener = HostListener::new(listener.into(), "rpc").unwrap();
    let served = agent.clone();
    tokio::spawn(serve(listener, move |gone| services(&served, &gone)));
    Setup { agent, path, dir, _init: init }
}

impl Setup {
    async fn client(&self) -> Client {
        let address = format!("unix://{}", self.path.display());
        Client::connect(&address).await.unwrap()
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE * 3, future).await.expect("the test hangs") })
}

fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("no refusal: {other:?}"),
    }
}

fn frame(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, flags]);
    frame.extend(payload);
    frame
}

async fn read_frame(connection: &mut UnixStream) -> ([u8; 10], Vec<u8>) {
    let mut header = [0; 10];
    timeout(PATIENCE, connection.read_exact(&mut header)).await.expect("no frame").unwrap();
    let length = u32::from_be_bytes(header[..4].try_into().unwrap());
    let mut payload = vec![0; length as usize];
    connection.read_exact(&mut payload).await.unwrap();
    (header, payload)
}

#[test]
fn ten_zero_bytes_get_a_response_on_stream_zero() {
    block_on(async {
        let setup = setup();
        let mut connection = setup.raw().await;
        connection.write_all(&[0; 10]).await.unwrap();
        let (header, payload) = read_frame(&mut connection).await;
        assert_eq!(header[4..9], [0, 0, 0, 0, 2]);
        assert!(!payload.is_empty());
        // And the connection still serves.
        connection.write_all(&[0; 10]).await.unwrap();
        read_frame(&mut connection).await;
    });
}

#[test]
fn both_versions_of_task_and_every_known_service_answer() {
    block_on(async {
        let setup = setup();
        let client = setup.client().await;
        let context = || with_duration(PATIENCE);
        let request = StateRequest { id: "x".into(), exec_id: String::new() };
        let unknown = (Code::NOT_FOUND, "container not created: not found".to_owned());
        let task = TaskClient::new(client.clone());
        assert_eq!(refusal(task.state(context(), &request).await), unknown);
        let task = v2::TaskClient::new(client.clone());
        assert_eq!(refusal(task.state(context(), &request).await), unknown);
        let info = SystemClient::new(client.clone()).info(context(), &Empty {}).await.unwrap();
        assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
        assert!(info.kernel_version.contains('.'));
        for (service, method) in [
            ("containerd.task.v3.Task", "NoSuchMethod"),
            ("containerd.vminitd.services.mount.v1.Mount", "MountSome"),
            ("nerdbox.services.socketforward.v1.SocketForward", "Bind"),
            ("nerdbox.services.socketforward.v1.SocketForward", "Accept"),
            ("containerd.services.transfer.v1.Transfer", "Transfer"),
        ] {
            let request = ttrpc::Request {
                service: service.into(),
                method: method.into(),
                ..Default::default()
            };
            let (code, text) = refusal(client.request(request).await);
            assert_eq!(code, Code::UNIMPLEMENTED, "{service}/{method}: {text}");
        }
    });
}

#[test]
fn bundle_is_made_by_the_call_and_its_second_is_refused() {
    block_on(async {
        let setup = setup();
        let bundles = BundleClient::new(setup.client().await);
        let files = [("config.json".to_owned(), b"{}".to_vec())].into();
        let request = CreateRequest { id: "c1".into(), files };
        let made = bundles.create(with_duration(PATIENCE), &request).await.unwrap();
        assert_eq!(made.bundle, setup.dir.path().join("bundles/c1").to_str().unwrap());
        let again = refusal(bundles.create(with_duration(PATIENCE), &request).await);
        assert_eq!(again, (Code::ALREADY_EXISTS, "bundle c1: already exists".to_owned()));
    });
}

#[test]
fn events_start_whatever_the_request_holds_and_end_with_their_connection() {
    block_on(async {
        let setup = setup();
        let idle = Arc::strong_count(&setup.agent.events);
        let request = |name: &str| {
            ttrpc::Request { service: name.into(), method: "Stream".into(), ..Default::default() }
                .encode_to_vec()
        };
        let mut connections = vec![];
        for (name, flags) in [
            // Remote closed; remote closed and no data.
            ("vminitd.v1.Events", 1),
            ("nerdbox.services.vmevents.v1.Events", 1 | 4),
            ("spinbox.services.vmevents.v1.Events", 4),
        ] {
            let mut connection = setup.raw().await;
            connection.write_all(&frame(1, 1, flags, &request(name))).await.unwrap();
            connections.push(connection);
        }
        let client = setup.client().await;
        let events = EventsClient::new(client.clone());
        let mut by_client = events.stream(with_duration(PATIENCE), &Empty {}).await.unwrap();
        // Until all four have subscribed, which nothing tells from outside.
        tokio::time::sleep(Duration::from_millis(300)).await;
        setup.agent.events.publish("ns", &TaskStart { container_id: "c1".into(), pid: 7 });
        for connection in &mut connections {
            let (header, payload) = read_frame(connection).await;
            assert_eq!(header[8], 3, "a data frame");
            let envelope = Envelope::decode(&*payload).unwrap();
            assert_eq!((envelope.topic.as_str(), envelope.seq), ("/tasks/start", 1));
        }
        let envelope = by_client.recv().await.unwrap().unwrap();
        assert_eq!(envelope.namespace, "ns");
        drop((connections, by_client, events, client));
        // An idle stream holds the hub; nothing is published any more to wake it.
        let freed = async {
            while Arc::strong_count(&setup.agent.events) > idle {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, freed).await.expect("streams outlive their connections");
    });
}

#[test]
fn garbage_and_oversized_frames_disturb_nobody() {
    block_on(async {
        let setup = setup();
        let client = setup.client().await;
        // Announces 4 GiB and sends a page.
        let oversized = [&[0xff; 4][..], &frame(1, 1, 0, &[])[4..], &[7; 4096]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xff; 4096],
            oversized,
            frame(1, 1, 0, b"\xff\xff\xff\xff no protobuf"),
            frame(2, 1, 0, b"even"),
            frame(7, 3, 0, b"data for no stream"),
            frame(9, 77, 0, b"of no type"),
        ] {
            let mut connection = setup.raw().await;
            connection.write_all(&bytes).await.unwrap();
            connection.shutdown().await.unwrap();
            let mut rest = vec![];
            let ended = timeout(PATIENCE, connection.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "a connection that sent {:?} stays", &bytes[..10]);
        }
        let request = StateRequest { id: "x".into(), exec_id: String::new() };
        let answer = TaskClient::new(client).state(with_duration(PATIENCE), &request).await;
        assert_eq!(refusal(answer).0, Code::NOT_FOUND);
    });
}

#[test]
fn many_calls_on_one_connection_each_get_their_answer() {
    block_on(async {
        let setup = setup();
        let system = SystemClient::new(setup.client().await);
        let calls = (0..50).map(|_| {
            let system = system.clone();
            tokio::spawn(async move { system.info(with_duration(PATIENCE), &Empty {}).await })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
    });
}

#[test]
fn one_connection_too_many_is_closed_and_the_others_serve() {
    block_on(async {
        let setup = setup();
        let mut open = vec![];
        for _ in 0..RPC_CONNECTIONS {
            let mut connection = setup.raw().await;
            connection.write_all(&[0; 10]).await.unwrap();
            read_frame(&mut connection).await;
            open.push(connection);
        }
        let mut refused = setup.raw().await;
        let end = timeout(PATIENCE, refused.read(&mut [0; 1])).await.expect("not closed");
        assert!(matches!(end, Ok(0)), "{end:?}");
        drop(open.pop());
        // Its place is free once the server has noticed.
        let served = async {
            loop {
                let mut connection = setup.raw().await;
                let _ = connection.write_all(&[0; 10]).await;
                if matches!(connection.read(&mut [0; 1]).await, Ok(1)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, served).await.expect("the place stays taken");
    });
}

//! A task's network: interfaces of its namespace, connected to its VM.
//!
//! ```text
//! network namespace of the task                          VM
//!   eth0 (veth, of CNI) <== redirected both ways ==> tap <== QEMU ==> eth0: its MAC, MTU, addresses, routes
//! ```
//!
//! Looked for once, when the VM's first task is started: CNI is called before a pod's Create, by hooks of the Create, or
//! between Create and Start (`ctr run --cni`). A VM whose namespace has nothing to connect has QEMU's user network.
//!
//! Owns: the taps, which go with QEMU, and what redirects, which goes with the namespace or in [`TaskNetwork::disconnect`];
//! `delete` does that for a shim that was killed.
//! Promises: what cannot be connected is an error that names it; the host's own interfaces are never looked at.
//! Never: leaves the user network beside interfaces of CNI's.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use host_shim::chain;
use host_shim::container::user_network;
use host_shim::guest::{CallError, Guest, unlimited};
use host_shim::machine::VmmError;
use host_shim::vm::{NicError, Published};
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::sleep;
use tracing::{info, warn};
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{self as pb, Dns, LinkAddress, SetLinkRequest};

#[cfg(target_os = "linux")]
use super::interfaces;
use super::netns::{Inside, Wanted, wanted};
use super::process::lock;
use super::sandbox::Sandbox;
use crate::protocol::delete::record_network;

/// How long the guest may take to find an interface.
const FIND_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks.
const FIND_PAUSE: Duration = Duration::from_millis(10);

/// There are no network namespaces to find anything in.
#[cfg(not(target_os = "linux"))]
mod interfaces {
    use std::io;
    use std::os::fd::OwnedFd;

    use super::{Interface, NetworkError};

    pub fn look() -> io::Result<Result<Vec<Interface>, NetworkError>> {
        Ok(Ok(Vec::new()))
    }

    pub fn make_tap(_: u32, _: u32) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn give_back(_: &[u32]) -> io::Result<()> {
        Ok(())
    }
}

/// What an annotation says of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChoice {
    /// Interfaces of the task's namespace, else the user network with these ports.
    Auto(Vec<Published>),
    /// The user network, whatever there is.
    User(Vec<Published>),
    /// Interfaces of the task's namespace, or an error.
    Cni,
    /// Nothing.
    None,
}

/// A task without the network that it is to have.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An annotation. Whoever wrote it reads it.
    #[error("io.vminitd.network: {0:?} is none; give auto, cni, user or none")]
    Choice(String),
    /// A port to publish.
    #[error("io.vminitd.publish")]
    Publish(#[from] NicError),
    /// The namespace.
    #[error("enter the network namespace of the task")]
    Enter(#[source] io::Error),
    /// CNI made something else.
    #[cfg(target_os = "linux")]
    #[error(
        "interface {name} of the task's network namespace is {what}; only Ethernet ones can be connected to a VM: veth, macvlan, ipvlan or hardware"
    )]
    Kind {
        /// Its name.
        name: String,
        /// What it is.
        what: String,
    },
    /// It made too much.
    #[cfg(target_os = "linux")]
    #[error(
        "{0} interfaces in the task's network namespace are more than {most}",
        most = host_shim::limits::MAX_NICS
    )]
    TooMany(usize),
    /// It made nothing.
    #[error("io.vminitd.network is cni, and the task's network namespace has no interface")]
    Nothing,
    /// The kernel refuses.
    #[error("connect the task's network namespace")]
    Kernel(#[source] io::Error),
    /// The VM does not take it.
    #[error("connect {name} of the task's network namespace to the VM")]
    Vm {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: VmmError,
    },
    /// The guest does not.
    #[error("set up {name} of the task's network namespace in the guest")]
    Guest {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The guest does not see it.
    #[error("the guest did not find {name} of the task's network namespace in {} s", FIND_TIMEOUT.as_secs())]
    NotFound {
        /// The interface.
        name: String,
    },
}

/// An interface that is to be the VM's.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// The host's number for it.
    pub index: u32,
    /// Its name on the host.
    pub name: String,
    /// As in 52:54:00:12:34:56.
    pub mac: String,
    /// Bytes of a packet.
    pub mtu: u32,
    /// As in 10.0.0.2/24.
    pub addresses: Vec<String>,
    /// Without the name of the guest's link.
    pub routes: Vec<pb::Route>,
}

/// The network of a shim's tasks.
pub struct TaskNetwork {
    inside: Inside,
    /// Whether the main thread is in a namespace that is not the host's; set with the VM.
    place: OnceCell<Place>,
    /// What was connected; set with the first Start.
    up: OnceCell<()>,
    redirected: Mutex<Vec<u32>>,
}

#[derive(Debug)]
struct Place {
    /// It is the task's own, not the host's.
    own: bool,
    /// Where it is found when we are gone; a new one is not.
    path: Option<PathBuf>,
}

/// Reads the annotations.
pub fn choice(config: &Value) -> Result<NetworkChoice, NetworkError> {
    let annotation = |name: &str| config["annotations"][name].as_str();
    let published = annotation("io.vminitd.publish").unwrap_or_default().split(',');
    let published = published.map(str::trim).filter(|port| !port.is_empty()).map(str::parse);
    let published = published.collect::<Result<_, NicError>>()?;
    match annotation("io.vminitd.network") {
        None | Some("auto") => Ok(NetworkChoice::Auto(published)),
        Some("user") => Ok(NetworkChoice::User(published)),
        Some("cni") => Ok(NetworkChoice::Cni),
        Some("none") => Ok(NetworkChoice::None),
        Some(other) => Err(NetworkError::Choice(other.to_owned())),
    }
}

impl TaskNetwork {
    /// Nothing is entered yet.
    pub fn new(inside: Inside) -> Self {
        let (place, up) = (OnceCell::new(), OnceCell::new());
        Self { inside, place, up, redirected: Mutex::default() }
    }

    /// Enters the namespace that the config of the VM's first task wants. Returns the ports of the user network that the
    /// VM is to have from the start, if any: none when there is something to connect already.
    pub async fn enter(
        &self,
        config: &Value,
        choice: &NetworkChoice,
    ) -> Result<Option<Vec<Published>>, NetworkError> {
        let wanted = wanted(config);
        let path = match &wanted {
            Wanted::At(path) => Some(path.clone()),
            Wanted::Host | Wanted::New => None,
        };
        let own = self.inside.enter(wanted).await.map_err(NetworkError::Enter)?;
        let _ = self.place.set(Place { own, path: path.clone() });
        match choice {
            NetworkChoice::Auto(published) => {
                let known = path.is_some() && !self.interfaces().await?.is_empty();
                Ok((!known).then(|| published.clone()))
            }
            NetworkChoice::User(published) => Ok(Some(published.clone())),
            NetworkChoice::Cni | NetworkChoice::None => Ok(None),
        }
    }

    /// Makes the network what the task is to have: connects what is in its namespace, else waits for the user network.
    pub async fn bring_up(&self, sandbox: &Sandbox, bundle: &Path) -> Result<(), NetworkError> {
        self.up.get_or_try_init(|| self.bring_up_once(sandbox, bundle)).await.copied()
    }

    async fn bring_up_once(&self, sandbox: &Sandbox, bundle: &Path) -> Result<(), NetworkError> {
        let interfaces = match &sandbox.network {
            NetworkChoice::Auto(_) | NetworkChoice::Cni => self.interfaces().await?,
            NetworkChoice::User(_) => Vec::new(),
            NetworkChoice::None => return Ok(()),
        };
        if interfaces.is_empty() && sandbox.network == NetworkChoice::Cni {
            return Err(NetworkError::Nothing);
        }
        if interfaces.is_empty() {
            sandbox.network_is_up().await;
            return Ok(());
        }
        if let NetworkChoice::Auto(published) = &sandbox.network
            && !published.is_empty()
        {
            warn!("io.vminitd.publish has no effect: the task has interfaces of its own");
        }
        if sandbox.user_network {
            let gone = sandbox.machine.detach_nic(user_network::mac()).await;
            let name = || "the user network, in place of which comes an interface".to_owned();
            gone.map_err(|source| NetworkError::Vm { name: name(), source })?;
        }
        let path = self.place.get().and_then(|place| place.path.clone());
        let indexes: Vec<u32> = interfaces.iter().map(|interface| interface.index).collect();
        if let Some(path) = path
            && let Err(error) = record_network(bundle, &path, &indexes)
        {
            warn!(%error, "what is connected cannot be recorded");
        }
        for interface in interfaces {
            let name = interface.name.clone();
            self.connect(sandbox, &interface).await?;
            set_up(sandbox, interface).await?;
            info!(interface = name, "connected to the VM");
        }
        tell_name_servers(sandbox).await;
        Ok(())
    }

    /// What there is to connect.
    async fn interfaces(&self) -> Result<Vec<Interface>, NetworkError> {
        if !self.place.get().is_some_and(|place| place.own) {
            return Ok(Vec::new());
        }
        self.inside.run(interfaces::look).await.map_err(NetworkError::Kernel)?
    }

    /// Gives the VM a tap, and redirects between it and the interface.
    async fn connect(&self, sandbox: &Sandbox, interface: &Interface) -> Result<(), NetworkError> {
        let (index, mtu) = (interface.index, interface.mtu);
        let make = move || interfaces::make_tap(index, mtu);
        lock(&self.redirected).push(index);
        let tap = self.inside.run(make).await.map_err(NetworkError::Kernel)?;
        let name = interface.name.clone();
        let failed = |source| NetworkError::Vm { name, source };
        let mac = interface.mac.parse().map_err(NetworkError::Publish)?;
        sandbox.machine.attach_tap(mac, tap).await.map_err(failed)
    }

    /// Lets the interfaces be as they were. The taps go with QEMU.
    pub async fn disconnect(&self) {
        let redirected = std::mem::take(&mut *lock(&self.redirected));
        if redirected.is_empty() {
            return;
        }
        if let Err(error) = self.inside.run(move || interfaces::give_back(&redirected)).await {
            warn!(error = chain(&error), "an interface of the task is not as it was");
        }
    }
}

/// Asks the guest's Network service.
macro_rules! ask {
    ($sandbox:expr, $name:expr, $method:ident, $request:expr) => {{
        let request = $request;
        let call = |guest: Guest| {
            let request = request.clone();
            async move { guest.network().$method(unlimited(), &request).await }
        };
        let name = || $name.to_owned();
        $sandbox
            .guest
            .call(call)
            .await
            .map_err(|source| NetworkError::Guest { name: name(), source })
    }};
}

/// Gives the guest's end what the host's has.
async fn set_up(sandbox: &Sandbox, interface: Interface) -> Result<(), NetworkError> {
    let Interface { name, mac, mtu, addresses, routes, .. } = interface;
    let until = Instant::now() + FIND_TIMEOUT;
    let link = loop {
        let list = ask!(sandbox, name, list, Empty {})?;
        match list.links.into_iter().find(|link| link.mac == mac) {
            Some(link) => break link.name,
            None if Instant::now() > until => return Err(NetworkError::NotFound { name }),
            None => sleep(FIND_PAUSE).await,
        }
    };
    let up = SetLinkRequest { link: link.clone(), up: Some(true), mtu: Some(mtu) };
    ask!(sandbox, name, set_link, up)?;
    for address in addresses {
        let address = LinkAddress { link: link.clone(), address };
        ask!(sandbox, name, add_address, address)?;
    }
    for route in routes {
        let route = pb::Route { link: link.clone(), ..route };
        ask!(sandbox, name, add_route, route)?;
    }
    Ok(())
}

/// For tasks that bring no resolv.conf of their own: whom the host asks, unless that is the host itself.
async fn tell_name_servers(sandbox: &Sandbox) {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let told = ask!(sandbox, "the name servers", set_dns, name_servers(&text));
    if let Err(error) = told {
        warn!(error = chain(&error), "the guest does not take the host's name servers");
    }
}

/// What resolv.conf(5) says, as far as a guest can use it. Never empty: that would mean the user network's.
fn name_servers(text: &str) -> Dns {
    let words = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(key));
        let lines = lines.filter(|rest| rest.starts_with([' ', '\t']));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let reachable = |server: &String| server.parse().is_ok_and(|ip: IpAddr| !ip.is_loopback());
    let servers: Vec<String> = words("nameserver").into_iter().filter(reachable).take(3).collect();
    let mut search: Vec<String> = words("search").into_iter().take(6).collect();
    if servers.is_empty() && search.is_empty() {
        search.push(".".to_owned());
    }
    Dns { servers, search }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_choose_the_network_and_what_makes_no_sense_is_shown() {
        let of = |network: &str, publish: &str| {
            choice(
                &json!({ "annotations": { "io.vminitd.network": network, "io.vminitd.publish": publish } }),
            )
        };
        assert_eq!(choice(&json!({})).unwrap(), NetworkChoice::Auto(Vec::new()));
        assert_eq!(of("none", "").unwrap(), NetworkChoice::None);
        assert_eq!(
            of("user", "8080:80,").unwrap(),
            NetworkChoice::User(vec!["8080:80".parse().unwrap()])
        );
        assert!(of("bridge", "").unwrap_err().to_string().contains("give auto, cni, user or none"));
        assert!(chain(&of("auto", "x").unwrap_err()).starts_with("io.vminitd.publish: \"x\""));
    }

    #[test]
    fn name_servers_of_the_host_itself_are_nobody_elses() {
        let dns = name_servers(
            "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a.b c\noptions x\n",
        );
        assert_eq!(
            (dns.servers, dns.search),
            (vec!["10.0.0.2".to_owned()], vec!["a.b".to_owned(), "c".to_owned()])
        );
    }

    proptest! {
        #[test]
        fn any_resolv_conf_says_something(text in "(?s).{0,200}") {
            let dns = name_servers(&text);
            prop_assert!(!(dns.servers.is_empty() && dns.search.is_empty()) && dns.servers.len() <= 3);
        }
    }
}

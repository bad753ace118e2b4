//! The Network service: networks while the VM runs.
//!
//! Promises: a change is in the kernel, or recorded, when the call returns, and stays over the
//! agent's death. Never: changes what a DHCP client does but by asking it to renew.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext;
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{
    self as pb, Dns, LinkAddress, ListNetworkResponse, RenewRequest, SetLinkRequest,
    WaitNetworkRequest, WaitNetworkResponse, create_network,
};

use super::Network;
use super::dhcp::client::Stage;
use super::dhcp::lease::Lease;
use super::names::Resolver;
use super::wish::host_name;
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::lock;
use crate::agent::server::body::{to_its_end, with_its_call};
use crate::agent::server::connection::Services;
use crate::agent::task::record::Saved;
use crate::limits::NETWORK_ITEMS;
use crate::sys::clock;
use netlink::address::Cidr;
use netlink::{Netlink, NetlinkError, Route};

/// The service.
pub fn services(agent: &Arc<Agent>) -> Services {
    create_network(Arc::new(NetworkService(agent.network.clone())))
}

struct NetworkService(Arc<Network>);

impl Saved for Resolver {
    const FILE: &'static str = "resolver.json";
}

/// What was said before the agent was.
pub fn saved_resolver(directory: &Path) -> Option<Resolver> {
    Resolver::load(directory).ok()
}

#[async_trait]
impl pb::Network for NetworkService {
    async fn list(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ListNetworkResponse> {
        with_its_call(list(self.0.clone())).await
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: WaitNetworkRequest,
    ) -> ttrpc::Result<WaitNetworkResponse> {
        let network = self.0.clone();
        let wait = async move {
            let all = async {
                for nic in network.nics() {
                    nic.settled().await;
                }
            };
            let patience = Duration::from_millis(request.timeout_ms.into());
            Ok(WaitNetworkResponse { settled: timeout(patience, all).await.is_ok() })
        };
        with_its_call(wait).await
    }

    async fn set_link(&self, _: &TtrpcContext, request: SetLinkRequest) -> ttrpc::Result<Empty> {
        change(move |netlink| {
            let link = index(netlink, &request.link)?;
            if let Some(mtu) = request.mtu {
                netlink.set_mtu(link, mtu)?;
            }
            if let Some(up) = request.up {
                netlink.set_up(link, up)?;
            }
            Ok(())
        })
        .await
    }

    async fn add_address(&self, _: &TtrpcContext, request: LinkAddress) -> ttrpc::Result<Empty> {
        change(move |netlink| {
            let cidr = parse::<Cidr>("address", &request.address)?;
            if !cidr.is_host() {
                let text = format!("address {cidr} is none of an interface");
                return Err(Refused::Invalid(text));
            }
            let link = index(netlink, &request.link)?;
            Ok(netlink.add_address(link, cidr, None)?)
        })
        .await
    }

    async fn remove_address(&self, _: &TtrpcContext, request: LinkAddress) -> ttrpc::Result<Empty> {
        change(move |netlink| {
            let cidr = parse("address", &request.address)?;
            let link = index(netlink, &request.link)?;
            Ok(netlink.delete_address(link, cidr)?)
        })
        .await
    }

    async fn add_route(&self, _: &TtrpcContext, request: pb::Route) -> ttrpc::Result<Empty> {
        change(move |netlink| {
            let route = route(netlink, &request)?;
            Ok(netlink.add_route(&route)?)
        })
        .await
    }

    async fn remove_route(&self, _: &TtrpcContext, request: pb::Route) -> ttrpc::Result<Empty> {
        change(move |netlink| {
            let route = route(netlink, &request)?;
            Ok(netlink.delete_route(&route)?)
        })
        .await
    }

    async fn set_dns(&self, _: &TtrpcContext, request: Dns) -> ttrpc::Result<Empty> {
        let network = self.0.clone();
        to_its_end(async move { set_dns(&network, &request) }).await
    }

    async fn renew(&self, _: &TtrpcContext, request: RenewRequest) -> ttrpc::Result<Empty> {
        let network = self.0.clone();
        to_its_end(async move {
            let asked = request.link.clone();
            let link = with_netlink(move |netlink| index(netlink, &asked)).await?;
            let clients = network.nics().iter().filter(|nic| nic.wish.dhcp);
            let mut of_link = clients.filter(|nic| nic.look().0 == Some(link));
            let Some(nic) = of_link.next() else {
                return Err(RpcError::Invalid(format!("link {} has no DHCP client", request.link)));
            };
            nic.renew();
            Ok(Empty {})
        })
        .await
    }
}

/// Why a request is not carried out.
enum Refused {
    Invalid(String),
    Kernel(NetlinkError),
}

impl From<NetlinkError> for Refused {
    fn from(error: NetlinkError) -> Self {
        Self::Kernel(error)
    }
}

impl From<Refused> for RpcError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(text) => Self::Invalid(text),
            Refused::Kernel(error) => Self::failed(&error),
        }
    }
}

async fn with_netlink<T: Send + 'static>(
    work: impl FnOnce(&mut Netlink) -> Result<T, Refused> + Send + 'static,
) -> Result<T, RpcError> {
    let done = tokio::task::spawn_blocking(move || work(&mut Netlink::open()?));
    match done.await {
        Ok(done) => Ok(done?),
        Err(error) => Err(RpcError::Failed(format!("defect in the agent: {error}"))),
    }
}

async fn change(
    work: impl FnOnce(&mut Netlink) -> Result<(), Refused> + Send + 'static,
) -> ttrpc::Result<Empty> {
    to_its_end(async move { with_netlink(work).await.map(|()| Empty {}) }).await
}

fn index(netlink: &mut Netlink, name: &str) -> Result<u32, Refused> {
    let link = netlink.link_named(name)?;
    link.map(|link| link.index)
        .ok_or_else(|| Refused::Invalid(format!("there is no link {name:?}")))
}

fn parse<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, Refused> {
    text.parse().map_err(|_| Refused::Invalid(format!("{what} {text:?} cannot be understood")))
}

fn route(netlink: &mut Netlink, request: &pb::Route) -> Result<Route, Refused> {
    let gateway = match request.gateway.as_str() {
        "" => None,
        text => Some(parse::<IpAddr>("gateway", text)?),
    };
    let to = match (request.to.as_str(), gateway) {
        ("", Some(gateway)) => Cidr::everything(gateway),
        (text, _) => parse::<Cidr>("route to", text)?.subnet(),
    };
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != to.ip().is_ipv4()) {
        return Err(Refused::Invalid(format!("gateway and {to} are not of one family")));
    }
    let (link, metric) = (index(netlink, &request.link)?, request.metric);
    Ok(Route { to, gateway, link, source: None, metric, is_kernels: false })
}

fn set_dns(network: &Network, request: &Dns) -> Result<Empty, RpcError> {
    if request.servers.len().max(request.search.len()) > NETWORK_ITEMS {
        return Err(RpcError::Invalid(format!("more than {NETWORK_ITEMS} name servers or names")));
    }
    let server = |text: &String| parse::<IpAddr>("name server", text).map_err(RpcError::from);
    let name = |text: &String| host_name(text).map_err(|error| RpcError::invalid(&error));
    let resolver = Resolver {
        servers: request.servers.iter().map(server).collect::<Result<_, _>>()?,
        search: request.search.iter().map(name).collect::<Result<_, _>>()?,
    };
    let none = resolver == Resolver::default();
    let saved = match none {
        true => match std::fs::remove_file(network.directory.join(Resolver::FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        },
        false => resolver.save(&network.directory).map_err(|error| crate::chain(&error)),
    };
    saved.map_err(RpcError::Failed)?;
    *lock(&network.resolver) = (!none).then_some(resolver);
    network.write_names();
    Ok(Empty {})
}

async fn list(network: Arc<Network>) -> Result<ListNetworkResponse, RpcError> {
    let looked =
        with_netlink(|netlink| Ok((netlink.links()?, netlink.addresses()?, netlink.routes()?)));
    let (links, addresses, routes) = looked.await?;
    let name = |index: u32| {
        links
            .iter()
            .find(|link| link.index == index)
            .map(|link| link.name.clone())
            .unwrap_or_default()
    };
    let leases: Vec<_> = network.nics().iter().map(|nic| nic.look()).collect();
    let of = |link: &netlink::Link| {
        let leased = leases.iter().find(|leased| leased.0 == Some(link.index));
        let routes = routes.iter().filter(|route| route.link == link.index && !route.is_kernels);
        pb::Link {
            name: link.name.clone(),
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: link.mtu,
            up: link.is_up,
            running: link.is_running,
            master: link.master.map(name).unwrap_or_default(),
            kind: link.kind.clone().unwrap_or_default(),
            addresses: addresses
                .iter()
                .filter(|address| address.link == link.index)
                .map(|address| address.cidr.to_string())
                .collect(),
            routes: routes
                .map(|route| pb::Route {
                    link: link.name.clone(),
                    to: route.to.to_string(),
                    gateway: route.gateway.map(|ip| ip.to_string()).unwrap_or_default(),
                    metric: route.metric,
                })
                .collect(),
            dhcp: leased.and_then(|leased| leased.2).map(stage).unwrap_or_default().to_owned(),
            lease: leased.and_then(|leased| leased.1.as_ref()).map(lease),
        }
    };
    let resolver = network.resolver_now();
    Ok(ListNetworkResponse {
        links: links.iter().map(of).collect(),
        dns: Some(Dns {
            servers: resolver.servers.iter().map(IpAddr::to_string).collect(),
            search: resolver.search,
        }),
        hostname: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
    })
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Down => "down",
        Stage::Asking => "asking",
        Stage::Bound => "bound",
        Stage::Renewing => "renewing",
    }
}

fn lease(lease: &Lease) -> pb::Lease {
    let now = clock::boot();
    let from_now =
        |at: Duration| i64::try_from(at.saturating_sub(now).as_secs()).unwrap_or(i64::MAX);
    let [renew_s, rebind_s, end_s] = lease.times.ends.map_or([-1; 3], |ends| ends.map(from_now));
    let (address, server) = (lease.address.to_string(), lease.server.to_string());
    pb::Lease { address, server, renew_s, rebind_s, end_s }
}

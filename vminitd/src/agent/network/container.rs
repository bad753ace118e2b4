//! Networks of single containers: `nw-config.json` of their bundles.
//!
//! ```text
//!  guest                                   container
//!  NIC of VmMAC --port--+
//!                       br-<VmMAC> --port-- ve-<MAC> ====== IfName: MAC, Addrs, default routes
//!  (its addresses are the bridge's)
//! ```
//!
//! Owns: bridges and pairs of links with these names. Promises: what a container got is gone when it
//! is deleted, its bridge with the last one; a link that another container has is left alone; the
//! VM's own addresses stay reachable throughout. Never: keeps a record: the bundle says it all.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tracing::warn;

use super::Network;
use super::wish::{WishError, link_name};
use crate::agent::id::ContainerId;
use crate::agent::lock;
use crate::chain;
use crate::limits::{NETWORK_CONFIG_BYTES, NETWORK_ITEMS};
use crate::paths::BUNDLE_NETWORKS;
use netlink::address::{AddressError, Cidr, Mac};
use netlink::{Link, Netlink, NetlinkError, Route};

/// Why a container has not the network that it is to have. Create fails of it.
#[derive(Debug, thiserror::Error)]
pub enum ContainerNetworkError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is not what it is to be. The host's fault.
    #[error("parse {BUNDLE_NETWORKS}")]
    Parse(#[source] serde_json::Error),
    /// An address in it.
    #[error("{BUNDLE_NETWORKS}")]
    Address(#[from] AddressError),
    /// A name in it.
    #[error("{BUNDLE_NETWORKS}")]
    Name(#[from] WishError),
    /// More than are taken, or an address that no interface can have.
    #[error("{BUNDLE_NETWORKS}: {0}")]
    Wrong(String),
    /// The VM has no such link. The host's fault.
    #[error("the VM has no link {0}")]
    NoLink(Mac),
    /// The container uses the guest's network.
    #[error("the container has no network namespace of its own")]
    NoNamespace,
    /// The kernel refuses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The file, as it stands.
#[derive(Debug, Deserialize)]
struct Written {
    #[serde(rename = "Networks", default)]
    networks: Option<Vec<WrittenNetwork>>,
}

#[derive(Debug, Deserialize)]
struct WrittenNetwork {
    #[serde(rename = "VmMAC")]
    vm_mac: String,
    #[serde(rename = "MAC", default)]
    mac: Option<String>,
    #[serde(rename = "Addrs", default)]
    addresses: Option<Vec<String>>,
    #[serde(rename = "IfName", default)]
    name: Option<String>,
    #[serde(rename = "DefaultGw4", default)]
    gateway4: Option<String>,
    #[serde(rename = "DefaultGw6", default)]
    gateway6: Option<String>,
}

/// A network that a container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The VM's link to it.
    vm_mac: Mac,
    /// The container's own address there.
    mac: Mac,
    addresses: Vec<Cidr>,
    /// What the container calls it.
    name: String,
    gateways: Vec<IpAddr>,
}

/// Understands a file. What it leaves out is made of the container's id, the same each time.
pub fn understand(json: &[u8], id: &str) -> Result<Vec<Wanted>, ContainerNetworkError> {
    let written: Written = serde_json::from_slice(json).map_err(ContainerNetworkError::Parse)?;
    let networks = written.networks.unwrap_or_default();
    if networks.len() > NETWORK_ITEMS {
        return Err(ContainerNetworkError::Wrong(format!("more than {NETWORK_ITEMS} networks")));
    }
    let numbered = networks.into_iter().enumerate();
    numbered.map(|(number, network)| network.understand(number, id)).collect()
}

impl WrittenNetwork {
    fn understand(self, number: usize, id: &str) -> Result<Wanted, ContainerNetworkError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let addresses = self.addresses.unwrap_or_default();
        if addresses.len() > NETWORK_ITEMS {
            return Err(ContainerNetworkError::Wrong(format!(
                "more than {NETWORK_ITEMS} addresses"
            )));
        }
        let addresses: Vec<Cidr> =
            addresses.iter().map(|text| text.parse()).collect::<Result<_, AddressError>>()?;
        if let Some(cidr) = addresses.iter().find(|cidr| !cidr.is_host()) {
            return Err(ContainerNetworkError::Wrong(format!(
                "{cidr} is no address of an interface"
            )));
        }
        let gateway = |text: Option<String>, v4: bool| {
            let wrong =
                |text: &str| ContainerNetworkError::Wrong(format!("{text:?} is no gateway"));
            let gateway = given(text).map(|text| {
                let ip: IpAddr = text.parse().map_err(|_| wrong(&text))?;
                let whole = Cidr::new(ip, if v4 { 32 } else { 128 });
                let good = ip.is_ipv4() == v4 && whole.is_some_and(Cidr::is_host);
                if good { Ok(ip) } else { Err(wrong(&text)) }
            });
            gateway.transpose()
        };
        let gateways = [gateway(self.gateway4, true)?, gateway(self.gateway6, false)?];
        Ok(Wanted {
            vm_mac: self.vm_mac.parse()?,
            mac: match given(self.mac) {
                Some(mac) => mac.parse()?,
                None => made_up(id, number),
            },
            addresses,
            name: match given(self.name) {
                Some(name) => link_name(&name)?,
                None => format!("eth{number}"),
            },
            gateways: gateways.into_iter().flatten().collect(),
        })
    }
}

fn made_up(id: &str, number: usize) -> Mac {
    let mut hasher = DefaultHasher::new();
    (id, number).hash(&mut hasher);
    Mac::made_of(hasher.finish())
}

impl Wanted {
    fn bridge(&self) -> String {
        format!("br-{}", self.vm_mac.digits())
    }

    fn outer(&self) -> String {
        format!("ve-{}", self.mac.digits())
    }

    /// Whether this is the VM's link to it: the hardware, not the bridge that has its address.
    fn is_port(&self, link: &Link) -> bool {
        link.kind.is_none() && link.mac == Some(self.vm_mac)
    }
}

/// Looks whether a container can get the networks of its bundle, before anything of it is made: the
/// file is understood, and the VM has the links. Blocks for a moment.
pub fn check(bundle: &Path, id: &ContainerId) -> Result<(), ContainerNetworkError> {
    let Some(wanted) = read(bundle, id)? else { return Ok(()) };
    let links = Netlink::open()?.links()?;
    let missing = wanted.iter().find(|network| !links.iter().any(|link| network.is_port(link)));
    missing.map_or(Ok(()), |network| Err(ContainerNetworkError::NoLink(network.vm_mac)))
}

/// Gives a container the networks of its bundle. Blocks for a moment.
pub fn attach(
    network: &Network,
    bundle: &Path,
    id: &ContainerId,
    pid: u32,
) -> Result<(), ContainerNetworkError> {
    let Some(wanted) = read(bundle, id)? else { return Ok(()) };
    let namespace = namespace_of(pid)?;
    // One at a time: two could make, or take away, the same bridge. Only threads that may wait do.
    let _alone = lock(&network.bridging);
    let mut guest = Netlink::open()?;
    let inside = namespace.try_clone().map_err(|source| of_namespace(pid, source))?;
    let mut inside = Netlink::open_in(inside)?;
    for network in &wanted {
        let bridge = bridge(&mut guest, network)?;
        let peer = (network.name.as_str(), network.mac);
        guest.add_veth(&network.outer(), bridge, &mark(id), peer, &namespace)?;
        let link = inside.link_named(&network.name)?;
        let link = link.ok_or(ContainerNetworkError::NoLink(network.mac))?.index;
        inside.set_up(link, true)?;
        for cidr in &network.addresses {
            inside.add_address(link, *cidr, None)?;
        }
        for gateway in &network.gateways {
            let (to, gateway) = (Cidr::everything(*gateway), Some(*gateway));
            let route = Route { to, gateway, link, source: None, metric: 0, is_kernels: false };
            inside.add_route(&route)?;
        }
    }
    Ok(())
}

/// Takes away what a container got, as far as it is there. What fails is logged: the kernel takes a
/// container's links away with its namespace. Blocks for a moment.
pub fn detach(network: &Network, bundle: &Path, id: &ContainerId) {
    let wanted = match read(bundle, id) {
        Ok(Some(wanted)) => wanted,
        // What cannot be understood was not given either.
        Ok(None) | Err(_) => return,
    };
    let _alone = lock(&network.bridging);
    if let Err(error) = take_away(&wanted, id) {
        warn!(container = %id, error = %chain(&error), "its networks are not taken away");
    }
}

fn take_away(wanted: &[Wanted], id: &ContainerId) -> Result<(), NetlinkError> {
    let mut guest = Netlink::open()?;
    for network in wanted {
        let ours = guest.link_named(&network.outer())?;
        if let Some(link) = ours.filter(|link| link.alias.as_deref() == Some(&mark(id))) {
            guest.delete_link(link.index)?;
        }
        let links = guest.links()?;
        let Some(bridge) = links.iter().find(|link| link.name == network.bridge()) else {
            continue;
        };
        let mut ports = links.iter().filter(|link| link.master == Some(bridge.index));
        if ports.clone().any(|port| port.kind.is_some()) {
            continue;
        }
        if let Some(nic) = ports.next() {
            guest.set_master(nic.index, 0)?;
            move_addresses(&mut guest, bridge.index, nic.index)?;
        }
        guest.delete_link(bridge.index)?;
    }
    Ok(())
}

/// The file of the bundle, if there is one.
fn read(bundle: &Path, id: &ContainerId) -> Result<Option<Vec<Wanted>>, ContainerNetworkError> {
    let path = bundle.join(BUNDLE_NETWORKS);
    let failed = |source| ContainerNetworkError::Read { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut json = vec![];
    file.take(NETWORK_CONFIG_BYTES as u64 + 1).read_to_end(&mut json).map_err(failed)?;
    if json.len() > NETWORK_CONFIG_BYTES {
        let text = format!("more than {NETWORK_CONFIG_BYTES} bytes");
        return Err(ContainerNetworkError::Wrong(text));
    }
    let wanted = understand(&json, id.as_str())?;
    Ok((!wanted.is_empty()).then_some(wanted))
}

fn namespace_of(pid: u32) -> Result<File, ContainerNetworkError> {
    let file =
        File::open(format!("/proc/{pid}/ns/net")).map_err(|error| of_namespace(pid, error))?;
    let number = |file: &File| file.metadata().map(|data| data.ino());
    let own = File::open("/proc/self/ns/net").and_then(|own| number(&own));
    let own = own.map_err(|error| of_namespace(pid, error))?;
    if number(&file).map_err(|error| of_namespace(pid, error))? == own {
        return Err(ContainerNetworkError::NoNamespace);
    }
    Ok(file)
}

fn of_namespace(pid: u32, source: io::Error) -> ContainerNetworkError {
    ContainerNetworkError::Read { path: format!("/proc/{pid}/ns/net").into(), source }
}

/// What tells whose a link is.
fn mark(id: &ContainerId) -> String {
    format!("container {id}")
}

/// The bridge, with the VM's link as its port: made, or finished where somebody was interrupted.
fn bridge(guest: &mut Netlink, wanted: &Wanted) -> Result<u32, ContainerNetworkError> {
    let nic = guest.links()?.into_iter().find(|link| wanted.is_port(link));
    let nic = nic.ok_or(ContainerNetworkError::NoLink(wanted.vm_mac))?;
    guest.add_bridge(&wanted.bridge(), wanted.vm_mac)?;
    let bridge = guest.link_named(&wanted.bridge())?;
    let bridge = bridge.ok_or(ContainerNetworkError::NoLink(wanted.vm_mac))?.index;
    if nic.master != Some(bridge) {
        guest.set_master(nic.index, bridge)?;
    }
    guest.set_up(nic.index, true)?;
    move_addresses(guest, nic.index, bridge)?;
    Ok(bridge)
}

/// What makes one link reachable is the other's: there first, so that it is never nobody's.
fn move_addresses(guest: &mut Netlink, from: u32, to: u32) -> Result<(), NetlinkError> {
    let addresses = guest.addresses()?;
    let ours = addresses.iter().filter(|address| address.link == from && !address.is_link_local);
    let ours: Vec<Cidr> = ours.map(|address| address.cidr).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let routes = guest.routes()?;
    for cidr in &ours {
        guest.add_address(to, *cidr, None)?;
    }
    for route in routes.iter().filter(|route| route.link == from && !route.is_kernels) {
        guest.delete_route(route)?;
        guest.add_route(&Route { link: to, ..*route })?;
    }
    for cidr in &ours {
        guest.delete_address(from, *cidr)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn file_of_a_host_is_understood_and_what_it_leaves_out_is_the_same_each_time() {
        let json = br#"{"Networks":[
            {"VmMAC":"52:54:00:00:00:01","MAC":"02:00:00:00:00:09","Addrs":["10.0.0.2/24","fd00::2/64"],"IfName":"net0","DefaultGw4":"10.0.0.1","DefaultGw6":"fd00::1"},
            {"VmMAC":"52:54:00:00:00:02"}]}"#;
        let wanted = understand(json, "c1").unwrap();
        assert_eq!(
            (wanted[0].bridge(), wanted[0].outer()),
            ("br-525400000001".to_owned(), "ve-020000000009".to_owned())
        );
        assert_eq!(
            (wanted[0].addresses.len(), wanted[0].gateways.len(), wanted[0].name.as_str()),
            (2, 2, "net0")
        );
        assert_eq!((wanted[1].name.as_str(), wanted[1].addresses.len()), ("eth1", 0));
        assert_eq!(understand(json, "c1").unwrap(), wanted);
        assert_ne!(understand(json, "c2").unwrap()[1].mac, wanted[1].mac);
        // As long as the kernel takes it.
        assert!(wanted[1].bridge().len() <= crate::limits::LINK_NAME_BYTES);
        assert_eq!(understand(br#"{"Networks":null}"#, "c1").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |network: &str| {
            let json = format!(r#"{{"Networks":[{{"VmMAC":"52:54:00:00:00:01",{network}}}]}}"#);
            chain(&understand(json.as_bytes(), "c1").unwrap_err())
        };
        assert!(text(r#""MAC":"x""#).contains("\"x\" is no MAC address"));
        assert!(
            text(r#""Addrs":["10.0.0.0/24"]"#)
                .contains("10.0.0.0/24 is no address of an interface")
        );
        assert!(text(r#""IfName":"a/b""#).contains("link \"a/b\" cannot be understood"));
        assert!(text(r#""DefaultGw4":"fd00::1""#).contains("\"fd00::1\" is no gateway"));
        assert!(text(r#""IfName":7"#).contains("parse nw-config.json: invalid type"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, text: String) {
            let _ = understand(&bytes, "c1");
            let quoted = serde_json::Value::String(text).to_string();
            for key in ["VmMAC", "MAC", "IfName", "DefaultGw4", "DefaultGw6"] {
                let json = format!(r#"{{"Networks":[{{"VmMAC":"52:54:00:00:00:01","{key}":{quoted},"Addrs":[{quoted}]}}]}}"#);
                let _ = understand(json.as_bytes(), "c1");
            }
        }
    }
}

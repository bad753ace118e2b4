//! Interfaces of the network namespace that this thread is in: which can be connected to a VM, and how.
//!
//! Promises: what is nobody's is passed over, what cannot be connected is an error; a tap goes with its descriptor.
//! Never: changes an interface but by what arrives on it being redirected.

use std::io;
use std::os::fd::OwnedFd;

use host_shim::chain;
use host_shim::limits::MAX_NICS;
use host_shim::sys::tap;
use netlink::address::Cidr;
use netlink::{Address, Link, Netlink, Route};
use vminitd_protocol::pb::vminitd::v1 as pb;

use super::network::{Interface, NetworkError};

/// Names of our taps; the kernel puts a number for `%d`.
const TAP: &str = "vmtap%d";

/// Kinds of links whose packets can be redirected; hardware has none.
const KINDS: [&str; 3] = ["veth", "macvlan", "ipvlan"];

/// What there is to connect.
pub fn look() -> io::Result<Result<Vec<Interface>, NetworkError>> {
    let mut netlink = netlink()?;
    let links = netlink.links().map_err(refused)?;
    let addresses = netlink.addresses().map_err(refused)?;
    Ok(find(&links, &addresses, &netlink.routes().map_err(refused)?))
}

/// Stops redirecting what arrives on these links. One that is gone needs it no more.
pub fn give_back(links: &[u32]) -> io::Result<()> {
    let mut netlink = netlink()?;
    for link in links {
        netlink.stop_redirecting(*link).map_err(refused)?;
    }
    Ok(())
}

fn netlink() -> io::Result<Netlink> {
    Netlink::open().map_err(refused)
}

fn refused(error: netlink::NetlinkError) -> io::Error {
    io::Error::new(error.source.kind(), chain(&error))
}

/// A tap, up, and redirected to and from the interface.
pub fn make_tap(interface: u32, mtu: u32) -> io::Result<OwnedFd> {
    let (tap, name) = tap::make(TAP)?;
    // It has nothing to say by itself. A kernel without IPv6 has no such file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let mut netlink = netlink()?;
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let index = netlink.link_named(&name).map_err(refused)?.ok_or_else(gone)?.index;
    netlink.set_mtu(index, mtu).map_err(refused)?;
    netlink.set_up(index, true).map_err(refused)?;
    netlink.redirect(interface, index).map_err(refused)?;
    netlink.redirect(index, interface).map_err(refused)?;
    Ok(tap)
}

/// What is to be connected, in the order in which it was made. What is down and has no address is nobody's: some kernels
/// put ends of tunnels into each namespace.
fn find(
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
) -> Result<Vec<Interface>, NetworkError> {
    let own = |link: &Link| -> Vec<Cidr> {
        let of_link = addresses.iter().filter(|address| address.link == link.index);
        of_link.filter(|address| !address.is_link_local).map(|address| address.cidr).collect()
    };
    let mut found = Vec::new();
    for link in links {
        let addresses = own(link);
        let ours = link.kind.as_deref() == Some("tun") && link.name.starts_with("vmtap");
        if link.name == "lo" || ours || (!link.is_up && addresses.is_empty()) {
            continue;
        }
        let known = link.kind.as_deref().is_none_or(|kind| KINDS.contains(&kind));
        let mac = link.mac.filter(|_| known && link.is_ethernet && !link.is_no_arp);
        let Some(mac) = mac else {
            let kind = link.kind.as_deref().unwrap_or("hardware");
            let ethernet = if link.is_ethernet { "" } else { ", which is not Ethernet" };
            let what = format!("of the kind {kind}{ethernet}");
            return Err(NetworkError::Kind { name: link.name.clone(), what });
        };
        let of_link = routes.iter().filter(|route| route.link == link.index && !route.is_kernels);
        let (index, name) = (link.index, link.name.clone());
        let routes = of_link.map(told).collect();
        let addresses = addresses.iter().map(Cidr::to_string).collect();
        let mac = mac.to_string();
        found.push(Interface { index, name, mac, mtu: link.mtu, addresses, routes });
    }
    found.sort_by_key(|interface| interface.index);
    match found.len() {
        ..=MAX_NICS => Ok(found),
        more => Err(NetworkError::TooMany(more)),
    }
}

/// As the guest is told.
fn told(route: &Route) -> pb::Route {
    let gateway = route.gateway.map(|ip| ip.to_string()).unwrap_or_default();
    pb::Route { link: String::new(), to: route.to.to_string(), gateway, metric: route.metric }
}

#[cfg(test)]
mod tests {
    use netlink::address::Mac;

    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some(Mac::made_of(index.into())),
            is_ethernet: true,
            is_up: true,
            mtu: 1450,
            kind: kind.map(str::to_owned),
            ..Link::default()
        }
    }

    fn lo() -> Link {
        Link { is_ethernet: false, mac: None, ..link(1, "lo", None) }
    }

    #[test]
    fn what_cni_made_is_found_with_what_belongs_to_it_and_the_rest_is_not() {
        let sit =
            Link { is_ethernet: false, is_up: false, mac: None, ..link(2, "sit0", Some("sit")) };
        let links = [
            lo(),
            sit,
            link(9, "net1", Some("macvlan")),
            link(7, "eth0", Some("veth")),
            link(8, "vmtap0", Some("tun")),
        ];
        let address = |link, text: &str, is_link_local| Address {
            link,
            cidr: text.parse().unwrap(),
            is_link_local,
        };
        let addresses = [
            address(1, "127.0.0.1/8", false),
            address(7, "10.1.0.5/24", false),
            address(7, "fe80::1/64", true),
        ];
        let route = |link, is_kernels| Route {
            to: "0.0.0.0/0".parse().unwrap(),
            gateway: Some("10.1.0.1".parse().unwrap()),
            link,
            source: None,
            metric: 0,
            is_kernels,
        };
        let found =
            find(&links, &addresses, &[route(7, false), route(7, true), route(8, false)]).unwrap();
        let names: Vec<&str> = found.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["eth0", "net1"]);
        assert_eq!(found[0].addresses, ["10.1.0.5/24"]);
        assert_eq!((found[0].mtu, found[0].routes.len(), found[1].routes.len()), (1450, 1, 0));
    }

    #[test]
    fn what_cannot_be_connected_is_named() {
        let error = |link| find(&[lo(), link], &[], &[]).unwrap_err().to_string();
        let bridge = error(link(3, "br0", Some("bridge")));
        assert!(
            bridge.starts_with(
                "interface br0 of the task's network namespace is of the kind bridge;"
            ),
            "{bridge}"
        );
        let wireguard = Link { is_ethernet: false, mac: None, ..link(3, "wg0", Some("wireguard")) };
        assert!(error(wireguard).contains("of the kind wireguard, which is not Ethernet"));
        let layer3 = Link { is_no_arp: true, ..link(3, "eth0", Some("ipvlan")) };
        assert!(error(layer3).contains("ipvlan"));
        let many: Vec<Link> = (2..11).map(|n| link(n, &format!("eth{n}"), Some("veth"))).collect();
        assert!(find(&many, &[], &[]).unwrap_err().to_string().starts_with("9 interfaces"));
    }
}

//! The kernel's network configuration: looked at and changed, one request at a time (rtnetlink(7)).
//!
//! The guest's agent sets up the VM's links with it, the containerd shim reads what CNI has made in a task's network
//! namespace and redirects its packets ([`traffic`]).
//!
//! Promises: an answer is believed only when it carries the request's number; each call returns
//! within [`ANSWER`] of the kernel's last word. What is there already, or gone already, is
//! no error. Never: decides what is to be changed. Blocks: to be used where that does no harm.

#![cfg(target_os = "linux")]

pub mod address;
pub mod message;
pub mod socket;
pub mod traffic;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use self::address::{Cidr, Mac};
use self::message::Message;
pub use self::message::{Address, Link, Route};

/// Bytes of the kernel's answers that are read at once; it sends less.
pub const ANSWER_BYTES: usize = 64 * 1024;

/// For the kernel's answer to a change of networks.
pub const ANSWER: Duration = Duration::from_secs(5);

/// A request that the kernel refused, or that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct NetlinkError {
    /// What was to be done.
    pub what: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A socket to one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK) as u16;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK) as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;

// linux/if_link.h, if_addr.h, veth.h, rtnetlink.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTNH_F_ONLINK: u32 = 4;

impl Netlink {
    /// Of this process's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::over(socket::requests(ANSWER))
    }

    /// Of the namespace behind a file of /proc.
    pub fn open_in(namespace: File) -> Result<Self, NetlinkError> {
        Self::over(socket::requests_in(namespace, ANSWER))
    }

    fn over(socket: io::Result<OwnedFd>) -> Result<Self, NetlinkError> {
        let socket = socket
            .map_err(|source| NetlinkError { what: "open a netlink socket".to_owned(), source })?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; ANSWER_BYTES] })
    }

    /// Every link.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.list("list links", libc::RTM_GETLINK, libc::RTM_NEWLINK, &[0; 16], message::link)
    }

    /// Every address.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let new = libc::RTM_NEWADDR;
        self.list("list addresses", libc::RTM_GETADDR, new, &[0; 8], message::address)
    }

    /// Every route of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        self.list("list routes", libc::RTM_GETROUTE, libc::RTM_NEWROUTE, &[0; 12], message::route)
    }

    /// The link of this name.
    pub fn link_named(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Brings a link up or takes it down.
    pub fn set_up(&mut self, link: u32, up: bool) -> Result<(), NetlinkError> {
        let flag = libc::IFF_UP as u32;
        let body = link_body(link, if up { flag } else { 0 }, flag);
        let what = format!("bring link {link} {}", if up { "up" } else { "down" });
        self.act(what, Message::new(libc::RTM_NEWLINK, ACK, &body), &[])
    }

    /// Sets how long a packet may be, in bytes.
    pub fn set_mtu(&mut self, link: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(libc::RTM_NEWLINK, ACK, &link_body(link, 0, 0));
        message.number(IFLA_MTU, mtu);
        self.act(format!("set the MTU of link {link} to {mtu}"), message, &[])
    }

    /// Makes a link a port of a bridge, or none (0) any more.
    pub fn set_master(&mut self, link: u32, master: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(libc::RTM_NEWLINK, ACK, &link_body(link, 0, 0));
        message.number(IFLA_MASTER, master);
        self.act(format!("make link {link} a port of {master}"), message, &[])
    }

    /// Makes a bridge, up.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> Result<(), NetlinkError> {
        let up = libc::IFF_UP as u32;
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &link_body(0, up, up));
        message.text(IFLA_IFNAME, name).attribute(IFLA_ADDRESS, &mac.bytes());
        message.nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
        self.act(format!("make bridge {name}"), message, &[libc::EEXIST])
    }

    /// Makes a pair of links: one here, up, a port of `bridge`, marked with `alias`; the other in the
    /// namespace behind `namespace`. An error if there is one of either name.
    pub fn add_veth(
        &mut self,
        name: &str,
        bridge: u32,
        alias: &str,
        peer: (&str, Mac),
        namespace: &File,
    ) -> Result<(), NetlinkError> {
        let up = libc::IFF_UP as u32;
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &link_body(0, up, up));
        message.text(IFLA_IFNAME, name).number(IFLA_MASTER, bridge);
        message.nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &[], |data| {
                data.nest(VETH_INFO_PEER, &link_body(0, 0, 0), |other| {
                    other.text(IFLA_IFNAME, peer.0).attribute(IFLA_ADDRESS, &peer.1.bytes());
                    other.number(IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned());
                });
            });
        });
        let what = format!("make link {name} with {} in the container", peer.0);
        self.act(what, message, &[])?;
        // Not heeded in the request that makes it.
        let mut message = Message::new(libc::RTM_NEWLINK, ACK, &link_body(0, 0, 0));
        message.text(IFLA_IFNAME, name).attribute(IFLA_IFALIAS, alias.as_bytes());
        self.act(format!("mark link {name}"), message, &[])
    }

    /// Removes a link that is not hardware.
    pub fn delete_link(&mut self, link: u32) -> Result<(), NetlinkError> {
        let message = Message::new(libc::RTM_DELLINK, ACK, &link_body(link, 0, 0));
        self.act(format!("remove link {link}"), message, &[libc::ENODEV])
    }

    /// Gives a link an address, or another lifetime to one that it has. `None`: for ever.
    pub fn add_address(
        &mut self,
        link: u32,
        cidr: Cidr,
        lifetime: Option<Duration>,
    ) -> Result<(), NetlinkError> {
        // Nobody else has an address that was given to us: no time is spent on asking around.
        let flags = if cidr.ip().is_ipv6() { IFA_F_NODAD } else { 0 };
        let body = address_body(link, cidr, flags);
        let mut message = Message::new(libc::RTM_NEWADDR, REPLACE, &body);
        message.address(IFA_LOCAL, cidr.ip()).address(IFA_ADDRESS, cidr.ip());
        if let (IpAddr::V4(ip), 0..31) = (cidr.ip(), cidr.prefix()) {
            let last = u32::from(ip) | u32::MAX >> cidr.prefix();
            message.attribute(IFA_BROADCAST, &last.to_be_bytes());
        }
        if let Some(lifetime) = lifetime {
            let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX - 1).max(1);
            let mut info = [0; 16];
            info[..4].copy_from_slice(&seconds.to_ne_bytes());
            info[4..8].copy_from_slice(&seconds.to_ne_bytes());
            message.attribute(IFA_CACHEINFO, &info);
        }
        self.act(format!("give link {link} the address {cidr}"), message, &[libc::EEXIST])
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, link: u32, cidr: Cidr) -> Result<(), NetlinkError> {
        let mut message = Message::new(libc::RTM_DELADDR, ACK, &address_body(link, cidr, 0));
        message.address(IFA_LOCAL, cidr.ip()).address(IFA_ADDRESS, cidr.ip());
        let gone = [libc::EADDRNOTAVAIL, libc::ENODEV];
        self.act(format!("take the address {cidr} from link {link}"), message, &gone)
    }

    /// Adds a route, or puts it in the place of one to the same subnet with the same metric. A gateway
    /// counts as reachable on the link, whatever its subnet.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.act(
            format!("add {}", describe(route)),
            route_message(libc::RTM_NEWROUTE, REPLACE, route),
            &[libc::EEXIST],
        )
    }

    /// Removes a route.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let gone = [libc::ESRCH, libc::ENODEV];
        self.act(
            format!("remove {}", describe(route)),
            route_message(libc::RTM_DELROUTE, ACK, route),
            &gone,
        )
    }

    fn act(
        &mut self,
        what: impl Into<String>,
        message: Message,
        harmless: &[i32],
    ) -> Result<(), NetlinkError> {
        let done = self.exchange(message, |received| match i32::from(received.kind) {
            libc::NLMSG_ERROR => Some(message::errno(received.body).unwrap_or(libc::EPROTO)),
            _ => None,
        });
        let done = done.and_then(|errno| match errno {
            0 => Ok(()),
            errno if harmless.contains(&errno) => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        });
        done.map_err(|source| NetlinkError { what: what.into(), source })
    }

    fn list<T>(
        &mut self,
        what: &str,
        ask: u16,
        answer: u16,
        body: &[u8],
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = vec![];
        let done = self.exchange(Message::new(ask, DUMP, body), |received| {
            if received.kind == answer {
                found.extend(read(received.body));
                return None;
            }
            match i32::from(received.kind) {
                libc::NLMSG_DONE => Some(0),
                libc::NLMSG_ERROR => message::errno(received.body),
                _ => None,
            }
        });
        match done {
            Ok(0) => Ok(found),
            Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
            Err(error) => Err(error),
        }
        .map_err(|source| NetlinkError { what: what.to_owned(), source })
    }

    /// Sends, and reads answers until one is the last.
    fn exchange(
        &mut self,
        message: Message,
        mut last: impl FnMut(message::Received<'_>) -> Option<i32>,
    ) -> io::Result<i32> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        socket::tell(self.socket.as_fd(), &message.numbered(self.sequence))?;
        loop {
            let length = match socket::hear(self.socket.as_fd(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                heard => heard?,
            };
            let ours = message::messages(&self.buffer[..length])
                .filter(|received| received.sequence == self.sequence);
            for received in ours {
                if let Some(errno) = last(received) {
                    return Ok(errno);
                }
            }
        }
    }
}

/// struct ifinfomsg.
fn link_body(link: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&change.to_ne_bytes());
    body
}

/// struct ifaddrmsg.
fn address_body(link: u32, cidr: Cidr, flags: u8) -> [u8; 8] {
    let mut body = [family(cidr.ip()), cidr.prefix(), flags, 0, 0, 0, 0, 0];
    body[4..].copy_from_slice(&link.to_ne_bytes());
    body
}

/// struct rtmsg, and what belongs to it.
fn route_message(kind: u16, flags: u16, route: &Route) -> Message {
    let scope = match route.gateway {
        Some(_) => libc::RT_SCOPE_UNIVERSE,
        None if route.to.ip().is_ipv6() => libc::RT_SCOPE_UNIVERSE,
        None => libc::RT_SCOPE_LINK,
    };
    let mut body = [0; 12];
    body[0] = family(route.to.ip());
    body[1] = route.to.prefix();
    body[4] = libc::RT_TABLE_MAIN;
    if kind == libc::RTM_NEWROUTE {
        body[5] = if route.source.is_some() { PROTOCOL_DHCP } else { libc::RTPROT_STATIC };
        body[7] = libc::RTN_UNICAST;
        body[6] = scope;
        if route.gateway.is_some() {
            body[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        }
    } else {
        // Any scope.
        body[6] = libc::RT_SCOPE_NOWHERE;
    }
    let mut message = Message::new(kind, flags, &body);
    if route.to.prefix() > 0 {
        message.address(RTA_DST, route.to.subnet().ip());
    }
    message.number(RTA_OIF, route.link);
    if let Some(gateway) = route.gateway {
        message.address(RTA_GATEWAY, gateway);
    }
    if let Some(source) = route.source {
        message.address(RTA_PREFSRC, source);
    }
    if route.metric > 0 {
        message.number(RTA_PRIORITY, route.metric);
    }
    message
}

/// RTPROT_DHCP of linux/rtnetlink.h.
const PROTOCOL_DHCP: u8 = 16;

fn describe(route: &Route) -> String {
    let gateway = route.gateway.map(|ip| format!(" by {ip}")).unwrap_or_default();
    format!("the route to {}{gateway} on link {}", route.to, route.link)
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

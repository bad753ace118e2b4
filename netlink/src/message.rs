//! Messages of rtnetlink(7) as bytes: written, and read back.
//!
//! Promises: reading survives any bytes and takes no length at its word; what is not understood is
//! passed over. Never: makes a system call.
//!
//! Why not a crate: the ones that there are add some 300 KiB to a binary of 5 MiB, for the dozen
//! attributes that are used here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{Cidr, Mac};

/// Bytes in front of every message.
const HEADER: usize = 16;

/// A request that is being written.
#[derive(Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// One of a kind, with its fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    /// An attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
        self
    }

    /// A number.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Text, NUL-terminated.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// An address.
    pub fn address(&mut self, kind: u16, ip: IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    /// An attribute that holds others, and a fixed part in front of them.
    pub fn nest(&mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(fixed);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The finished message, with its number.
    pub fn numbered(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Its kind: RTM_NEWLINK and the like.
    pub kind: u16,
    /// The number of the request that it answers; 0: none.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages in what was received at once.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let (kind, sequence) = (u16_at(bytes, 4)?, u32_at(bytes, 8)?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, sequence, body })
    })
}

/// Attributes: kind and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two high bits say how the value is written.
        Some((kind & 0x3fff, value))
    })
}

/// What the kernel says of a request: the errno of an answer that is one, 0 for done.
pub fn errno(body: &[u8]) -> Option<i32> {
    Some(u32_at(body, 0)?.cast_signed().wrapping_neg())
}

/// A link, as far as anything here looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// It is Ethernet, real or not.
    pub is_ethernet: bool,
    /// Nobody is asked for addresses on it (ARP).
    pub is_no_arp: bool,
    /// Somebody wants it to be up.
    pub is_up: bool,
    /// It can carry packets.
    pub is_running: bool,
    /// Bytes of a packet.
    pub mtu: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// `bridge`, `veth`, ...; none of hardware.
    pub kind: Option<String>,
    /// What somebody wrote on it.
    pub alias: Option<String>,
}

/// An address that a link has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's number.
    pub link: u32,
    /// Address and subnet.
    pub cidr: Cidr,
    /// It is the kernel's own doing (fe80::/10).
    pub is_link_local: bool,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: Cidr,
    /// By whom.
    pub gateway: Option<IpAddr>,
    /// The link's number.
    pub link: u32,
    /// The address that packets of ours carry.
    pub source: Option<IpAddr>,
    /// Which of several is taken: the least.
    pub metric: u32,
    /// The kernel made it along with an address.
    pub is_kernels: bool,
}

// linux/if_link.h, if_addr.h, rtnetlink.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const ARPHRD_ETHER: u16 = 1;
const SCOPE_LINK: u8 = 253;

/// Reads the body of an RTM_NEWLINK.
pub fn link(body: &[u8]) -> Option<Link> {
    let flags = u32_at(body, 8)?;
    let has = |flag: i32| flags & flag as u32 != 0;
    let mut link = Link {
        index: u32_at(body, 4)?,
        is_ethernet: u16_at(body, 2)? == ARPHRD_ETHER,
        is_no_arp: has(libc::IFF_NOARP),
        is_up: has(libc::IFF_UP),
        is_running: has(libc::IFF_UP) && has(libc::IFF_LOWER_UP),
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok().and_then(Mac::new),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_LINKINFO => {
                let mut infos = attributes(value);
                link.kind = infos.find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, v)| text(v));
            }
            _ => {}
        }
    }
    Some(link)
}

/// Reads the body of an RTM_NEWADDR.
pub fn address(body: &[u8]) -> Option<Address> {
    let (family, prefix) = (*body.first()?, *body.get(1)?);
    let (mut local, mut other) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            IFA_LOCAL => local = ip(family, value),
            IFA_ADDRESS => other = ip(family, value),
            _ => {}
        }
    }
    let cidr = Cidr::new(local.or(other)?, prefix)?;
    let is_link_local = *body.get(3)? == SCOPE_LINK;
    Some(Address { link: u32_at(body, 4)?, cidr, is_link_local })
}

/// Reads the body of an RTM_NEWROUTE; none of other tables, of groups, or without a link.
pub fn route(body: &[u8]) -> Option<Route> {
    let (family, prefix, table, protocol, kind) =
        (*body.first()?, *body.get(1)?, *body.get(4)?, *body.get(5)?, *body.get(7)?);
    let everything = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut to, mut gateway, mut source, mut link, mut metric) = (everything, None, None, None, 0);
    let mut table = u32::from(table);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_DST => to = ip(family, value)?,
            RTA_GATEWAY => gateway = ip(family, value),
            RTA_PREFSRC => source = ip(family, value),
            RTA_OIF => link = u32_at(value, 0),
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    if table != u32::from(libc::RT_TABLE_MAIN) || kind != libc::RTN_UNICAST {
        return None;
    }
    let is_kernels = protocol == libc::RTPROT_KERNEL;
    Some(Route { to: Cidr::new(to, prefix)?, gateway, link: link?, source, metric, is_kernels })
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_nested_ones_counted() {
        let mut message = Message::new(7, 0, &[1, 2, 3, 4]);
        message.text(1, "ab").nest(2, &[], |inner| {
            inner.number(3, 9);
        });
        let bytes = message.numbered(5);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!((read.len(), read[0].kind, read[0].sequence), (1, 7, 5));
        let parts: Vec<_> = attributes(&read[0].body[4..]).collect();
        assert_eq!(parts[0], (1, &b"ab\0"[..]));
        let inner: Vec<_> = attributes(parts[1].1).collect();
        assert_eq!(inner, [(3, &9_u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn answer_of_the_kernel_is_an_errno() {
        assert_eq!(errno(&(-17_i32).to_ne_bytes()), Some(libc::EEXIST));
        assert_eq!(errno(&0_i32.to_ne_bytes()), Some(0));
        assert_eq!(errno(&i32::MIN.to_ne_bytes()), Some(i32::MIN));
        assert_eq!(errno(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, length: u8) {
            // Lengths that make sense get further than random ones.
            let mut shaped = bytes.clone();
            for (at, byte) in shaped.iter_mut().enumerate() {
                *byte = match at % 4 { 0 => length, 1 => 0, _ => *byte };
            }
            for bytes in [&bytes, &shaped] {
                for received in messages(bytes) {
                    let _ = (link(received.body), address(received.body), route(received.body), errno(received.body));
                }
                let _ = (link(bytes), address(bytes), route(bytes));
            }
        }
    }
}

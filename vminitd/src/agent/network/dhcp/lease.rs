//! A lease: what a server's word is worth, and until when.
//!
//! Promises: a [`Lease`] has an address that an interface may have, times in order, and nothing else
//! that a link could not take; whatever else the server said is left out, or the whole refused.
//! Never: looks at a clock.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::wish::host_name;
use super::wire::{Reply, code};
use crate::limits::{DHCP_ROUTES, LEASE_LEAST, NAME_SERVERS};
use netlink::address::{Cidr, is_host_v4, prefix_by_class, prefix_of};

/// An address for a time. Times are of the clock that the caller has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Address and subnet.
    pub address: Cidr,
    /// Who has given it.
    pub server: Ipv4Addr,
    /// Where to, and by whom: `None` on the link itself.
    pub routes: Vec<(Cidr, Option<IpAddr>)>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Where names without a dot are looked for.
    pub domain: Option<String>,
    /// The VM's name.
    pub hostname: Option<String>,
    /// Bytes of a packet.
    pub mtu: Option<u32>,
    /// When, and whether ever, something is to be done about it.
    pub times: Times,
}

/// A lease's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// When it was asked for.
    pub asked: Duration,
    /// When its server is asked again, when any server is, when it is over; `None`: it is for ever.
    pub ends: Option<[Duration; 3]>,
}

/// Why a server's word is not taken. The server's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// It does not say who it is.
    #[error("the server names no address of its own")]
    NoServer,
    /// Not one that a host can have.
    #[error("{0} is no address of an interface")]
    Address(String),
    /// A mask with holes.
    #[error("the subnet mask cannot be one")]
    Mask,
    /// It does not say for how long.
    #[error("it names no time")]
    NoTime,
    /// Over before it is of use.
    #[error("{0} s are too short")]
    Short(u32),
}

/// Reads an offer or an ack of a question that was sent at `asked`.
pub fn read(reply: &Reply, asked: Duration) -> Result<Lease, LeaseError> {
    let server = server(reply).ok_or(LeaseError::NoServer)?;
    let prefix = match reply.options.get(&code::SUBNET_MASK) {
        Some(mask) => addresses(mask)
            .next()
            .and_then(prefix_of)
            .filter(|prefix| *prefix > 0)
            .ok_or(LeaseError::Mask)?,
        None => prefix_by_class(reply.address),
    };
    let address = Cidr::new(reply.address, prefix).filter(|cidr| cidr.is_host());
    let address =
        address.ok_or_else(|| LeaseError::Address(format!("{}/{prefix}", reply.address)))?;
    let text = |code| {
        let text = String::from_utf8(reply.options.get(&code)?.clone()).ok()?;
        host_name(text.trim_end_matches('\0')).ok()
    };
    let of_hosts = |code| {
        let list = reply.options.get(&code).map(Vec::as_slice).unwrap_or_default();
        addresses(list).filter(|ip| is_host_v4(*ip)).map(IpAddr::V4)
    };
    let mtu =
        reply.options.get(&code::MTU).and_then(|mtu| <[u8; 2]>::try_from(mtu.as_slice()).ok());
    let routes = match reply.options.get(&code::CLASSLESS_ROUTES).map(|list| classless(list)) {
        // As RFC 3442 wants it: then the router does not count.
        Some(Some(routes)) if !routes.is_empty() => routes,
        _ => of_hosts(code::ROUTER)
            .find(|router| *router != address.ip())
            .map(|router| (Cidr::everything(router), Some(router)))
            .into_iter()
            .collect(),
    };
    Ok(Lease {
        address,
        server,
        routes,
        dns: of_hosts(code::NAME_SERVERS).take(NAME_SERVERS).collect(),
        domain: text(code::DOMAIN),
        hostname: text(code::HOST_NAME),
        // Less than IPv4 wants everybody to take would cut us off.
        mtu: mtu.map(|mtu| u16::from_be_bytes(mtu).into()).filter(|mtu| *mtu >= 576),
        times: Times { asked, ends: ends(reply, asked)? },
    })
}

/// Who says it.
pub fn server(reply: &Reply) -> Option<Ipv4Addr> {
    let server = addresses(reply.options.get(&code::SERVER)?).next()?;
    is_host_v4(server).then_some(server)
}

fn ends(reply: &Reply, asked: Duration) -> Result<Option<[Duration; 3]>, LeaseError> {
    let seconds = |code| {
        let value: [u8; 4] = reply.options.get(&code)?.as_slice().try_into().ok()?;
        Some(u32::from_be_bytes(value))
    };
    let whole = seconds(code::LEASE_SECONDS).ok_or(LeaseError::NoTime)?;
    if whole == u32::MAX {
        return Ok(None);
    }
    let lease = Duration::from_secs(whole.into());
    if lease < LEASE_LEAST {
        return Err(LeaseError::Short(whole));
    }
    let wish = |code| seconds(code).map(|seconds| Duration::from_secs(seconds.into()));
    let (mut renew, mut rebind) = (
        wish(code::RENEW_SECONDS).unwrap_or(lease / 2),
        wish(code::REBIND_SECONDS).unwrap_or(lease / 8 * 7),
    );
    // Out of order, or at once: as the standard has it.
    if !(lease / 8 <= renew && renew < rebind && rebind < lease) {
        (renew, rebind) = (lease / 2, lease / 8 * 7);
    }
    Ok(Some([renew, rebind, lease].map(|after| asked + after)))
}

/// Each four bytes.
fn addresses(list: &[u8]) -> impl Iterator<Item = Ipv4Addr> {
    list.chunks_exact(4).map(|ip| Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]))
}

/// RFC 3442: the size of the subnet, as many bytes of it as that needs, the router. None: not that.
fn classless(mut list: &[u8]) -> Option<Vec<(Cidr, Option<IpAddr>)>> {
    let mut routes = vec![];
    while let [prefix, rest @ ..] = list {
        let length = usize::from(prefix.div_ceil(8));
        let mut to = [0; 4];
        to.get_mut(..length)?.copy_from_slice(rest.get(..length)?);
        let router = addresses(rest.get(length..length + 4)?).next()?;
        let to = Cidr::new(Ipv4Addr::from(to), *prefix)?.subnet();
        // 0.0.0.0: on the link itself.
        if router.is_unspecified() || is_host_v4(router) {
            routes.push((to, (!router.is_unspecified()).then_some(router.into())));
        }
        list = &rest[length + 4..];
        if routes.len() == DHCP_ROUTES {
            break;
        }
    }
    Some(routes)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::wire::ReplyKind;
    use super::*;
    use netlink::address::Mac;

    /// An ack of 10.0.0.9/24 by 10.0.0.1 for so many seconds.
    pub fn ack(seconds: u32) -> Reply {
        let options = [
            (code::SUBNET_MASK, vec![255, 255, 255, 0]),
            (code::ROUTER, vec![10, 0, 0, 1]),
            (code::SERVER, vec![10, 0, 0, 1]),
            (code::LEASE_SECONDS, seconds.to_be_bytes().to_vec()),
        ];
        Reply {
            kind: ReplyKind::Ack,
            xid: 0,
            mac: Mac::made_of(1),
            address: [10, 0, 0, 9].into(),
            options: options.into(),
        }
    }

    fn with(code: u8, value: &[u8]) -> Reply {
        let mut reply = ack(3600);
        reply.options.insert(code, value.to_vec());
        reply
    }

    fn times(reply: &Reply) -> Option<[u64; 3]> {
        let lease = read(reply, Duration::from_secs(100)).unwrap();
        lease.times.ends.map(|ends| ends.map(|end| end.as_secs()))
    }

    #[test]
    fn times_are_the_servers_where_they_make_sense() {
        assert_eq!(times(&ack(3600)), Some([1900, 3250, 3700]));
        assert_eq!(
            times(&with(code::RENEW_SECONDS, &600_u32.to_be_bytes())),
            Some([700, 3250, 3700])
        );
        // After the end, or never: as the standard has it.
        assert_eq!(
            times(&with(code::RENEW_SECONDS, &9999_u32.to_be_bytes())),
            Some([1900, 3250, 3700])
        );
        assert_eq!(
            times(&with(code::RENEW_SECONDS, &0_u32.to_be_bytes())),
            Some([1900, 3250, 3700])
        );
        assert_eq!(
            times(&with(code::REBIND_SECONDS, &u32::MAX.to_be_bytes())),
            Some([1900, 3250, 3700])
        );
        assert_eq!(times(&ack(u32::MAX)), None);
        assert!(times(&ack(u32::MAX - 1)).is_some());
    }

    #[test]
    fn absurd_words_are_refused() {
        let error = |reply: &Reply| read(reply, Duration::ZERO).unwrap_err();
        assert_eq!(error(&ack(0)), LeaseError::Short(0));
        assert_eq!(error(&ack(4)), LeaseError::Short(4));
        assert!(read(&ack(5), Duration::ZERO).is_ok());
        assert_eq!(error(&with(code::LEASE_SECONDS, &[1])), LeaseError::NoTime);
        assert_eq!(error(&with(code::SERVER, &[0, 0, 0, 0])), LeaseError::NoServer);
        assert_eq!(error(&with(code::SERVER, &[])), LeaseError::NoServer);
        assert_eq!(error(&with(code::SUBNET_MASK, &[255, 0, 255, 0])), LeaseError::Mask);
        assert_eq!(error(&with(code::SUBNET_MASK, &[0, 0, 0, 0])), LeaseError::Mask);
        for address in [
            [0, 0, 0, 0],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [255, 255, 255, 255],
            [10, 0, 0, 0],
            [10, 0, 0, 255],
        ] {
            let reply = Reply { address: address.into(), ..ack(3600) };
            assert!(matches!(error(&reply), LeaseError::Address(_)), "{address:?}");
        }
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let gateway: IpAddr = [10, 0, 0, 1].into();
        let routes = |reply: &Reply| read(reply, Duration::ZERO).unwrap().routes;
        assert_eq!(routes(&ack(9)), [("0.0.0.0/0".parse().unwrap(), Some(gateway))]);
        let list = [24, 192, 168, 7, 10, 0, 0, 2, 0, 10, 0, 0, 3, 32, 10, 9, 9, 9, 0, 0, 0, 0];
        assert_eq!(
            routes(&with(code::CLASSLESS_ROUTES, &list)),
            [
                ("192.168.7.0/24".parse().unwrap(), Some([10, 0, 0, 2].into())),
                ("0.0.0.0/0".parse().unwrap(), Some([10, 0, 0, 3].into())),
                ("10.9.9.9/32".parse().unwrap(), None),
            ]
        );
        // Cut off, or with 33 bits: as if there were none.
        assert_eq!(routes(&with(code::CLASSLESS_ROUTES, &list[..6])).len(), 1);
        assert_eq!(
            routes(&with(code::CLASSLESS_ROUTES, &[33, 1, 2, 3, 4, 5, 10, 0, 0, 1]))[0].1,
            Some(gateway)
        );
    }

    #[test]
    fn names_that_would_break_a_file_are_left_out() {
        for text in ["a\nnameserver 6.6.6.6", "a b", "", "\u{e9}"] {
            assert_eq!(
                read(&with(code::DOMAIN, text.as_bytes()), Duration::ZERO).unwrap().domain,
                None
            );
        }
        let lease = read(&with(code::DOMAIN, b"example.org\0"), Duration::ZERO).unwrap();
        assert_eq!(lease.domain.as_deref(), Some("example.org"));
    }

    proptest! {
        /// Whatever a server says, what is taken can be used.
        #[test]
        fn lease_is_refused_or_in_order(
            address: [u8; 4], options in proptest::collection::btree_map(prop_oneof![Just(1u8), Just(3), Just(6), Just(12), Just(15), Just(26), Just(51), Just(54), Just(58), Just(59), Just(121)], proptest::collection::vec(any::<u8>(), 0..20), 0..11),
            seconds: u32, base: bool,
        ) {
            let mut reply = if base { ack(seconds) } else { Reply { options: Default::default(), ..ack(0) } };
            reply.address = address.into();
            reply.options.extend(options);
            if let Ok(lease) = read(&reply, Duration::from_secs(7)) {
                prop_assert!(lease.address.is_host() && lease.dns.len() <= NAME_SERVERS && lease.routes.len() <= DHCP_ROUTES);
                if let Some([renew, rebind, end]) = lease.times.ends {
                    prop_assert!(lease.times.asked < renew && renew < rebind && rebind < end);
                    prop_assert!(end - lease.times.asked >= LEASE_LEAST);
                }
            }
        }
    }
}

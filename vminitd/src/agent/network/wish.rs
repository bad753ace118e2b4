//! What the host wants of the VM's networks: the words `ip=` and `network=` of the command line.
//!
//! Promises: a word is understood as a whole or is an error that names what is wrong in it; any text
//! is survived. Never: looks at a link.
//!
//! `ip=` is the kernel's own (Documentation/admin-guide/nfs/nfsroot.rst), read by us instead:
//! `<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<autoconf>:<dns0>:<dns1>:<ntp0>`, or
//! one word: `dhcp`, `on`, `any`, `both`, `off`, `none`. IPv4 only. `network=` is a list of
//! `key=value`: `mac=`, `addr=` (address/prefix, also IPv6, also more than once), `dhcp=`, and of
//! ours `dev=`, `gw=` (or `none`), `dns=`, `mtu=`.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::NetworkWord;
use crate::limits::{HOSTNAME_BYTES, LINK_NAME_BYTES, NETWORK_ITEMS};
use netlink::address::{Cidr, Mac, is_host_v4, prefix_by_class, prefix_of};

/// What one link is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which link.
    pub link: Which,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// Where everything else goes: at most one for each family.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Whether to ask for an IPv4 address.
    pub dhcp: bool,
    /// Bytes of a packet; `None`: as the link is, or as DHCP says.
    pub mtu: Option<u32>,
    /// The VM's name.
    pub hostname: Option<String>,
}

/// How a link is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its Ethernet address.
    Mac(Mac),
    /// By the kernel's name for it.
    Name(String),
    /// The first Ethernet interface.
    First,
}

/// What is wrong in a word. The host's fault; it is logged, and the word has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// A part that is not what it is to be.
    #[error("{what} {text:?} cannot be understood")]
    Part {
        /// Which.
        what: &'static str,
        /// As it stands.
        text: String,
    },
    /// An address that no interface can have.
    #[error("{0} is no address of an interface")]
    NoHost(String),
    /// More parts than there are.
    #[error("more than {0} parts")]
    TooMany(usize),
    /// Nothing says which link is meant.
    #[error("it says neither mac= nor dev=")]
    NoLink,
    /// A way to get an address that the guest does not know.
    #[error("{0:?} is not known here; dhcp is")]
    Protocol(String),
}

/// Understands a word; `None`: it wants nothing.
pub fn understand(word: &NetworkWord) -> Result<Option<Wish>, WishError> {
    match word {
        NetworkWord::Ip(value) => ip(value),
        NetworkWord::Network(value) => network(value).map(Some),
    }
}

fn ip(value: &str) -> Result<Option<Wish>, WishError> {
    if !value.contains(':') {
        return autoconf(value, true).map(|dhcp| dhcp.then(|| wish(Which::First, true)));
    }
    let parts: Vec<&str> = value.split(':').collect();
    if parts.len() > 10 {
        return Err(WishError::TooMany(10));
    }
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let link = match part(5) {
        "" => Which::First,
        name => Which::Name(link_name(name)?),
    };
    let client = optional("address", part(0))?;
    let dhcp = autoconf(part(6), client.is_none())?;
    if !dhcp && client.is_none() {
        return Ok(None);
    }
    let mut wish = wish(link, dhcp);
    let hostname = part(4);
    if !hostname.is_empty() {
        wish.hostname = Some(host_name(hostname)?);
    }
    wish.dns = [part(7), part(8)]
        .into_iter()
        .filter_map(|text| optional("name server", text).transpose())
        .map(|dns| dns.map(IpAddr::V4))
        .collect::<Result<_, _>>()?;
    // With DHCP the kernel asks for everything, whatever stands there.
    if let Some(client) = client.filter(|_| !dhcp) {
        let prefix = match optional("netmask", part(3))? {
            Some(mask) => prefix_of(mask).ok_or_else(|| bad("netmask", part(3)))?,
            None => prefix_by_class(client),
        };
        wish.addresses.push(host(client.into(), prefix)?);
        wish.gateways.extend(gateway(part(2))?);
    }
    Ok(Some(wish))
}

/// Whether it means DHCP. An empty one means whatever gives an address that is not there.
fn autoconf(text: &str, needed: bool) -> Result<bool, WishError> {
    match text {
        "dhcp" | "on" | "any" | "both" => Ok(true),
        "off" | "none" => Ok(false),
        "" => Ok(needed),
        other => Err(WishError::Protocol(other.to_owned())),
    }
}

/// 0.0.0.0 is how some say that there is none.
fn optional(what: &'static str, text: &str) -> Result<Option<Ipv4Addr>, WishError> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip: Ipv4Addr = text.parse().map_err(|_| bad(what, text))?;
    Ok((!ip.is_unspecified()).then_some(ip))
}

fn gateway(text: &str) -> Result<Option<IpAddr>, WishError> {
    let gateway = optional("gateway", text)?;
    if let Some(ip) = gateway.filter(|ip| !is_host_v4(*ip)) {
        return Err(bad("gateway", &ip.to_string()));
    }
    Ok(gateway.map(IpAddr::V4))
}

fn network(value: &str) -> Result<Wish, WishError> {
    let (mut link, mut gateways) = (None, None);
    let mut wish = wish(Which::First, false);
    let parts: Vec<&str> = value.split(',').collect();
    if parts.len() > NETWORK_ITEMS {
        return Err(WishError::TooMany(NETWORK_ITEMS));
    }
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "mac" => link = Some(Which::Mac(value.parse().map_err(|_| bad("mac", value))?)),
            "dev" => link = Some(Which::Name(link_name(value)?)),
            "addr" => {
                let cidr: Cidr = value.parse().map_err(|_| bad("addr", value))?;
                wish.addresses.push(host(cidr.ip(), cidr.prefix())?);
            }
            "gw" if value == "none" => gateways = Some(vec![]),
            "gw" => {
                let ip: IpAddr = value.parse().map_err(|_| bad("gw", value))?;
                if !Cidr::new(ip, if ip.is_ipv4() { 32 } else { 128 }).is_some_and(Cidr::is_host) {
                    return Err(bad("gw", value));
                }
                gateways.get_or_insert_with(Vec::new).push(ip);
            }
            "dns" => wish.dns.push(value.parse().map_err(|_| bad("dns", value))?),
            "dhcp" => match value {
                "" | "1" | "true" | "yes" | "on" => wish.dhcp = true,
                "0" | "false" | "no" | "off" => wish.dhcp = false,
                _ => return Err(bad("dhcp", value)),
            },
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65_535).contains(mtu));
                wish.mtu = Some(mtu.ok_or_else(|| bad("mtu", value))?);
            }
            _ => return Err(bad("key", key)),
        }
    }
    wish.link = link.ok_or(WishError::NoLink)?;
    wish.gateways = gateways.unwrap_or_else(|| first_hosts(&wish.addresses));
    Ok(wish)
}

/// What nerdbox takes for the gateways when nobody names one: of each family, the first host of the
/// first subnet in which that is somebody else.
fn first_hosts(addresses: &[Cidr]) -> Vec<IpAddr> {
    let of = |v4: bool| {
        let mut family = addresses.iter().filter(|cidr| cidr.ip().is_ipv4() == v4);
        family.find_map(|cidr| cidr.first_host().filter(|first| *first != cidr.ip()))
    };
    [of(true), of(false)].into_iter().flatten().collect()
}

fn wish(link: Which, dhcp: bool) -> Wish {
    let (addresses, gateways, dns) = (vec![], vec![], vec![]);
    Wish { link, addresses, gateways, dns, dhcp, mtu: None, hostname: None }
}

fn host(ip: IpAddr, prefix: u8) -> Result<Cidr, WishError> {
    let cidr = Cidr::new(ip, prefix).filter(|cidr| cidr.is_host());
    cidr.ok_or_else(|| WishError::NoHost(format!("{ip}/{prefix}")))
}

fn bad(what: &'static str, text: &str) -> WishError {
    WishError::Part { what, text: text.chars().take(64).collect() }
}

/// As the kernel takes it.
pub fn link_name(name: &str) -> Result<String, WishError> {
    let fits = (1..=LINK_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if fits { Ok(name.to_owned()) } else { Err(bad("link", name)) }
}

/// Letters, digits, `-` and `.`, since it goes into files line by line.
pub fn host_name(name: &str) -> Result<String, WishError> {
    let fits = (1..=HOSTNAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if fits { Ok(name.to_owned()) } else { Err(bad("host name", name)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip_word(text: &str) -> Result<Option<Wish>, WishError> {
        understand(&NetworkWord::Ip(text.to_owned()))
    }

    fn network_word(text: &str) -> Result<Wish, WishError> {
        understand(&NetworkWord::Network(text.to_owned())).map(|wish| wish.expect("one"))
    }

    #[test]
    fn spinbox_form_is_a_static_address() {
        let wish = ip_word("10.88.0.5::10.88.0.1:255.255.0.0::eth0:none:1.1.1.1:8.8.8.8")
            .unwrap()
            .unwrap();
        assert_eq!(wish.link, Which::Name("eth0".to_owned()));
        assert_eq!(wish.addresses, ["10.88.0.5/16".parse().unwrap()]);
        assert_eq!(wish.gateways, ["10.88.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(wish.dns.len(), 2);
        assert!(!wish.dhcp);
    }

    #[test]
    fn kernels_forms_are_understood() {
        for text in ["dhcp", "on", "any", "both", "", "::::::dhcp", ":::::", "::::::any:9.9.9.9"] {
            let wish = ip_word(text).unwrap().unwrap();
            assert!(wish.dhcp && wish.link == Which::First, "{text}: {wish:?}");
        }
        for text in ["off", "none", "::::::off", "::::::none"] {
            assert_eq!(ip_word(text).unwrap(), None, "{text}");
        }
        let wish = ip_word("::::host:eth0:dhcp").unwrap().unwrap();
        assert_eq!(
            (wish.link, wish.hostname.as_deref()),
            (Which::Name("eth0".to_owned()), Some("host"))
        );
        // No mask: the class's. 0.0.0.0: nothing.
        let wish = ip_word("192.168.7.9:0.0.0.0:0.0.0.0").unwrap().unwrap();
        assert_eq!(wish.addresses, ["192.168.7.9/24".parse().unwrap()]);
        assert!(wish.gateways.is_empty() && !wish.dhcp);
        // An address and DHCP: DHCP.
        let wish = ip_word("10.0.0.2::10.0.0.1:255.0.0.0::eth0:dhcp").unwrap().unwrap();
        assert!(wish.dhcp && wish.addresses.is_empty() && wish.gateways.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |word: &str| ip_word(word).unwrap_err().to_string();
        assert_eq!(text("10.0.0.x::"), "address \"10.0.0.x\" cannot be understood");
        assert_eq!(text("10.0.0.1:::255.0.255.0"), "netmask \"255.0.255.0\" cannot be understood");
        assert_eq!(text("10.0.0.0:::255.255.255.0"), "10.0.0.0/24 is no address of an interface");
        assert_eq!(text("bootp"), "\"bootp\" is not known here; dhcp is");
        assert_eq!(text("10.0.0.1::::a b"), "host name \"a b\" cannot be understood");
        assert_eq!(
            text("10.0.0.1:::::this-name-is-long"),
            "link \"this-name-is-long\" cannot be understood"
        );
        assert_eq!(text("::::::::::x"), "more than 10 parts");
        let text = |word: &str| network_word(word).unwrap_err().to_string();
        assert_eq!(text("addr=10.0.0.2/24"), "it says neither mac= nor dev=");
        assert_eq!(text("mac=ff:ff:ff:ff:ff:ff"), "mac \"ff:ff:ff:ff:ff:ff\" cannot be understood");
        assert_eq!(
            text("mac=02:00:00:00:00:01,addr=10.0.0.2"),
            "addr \"10.0.0.2\" cannot be understood"
        );
        assert_eq!(text("mac=02:00:00:00:00:01,x=1"), "key \"x\" cannot be understood");
    }

    #[test]
    fn gateway_that_nobody_names_is_the_subnets_first_host() {
        let wish = network_word("mac=02:00:00:00:00:01,addr=10.0.0.2/24,addr=fd00::2/64").unwrap();
        let gateways: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(wish.gateways, gateways);
        assert!(
            network_word("mac=02:00:00:00:00:01,addr=10.0.0.1/24").unwrap().gateways.is_empty()
        );
        assert!(
            network_word("mac=02:00:00:00:00:01,addr=10.0.0.2/24,gw=none")
                .unwrap()
                .gateways
                .is_empty()
        );
        let wish =
            network_word("dev=eth1,addr=10.0.0.2/24,gw=10.0.0.9,dns=1.1.1.1,mtu=1400").unwrap();
        assert_eq!(wish.gateways, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!((wish.mtu, wish.dns.len()), (Some(1400), 1));
    }

    proptest! {
        #[test]
        fn any_word_is_survived(text: String) {
            let _ = ip_word(&text);
            let _ = network_word(&text);
        }

        /// Built from parts that are right or nearly so, a word gives only what an interface may have.
        #[test]
        fn what_is_understood_can_be_had(parts in proptest::collection::vec("(|10\\.0\\.0\\.[0-9]{1,3}|255\\.255\\.[0-9]{1,3}\\.0|eth0|dhcp|none)", 0..12)) {
            if let Ok(Some(wish)) = ip_word(&parts.join(":")) {
                prop_assert!(wish.dhcp || wish.addresses.len() == 1);
                prop_assert!(wish.addresses.iter().all(|cidr| cidr.is_host()));
                prop_assert!(wish.gateways.len() <= 1 && wish.dns.len() <= 2);
            }
        }
    }
}

//! Addresses as people and hosts write them: of Ethernet, and of IP with the size of their subnet.
//!
//! Promises: each exists only with a value that a link may have; nothing here panics on any text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of one Ethernet interface: neither a group's nor none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// An address and how many bits of it name its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    ip: IpAddr,
    prefix: u8,
}

/// Not an address. Whoever wrote it is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct AddressError {
    what: &'static str,
    text: String,
}

impl Mac {
    /// From its bytes.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Twelve hexadecimal digits, as they stand in names of links.
    pub fn digits(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// One that nobody was given (bit 1 of the first byte says so), made of a number.
    pub fn made_of(number: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
        Self([a & 0xfc | 0x02, b, c, d, e, f])
    }
}

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError { what: "MAC address of an interface", text: text.into() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            // from_str_radix takes a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Self::new(bytes).ok_or_else(wrong)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Cidr {
    /// `None`: the prefix is longer than the address.
    pub fn new(ip: impl Into<IpAddr>, prefix: u8) -> Option<Self> {
        let ip = ip.into();
        (u32::from(prefix) <= bits(ip)).then_some(Self { ip, prefix })
    }

    /// Everything: where a default route leads. `like` says of which family.
    pub fn everything(like: IpAddr) -> Self {
        let ip = match like {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self { ip, prefix: 0 }
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// Bits of the subnet's part.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The subnet, its own part of the address all zero.
    pub fn subnet(self) -> Self {
        Self { ip: with_bits(self.ip, number(self.ip) & !self.host_mask()), ..self }
    }

    /// Whether another address is in the same subnet.
    pub fn contains(self, other: IpAddr) -> bool {
        self.ip.is_ipv4() == other.is_ipv4() && Self { ip: other, ..self }.subnet() == self.subnet()
    }

    /// The first address of the subnet that a host may have; none where it has no room for another.
    pub fn first_host(self) -> Option<IpAddr> {
        let room = bits(self.ip) - u32::from(self.prefix);
        (room >= 2).then(|| with_bits(self.ip, number(self.subnet().ip) + 1))
    }

    /// Whether an interface may have it: it names one host, of its subnet or alone.
    pub fn is_host(self) -> bool {
        let lone = match self.ip {
            IpAddr::V4(ip) => is_host_v4(ip),
            IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback(),
        };
        let host = number(self.ip) & self.host_mask();
        let small = bits(self.ip) - u32::from(self.prefix) < 2;
        // An IPv6 subnet's first address is the routers', and its last an ordinary one.
        let all = self.ip.is_ipv4() && host == self.host_mask();
        lone && self.prefix > 0 && (small || (host != 0 && !all))
    }

    fn host_mask(self) -> u128 {
        let host_bits = bits(self.ip) - u32::from(self.prefix);
        1_u128.checked_shl(host_bits).map_or(u128::MAX, |end| end - 1)
    }
}

impl FromStr for Cidr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong =
            || AddressError { what: "address with a prefix, as in 10.0.0.2/24", text: text.into() };
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        if prefix.is_empty() || !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(wrong());
        }
        let prefix = prefix.parse().map_err(|_| wrong())?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        Self::new(ip, prefix).ok_or_else(wrong)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = AddressError;

            fn try_from(text: String) -> Result<Self, AddressError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}

as_text!(Mac);
as_text!(Cidr);

/// Whether a host may have it, whatever its subnet.
pub fn is_host_v4(ip: Ipv4Addr) -> bool {
    // 0/8 is "this network", 224/4 and up are groups and experiments.
    let first = ip.octets()[0];
    first != 0 && first < 224 && !ip.is_loopback()
}

/// How many bits of a mask like 255.255.255.0 are set; none when they are not the first ones.
pub fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let mask = u32::from(mask);
    (mask.leading_ones() == mask.count_ones()).then(|| mask.leading_ones() as u8)
}

/// What a subnet's size was before there were masks.
pub fn prefix_by_class(ip: Ipv4Addr) -> u8 {
    match ip.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        192.. => 24,
    }
}

fn bits(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn with_bits(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn first_host_is_what_a_gateway_is_taken_for() {
        assert_eq!(cidr("10.1.2.3/24").first_host(), Some("10.1.2.1".parse().unwrap()));
        assert_eq!(cidr("fd00::5/64").first_host(), Some("fd00::1".parse().unwrap()));
        assert_eq!(cidr("10.0.0.1/31").first_host(), None);
        assert_eq!(cidr("fd00::5/128").first_host(), None);
    }

    #[test]
    fn host_is_neither_group_nor_subnet_nor_everybody() {
        for text in [
            "10.0.0.0/24",
            "10.0.0.255/24",
            "0.0.0.0/0",
            "224.0.0.1/24",
            "127.0.0.1/8",
            "::/64",
            "ff02::1/64",
            "fd00::/64",
            "0.1.2.3/8",
        ] {
            assert!(!cidr(text).is_host(), "{text}");
        }
        for text in [
            "10.0.0.1/24",
            "10.0.0.0/31",
            "10.0.0.5/32",
            "fd00::ffff:ffff:ffff:ffff/64",
            "fd00::1/128",
        ] {
            assert!(cidr(text).is_host(), "{text}");
        }
    }

    #[test]
    fn groups_and_nothing_are_no_macs() {
        for text in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "1:2:3:4:5:6",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:+1",
            "",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        let mac: Mac = "52:54:00:AB:cd:0e".parse().unwrap();
        assert_eq!(
            (mac.to_string().as_str(), mac.digits().as_str()),
            ("52:54:00:ab:cd:0e", "525400abcd0e")
        );
    }

    #[test]
    fn masks_have_their_ones_first() {
        assert_eq!(prefix_of(Ipv4Addr::new(255, 255, 254, 0)), Some(23));
        assert_eq!(prefix_of(Ipv4Addr::new(255, 0, 255, 0)), None);
        assert_eq!(prefix_of(Ipv4Addr::UNSPECIFIED), Some(0));
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_what_is_taken_comes_back(text in "[0-9a-f:./-]{0,30}", number: u64) {
            if let Ok(cidr) = text.parse::<Cidr>() {
                prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
                prop_assert!(cidr.contains(cidr.ip()) && cidr.contains(cidr.subnet().ip()));
                prop_assert!(cidr.first_host().is_none_or(|first| cidr.contains(first)));
                let _ = cidr.is_host();
            }
            let mac = Mac::made_of(number);
            prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        }
    }
}

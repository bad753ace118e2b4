//! A VM's network interfaces, and ports of the host that lead into it.
//! Promises: what exists can be said on a hypervisor's command line: no name or path in it takes it apart.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// How the guest finds it.
    pub mac: MacAddress,
    /// What it is connected to.
    pub network: Network,
}

/// What an interface is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network of the VM's own, in the process that runs it: the guest reaches what that process reaches, through
    /// 10.0.2.2, which is the host; nobody reaches the guest but through published ports. IPv4.
    User {
        /// Ports of the host that lead to the guest.
        published: Vec<Published>,
        /// It can be taken away from the running guest.
        removable: bool,
    },
    /// A program that takes and gives Ethernet frames, each behind its length as u32be: a virtual switch, passt.
    Stream {
        /// Its Unix socket, on which it listens; absolute.
        socket: PathBuf,
    },
    /// A program that takes and gives Ethernet frames, one a datagram: gvproxy, vmnet-helper.
    Datagram {
        /// Its Unix socket, which it has bound; absolute.
        socket: PathBuf,
    },
    /// The network of one of the host's own interfaces: the guest is a machine of its own there.
    Bridged {
        /// The interface's name: `en0`.
        interface: String,
    },
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// UDP; else TCP.
    pub udp: bool,
    /// The host's address.
    pub address: Ipv4Addr,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
}

/// An Ethernet address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// Not what it was to be. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicError {
    /// An address.
    #[error("{0:?} is no MAC address of an interface; give one as in 52:54:00:12:34:56")]
    Mac(String),
    /// A published port.
    #[error(
        "{0:?} is no port to publish; give [IP:]HOST:GUEST[/udp], as in 8080:80 or 0.0.0.0:5353:53/udp"
    )]
    Published(String),
    /// A socket's path.
    #[error("the path of the socket of interface {0} is not absolute, or has a comma in it")]
    Socket(MacAddress),
    /// Neither kind of network.
    #[error("interface {0} has no network")]
    NoNetwork(MacAddress),
    /// The name of an interface of the host.
    #[error("{name:?} is no name of an interface of the host, to bridge interface {mac} to")]
    Interface {
        /// The guest's interface.
        mac: MacAddress,
        /// What was given.
        name: String,
    },
}

impl FromStr for MacAddress {
    type Err = NicError;

    fn from_str(text: &str) -> Result<Self, NicError> {
        let wrong = || NicError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let parts: Vec<&str> = text.split(':').collect();
        if parts.len() != 6 {
            return Err(wrong());
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(wrong)?;
        }
        // A group's, or none.
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Published {
    type Err = NicError;

    /// Without an address it is 127.0.0.1: this machine alone.
    fn from_str(text: &str) -> Result<Self, NicError> {
        let wrong = || NicError::Published(text.to_owned());
        let (ports, udp) = match text.rsplit_once('/') {
            Some((ports, "udp")) => (ports, true),
            Some((ports, "tcp")) => (ports, false),
            Some(_) => return Err(wrong()),
            None => (text, false),
        };
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, guest) = match parts.as_slice() {
            [host, guest] => (Ipv4Addr::LOCALHOST, host, guest),
            [address, host, guest] => (address.parse().map_err(|_| wrong())?, host, guest),
            _ => return Err(wrong()),
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or_else(wrong);
        Ok(Self { udp, address, host: port(host)?, guest: port(guest)? })
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { udp, address, host, guest } = self;
        write!(f, "{address}:{host}:{guest}/{}", if *udp { "udp" } else { "tcp" })
    }
}

impl Nic {
    /// Ports that it publishes.
    pub fn published(&self) -> &[Published] {
        match &self.network {
            Network::User { published, .. } => published,
            Network::Stream { .. } | Network::Datagram { .. } | Network::Bridged { .. } => &[],
        }
    }

    /// Whether it can be said on a command line.
    pub(super) fn check(&self) -> Result<(), NicError> {
        match &self.network {
            Network::User { .. } => Ok(()),
            Network::Bridged { interface } => {
                let named = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
                if (1..=15).contains(&interface.len()) && interface.bytes().all(named) {
                    return Ok(());
                }
                Err(NicError::Interface { mac: self.mac, name: interface.clone() })
            }
            Network::Stream { socket } | Network::Datagram { socket } => {
                let text = socket.to_str().filter(|text| !text.contains(','));
                let good = socket.is_absolute() && text.is_some();
                if good { Ok(()) } else { Err(NicError::Socket(self.mac)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn published_port_is_on_this_machine_alone_unless_an_address_is_given() {
        let text = |text: &str| text.parse::<Published>().unwrap().to_string();
        assert_eq!(text("8080:80"), "127.0.0.1:8080:80/tcp");
        assert_eq!(text("0.0.0.0:53:5353/udp"), "0.0.0.0:53:5353/udp");
        for wrong in [
            "80",
            "0:80",
            "80:0",
            "80:65536",
            "a:1:2",
            "1:2/sctp",
            "::1:80:80",
            "1:2:3:4",
            "80:80/",
            "",
        ] {
            let error = wrong.parse::<Published>().unwrap_err().to_string();
            assert!(error.contains("8080:80"), "{error}");
        }
    }

    #[test]
    fn bridge_is_named_by_an_interface_of_the_host() {
        let nic = |interface: &str| Nic {
            mac: "52:54:00:00:00:01".parse().unwrap(),
            network: Network::Bridged { interface: interface.to_owned() },
        };
        assert_eq!(nic("en0").check(), Ok(()));
        for wrong in ["", "en0,x", "a/b", "0123456789abcdef"] {
            assert!(matches!(nic(wrong).check(), Err(NicError::Interface { .. })), "{wrong}");
        }
    }

    #[test]
    fn groups_are_no_interfaces() {
        for wrong in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "52:54:00",
            "52:54:00:0:0:0",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
        assert_eq!(
            "52:54:00:AB:00:01".parse::<MacAddress>().unwrap().to_string(),
            "52:54:00:ab:00:01"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_what_is_taken_comes_back(text in "[0-9.:/udptc]{0,24}") {
            if let Ok(published) = text.parse::<Published>() {
                prop_assert_eq!(published.to_string().parse::<Published>().unwrap(), published);
            }
            let _ = text.parse::<MacAddress>();
        }
    }
}

//! Words about networks: a line of the input is the value of `ip=`, or behind a `+` that of `network=`.
//!
//! Looks for: panics, and wishes that no link can have: more than is taken, addresses of no interface, two gateways of a
//! family, a name that the kernel refuses.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use vminitd::agent::network::wish::{Which, understand};
use vminitd::config::NetworkWord;
use vminitd::limits::{HOSTNAME_BYTES, LINK_NAME_BYTES, NETWORK_ITEMS};

fuzz_target!(|text: &str| {
    for line in text.lines() {
        let word = match line.strip_prefix('+') {
            Some(value) => NetworkWord::Network(value.to_owned()),
            None => NetworkWord::Ip(line.to_owned()),
        };
        let Ok(Some(wish)) = understand(&word) else { continue };
        assert!(
            wish.addresses.len() <= NETWORK_ITEMS && wish.dns.len() <= NETWORK_ITEMS,
            "{wish:?}"
        );
        assert!(wish.addresses.iter().all(|address| address.is_host()), "{wish:?}");
        let fours = wish.gateways.iter().filter(|gateway| gateway.is_ipv4()).count();
        assert!(fours <= 1 && wish.gateways.len() - fours <= 1, "{wish:?}");
        assert!(wish.gateways.iter().all(|gateway: &IpAddr| !gateway.is_unspecified()), "{wish:?}");
        if let Which::Name(name) = &wish.link {
            assert!((1..=LINK_NAME_BYTES).contains(&name.len()) && !name.contains('/'), "{wish:?}");
        }
        assert!(wish.hostname.as_ref().is_none_or(|name| name.len() <= HOSTNAME_BYTES), "{wish:?}");
    }
});

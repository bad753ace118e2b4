//! The VM's own network, in the process that runs it: what it gives, as its interface and its guest are to know it.
//! Never: touches a network of the host.

use crate::vm::{MacAddress, Network, Nic, Published};

/// The interface's address. Each VM has a network of its own, so all may have the same.
const MAC: &str = "52:54:00:00:00:01";

/// What QEMU's user network gives: its DHCP server would say the same, and take its time.
const SETTINGS: &str = "addr=10.0.2.15/24,gw=10.0.2.2,dns=10.0.2.3";

/// How long a container waits for its network, in milliseconds.
pub const PATIENCE_MS: u32 = 10_000;

/// Files that the guest keeps right, as a container that shares its network has them.
pub const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Its address.
pub fn mac() -> MacAddress {
    MAC.parse().expect("a constant")
}

/// The interface, with ports of the host that lead in.
pub fn nic(published: Vec<Published>, removable: bool) -> Nic {
    Nic { mac: mac(), network: Network::User { published, removable } }
}

/// What the guest's command line says of it.
pub fn word() -> String {
    format!("vminitd.network=mac={MAC},{SETTINGS}")
}

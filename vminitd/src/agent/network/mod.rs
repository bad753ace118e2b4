//! The VM's networks, as the host wishes them on the command line.
//!
//! ```text
//! wish      words -> what each link is to be        (pure)
//! nic       one task per wished link: waits for it, sets it up, keeps its lease
//! dhcp      messages, leases, the client's states   (pure)
//! changes   tells when links come and go; how the kernel is asked and told is the crate netlink
//! names     resolv.conf and hosts
//! container bridges and links of single containers
//! service   what a host sees and changes while the VM runs
//! ```
//!
//! Owns: what is recorded below [`NETWORK_DIR`], and the links, addresses and routes that the host
//! configured. Promises: nothing here delays or ends the VM: it runs beside serving, an error is a
//! line in the log, and without a word about networks no socket is opened; a new agent goes on with
//! the leases of the one before. Never: looks for links by polling.

mod changes;
pub mod container;
pub mod dhcp;
pub mod names;
pub mod nic;
pub mod service;
pub mod wish;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use tracing::{error, warn};

use self::names::Resolver;
use self::nic::Nic;
use super::Agent;
use super::lock;
use crate::chain;
use crate::config::{Config, DEFAULT_HOSTNAME};
use crate::paths::NETWORK_DIR;

/// All networks of the VM.
#[derive(Debug)]
pub struct Network {
    /// Where things are recorded.
    directory: PathBuf,
    /// The host name of the configuration, if it names one.
    configured_name: Option<String>,
    /// The links that the host wishes; set once, by [`start`].
    nics: OnceLock<Vec<Arc<Nic>>>,
    /// The last word on name servers; `None`: what wishes and leases say.
    resolver: Mutex<Option<Resolver>>,
    /// Held while a container's links are made or removed, by threads that may wait alone.
    bridging: Mutex<()>,
}

impl Network {
    /// Nothing is done yet.
    pub fn new(config: &Config) -> Arc<Self> {
        let name = Some(config.hostname.clone()).filter(|name| name != DEFAULT_HOSTNAME);
        Arc::new(Self {
            directory: NETWORK_DIR.into(),
            configured_name: name,
            nics: OnceLock::new(),
            bridging: Mutex::default(),
            resolver: Mutex::new(service::saved_resolver(NETWORK_DIR.as_ref())),
        })
    }

    /// The links that the host wishes.
    pub fn nics(&self) -> &[Arc<Nic>] {
        self.nics.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// What a server may be told of our name.
    fn hostname_to_tell(&self) -> Option<String> {
        let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
        Some(name).filter(|name| name != DEFAULT_HOSTNAME)
    }

    /// Takes a name that a network gives, unless the configuration gives one.
    fn name(&self, name: Option<&str>) {
        if let (Some(name), None) = (name, &self.configured_name)
            && let Err(errno) = nix::unistd::sethostname(name)
        {
            warn!("set the host name {name:?}: {errno}");
        }
    }

    /// Who is to be asked for names.
    fn resolver_now(&self) -> Resolver {
        let of_nics = self.nics().iter().map(|nic| nic.resolver());
        let said = lock(&self.resolver).clone();
        said.unwrap_or_else(|| of_nics.fold(Resolver::default(), Resolver::and))
    }

    /// Writes resolv.conf and hosts as they are to be now.
    fn write_names(&self) {
        let resolver = self.resolver_now();
        let leased = |nic: &Arc<Nic>| nic.look().1.map(|lease| lease.address);
        let own = |nic: &Arc<Nic>| nic.wish.addresses.first().copied().or_else(|| leased(nic));
        let address = self.nics().iter().find_map(own).map(netlink::address::Cidr::ip);
        let name = nix::unistd::gethostname().unwrap_or_default();
        let hosts = names::hosts(&name.to_string_lossy(), address);
        if let Err(error) = names::write(&resolver, &hosts, !self.nics().is_empty()) {
            warn!(%error, "write resolv.conf and hosts");
        }
    }
}

/// Begins with what the command line says, beside serving; returns at once.
pub fn start(agent: &Arc<Agent>) {
    let (network, config) = (agent.network.clone(), &agent.config);
    let mut wishes = vec![];
    let mut seen = vec![];
    for word in &config.network {
        // The kernel may pass a word on twice.
        if seen.contains(word) {
            continue;
        }
        seen.push(word.clone());
        match wish::understand(word) {
            Ok(wish) => wishes.extend(wish),
            Err(error) => error!(?word, error = %chain(&error), "network ignored"),
        }
    }
    let numbered = wishes.into_iter().enumerate();
    let nics: Vec<_> =
        numbered.map(|(n, wish)| Arc::new(Nic::new(n, wish, &network.directory))).collect();
    if network.nics.set(nics).is_err() {
        return;
    }
    let init = agent.init.clone();
    // All of these live as long as the agent, and end with its runtime.
    tokio::spawn(async move {
        // The host name of the configuration is there then, and the host is served already.
        init.boot_complete().await;
        network.write_names();
        for nic in network.nics() {
            tokio::spawn(nic::run(network.clone(), nic.clone()));
        }
    });
}

//! One link that the host has configured: found, set up, and kept up.
//!
//! Owns: the wish, its record below [`paths::NETWORK_DIR`](crate::paths), and the DHCP client. Promises:
//! what is found in the record by the next agent holds; a link that comes late, or goes and comes
//! back, is set up then; an error is logged and tried again, and is nobody else's. Never: waits by
//! looking again and again.

use std::collections::HashMap;
use std::future::pending;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::Network;
use super::changes::Changes;
use super::dhcp::client::{Action, Client, Stage};
use super::dhcp::lease::Lease;
use super::dhcp::wire;
use super::names::Resolver;
use super::wish::{Which, Wish};
use crate::agent::lock;
use crate::agent::task::record::{RecordError, Saved};
use crate::chain;
use crate::limits::{DHCP_BYTES, DHCP_RETRY, LINK_GRACE};
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::{clock, packet};
use netlink::address::{Cidr, Mac};
use netlink::{Link, Netlink, NetlinkError, Route};

/// Where DHCP's clients and servers are.
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// A link of the host's wish.
#[derive(Debug)]
pub struct Nic {
    /// Its number among the wishes: first come, first for what goes elsewhere.
    pub number: usize,
    /// What it is to be.
    pub wish: Wish,
    record: Mutex<Record>,
    stage: Mutex<Option<Stage>>,
    /// Somebody wants its lease renewed.
    wanted: Notify,
    /// Whether it has all that was wished for, an address by DHCP included.
    settled: watch::Sender<bool>,
}

/// What the next agent needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The link that was set up; what was changed since then is not to be changed back.
    link: Option<u32>,
    /// Its lease.
    lease: Option<Lease>,
}

impl Saved for Record {
    const FILE: &'static str = "nic.json";
}

/// Why a link is not served any more. It is tried again.
#[derive(Debug, thiserror::Error)]
enum NicError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{what}")]
    Socket {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("defect in the agent")]
    Panicked(#[from] tokio::task::JoinError),
}

impl Nic {
    /// One that is not served yet, with what an agent before has recorded of it.
    pub fn new(number: usize, wish: Wish, directory: &Path) -> Self {
        let record = Record::load(&Self::directory(number, directory)).unwrap_or_default();
        let settled = watch::Sender::new(false);
        let (wanted, stage) = (Notify::new(), Mutex::new(None));
        Self { number, wish, record: Mutex::new(record), stage, wanted, settled }
    }

    fn directory(number: usize, directory: &Path) -> std::path::PathBuf {
        directory.join(number.to_string())
    }

    /// The link that it has, its lease, and where its DHCP client is.
    pub fn look(&self) -> (Option<u32>, Option<Lease>, Option<Stage>) {
        let record = lock(&self.record).clone();
        (record.link, record.lease, *lock(&self.stage))
    }

    /// Asks for its lease to be renewed now.
    pub fn renew(&self) {
        self.wanted.notify_one();
    }

    /// Returns when it has all that was wished for.
    pub async fn settled(&self) {
        // The sender is ours.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// The name servers of its wish and its lease.
    pub fn resolver(&self) -> Resolver {
        let servers = self.wish.dns.clone();
        let lease = lock(&self.record).lease.clone();
        let leased = lease.map(|lease| Resolver {
            servers: lease.dns,
            search: lease.domain.into_iter().collect(),
        });
        Resolver { servers, search: vec![] }.and(leased.unwrap_or_default())
    }

    fn save(&self, directory: &Path, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed);
        if changed != *record {
            let directory = Self::directory(self.number, directory);
            let failed = |source| RecordError { verb: "make", path: directory.clone(), source };
            std::fs::create_dir_all(&directory).map_err(failed)?;
            changed.save(&directory)?;
            *record = changed;
        }
        Ok(())
    }
}

/// Serves a link for ever.
pub async fn run(network: Arc<Network>, nic: Arc<Nic>) {
    let mut pause = DHCP_RETRY[0];
    loop {
        match serve(&network, &nic).await {
            // Gone; it may come back.
            Ok(()) => pause = DHCP_RETRY[0],
            Err(error) => {
                error!(network = nic.number, error = %chain(&error), "the network is tried again");
                sleep(pause).await;
                pause = (pause * 2).min(DHCP_RETRY[1]);
            }
        }
    }
}

/// Until the link is gone.
async fn serve(network: &Arc<Network>, nic: &Arc<Nic>) -> Result<(), NicError> {
    let changes = Changes::of_links()
        .map_err(|source| NicError::Socket { what: "listen to changes of links", source })?;
    let link = wait(nic, &changes).await?;
    let known = lock(&nic.record).link == Some(link.index);
    if !known {
        set_up(network, nic, &link).await?;
    }
    let Some(mac) = link.mac.filter(|_| nic.wish.dhcp) else {
        nic.settled.send_replace(true);
        while find_one(nic).await?.is_some_and(|now| now.index == link.index) {
            listen(&changes).await?;
        }
        return Ok(());
    };
    lease(network, nic, &changes, link, mac, known).await
}

/// The link, as soon as there is one.
async fn wait(nic: &Nic, changes: &Changes) -> Result<Link, NicError> {
    let wait = async {
        loop {
            if let Some(link) = find_one(nic).await? {
                return Ok(link);
            }
            listen(changes).await?;
        }
    };
    let mut wait = std::pin::pin!(wait);
    match timeout(LINK_GRACE, &mut wait).await {
        Ok(link) => link,
        Err(_) => {
            error!(network = nic.number, link = %nic.wish.link, "there is no such link; it is waited for");
            wait.await
        }
    }
}

async fn listen(changes: &Changes) -> Result<(), NicError> {
    let failed = |source| NicError::Socket { what: "listen to changes of links", source };
    changes.next().await.map_err(failed)
}

async fn find_one(nic: &Nic) -> Result<Option<Link>, NicError> {
    let which = nic.wish.link.clone();
    ask(move |netlink| Ok(find(&netlink.links()?, &which))).await
}

/// The link that is meant, or the bridge that it is a port of: that has its addresses then.
pub fn find(links: &[Link], which: &Which) -> Option<Link> {
    let hardware = |link: &&Link| link.is_ethernet && link.kind.is_none();
    let mut found = match which {
        Which::Mac(mac) => links.iter().filter(hardware).find(|link| link.mac == Some(*mac)),
        Which::Name(name) => links.iter().find(|link| link.name == *name),
        Which::First => links.iter().filter(hardware).min_by_key(|link| link.index),
    }?;
    if let Some(bridge) = links.iter().find(|link| Some(link.index) == found.master) {
        found = bridge;
    }
    Some(found.clone())
}

/// Asks the kernel, on a thread that may wait for it.
pub async fn ask<
    T: Send + 'static,
    E: From<NetlinkError> + From<tokio::task::JoinError> + Send + 'static,
>(
    question: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, E> {
    let asked = tokio::task::spawn_blocking(move || question(&mut Netlink::open()?));
    Ok(asked.await??)
}

/// Gives the link what it is to have in any case.
async fn set_up(network: &Network, nic: &Arc<Nic>, link: &Link) -> Result<(), NicError> {
    let (wish, index, number) = (nic.wish.clone(), link.index, nic.number);
    let set_up = move |netlink: &mut Netlink| {
        let note = |done: Result<(), NetlinkError>| {
            if let Err(error) = done {
                error!(network = number, error = %chain(&error), "a part of the network is missing");
            }
        };
        if let Some(mtu) = wish.mtu {
            note(netlink.set_mtu(index, mtu));
        }
        netlink.set_up(index, true)?;
        for cidr in &wish.addresses {
            note(netlink.add_address(index, *cidr, None));
        }
        for gateway in &wish.gateways {
            let (to, metric) = (Cidr::everything(*gateway), metric(number, gateway.is_ipv4()));
            let gateway = Some(*gateway);
            let route = Route { to, gateway, link: index, source: None, metric, is_kernels: false };
            note(netlink.add_route(&route));
        }
        Ok(())
    };
    ask::<_, NicError>(set_up).await?;
    nic.save(&network.directory, |record| record.link = Some(index))?;
    let addresses: Vec<String> = nic.wish.addresses.iter().map(Cidr::to_string).collect();
    info!(network = nic.number, link = link.name, addresses = addresses.join(" "), "set up");
    network.name(nic.wish.hostname.as_deref());
    network.write_names();
    Ok(())
}

/// Of several ways to everywhere the first network's counts.
fn metric(number: usize, v4: bool) -> u32 {
    // The kernel takes 0 for 1024 in IPv6.
    number as u32 + if v4 { 0 } else { 1024 }
}

/// A client at work.
struct Leasing<'a> {
    network: &'a Arc<Network>,
    nic: &'a Arc<Nic>,
    link: Link,
    client: Client,
    /// While answers are waited for: what hears them.
    ears: Option<AsyncOwnedFd>,
    /// While its server is asked: keeps the kernel from refusing the answer.
    voice: Option<UdpSocket>,
    /// Servers that were complained about, and how often.
    complaints: HashMap<String, u32>,
}

/// Gets an address and keeps it, until the link is gone.
async fn lease(
    network: &Arc<Network>,
    nic: &Arc<Nic>,
    changes: &Changes,
    link: Link,
    mac: Mac,
    known: bool,
) -> Result<(), NicError> {
    let seed = RandomState::new().build_hasher().finish();
    let hostname = network.hostname_to_tell();
    let left = lock(&nic.record).lease.clone();
    let client = match &left {
        Some(lease) if known => Client::resume(mac, hostname, seed, lease.clone()),
        // Another link, or the bridge that it became a port of: is it the same network?
        Some(lease) => Client::new(mac, hostname, seed, Some(lease.clone())),
        None => Client::new(mac, hostname, seed, None),
    };
    let (ears, voice, complaints) = (None, None, HashMap::new());
    let mut this = Leasing { network, nic, link, client, ears, voice, complaints };
    if let Some(lease) = left {
        // What an agent before may not have come to do, or the kernel has ended meanwhile.
        this.apply(None, lease).await?;
    }
    loop {
        this.client.handle_link(clock::boot(), this.link.is_running);
        this.client.handle_timeout(clock::boot());
        this.act().await?;
        let wake = this.client.poll_timeout().map(|at| at.saturating_sub(clock::boot()));
        let mut buffer = [0; DHCP_BYTES];
        tokio::select! {
            () = until(wake) => {}
            () = nic.wanted.notified() => this.client.handle_wish(clock::boot()),
            heard = hear(&this.ears, &mut buffer) => {
                let length = heard.map_err(|source| NicError::Socket { what: "listen for DHCP", source })?;
                this.heard(&buffer[..length]);
            }
            changed = listen(changes) => {
                changed?;
                let Some(now) = find_one(nic).await? else { break };
                if now.index != this.link.index {
                    break;
                }
                this.link = now;
            }
        }
    }
    // With another link it is another network, or the same through a bridge.
    nic.settled.send_replace(false);
    Ok(())
}

async fn until(wake: Option<Duration>) {
    match wake {
        Some(wake) => sleep(wake).await,
        None => pending().await,
    }
}

async fn hear(ears: &Option<AsyncOwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    let Some(ears) = ears else { return pending().await };
    loop {
        let mut ready = ears.readable().await?;
        match packet::receive(ears.get_ref().as_fd(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            // The link went down; that it did is told elsewhere.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            heard => return heard,
        }
    }
}

impl Leasing<'_> {
    fn heard(&mut self, packet: &[u8]) {
        let Some(reply) = wire::read(packet) else { return };
        let Err(why) = self.client.handle_reply(clock::boot(), &reply) else { return };
        // Others' conversations come by too; the rest is told, but not for ever.
        let text = why.to_string();
        let times = self.complaints.entry(text.clone()).or_default();
        *times += 1;
        if *times == 1 && reply.mac == self.link.mac.unwrap_or(reply.mac) {
            warn!(network = self.nic.number, kind = ?reply.kind, why = text, "DHCP reply ignored");
        }
        if self.complaints.len() > 64 {
            self.complaints.clear();
        }
    }

    async fn act(&mut self) -> Result<(), NicError> {
        loop {
            // Before anything is asked: the answer may come at once.
            match (self.client.listens(), &self.ears) {
                (true, None) => {
                    let ears =
                        packet::open(self.link.index, CLIENT_PORT).and_then(AsyncOwnedFd::new);
                    let failed =
                        |source| NicError::Socket { what: "open a socket for DHCP", source };
                    self.ears = Some(ears.map_err(failed)?);
                }
                (false, Some(_)) => (self.ears, self.voice) = (None, None),
                (true, Some(_)) | (false, None) => {}
            }
            let before = self.nic.look().1;
            match self.client.poll_action() {
                None => break,
                Some(Action::Send(question, to)) => {
                    debug!(network = self.nic.number, ?question, ?to, "DHCP");
                    if let Err(error) = self.say(&question.payload(), to) {
                        // It is said again in any case.
                        debug!(network = self.nic.number, %error, "DHCP question not sent");
                    }
                }
                Some(Action::Apply(lease)) => self.apply(before, lease).await?,
                Some(Action::Withdraw(lease)) => self.withdraw(lease).await?,
            }
        }
        *lock(&self.nic.stage) = Some(self.client.stage());
        let bound = self.client.lease().is_some();
        self.nic.settled.send_if_modified(|settled| std::mem::replace(settled, bound) != bound);
        Ok(())
    }

    fn say(&mut self, payload: &[u8], to: Option<(Ipv4Addr, Ipv4Addr)>) -> io::Result<()> {
        match (to, &self.ears) {
            (Some((from, server)), _) => {
                if self.voice.is_none() {
                    let socket = UdpSocket::bind((from, CLIENT_PORT))?;
                    setsockopt(&socket, sockopt::BindToDevice, &self.link.name.clone().into())?;
                    socket.set_nonblocking(true)?;
                    self.voice = Some(socket);
                }
                let voice =
                    self.voice.as_ref().map(|voice| voice.send_to(payload, (server, SERVER_PORT)));
                voice.transpose().map(drop)
            }
            (None, Some(ears)) => packet::broadcast(
                ears.get_ref().as_fd(),
                self.link.index,
                &wire::broadcast(payload),
            ),
            (None, None) => Ok(()),
        }
    }

    /// Uses a lease: the record first, so that the next agent knows what there may be.
    async fn apply(&mut self, before: Option<Lease>, lease: Lease) -> Result<(), NicError> {
        self.nic.save(&self.network.directory, |record| record.lease = Some(lease.clone()))?;
        let (index, number) = (self.link.index, self.nic.number);
        let lifetime = lease.times.ends.map(|ends| ends[2].saturating_sub(clock::boot()));
        let mtu = lease.mtu.filter(|mtu| self.nic.wish.mtu.is_none() && *mtu != self.link.mtu);
        let (old, new) = (before.clone(), lease.clone());
        let apply = move |netlink: &mut Netlink| {
            netlink.add_address(index, new.address, lifetime)?;
            let wanted = routes(&new, index, number);
            for route in old.iter().flat_map(|old| routes(old, index, number)) {
                if !wanted.contains(&route) {
                    netlink.delete_route(&route)?;
                }
            }
            for route in &wanted {
                if let Err(error) = netlink.add_route(route) {
                    warn!(network = number, error = %chain(&error), "a route of the lease is missing");
                }
            }
            if let Some(mtu) = mtu
                && let Err(error) = netlink.set_mtu(index, mtu)
            {
                warn!(network = number, error = %chain(&error), "the lease's MTU has no effect");
            }
            Ok(())
        };
        ask::<_, NicError>(apply).await?;
        let seconds = lifetime.map(|lifetime| lifetime.as_secs());
        let address = lease.address.to_string();
        match before.filter(|before| before.address == lease.address) {
            Some(_) => debug!(network = number, address, ?seconds, "lease renewed"),
            None => {
                info!(network = number, link = self.link.name, address, ?seconds, server = %lease.server, "lease")
            }
        }
        if self.nic.wish.hostname.is_none() {
            self.network.name(lease.hostname.as_deref());
        }
        self.network.write_names();
        Ok(())
    }

    async fn withdraw(&mut self, lease: Lease) -> Result<(), NicError> {
        warn!(network = self.nic.number, link = self.link.name, address = %lease.address, "lease lost");
        let (index, number) = (self.link.index, self.nic.number);
        let withdraw = move |netlink: &mut Netlink| {
            for route in routes(&lease, index, number) {
                netlink.delete_route(&route)?;
            }
            netlink.delete_address(index, lease.address)
        };
        self.voice = None;
        ask::<_, NicError>(withdraw).await?;
        self.nic.save(&self.network.directory, |record| record.lease = None)?;
        self.network.write_names();
        Ok(())
    }
}

/// A lease's routes as the kernel takes them: with the lease's address on what is sent, so that they
/// end with it.
fn routes(lease: &Lease, link: u32, number: usize) -> Vec<Route> {
    let (source, metric) = (Some(lease.address.ip()), metric(number, true));
    let route = |(to, gateway): &(Cidr, _)| Route {
        to: *to,
        gateway: *gateway,
        link,
        source,
        metric,
        is_kernels: false,
    };
    lease.routes.iter().map(route).collect()
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::First => f.write_str("the first one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_found_by_what_the_host_says_and_a_bridge_stands_for_its_port() {
        let mac = |n| Some(Mac::made_of(n));
        let link = |index, name: &str, mac, kind: Option<&str>, master| Link {
            index,
            name: name.into(),
            mac,
            is_ethernet: mac.is_some(),
            kind: kind.map(Into::into),
            master,
            ..Link::default()
        };
        let links = [
            link(1, "lo", None, None, None),
            link(3, "eth1", mac(2), None, None),
            link(2, "eth0", mac(1), None, Some(5)),
            link(5, "br-1", mac(1), Some("bridge"), None),
            link(6, "ve-1", mac(3), Some("veth"), Some(5)),
        ];
        let index = |which| find(&links, &which).map(|link| link.index);
        assert_eq!(index(Which::Mac(Mac::made_of(2))), Some(3));
        assert_eq!(index(Which::Mac(Mac::made_of(1))), Some(5));
        assert_eq!(index(Which::Mac(Mac::made_of(3))), None, "not hardware");
        assert_eq!(index(Which::Name("eth0".into())), Some(5));
        assert_eq!(index(Which::First), Some(5));
        assert_eq!(index(Which::Name("eth7".into())), None);
        assert_eq!(find(&links[..1], &Which::First), None, "lo is not meant");
    }
}

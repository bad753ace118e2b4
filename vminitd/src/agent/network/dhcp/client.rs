//! A DHCP client's states, RFC 2131 section 4.4; no socket, no clock.
//!
//! ```text
//!            link up              offer                ack              renew at
//!   Down ------------> Selecting ------> Requesting --------> Bound -------------> Renewing
//!    ^                  ^ ^  ^            |  nak, silence      ^  ^     ack          |
//!    | link down        | |  +-- Resting <+                    |  +------------------+ rebind at
//!    | (from anywhere)  | +---------------- nak, end ----------|-- Rebinding <-------+
//!    |                  |                    ack or silence    |       | ack
//!   Down with a lease --+----------------> Rebooting ----------+-------+
//!         link up          over by then              nak, end: Selecting
//! ```
//!
//! Promises: an address is used only between an ack that the client asked for and the end of its
//! lease; questions that nobody answers are at least a second apart (a new lease may be asked for
//! at once, but not after a refusal); whatever is said, the client goes on for ever. Never: takes an
//! answer to a question that it did not ask, or of another server than the one that it asked.
//!
//! Order of calls: `handle_*` with a clock that never goes back, then `poll_action` until `None`,
//! then wait for a packet or until `poll_timeout`.
//!
//! Not done: asking by ARP whether somebody has the address already (RFC 2131 says SHOULD). It costs
//! seconds of each boot, and the server of a VM's network gives addresses to VMs only.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::lease::{self, Lease, LeaseError};
use super::wire::{Question, Reply, ReplyKind};
use crate::limits::{DHCP_RENEW_RETRY, DHCP_RETRY, DHCP_TRIES};
use netlink::address::Mac;

/// A client for one link.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    hostname: Option<String>,
    random: Random,
    state: State,
    /// A server that has let us down, and is passed over once.
    shunned: Option<Ipv4Addr>,
    /// Offers that were taken back since the last lease: each time the pause is longer.
    refusals: u32,
    actions: VecDeque<Action>,
}

/// What the client waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// For the link.
    Down { lease: Option<Lease> },
    /// For an offer.
    Selecting { talk: Talk },
    /// For the ack of an offer.
    Requesting { talk: Talk, offer: Lease },
    /// For better times: a server has taken its offer back.
    Resting { until: Duration },
    /// For the word that the lease holds still, after the link was away.
    Rebooting { talk: Talk, lease: Lease },
    /// For the time to renew.
    Bound { lease: Lease },
    /// For the lease's server.
    Renewing { talk: Talk, lease: Lease },
    /// For any server.
    Rebinding { talk: Talk, lease: Lease },
}

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Talk {
    xid: u32,
    began: Duration,
    /// When something was said last.
    asked: Duration,
    /// When it is said again.
    next: Duration,
    /// How often something was said without an answer that counts.
    tries: u32,
    /// How many DHCPDISCOVERs there were, over several conversations: the next pause is longer.
    pauses: u32,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say this to everybody, or to one: from the first address to the second.
    Send(Question, Option<(Ipv4Addr, Ipv4Addr)>),
    /// Use this lease from now on; the link may have it already, with other times.
    Apply(Lease),
    /// Use it no more.
    Withdraw(Lease),
}

/// Why a reply had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// For another client, or of another conversation.
    #[error("it answers no question of ours")]
    NotOurs,
    /// Nothing of the kind was asked.
    #[error("nothing of the kind was asked for")]
    NotAsked,
    /// Of a server that was not asked.
    #[error("it is not from the server that was asked")]
    OtherServer,
    /// Another address than the one that was asked for.
    #[error("it is for {0}, which was not asked for")]
    OtherAddress(Ipv4Addr),
    /// Not one that can be used.
    #[error(transparent)]
    Useless(#[from] LeaseError),
    /// Of a server that has just let us down.
    #[error("that server did not keep its last offer")]
    Shunned,
}

/// For people: where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The link is down.
    Down,
    /// It asks for an address.
    Asking,
    /// It has one.
    Bound,
    /// It has one, and asks for it to be prolonged.
    Renewing,
}

impl Client {
    /// A client without a lease, or with one that is not in use yet; its link is down. `seed` makes
    /// its numbers differ from other clients'.
    pub fn new(mac: Mac, hostname: Option<String>, seed: u64, lease: Option<Lease>) -> Self {
        let state = State::Down { lease };
        let (random, actions) = (Random(seed), VecDeque::new());
        Self { mac, hostname, random, state, shunned: None, refusals: 0, actions }
    }

    /// A client whose lease is in use, over the death of who had it before; its link is up.
    pub fn resume(mac: Mac, hostname: Option<String>, seed: u64, lease: Lease) -> Self {
        Self { state: State::Bound { lease }, ..Self::new(mac, hostname, seed, None) }
    }

    /// The link came up or went down. Said twice, it changes nothing.
    pub fn handle_link(&mut self, now: Duration, up: bool) {
        match (&mut self.state, up) {
            (State::Down { lease }, true) => match lease.take() {
                Some(lease) if !over(&lease, now) => {
                    let talk = self.talk(now, 0);
                    self.state = State::Rebooting { talk, lease };
                    self.ask(now);
                }
                Some(lease) => {
                    self.actions.push_back(Action::Withdraw(lease));
                    self.select(now, 0);
                }
                None => self.select(now, 0),
            },
            (State::Down { .. }, false) | (_, true) => {}
            (_, false) => self.state = State::Down { lease: self.lease().cloned() },
        }
    }

    /// Time has come for something.
    pub fn handle_timeout(&mut self, now: Duration) {
        if let Some(lease) = self.lease().filter(|lease| over(lease, now)).cloned() {
            self.actions.push_back(Action::Withdraw(lease));
            match self.state {
                State::Down { .. } => self.state = State::Down { lease: None },
                _ => self.select(now, 0),
            }
            return;
        }
        match &self.state {
            State::Resting { until } if now >= *until => self.select(now, 0),
            State::Selecting { talk } if now >= talk.next => {
                // Once round: whoever let us down may have thought better of it.
                self.shunned = None;
                self.ask(now);
            }
            State::Requesting { talk, offer } if now >= talk.next => {
                if talk.tries < DHCP_TRIES {
                    self.ask(now);
                } else {
                    let (server, pauses) = (offer.server, talk.pauses);
                    self.select(now, pauses);
                    self.shunned = Some(server);
                }
            }
            State::Rebooting { talk, lease } if now >= talk.next => {
                if talk.tries < DHCP_TRIES {
                    self.ask(now);
                } else {
                    // Nobody denies it.
                    self.state = State::Bound { lease: lease.clone() };
                }
            }
            State::Bound { lease } if due(lease, 0, now) => {
                let lease = lease.clone();
                let talk = self.talk(now, 0);
                // Whoever comes late, over an agent's death, need not try its server first.
                self.state = match due(&lease, 1, now) {
                    false => State::Renewing { talk, lease },
                    true => State::Rebinding { talk, lease },
                };
                self.ask(now);
            }
            State::Renewing { talk, lease }
                if rebind_at(talk, lease).is_some_and(|at| now >= at) =>
            {
                let (lease, talk) = (lease.clone(), talk.clone());
                self.state = State::Rebinding { talk, lease };
                self.ask(now);
            }
            State::Renewing { talk, .. } | State::Rebinding { talk, .. } if now >= talk.next => {
                self.ask(now);
            }
            State::Down { .. }
            | State::Resting { .. }
            | State::Selecting { .. }
            | State::Requesting { .. }
            | State::Rebooting { .. }
            | State::Bound { .. }
            | State::Renewing { .. }
            | State::Rebinding { .. } => {}
        }
    }

    /// Somebody wants the lease renewed, or an address, now.
    pub fn handle_wish(&mut self, now: Duration) {
        match &mut self.state {
            State::Bound { lease } => {
                let lease = lease.clone();
                let talk = self.talk(now, 0);
                self.state = State::Renewing { talk, lease };
                self.ask(now);
            }
            State::Selecting { .. } | State::Resting { .. } => self.select(now, 0),
            State::Down { .. }
            | State::Requesting { .. }
            | State::Rebooting { .. }
            | State::Renewing { .. }
            | State::Rebinding { .. } => {}
        }
    }

    /// Something was said on the link.
    pub fn handle_reply(&mut self, now: Duration, reply: &Reply) -> Result<(), Ignored> {
        let talk = match &self.state {
            State::Selecting { talk }
            | State::Requesting { talk, .. }
            | State::Rebooting { talk, .. }
            | State::Renewing { talk, .. }
            | State::Rebinding { talk, .. } => talk.clone(),
            State::Down { .. } | State::Resting { .. } | State::Bound { .. } => {
                return Err(Ignored::NotAsked);
            }
        };
        if reply.mac != self.mac || reply.xid != talk.xid {
            return Err(Ignored::NotOurs);
        }
        if let State::Selecting { .. } = self.state {
            return match reply.kind {
                ReplyKind::Offer => self.take_offer(now, talk, reply),
                ReplyKind::Ack | ReplyKind::Nak => Err(Ignored::NotAsked),
            };
        }
        // Whose word counts, and for which address.
        let (server, address) = match &self.state {
            State::Requesting { offer: lease, .. } | State::Renewing { lease, .. } => {
                (Some(lease.server), lease.address.ip())
            }
            State::Rebooting { lease, .. } | State::Rebinding { lease, .. } => {
                (None, lease.address.ip())
            }
            State::Down { .. }
            | State::Selecting { .. }
            | State::Resting { .. }
            | State::Bound { .. } => {
                return Err(Ignored::NotAsked);
            }
        };
        let speaker = lease::server(reply).ok_or(Ignored::Useless(LeaseError::NoServer))?;
        if server.is_some_and(|server| server != speaker) {
            return Err(Ignored::OtherServer);
        }
        match reply.kind {
            ReplyKind::Offer => Err(Ignored::NotAsked),
            ReplyKind::Nak => {
                self.refused(now, speaker);
                Ok(())
            }
            ReplyKind::Ack if IpAddr::V4(reply.address) != address => {
                Err(Ignored::OtherAddress(reply.address))
            }
            ReplyKind::Ack => self.take_ack(talk.asked, reply),
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Client::handle_timeout`] is to be called; `None`: only something from outside helps.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let next = match &self.state {
            State::Down { .. } => None,
            State::Resting { until } => Some(*until),
            State::Selecting { talk } | State::Requesting { talk, .. } => Some(talk.next),
            State::Rebooting { talk, .. } => Some(talk.next),
            State::Bound { lease } => lease.times.ends.map(|ends| ends[0]),
            State::Renewing { talk, lease } => {
                let rebind = rebind_at(talk, lease);
                Some(rebind.map_or(talk.next, |rebind| rebind.min(talk.next)))
            }
            State::Rebinding { talk, .. } => Some(talk.next),
        };
        let end = self.lease().and_then(|lease| lease.times.ends).map(|ends| ends[2]);
        next.into_iter().chain(end).min()
    }

    /// Whether it waits for packets.
    pub fn listens(&self) -> bool {
        !matches!(self.state, State::Down { .. } | State::Bound { .. } | State::Resting { .. })
    }

    /// The lease that is in use.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Down { lease } => lease.as_ref(),
            State::Rebooting { lease, .. }
            | State::Bound { lease }
            | State::Renewing { lease, .. }
            | State::Rebinding { lease, .. } => Some(lease),
            State::Selecting { .. } | State::Requesting { .. } | State::Resting { .. } => None,
        }
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Down { .. } => Stage::Down,
            State::Selecting { .. } | State::Requesting { .. } | State::Resting { .. } => {
                Stage::Asking
            }
            State::Bound { .. } => Stage::Bound,
            State::Rebooting { .. } | State::Renewing { .. } | State::Rebinding { .. } => {
                Stage::Renewing
            }
        }
    }

    fn take_offer(&mut self, now: Duration, talk: Talk, reply: &Reply) -> Result<(), Ignored> {
        let offer = lease::read(reply, talk.asked)?;
        if self.shunned == Some(offer.server) {
            // If nobody else offers anything soon, it has another chance.
            let soon = now + self.pause(0);
            if let Some(talk) = self.talk_of() {
                talk.next = talk.next.min(soon);
            }
            return Err(Ignored::Shunned);
        }
        // The conversation goes on under its number.
        self.state = State::Requesting { talk: Talk { tries: 0, ..talk }, offer };
        self.ask(now);
        Ok(())
    }

    fn take_ack(&mut self, asked: Duration, reply: &Reply) -> Result<(), Ignored> {
        let mut lease = lease::read(reply, asked)?;
        // What a server leaves out when it renews stays as it was (RFC 2131, 4.4.5 knows no other way
        // to say it); a subnet cannot change under an address.
        if let Some(old) = self.lease().filter(|old| old.address != lease.address) {
            lease.address = old.address;
        }
        self.actions.push_back(Action::Apply(lease.clone()));
        self.state = State::Bound { lease };
        (self.shunned, self.refusals) = (None, 0);
        Ok(())
    }

    fn refused(&mut self, now: Duration, server: Ipv4Addr) {
        if let Some(lease) = self.lease().cloned() {
            self.actions.push_back(Action::Withdraw(lease));
            self.select(now, 0);
        } else {
            self.shunned = Some(server);
            let until = now + self.pause(self.refusals);
            self.refusals = self.refusals.saturating_add(1);
            self.state = State::Resting { until };
        }
    }

    fn select(&mut self, now: Duration, pauses: u32) {
        let talk = self.talk(now, pauses);
        self.state = State::Selecting { talk };
        self.ask(now);
    }

    fn talk(&mut self, now: Duration, pauses: u32) -> Talk {
        let xid = self.random.next() as u32;
        Talk { xid, began: now, asked: now, next: now, tries: 0, pauses }
    }

    /// Says what is to be said in this state, and when it will be said again.
    fn ask(&mut self, now: Duration) {
        let (mut is_request, mut has, mut wants, mut server, mut to) =
            (true, None, None, None, None);
        let mut until = None;
        let v4 = |lease: &Lease| match lease.address.ip() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        match &self.state {
            State::Down { .. } | State::Resting { .. } | State::Bound { .. } => return,
            State::Selecting { .. } => is_request = false,
            State::Requesting { offer, .. } => {
                (wants, server) = (Some(v4(offer)), Some(offer.server));
            }
            State::Rebooting { lease, .. } => wants = Some(v4(lease)),
            State::Renewing { lease, .. } => {
                has = Some(v4(lease));
                to = Some((v4(lease), lease.server));
                until = lease.times.ends.map(|ends| (ends[1], ends[2] - lease.times.asked));
            }
            State::Rebinding { lease, .. } => {
                has = Some(v4(lease));
                until = lease.times.ends.map(|ends| (ends[2], ends[2] - lease.times.asked));
            }
        }
        let pauses = match (is_request, self.talk_of()) {
            (false, Some(talk)) => talk.pauses,
            (true, Some(talk)) => talk.tries,
            (_, None) => return,
        };
        let pause = match until {
            // Half of what is left, as RFC 2131 4.4.5 has it; for a short lease its least is shorter.
            Some((until, whole)) => {
                let least = DHCP_RENEW_RETRY.min(whole / 16).max(DHCP_RETRY[0]);
                (until.saturating_sub(now) / 2).max(least)
            }
            None => self.pause(pauses),
        };
        let (mac, hostname) = (self.mac, self.hostname.clone());
        let Some(talk) = self.talk_of() else { return };
        (talk.asked, talk.next) = (now, now + pause);
        talk.tries += 1;
        talk.pauses = talk.pauses.saturating_add(u32::from(!is_request));
        let secs = u16::try_from((now - talk.began).as_secs()).unwrap_or(u16::MAX);
        let question =
            Question { is_request, xid: talk.xid, secs, mac, has, wants, server, hostname };
        self.actions.push_back(Action::Send(question, to));
    }

    fn talk_of(&mut self) -> Option<&mut Talk> {
        match &mut self.state {
            State::Selecting { talk }
            | State::Requesting { talk, .. }
            | State::Rebooting { talk, .. }
            | State::Renewing { talk, .. }
            | State::Rebinding { talk, .. } => Some(talk),
            State::Down { .. } | State::Resting { .. } | State::Bound { .. } => None,
        }
    }

    /// Doubled each time, and up to half as much on top, so that many VMs do not ask at once.
    fn pause(&mut self, pauses: u32) -> Duration {
        let [first, last] = DHCP_RETRY;
        let pause = first.saturating_mul(1 << pauses.min(16)).min(last);
        let thousandth = self.random.next() % 500;
        pause + pause * (thousandth as u32) / 1000
    }
}

/// When any server is asked: not right behind the last question to its own.
fn rebind_at(talk: &Talk, lease: &Lease) -> Option<Duration> {
    lease.times.ends.map(|ends| ends[1].max(talk.asked + DHCP_RETRY[0]))
}

fn over(lease: &Lease, now: Duration) -> bool {
    due(lease, 2, now)
}

fn due(lease: &Lease, which: usize, now: Duration) -> bool {
    lease.times.ends.is_some_and(|ends| now >= ends[which])
}

/// SplitMix64: for numbers that have to differ, not to be secret.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

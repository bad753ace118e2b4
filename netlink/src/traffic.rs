//! What arrives on one link, sent out on another: an ingress queue with one filter that redirects everything
//! (tc-mirred(8), tc-u32(8)).
//!
//! Promises: what has no redirection any more is no error to take away. Never: touches what leaves a link.

use crate::message::Message;
use crate::{ACK, CREATE, Netlink, NetlinkError};

// linux/pkt_sched.h, pkt_cls.h, rtnetlink.h, tc_act/tc_mirred.h
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_0000;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;

/// The filter's place among others on the link.
const FIRST: u32 = 1 << 16;

impl Netlink {
    /// Sends everything that arrives on link `from` out on link `to`. An error when something else is attached to
    /// what arrives there.
    pub fn redirect(&mut self, from: u32, to: u32) -> Result<(), NetlinkError> {
        let mut queue =
            Message::new(libc::RTM_NEWQDISC, CREATE, &body(from, INGRESS, TC_H_INGRESS, 0));
        queue.text(TCA_KIND, "ingress");
        self.act(format!("attach to what arrives on link {from}"), queue, &[])?;
        let every_protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
        let filter = body(from, 0, INGRESS, FIRST | every_protocol);
        let mut filter = Message::new(libc::RTM_NEWTFILTER, CREATE, &filter);
        filter.text(TCA_KIND, "u32").nest(TCA_OPTIONS, &[], |options| {
            options.attribute(TCA_U32_SEL, &everything());
            options.nest(TCA_U32_ACT, &[], |actions| {
                actions.nest(1, &[], |action| {
                    action.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, &[], |options| {
                        options.attribute(TCA_MIRRED_PARMS, &redirected_to(to));
                    });
                });
            });
        });
        let added =
            self.act(format!("redirect what arrives on link {from} to link {to}"), filter, &[]);
        if added.is_err() {
            // Without its filter it does nothing, but the next try would find it.
            let _ = self.stop_redirecting(from);
        }
        added
    }

    /// Takes that away again, or whatever else is attached to what arrives there.
    pub fn stop_redirecting(&mut self, from: u32) -> Result<(), NetlinkError> {
        let message = Message::new(libc::RTM_DELQDISC, ACK, &body(from, INGRESS, TC_H_INGRESS, 0));
        let gone = [libc::ENOENT, libc::ENODEV, libc::EINVAL];
        self.act(format!("stop redirecting what arrives on link {from}"), message, &gone)
    }
}

/// struct tcmsg.
fn body(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut body = [0; 20];
    for (part, value) in body[4..].chunks_exact_mut(4).zip([link, handle, parent, info]) {
        part.copy_from_slice(&value.to_ne_bytes());
    }
    body
}

/// struct tc_u32_sel and one key, of which no bit counts.
fn everything() -> [u8; 32] {
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    selector
}

/// struct tc_mirred.
fn redirected_to(link: u32) -> [u8; 28] {
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    parameters[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    parameters[24..].copy_from_slice(&link.to_ne_bytes());
    parameters
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_link_is_redirected_once_and_freed_as_often_as_asked() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let of_its_own = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut netlink = Netlink::open().unwrap();
            let lo = netlink.link_named("lo").unwrap().unwrap().index;
            netlink.redirect(lo, lo).unwrap();
            let twice = netlink.redirect(lo, lo).unwrap_err();
            assert_eq!(twice.source.raw_os_error(), Some(libc::EEXIST));
            netlink.stop_redirecting(lo).unwrap();
            netlink.stop_redirecting(lo).unwrap();
            netlink.redirect(lo, lo).unwrap();
        };
        std::thread::spawn(of_its_own).join().unwrap();
    }
}

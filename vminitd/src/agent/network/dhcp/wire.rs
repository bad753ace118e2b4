//! DHCP messages as packets, with `smoltcp`'s wire formats: RFC 2131, 2132, 3396, 3442.
//!
//! Promises: any bytes are survived; what is read is an allegation, which `lease.rs` looks into.
//! Never: opens a socket.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket,
    DhcpRepr, EthernetAddress, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use netlink::address::Mac;

/// Codes of options, RFC 2132 and 3442.
pub mod code {
    #![allow(missing_docs, reason = "their names are the standard's")]
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAME_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const LEASE_SECONDS: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const RENEW_SECONDS: u8 = 58;
    pub const REBIND_SECONDS: u8 = 59;
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// What a server is asked for.
const WANTED: [u8; 9] = [
    code::SUBNET_MASK,
    // Before the router, as RFC 3442 wants it.
    code::CLASSLESS_ROUTES,
    code::ROUTER,
    code::NAME_SERVERS,
    code::HOST_NAME,
    code::DOMAIN,
    code::MTU,
    code::RENEW_SECONDS,
    code::REBIND_SECONDS,
];

/// The least that BOOTP's relays pass on, in bytes.
const LEAST: usize = 300;

/// What the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// A DHCPREQUEST; else a DHCPDISCOVER.
    pub is_request: bool,
    /// Names the conversation.
    pub xid: u32,
    /// Seconds since it began.
    pub secs: u16,
    /// Who asks.
    pub mac: Mac,
    /// The address that the client has.
    pub has: Option<Ipv4Addr>,
    /// The address that it wants.
    pub wants: Option<Ipv4Addr>,
    /// The server whose offer it takes.
    pub server: Option<Ipv4Addr>,
    /// The client's name.
    pub hostname: Option<String>,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Offer, Ack or Nak.
    pub kind: ReplyKind,
    /// The conversation that it belongs to.
    pub xid: u32,
    /// For whom it is.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// Options by code, of several with one code all values in a row.
    pub options: BTreeMap<u8, Vec<u8>>,
}

/// The kinds of what servers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// An address is to be had.
    Offer,
    /// The client has it now.
    Ack,
    /// It cannot have it.
    Nak,
}

impl Question {
    /// The payload of a UDP packet.
    pub fn payload(&self) -> Vec<u8> {
        let name = self.hostname.as_deref().map(str::as_bytes);
        let name = name.map(|name| DhcpOption { kind: code::HOST_NAME, data: name });
        let repr = DhcpRepr {
            message_type: match self.is_request {
                true => DhcpMessageType::Request,
                false => DhcpMessageType::Discover,
            },
            transaction_id: self.xid,
            secs: self.secs,
            client_hardware_address: EthernetAddress(self.mac.bytes()),
            client_ip: self.has.unwrap_or(Ipv4Addr::UNSPECIFIED),
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            // Without an address the kernel hears what is sent to our link, which is enough.
            broadcast: false,
            requested_ip: self.wants,
            client_identifier: Some(EthernetAddress(self.mac.bytes())),
            server_identifier: self.server,
            parameter_request_list: Some(&WANTED),
            dns_servers: None,
            max_size: Some(1500),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: name.as_slice(),
        };
        let mut bytes = vec![0; repr.buffer_len().max(LEAST)];
        let emitted = repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]));
        debug_assert!(emitted.is_ok(), "the buffer is as long as the message");
        bytes
    }
}

/// An IPv4 packet from nobody to everybody.
pub fn broadcast(payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr { src_port: DHCP_CLIENT_PORT, dst_port: DHCP_SERVER_PORT };
    let (from, to) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; ip.buffer_len() + ip.payload_len];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]),
        &IpAddress::Ipv4(from),
        &IpAddress::Ipv4(to),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

/// What a server says in an IPv4 packet. The UDP checksum is not looked at: from a machine on the same
/// host it is not there yet.
pub fn read(packet: &[u8]) -> Option<Reply> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    if ip.version() != 4 || ip.next_header() != IpProtocol::Udp || !ip.verify_checksum() {
        return None;
    }
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    if udp.src_port() != DHCP_SERVER_PORT || udp.dst_port() != DHCP_CLIENT_PORT {
        return None;
    }
    read_payload(udp.payload())
}

fn read_payload(payload: &[u8]) -> Option<Reply> {
    let packet = DhcpPacket::new_checked(payload).ok()?;
    let ethernet = packet.hardware_len() == 6 && u16::from(packet.hardware_type()) == 1;
    if packet.opcode() != DhcpOpCode::Reply || packet.magic_number() != MAGIC || !ethernet {
        return None;
    }
    let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for option in packet.options() {
        options.entry(option.kind).or_default().extend(option.data);
    }
    let kind = match options.get(&code::MESSAGE_TYPE)?.as_slice() {
        [2] => ReplyKind::Offer,
        [5] => ReplyKind::Ack,
        [6] => ReplyKind::Nak,
        _ => return None,
    };
    Some(Reply {
        kind,
        xid: packet.transaction_id(),
        mac: Mac::new(packet.client_hardware_address().0)?,
        address: packet.your_ip(),
        options,
    })
}

/// What makes a BOOTP message one of DHCP, RFC 2131 section 3.
const MAGIC: u32 = 0x6382_5363;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reply as a server would send it.
    pub fn packet(reply: &Reply) -> Vec<u8> {
        let mut payload = vec![0; 240];
        payload[0] = 2;
        payload[1] = 1;
        payload[2] = 6;
        payload[4..8].copy_from_slice(&reply.xid.to_be_bytes());
        payload[16..20].copy_from_slice(&reply.address.octets());
        payload[28..34].copy_from_slice(&reply.mac.bytes());
        payload[236..240].copy_from_slice(&MAGIC.to_be_bytes());
        for (code, value) in &reply.options {
            for part in value.chunks(255) {
                payload.extend([*code, part.len() as u8]);
                payload.extend(part);
            }
        }
        payload.push(255);
        let mut bytes = broadcast(&payload);
        // From the server to the client.
        bytes[20..24].copy_from_slice(&[0, 67, 0, 68]);
        bytes
    }

    #[test]
    fn question_is_what_the_standard_says() {
        let mac = Mac::made_of(7);
        let question = Question {
            is_request: true,
            xid: 0x0102_0304,
            secs: 5,
            mac,
            has: None,
            wants: Some([10, 0, 0, 9].into()),
            server: Some([10, 0, 0, 1].into()),
            hostname: Some("vm".into()),
        };
        let bytes = question.payload();
        assert!(bytes.len() >= 300);
        assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 5, 0, 0]);
        assert_eq!(bytes[28..34], mac.bytes());
        let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
        let option = |code| {
            packet.options().find(|option| option.kind == code).map(|option| option.data.to_vec())
        };
        assert_eq!(option(53), Some(vec![3]));
        assert_eq!(option(50), Some(vec![10, 0, 0, 9]));
        assert_eq!(option(54), Some(vec![10, 0, 0, 1]));
        assert_eq!(option(12), Some(b"vm".to_vec()));
        let sent = broadcast(&bytes);
        assert!(Ipv4Packet::new_checked(&sent[..]).unwrap().verify_checksum());
        assert_eq!(read(&sent), None, "a question is no reply");
    }

    #[test]
    fn long_option_comes_in_parts_and_is_one() {
        let routes: Vec<u8> = (0..200).map(|n| n as u8).cycle().take(600).collect();
        let options = [(53, vec![5]), (121, routes)].into();
        let reply = Reply {
            kind: ReplyKind::Ack,
            xid: 1,
            mac: Mac::made_of(1),
            address: [10, 0, 0, 9].into(),
            options,
        };
        assert_eq!(read(&packet(&reply)), Some(reply));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0usize..300, by: u8) {
            let _ = (read(&bytes), read_payload(&bytes));
            let options = [(53, vec![2]), (1, bytes)].into();
            let mut good = packet(&Reply { kind: ReplyKind::Offer, xid: 1, mac: Mac::made_of(1), address: [10, 0, 0, 9].into(), options });
            let at = at.min(good.len() - 1);
            good[at] ^= by;
            let _ = read(&good);
            let _ = read(&good[..at]);
        }
    }
}

//! The vsock packet header: 44 bytes, little-endian, in front of every packet (virtio 1.2, section 5.10.6).
//! Promises: what the guest wrote becomes a [`Packet`] only through [`Packet::parse`], which checks everything that
//! can be checked without knowing the connections; a refusal says whether the guest is owed an answer.
//! Never: touches guest memory; it works on a copy that the guest cannot change any more.

/// Bytes of a packet's header.
pub const HEADER_BYTES: usize = 44;

/// The host's well-known address.
pub const HOST_CID: u64 = 2;

/// The only socket type served: VIRTIO_VSOCK_TYPE_STREAM.
const TYPE_STREAM: u16 = 1;

/// The header's bytes as they lie in guest memory.
pub type RawHeader = [u8; HEADER_BYTES];

/// What names a connection: a port on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// The guest's port.
    pub guest: u32,
    /// The host's port.
    pub host: u32,
}

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts a connection.
    Response,
    /// Ends a connection at once, or refuses it.
    Reset,
    /// Tells which directions its sender will use no more.
    Shutdown(Shutdown),
    /// Carries bytes.
    Data,
    /// Carries nothing but the sender's credit, which every packet does.
    CreditUpdate,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest,
}

/// The directions that the sender of a SHUTDOWN gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// It will receive no more.
    pub receive: bool,
    /// It will send no more.
    pub send: bool,
}

impl Shutdown {
    /// Both directions.
    pub const BOTH: Shutdown = Shutdown { receive: true, send: true };

    /// What either says.
    pub fn union(self, other: Shutdown) -> Shutdown {
        Shutdown { receive: self.receive || other.receive, send: self.send || other.send }
    }

    fn bits(self) -> u32 {
        u32::from(self.receive) | u32::from(self.send) << 1
    }

    fn from_bits(bits: u32) -> Shutdown {
        Shutdown { receive: bits & 1 != 0, send: bits & 2 != 0 }
    }
}

/// What the sender of a packet says about its receive buffer; both count modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credit {
    /// Bytes that its buffer holds.
    pub buf_alloc: u32,
    /// Bytes that have left its buffer so far.
    pub fwd_cnt: u32,
}

/// A packet from the guest that is well-formed, addressed to us and of a kind that we serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The connection that it claims to belong to.
    pub ports: Ports,
    /// What it wants.
    pub op: Op,
    /// Bytes of payload behind the header; not more than there are, nor than the limit. Zero unless `op` is data.
    pub len: u32,
    /// What it says of the guest's receive buffer.
    pub credit: Credit,
}

/// Why a packet of the guest is not a [`Packet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not from this guest, or not to the host, or itself a RST: to be forgotten without an answer.
    Ignore,
    /// A socket type or an operation that we do not serve, or a length that is not true: the connection is to be reset.
    Reset(Ports),
}

impl Packet {
    /// Reads a header that the guest with `guest_cid` has put in front of `available` bytes, of which one packet may
    /// use `most`.
    pub fn parse(
        raw: &RawHeader,
        guest_cid: u64,
        available: usize,
        most: u32,
    ) -> Result<Packet, Refusal> {
        let fields = Fields::decode(raw);
        if fields.src_cid != guest_cid || fields.dst_cid != HOST_CID {
            return Err(Refusal::Ignore);
        }
        let ports = Ports { guest: fields.src_port, host: fields.dst_port };
        let reset = if fields.op == 3 { Refusal::Ignore } else { Refusal::Reset(ports) };
        if fields.kind != TYPE_STREAM {
            return Err(reset);
        }
        let op = match fields.op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown(Shutdown::from_bits(fields.flags)),
            5 => Op::Data,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return Err(reset),
        };
        let len = match op {
            Op::Data if fields.len > most || fields.len as usize > available => return Err(reset),
            Op::Data => fields.len,
            _ => 0,
        };
        let credit = Credit { buf_alloc: fields.buf_alloc, fwd_cnt: fields.fwd_cnt };
        Ok(Packet { ports, op, len, credit })
    }
}

/// Writes the header of a packet to the guest.
pub fn encode(guest_cid: u64, ports: Ports, op: Op, len: u32, credit: Credit) -> RawHeader {
    let (op, flags) = match op {
        Op::Request => (1, 0),
        Op::Response => (2, 0),
        Op::Reset => (3, 0),
        Op::Shutdown(which) => (4, which.bits()),
        Op::Data => (5, 0),
        Op::CreditUpdate => (6, 0),
        Op::CreditRequest => (7, 0),
    };
    Fields {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: ports.host,
        dst_port: ports.guest,
        len,
        kind: TYPE_STREAM,
        op,
        flags,
        buf_alloc: credit.buf_alloc,
        fwd_cnt: credit.fwd_cnt,
    }
    .encode()
}

/// The header, field by field, with no meaning attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Fields {
    pub(super) fn decode(raw: &RawHeader) -> Fields {
        let mut rest: &[u8] = raw;
        Fields {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn encode(&self) -> RawHeader {
        let mut raw = [0; HEADER_BYTES];
        let mut rest: &mut [u8] = &mut raw;
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        put(&mut rest, self.src_port.to_le_bytes());
        put(&mut rest, self.dst_port.to_le_bytes());
        put(&mut rest, self.len.to_le_bytes());
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, self.op.to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        raw
    }
}

/// The next `N` bytes; zeroes past the end, which the fixed layout never reaches.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    let (head, tail) = std::mem::take(rest).split_at_mut(N);
    head.copy_from_slice(&bytes);
    *rest = tail;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CID: u64 = 3;
    const MOST: u32 = 64 * 1024;

    fn fields() -> Fields {
        Fields {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 0x1111_2222,
            dst_port: 1024,
            len: 5,
            kind: TYPE_STREAM,
            op: 5,
            flags: 0,
            buf_alloc: 7,
            fwd_cnt: 9,
        }
    }

    fn parse(fields: Fields, available: usize) -> Result<Packet, Refusal> {
        Packet::parse(&fields.encode(), CID, available, MOST)
    }

    const PORTS: Ports = Ports { guest: 0x1111_2222, host: 1024 };

    #[test]
    fn the_layout_is_the_standards() {
        let raw = fields().encode();
        let mut expected = Vec::new();
        expected.extend(3u64.to_le_bytes());
        expected.extend(2u64.to_le_bytes());
        expected.extend([0x22, 0x22, 0x11, 0x11, 0, 4, 0, 0, 5, 0, 0, 0]);
        expected.extend([1, 0, 5, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(raw.as_slice(), expected);
    }

    #[test]
    fn data_parses_with_its_length_and_credit() {
        let packet = parse(fields(), 5).unwrap();
        let credit = Credit { buf_alloc: 7, fwd_cnt: 9 };
        assert_eq!(packet, Packet { ports: PORTS, op: Op::Data, len: 5, credit });
    }

    #[test]
    fn a_length_beyond_the_descriptors_is_refused() {
        assert_eq!(parse(fields(), 4), Err(Refusal::Reset(PORTS)));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_and_the_limit_is_not() {
        let at = Fields { len: MOST, ..fields() };
        assert!(parse(at, usize::MAX).is_ok());
        let beyond = Fields { len: MOST + 1, ..fields() };
        assert_eq!(parse(beyond, usize::MAX), Err(Refusal::Reset(PORTS)));
    }

    #[test]
    fn a_foreign_address_is_ignored() {
        assert_eq!(parse(Fields { src_cid: 4, ..fields() }, 5), Err(Refusal::Ignore));
        assert_eq!(parse(Fields { dst_cid: 1, ..fields() }, 5), Err(Refusal::Ignore));
    }

    #[test]
    fn another_socket_type_is_reset_unless_it_is_a_reset() {
        assert_eq!(parse(Fields { kind: 2, ..fields() }, 5), Err(Refusal::Reset(PORTS)));
        assert_eq!(parse(Fields { kind: 2, op: 3, ..fields() }, 5), Err(Refusal::Ignore));
    }

    #[test]
    fn an_unknown_operation_is_reset() {
        assert_eq!(parse(Fields { op: 0, ..fields() }, 5), Err(Refusal::Reset(PORTS)));
        assert_eq!(parse(Fields { op: 8, ..fields() }, 5), Err(Refusal::Reset(PORTS)));
    }

    #[test]
    fn only_data_has_a_length() {
        let request = Fields { op: 1, len: u32::MAX, ..fields() };
        assert_eq!(parse(request, 0).unwrap().len, 0);
    }

    #[test]
    fn a_shutdown_says_which_directions_ended() {
        for (flags, receive, send) in
            [(0, false, false), (1, true, false), (2, false, true), (3, true, true)]
        {
            let packet = parse(Fields { op: 4, flags, ..fields() }, 0).unwrap();
            assert_eq!(packet.op, Op::Shutdown(Shutdown { receive, send }));
        }
    }

    #[test]
    fn what_we_write_names_both_sides_rightly() {
        let credit = Credit { buf_alloc: 1, fwd_cnt: 2 };
        let raw = encode(CID, PORTS, Op::Shutdown(Shutdown::BOTH), 0, credit);
        let fields = Fields::decode(&raw);
        assert_eq!((fields.src_cid, fields.src_port), (HOST_CID, PORTS.host));
        assert_eq!((fields.dst_cid, fields.dst_port), (CID, PORTS.guest));
        assert_eq!((fields.op, fields.flags, fields.kind), (4, 3, TYPE_STREAM));
    }

    proptest! {
        #[test]
        fn any_header_decodes_and_encodes_back(raw in proptest::array::uniform32(any::<u8>()), tail in any::<[u8; 12]>()) {
            let mut whole = [0; HEADER_BYTES];
            whole[..32].copy_from_slice(&raw);
            whole[32..].copy_from_slice(&tail);
            prop_assert_eq!(Fields::decode(&whole).encode(), whole);
        }

        #[test]
        fn a_packet_never_claims_more_than_there_is(
            len in any::<u32>(), op in 0u16..9, kind in 0u16..3, available in 0usize..200_000,
        ) {
            if let Ok(packet) = parse(Fields { len, op, kind, ..fields() }, available) {
                prop_assert!(packet.len as usize <= available);
                prop_assert!(packet.len <= MOST);
            }
        }
    }
}

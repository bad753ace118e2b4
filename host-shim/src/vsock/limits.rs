//! Limits of the vsock device, each with its unit and reason.
//! The compile-time checks at the end keep them consistent with each other.

use std::time::Duration;

/// Bytes of payload in one packet, at most. What Linux' drivers keep to (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_PAYLOAD_BYTES: u32 = 64 * 1024;

/// Bytes that the guest may have on their way on one connection before the host took them: the `buf_alloc` that we
/// announce, and so the most that a connection buffers here. Linux' default for its own sockets.
pub const GUEST_CREDIT_BYTES: u32 = 256 * 1024;

/// Bytes taken by the host since the guest last heard of it, from which on it is told without being asked.
/// A quarter of the credit: the guest never runs dry while the host keeps up, and a packet pays for 64 KiB.
pub const CREDIT_UPDATE_BYTES: u32 = GUEST_CREDIT_BYTES / 4;

/// Bytes that one connection may send to the guest before the next one has its turn.
pub const TURN_BYTES: u32 = 64 * 1024;

/// Packets written to the guest, and packets read from it, before the loop looks at its other events again.
pub const ROUND_PACKETS: u32 = 256;

/// Connections at once, dialled by either side. Each costs one fd here and, with a host that does not read, its credit.
pub const MAX_CONNECTIONS: usize = 4096;

/// Connections at once that the guest dialled: what a guest can make the host allocate by itself is
/// this many fds and this many times [`GUEST_CREDIT_BYTES`] (256 MiB).
pub const MAX_GUEST_DIALED: usize = 1024;

/// Refusals that wait for a free buffer of the guest. When there are as many, no packet of the guest is read until it
/// offers buffers: a guest that floods us waits for itself.
pub const MAX_QUEUED_RESETS: usize = 256;

/// Descriptors in one packet. Linux uses 1 + 17 for 64 KiB in single pages, 45 + 1 where MAX_SKB_FRAGS is raised.
pub const MAX_SEGMENTS: usize = 128;

/// Entries of a virtqueue. QEMU makes them 128 long.
pub const MAX_QUEUE_ENTRIES: u16 = 1024;

/// How long a dialled guest may leave a REQUEST unanswered. Its kernel answers without any program's help,
/// so this only bounds the wait on a guest that is stuck or very slow.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the guest may leave our SHUTDOWN unanswered; then it is sent a RST and the connection forgotten.
/// Linux gives its peers as long (`VSOCK_CLOSE_TIMEOUT`).
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// After the guest is gone: how long the last bytes that it sent may wait without the host taking any of them.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often, meanwhile, a write is tried that no event asked for: a Unix socket reports room only when three quarters
/// of its buffer are free, and a host may read slowly.
pub const DRAIN_RETRY: Duration = Duration::from_secs(1);

/// Bytes of socket buffer asked for on each end of a connection's socket pair (the kernel doubles it for its own
/// bookkeeping, and caps it at `net.core.wmem_max`).
pub const HOST_SOCKET_BYTES: usize = 256 * 1024;

/// A backlog that has emptied keeps at most this many bytes of memory for the next time.
pub const IDLE_BACKLOG_BYTES: usize = 16 * 1024;

const _: () = assert!(MAX_PAYLOAD_BYTES <= GUEST_CREDIT_BYTES);
const _: () = assert!(CREDIT_UPDATE_BYTES < GUEST_CREDIT_BYTES);
const _: () = assert!(MAX_GUEST_DIALED < MAX_CONNECTIONS);
const _: () = assert!(MAX_QUEUE_ENTRIES.is_power_of_two());

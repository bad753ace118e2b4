//! Every limit of the guest, with its unit.

use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource};

// The link between init and agent.

/// Bytes of one message between init and agent; above what any field's own limit adds up to.
pub const LINK_MESSAGE_BYTES: usize = 64 * 1024;
/// File descriptors on one message: the kernel's SCM_MAX_FD.
pub const LINK_MESSAGE_FDS: usize = 253;
/// Bytes of an error's cause chain; what is longer loses its end.
pub const REASON_BYTES: usize = 16 * 1024;
/// Messages that may wait for an agent that does not read; beyond, it is taken for wedged.
pub const LINK_QUEUE_MESSAGES: usize = 16 * 1024;
/// Messages that init reads from the agent before it looks at anything else again.
pub const LINK_READS_PER_TURN: usize = 64;

// What init keeps.

/// File descriptors in safe keeping.
pub const KEPT_FDS: usize = 64 * 1024;
/// Of these, how many ride on one message to a new agent: with names as long as they may be, more
/// would not fit into [`LINK_MESSAGE_BYTES`].
pub const KEPT_PER_MESSAGE: usize = 32;
/// Bytes of a key, and of a name below it; a stream id has up to 512.
pub const KEPT_NAME_BYTES: usize = 1024;
/// Launches under way at the same time.
pub const LAUNCHES: usize = 1024;

// Deadlines.

/// How long a launcher may take when nothing else is configured, hooks not counted.
pub const LAUNCHER_DEADLINE: Duration = Duration::from_secs(60);
/// Time between two pings of the agent.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// Pings in a row that an agent may leave unanswered.
pub const HEARTBEAT_MISSES: u32 = 5;
/// How long an agent that has closed the link may take to end.
pub const AGENT_END: Duration = Duration::from_secs(1);
/// How long the rest of a failed launch may take to die, after SIGKILL.
pub const CLEANING: Duration = Duration::from_secs(5);
/// Configs that are parsed ahead of their container's Create.
pub const FORESEEN: usize = 4;
/// How long a launcher that was forked ahead is kept without being needed.
pub const SPARE_KEPT: Duration = Duration::from_secs(5);
/// How often it is looked for.
pub const CLEANING_LOOK: Duration = Duration::from_millis(5);
/// When a message that the kernel had no memory for is tried again.
pub const LINK_RETRY: Duration = Duration::from_millis(10);
/// Children that init reaps before it looks at anything else again.
pub const REAPED_PER_TURN: usize = 256;
/// Each step of the VM's end, when nothing else is configured.
pub const STOP_STEP: Duration = Duration::from_secs(10);
/// How many times that the agent has for its own steps, the containers' grace not counted: see
/// `agent/power.rs`, which has four, and one to spare.
pub const STOP_STEPS_BY_AGENT: u32 = 5;
/// What the stop report names at most.
pub const REPORT_LINES: usize = 24;
/// Bytes of each; a line on the console has room for all of them.
pub const REPORT_LINE_BYTES: usize = 160;

/// From serving to the look for an injected supervisor, when there is no extras disk.
pub const SUPERVISOR_DELAY: Duration = Duration::from_secs(2);

// Resources.

/// What stays for init, agent and kernel when containers take all memory, in bytes.
pub const RESERVED_MEMORY: u64 = 64 * 1024 * 1024;
/// Processes and threads that stay for init, agent, launchers and kernel when containers take all.
pub const RESERVED_PROCESSES: u64 = 512;
/// What the kernel does not take from init and agent under memory pressure, in bytes.
pub const SELF_MEMORY_MIN: u64 = 32 * 1024 * 1024;
/// cgroup v2's largest cpu.weight.
pub const SELF_CPU_WEIGHT: u32 = 10_000;
/// Limits of init and agent: resource, soft, hard.
pub const SELF_RLIMITS: &[(Resource, u64, u64)] = &[
    (Resource::RLIMIT_NOFILE, 1024 * 1024, 1024 * 1024),
    (Resource::RLIMIT_CORE, 0, RLIM_INFINITY),
];
/// Limits that a container's process starts with, unless its spec says otherwise.
pub const CONTAINER_RLIMITS: &[(Resource, u64, u64)] =
    &[(Resource::RLIMIT_NOFILE, 1024, 1024 * 1024), (Resource::RLIMIT_CORE, 0, RLIM_INFINITY)];
/// oom_score_adj of the agent: of all processes it dies last (PID 1 never does).
pub const AGENT_OOM_SCORE_ADJ: i32 = -999;
/// Connections that wait for the agent's accept, on each listener.
pub const LISTEN_BACKLOG: i32 = 128;
/// Bytes of a host name: the kernel's limit.
pub const HOSTNAME_BYTES: usize = 64;

// Log.

/// Bytes of a line that the kernel's log takes (it refuses 1024, priority included).
pub const LOG_KMSG_BYTES: usize = 960;
/// Bytes of a line on the console.
pub const LOG_CONSOLE_BYTES: usize = 4096;

/// Bytes of the supervisor's log; then it becomes the old one, and a new one begins.
pub const SUPERVISOR_LOG_BYTES: u64 = 1024 * 1024;
/// Bytes that the supervisor may lie ahead of its log, while an agent is replaced for example.
pub const SUPERVISOR_PIPE_BYTES: usize = 256 * 1024;
/// Bytes of a line of the supervisor's that is shown on the console.
pub const SUPERVISOR_LINE_BYTES: usize = 2048;

// What the agent takes from an extras disk.

/// Entries of an archive.
pub const EXTRAS_ENTRIES: u64 = 1024 * 1024;
/// Messages about entries that are refused; of further ones only the number is told.
pub const EXTRAS_MESSAGES: u64 = 64;
/// What of the memory all files together may have: one part in so many.
pub const EXTRAS_SHARE_OF_MEMORY: u64 = 2;
/// Bytes that are read from the disk at once.
pub const EXTRAS_BUFFER_BYTES: usize = 256 * 1024;
/// Bytes of a name, and of a link's target: the kernel's PATH_MAX with its NUL.
pub const EXTRAS_NAME_BYTES: usize = 4095;
/// Directories above each other.
pub const EXTRAS_NAME_DEPTH: usize = 128;
/// Bytes of an archive's header beyond the first block: a name and a link's target of the longest
/// kind, and what else a pax header has.
pub const TAR_META_BYTES: u64 = 32 * 1024;

// What the agent takes from the host.

/// Bytes of a container's or exec's id; containerd's have at most 76.
pub const ID_BYTES: usize = 128;
/// Bytes of a bundle's file name: the kernel's NAME_MAX.
pub const FILE_NAME_BYTES: usize = 255;
/// Files of one bundle.
pub const BUNDLE_FILES: usize = 64;
/// Bytes of a bundle's files together; a ttrpc message has at most 4 MiB.
pub const BUNDLE_BYTES: usize = 4 * 1024 * 1024;
/// Device rules of one container.
pub const DEVICE_RULES: usize = 1024;
/// Mounts of one rootfs.
pub const ROOTFS_MOUNTS: usize = 256;
/// Options of one mount.
pub const MOUNT_OPTIONS: usize = 1024;
/// Bytes of a virtio disk's serial number: the device's limit.
pub const SERIAL_BYTES: usize = 20;
/// Bytes of a partition's label: 36 characters of a GPT, in UTF-8.
pub const PARTITION_LABEL_BYTES: usize = 108;
/// Lines of the kernel's log about a device that an error has.
pub const COMPLAINT_LINES: usize = 4;
/// Bytes of a record of the kernel's log: its own limit is below 2 KiB.
pub const KMSG_RECORD_BYTES: usize = 4096;
/// Disks, and partitions of one, that an error lists.
pub const DISKS_TOLD: usize = 16;
/// Mounts of the Mount service.
pub const HOST_MOUNTS: usize = 1024;
/// Bytes of a path: the kernel's PATH_MAX, without the NUL.
pub const PATH_BYTES: usize = 4095;
/// Bytes of one source, target or option of a mount once its templates are replaced. 256 layers in
/// a bundle with the longest id take three quarters of it.
pub use vminitd_protocol::templates::MOUNT_TEXT_BYTES;
/// Bytes of all of these of one list.
pub const MOUNT_LIST_BYTES: usize = 1024 * 1024;
/// Processes, and mounts, that the error about a mount in use names.
pub const BUSY_TOLD: usize = 8;
/// Ranges of a `uidmap=` or `gidmap=`: the kernel's UID_GID_MAP_MAX_EXTENTS.
pub const ID_RANGES: usize = 340;
/// Connections to the RPC port at the same time; further ones are closed at once.
pub const RPC_CONNECTIONS: usize = 256;
/// Stream handshakes under way at the same time; further connections wait.
pub const STREAM_HANDSHAKES: usize = 128;
/// Streams that no process has claimed.
pub const UNCLAIMED_STREAMS: usize = 1024;
/// Events that are kept for those who ask later; also what may wait for one subscriber, which is
/// dropped when it is slower.
pub const RING_EVENTS: usize = 4096;
/// Bytes of these together.
pub const RING_BYTES: usize = 1024 * 1024;
/// Bytes of one event; of what is longer only the topic is told.
pub const EVENT_BYTES: usize = 64 * 1024;
/// Bytes of a TaskCreate's list of rootfs mounts; a longer one is left out of the event.
pub const EVENT_ROOTFS_BYTES: usize = 32 * 1024;
/// Bytes of a request's namespace; containerd's have at most 76.
pub const NAMESPACE_BYTES: usize = 255;
/// Execs of one container that are not deleted.
pub const EXECS: usize = 4096;
/// Seccomp profiles of which the compiled program is remembered.
pub const SECCOMP_PROFILES: usize = 8;
/// Threads for what can block, at the same time.
pub const BLOCKING_THREADS: usize = 64;

// How long the agent waits.

/// A stream's handshake.
pub const STREAM_HANDSHAKE: Duration = Duration::from_secs(5);
/// How old an unclaimed stream must be to give way to a new one when there are too many.
pub const UNCLAIMED_STREAM_AGE: Duration = Duration::from_secs(60);
/// Output that waits for the host, without progress, before an exit is published without it.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// For a program that takes output to say that it is ready.
pub const LOGGER_READY: Duration = Duration::from_secs(10);
/// For it to end once there is no more output.
pub const LOGGER_END: Duration = Duration::from_secs(10);
/// For a disk that is not there yet, when nothing else is configured.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
/// Silence after which a stream counts as empty once `CloseIO` was called.
pub const STDIN_QUIET: Duration = Duration::from_millis(200);
/// After a named pipe read as ended though it has writers, before it is read again.
pub const FIFO_PAUSE: Duration = Duration::from_millis(10);
/// From SIGTERM to SIGKILL when the VM shuts down.
pub const TERM_TO_KILL: Duration = Duration::from_secs(10);
/// From the last Freeze to a thaw that nobody asked for, when nothing else is configured.
pub const THAW_AFTER: Duration = Duration::from_secs(60);
/// For killed processes to be gone.
pub const KILL_TO_GONE: Duration = Duration::from_secs(10);
/// For a cgroup to freeze or thaw.
pub const FREEZE: Duration = Duration::from_secs(10);
/// How often it is looked whether the last replies and events have left the VM.
pub const LAST_REPLIES_LOOK: Duration = Duration::from_millis(1);
/// Turns of the agent's other tasks before that, so that what is answered is also written.
pub const LAST_REPLIES_TURNS: usize = 8;
/// After an accept that failed for lack of something, before the next.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// From the first connection to its stamp on the console.
pub const FIRST_ACCEPT_PRINTED: Duration = Duration::from_millis(200);
/// How far the clock may be off for a slew, which takes two thousand times as long.
pub const SLEW_MOST: Duration = Duration::from_secs(10);
/// Lines of each section of the diagnostics.
pub const DIAGNOSTICS_LINES: usize = 512;
/// Bytes of the host's for the random pool, at once.
pub const ENTROPY_BYTES: usize = 512;

// How devices are heard of.

/// Bytes of one announcement of the kernel's; its own limit is 2 KiB and a head.
pub const UEVENT_BYTES: usize = 4096;
/// Bytes of announcements that may wait: some hundred disks at once. Beyond, we look ourselves.
pub const UEVENT_ROOM: usize = 1024 * 1024;

// How stdio is moved.

/// Bytes that a process's stdout or stderr may lie ahead of the host; charged to its cgroup. With the kernel's 64 KiB each write
/// of that size costs a change to the agent and back.
pub const OUTPUT_PIPE_BYTES: usize = 1024 * 1024;
/// Most bytes of one splice.
pub const SPLICE_BYTES: usize = 1024 * 1024;
/// Splices of one stream before the others get a turn.
pub const SPLICES_PER_TURN: u64 = 8;

// Networks.

/// Words about networks on the command line.
pub const NETWORKS: usize = 64;
/// Parts of one of them; addresses, name servers or routes of a link that a host may set.
pub const NETWORK_ITEMS: usize = 64;
/// Bytes of a link's name: the kernel's IFNAMSIZ less its NUL.
pub const LINK_NAME_BYTES: usize = 15;
/// Name servers of resolv.conf: what C libraries read.
pub const NAME_SERVERS: usize = 3;
/// Bytes of a bundle's nw-config.json.
pub const NETWORK_CONFIG_BYTES: usize = 64 * 1024;
/// After this long without a link that was configured, the log says so; it is waited for still.
pub const LINK_GRACE: Duration = Duration::from_secs(5);
/// Least lease that is taken: with less, half of the traffic would be about the lease.
pub const LEASE_LEAST: Duration = Duration::from_secs(5);
/// From one unanswered DHCP message to the next: the first, doubling up to the last.
pub const DHCP_RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];
/// DHCP messages without an answer before the client begins anew, or goes on with what it has.
pub const DHCP_TRIES: u32 = 4;
/// Least time between two requests to renew a long lease.
pub const DHCP_RENEW_RETRY: Duration = Duration::from_secs(60);
/// Routes of one lease.
pub const DHCP_ROUTES: usize = 64;
/// Bytes of a DHCP packet, IP and UDP headers included, that is looked at.
pub const DHCP_BYTES: usize = 2048;

const _: () = assert!(REPORT_LINES * (REPORT_LINE_BYTES + 2) + 128 <= LOG_CONSOLE_BYTES);
const _: () = assert!(EVENT_BYTES <= RING_BYTES && EVENT_ROOTFS_BYTES < EVENT_BYTES);
const _: () = assert!((KEPT_PER_MESSAGE + 1) * (KEPT_NAME_BYTES + 8) < LINK_MESSAGE_BYTES);
const _: () =
    assert!(KEPT_PER_MESSAGE <= LINK_MESSAGE_FDS && REASON_BYTES * 2 < LINK_MESSAGE_BYTES);

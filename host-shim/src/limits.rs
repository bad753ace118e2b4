//! Every limit of the host side but the vsock device's, each with its unit and reason.

use std::time::Duration;

/// Least memory of a VM in bytes: our guest unpacks itself and serves in less, but not with anything to do.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;

/// Most memory of a VM in bytes: what QEMU's q35 and a 40-bit physical address space take.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// Most CPUs of a VM: what q35 takes without an interrupt remapper.
pub const MAX_CPUS: u32 = 255;

/// Bytes of a kernel command line: x86_64's COMMAND_LINE_SIZE less the final NUL (arm64 takes as many), less what
/// the driver adds in front.
pub const MAX_CMDLINE_BYTES: usize = 2047 - MAX_DRIVER_CMDLINE_BYTES;

/// Bytes that a driver may put in front of an owner's command line.
pub const MAX_DRIVER_CMDLINE_BYTES: usize = 128;

/// Bytes of a virtio-blk serial number (VIRTIO_BLK_ID_BYTES).
pub const MAX_SERIAL_BYTES: usize = 20;

/// Bytes of a virtiofs tag (virtio 1.2, section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;

/// Disks that a VM may start with: eight to a slot of q35. Each takes two or more of some 200 interrupts that a CPU
/// has for devices (99 were seen to work with one CPU, the hundredth not), and the more there are, the longer each
/// takes to be found.
pub const MAX_DISKS: usize = 64;

/// Slots for disks that are attached later: those of one bridge, or as many root ports.
pub const MAX_HOTPLUG_SLOTS: u32 = 31;

/// Shared directories of one VM; each is a process of its own here.
pub const MAX_SHARES: usize = 8;

/// Network interfaces of one VM: a slot of the bus each.
pub const MAX_NICS: usize = 8;

/// Ports of the host that lead to one VM.
pub const MAX_PUBLISHED: usize = 64;

/// Ports that a guest may be allowed to dial.
pub const MAX_GUEST_DIALS: usize = 256;

/// Bytes of a VM's name.
pub const MAX_NAME_BYTES: usize = 64;

/// Bytes of one message between owner and vminit-vmm; the largest, a description, has a few KiB.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// File descriptors with one message: kernel, initramfs, disks, console (Linux takes 253).
pub const MAX_MESSAGE_FDS: usize = 3 + MAX_DISKS;

/// Messages that wait to be written to an owner that does not read; then what produces them waits.
pub const OUTBOX_MESSAGES: usize = 1024;

/// Notices of guest-dialled connections among them; then further ones are closed at once.
pub const MAX_QUEUED_DIALS: usize = 256;

/// Bytes of a child's stderr that are kept for an error message: its end.
pub const STDERR_TAIL_BYTES: usize = 4 << 10;

/// Bytes of the guest's console that the owner keeps in memory: its end.
pub const CONSOLE_TAIL_BYTES: usize = 256 << 10;

/// Bytes of the guest's console that the owner writes to a file at most: a guest that floods its console does not
/// fill the host's disk.
pub const CONSOLE_FILE_BYTES: u64 = 64 << 20;

/// Times at which bytes of the console came that are kept: a whole boot at its most talkative has a tenth.
pub const MAX_CONSOLE_ARRIVALS: usize = 4096;

/// Bytes of a QMP line; QEMU's longest answers to what we ask have some hundred.
pub const MAX_QMP_LINE_BYTES: usize = 64 << 10;

/// Programs that may use a VM's control socket at the same time; each connection to the guest counts as one. Then
/// further ones wait.
pub const MAX_CONTROL_CLIENTS: usize = 1024;

/// How long a client of a control socket may take for its request, which is one small message.
pub const CONTROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of JSON of a container's process, arguments and environment included: Linux takes 6 MiB of both at most
/// (three quarters of the 8 MiB stack), and JSON may write a byte as six.
pub const MAX_PROCESS_JSON_BYTES: u64 = 64 << 20;

/// How long QEMU may take from its start to its QMP greeting. On an idle machine it is 60 ms.
pub const QMP_GREETING_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the probe of an accelerator may boot. A working one needs less than a second.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long QEMU may take to end after it was told to quit; then it is killed.
pub const QUIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a VM may take to end after its guest's stop report; then it is killed. QEMU waits for file servers that
/// stand still. What the guest has flushed is in the host's cache by then.
pub const AFTER_GUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a guest may take to let go of a disk that is detached. Ours takes 100 ms under emulation.
pub const UNPLUG_TIMEOUT: Duration = Duration::from_secs(30);

/// How long QEMU may outlive a helper of its (virtiofsd, the vsock device) until that counts as the cause: when QEMU
/// ends by itself, its helpers may be seen to end first, on a busy machine by more than 300 ms.
pub const LOST_HELPER_GRACE: Duration = Duration::from_secs(5);

/// How long vminit-vmm waits for its children after it has killed them.
pub const REAP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a VM may take from its Start until it runs. On an idle machine it is half a second; QEMU's own limits, for
/// its greeting and for the probe before it, together stay below.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the guest of a VM that is said to start is dialled meanwhile: one that answers runs.
pub const START_PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// How often another's program (vfkit) is asked whether its VM runs, while it is started.
pub const EXTERNAL_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long such a program may take to answer.
pub const EXTERNAL_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of its answer; the longest that we ask for has some hundred.
pub const MAX_EXTERNAL_ANSWER_BYTES: u64 = 64 << 10;

/// Bytes of a Unix socket's path on macOS, less the final NUL (sun_path); Linux takes a few more.
pub const MAX_SOCKET_PATH_BYTES: usize = 103;

/// A process that is killed within this time from its start was killed at its exec.
pub const AT_EXEC: Duration = Duration::from_secs(1);

/// How long a guest may take to answer after the host has slept, until its connection counts as dead.
pub const WAKE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// After a VM's end: how long connections may hold bytes that the owner has yet to read.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(11);

/// How much longer the time with the machine's sleep may be than the time without, between two looks, until it counts
/// as a sleep: two clocks are never read at the very same time.
pub const SLEEP_GAP: Duration = Duration::from_secs(1);

const _: () =
    assert!(QMP_GREETING_TIMEOUT.as_secs() + PROBE_TIMEOUT.as_secs() < START_TIMEOUT.as_secs());
const _: () = assert!(MAX_MESSAGE_FDS <= 253);
const _: () = assert!(MAX_CMDLINE_BYTES > 1024);
const _: () = assert!(MAX_QUEUED_DIALS < OUTBOX_MESSAGES);

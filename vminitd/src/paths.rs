//! Every path in the guest's filesystem that init, the launcher and the agent name.

/// State that must survive the agent; a tmpfs of its own.
pub const STATE_DIR: &str = "/run/vminitd";
/// libcontainer's state, a directory per container.
pub const LIBCONTAINER_DIR: &str = "/run/vminitd/lc";
/// What the agent records of its containers, a directory per container.
pub const CONTAINERS_DIR: &str = "/run/vminitd/containers";
/// What a container's processes may do, below its record's directory; see `link/confinement.rs`.
pub const CONFINEMENT: &str = "confinement";
/// What the agent records of networks, and the files that tell programs of them.
pub const NETWORK_DIR: &str = "/run/vminitd/network";
/// A bundle's wishes about networks, below the bundle.
pub const BUNDLE_NETWORKS: &str = "nw-config.json";
/// Bundles, on a tmpfs of their own: a root filesystem below must not share one with /run.
pub const BUNDLES_DIR: &str = "/run/bundles";
/// A bundle's configuration, below the bundle.
pub const BUNDLE_CONFIG: &str = "config.json";

/// The one cgroup v2 hierarchy.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Init, agent and launchers.
pub const CGROUP_SELF: &str = "/sys/fs/cgroup/vminitd";
/// All containers, a directory per container.
pub const CGROUP_CONTAINERS: &str = "/sys/fs/cgroup/containers";
/// The same as it stands in a spec's `linux.cgroupsPath`: relative to the hierarchy's root.
pub const CGROUP_CONTAINERS_IN_SPEC: &str = "/containers";

/// Disks, with their partitions below them.
pub const SYS_BLOCK: &str = "/sys/block";
/// Disks and partitions side by side.
pub const SYS_CLASS_BLOCK: &str = "/sys/class/block";
/// Device nodes, which the kernel makes.
pub const DEV: &str = "/dev";

/// CPUs and memory blocks, a directory each below `cpu` and `memory`.
pub const SYS_DEVICES: &str = "/sys/devices/system";
/// The kernel's configuration, compressed.
pub const KERNEL_CONFIG: &str = "/proc/config.gz";
/// Input devices.
pub const DEV_INPUT: &str = "/dev/input";

/// Where the system's console is.
pub const CONSOLE: &str = "/dev/console";
/// The kernel's log.
pub const KMSG: &str = "/dev/kmsg";
/// Whether user space may write to the kernel's log as often as it likes.
pub const PRINTK_DEVKMSG: &str = "/proc/sys/kernel/printk_devkmsg";
/// How many processes and threads there may be, and the highest number of one.
pub const THREADS_MAX: &str = "/proc/sys/kernel/threads-max";
/// See [`THREADS_MAX`].
pub const PID_MAX: &str = "/proc/sys/kernel/pid_max";
/// The kernel's console log levels; the first figure counts.
pub const PRINTK: &str = "/proc/sys/kernel/printk";
/// Whether RCU grace periods are as short as can be.
pub const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";
/// The kernel command line.
pub const CMDLINE: &str = "/proc/cmdline";

/// This process's executable.
pub const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// This process's place in the order in which the kernel kills for memory.
pub const OWN_OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// The environment of init, agent and launchers.
pub const ENVIRONMENT: &[(&str, &str)] =
    &[("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/")];

/// Which boot this is.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the first PTP clock calls itself.
pub const PTP_NAME: &str = "/sys/class/ptp/ptp0/clock_name";

/// The first PTP clock.
pub const PTP_CLOCK: &str = "/dev/ptp0";
/// The socket in libcontainer's directory of a container on which its init waits for its start.
pub const NOTIFY_SOCKET: &str = "notify.sock";
/// The named pipe beside a container's record on which an init that was made by a plan waits.
pub const START_PIPE: &str = "start";
/// The NIS domain name of a process's own uts namespace.
pub const DOMAIN_NAME: &str = "/proc/sys/kernel/domainname";
/// Where output goes that nobody takes any more.
pub const NULL: &str = "/dev/null";
/// Where a container's terminals come from.
pub const PTMX: &str = "/dev/ptmx";
/// Who the users of a container are.
pub const PASSWD: &str = "/etc/passwd";
/// This process's descriptors, by number.
pub const OWN_FDS: &str = "/proc/self/fd";
/// The kernel's processes, by pid.
pub const PROC: &str = "/proc";

/// Where the injected supervisor may be, in the order in which it is looked for.
pub const SUPERVISOR_PROGRAMS: &[&str] =
    &["/run/spin-stack/spin-supervisor", "/var/lib/spin-stack/bin/spin-supervisor"];
/// Its pid, as long as it runs.
pub const SUPERVISOR_PID: &str = "/run/spin-supervisor.pid";
/// What it writes to its standard output and error.
pub const SUPERVISOR_LOG: &str = "/var/log/spin-supervisor.log";
/// The same, before.
pub const SUPERVISOR_OLD_LOG: &str = "/var/log/spin-supervisor.log.1";
/// The supervisor and what it starts.
pub const CGROUP_SUPERVISOR: &str = "/sys/fs/cgroup/supervisor";
/// What changes while a system runs.
pub const VAR: &str = "/var";
/// That this boot's extras were extracted.
pub const EXTRAS_DONE: &str = "/run/vminitd/extras-done";

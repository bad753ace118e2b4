//! The command line: one table, from which help and `docs/cli.md` come.
//!
//! Promises: every option says its default, its unit and what it is good for; nothing is described twice.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use host_shim::container::{TmpfsWish, VolumeWish};
use host_shim::ctl::Selector;
use host_shim::dials::GuestDial;
use host_shim::external::Choice;
use host_shim::extras::Extra;
use host_shim::images::wish::ImageWish;
use host_shim::vm::{Arch, MemorySize, Published, VmName};

/// Runs containers, each in a small VM of its own.
#[derive(Parser)]
#[command(name = "vminitctl", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What vminitctl can do.
#[derive(Subcommand)]
pub enum Command {
    /// Boot a VM, run a command in it as a container, and exit with its status
    ///
    /// The command's stdout and stderr are passed on byte by byte, signals are forwarded, and the
    /// exit status is the command's (128 + signal when it was killed). 125: vminitctl failed;
    /// 126: the command cannot be executed; 127: it was not found. A second SIGINT or SIGTERM
    /// within two seconds kills the command.
    ///
    /// Example:
    ///     vminitctl run --rootfs ./rootfs -- sh -c 'echo out; echo err >&2; exit 3'
    #[command(verbatim_doc_comment)]
    Run(Box<RunArgs>),

    /// Run a further command in the container of a VM that runs
    ///
    /// The command runs beside the container's own, in its namespaces and cgroup, with its user,
    /// capabilities and environment unless options say otherwise. Its stdout, stderr and exit
    /// status are passed on as `vminitctl run` does it, signals are forwarded. It ends with the
    /// container. 125: vminitctl failed; 126: the command cannot be executed; 127: it was not found.
    ///
    /// Examples:
    ///     vminitctl exec -t sh
    ///     vminitctl exec --name web --user 1000:1000 --cwd /tmp -- ls -l
    ///     vminitctl exec -i --name db -- sh -c 'cat >/tmp/dump' <dump
    #[command(verbatim_doc_comment)]
    Exec(Box<ExecArgs>),

    /// Take part in a running task of containerd: see what it writes from now on, and type
    ///
    /// Nothing is taken away from whoever runs it: containerd's own client sees all of it, too.
    /// On a terminal Ctrl-] leaves, and the task runs on; then the exit status is 0. Else it is the
    /// task's, when that has ended. With input that is no terminal, its end ends nothing.
    ///
    /// Examples:
    ///     vminitctl attach 4f3a
    ///     echo quit | vminitctl attach --container sidecar k8s.io/4f3a
    #[command(verbatim_doc_comment)]
    Attach(AttachArgs),

    /// Ask after the supervisor that was injected into a VM, stop it, or start it
    ///
    /// A supervisor is a program of the VM's owner beside the container (see --extra of
    /// `vminitctl run` and docs/supervisor.md). Prints how it is, also after a stop or start.
    /// Exit status: 0 when it is as asked (for `status`: it runs), 3 when it does not run,
    /// 4 when the VM has none, 125 when vminitctl failed.
    ///
    /// Examples:
    ///     vminitctl supervisor status
    ///     vminitctl supervisor stop web --json
    #[command(verbatim_doc_comment)]
    Supervisor(SupervisorArgs),

    /// List the VMs that run, one per line: name, process id and command
    ///
    /// These are the VMs that `vminitctl run` of this user has started and, for root, those of containerd's
    /// containers, as NAMESPACE/ID.
    ///
    /// Examples:
    ///     vminitctl list
    ///     vminitctl ps --json | jq -r .name
    #[command(verbatim_doc_comment, visible_alias = "ps")]
    List(ListArgs),

    /// Print what happens to a VM's containers, as it happens
    ///
    /// One event a line: created, started, exited, out of memory, paused, an exec added... Ends with the VM.
    ///
    /// Examples:
    ///     vminitctl events web
    ///     vminitctl events --all --json k8s.io/4f3a | jq .topic
    #[command(verbatim_doc_comment)]
    Events(EventsArgs),

    /// Print what a VM's container uses: CPU, memory, processes, disks
    ///
    /// Counters of its cgroup since it was started.
    ///
    /// Example:
    ///     vminitctl stats --json web
    #[command(verbatim_doc_comment)]
    Stats(StatsArgs),

    /// Send a signal to a VM's container
    ///
    /// SIGTERM, unless another is given. Not to the VM: see `vminitctl stop` for that.
    ///
    /// Example:
    ///     vminitctl kill --signal HUP web
    #[command(verbatim_doc_comment)]
    Kill(KillArgs),

    /// Print what a VM's guest has printed on its console: kernel and vminitd
    ///
    /// Read from the file on this host; the guest need not answer.
    ///
    /// Example:
    ///     vminitctl console --follow web
    #[command(verbatim_doc_comment)]
    Console(ConsoleArgs),

    /// Print what vminitd itself has said on the console of a VM
    ///
    /// The lines of init, agent and launchers, without the kernel's. What a container writes is not there: it goes to
    /// whoever runs it.
    ///
    /// Example:
    ///     vminitctl logs --tail 20 web
    #[command(verbatim_doc_comment)]
    Logs(ConsoleArgs),

    /// Run a command of a toolbox (busybox) in the namespaces of a VM's container
    ///
    /// For containers without a shell, and to look at one from beside it: same processes, network, IPC and host name,
    /// but a root filesystem and capabilities of its own; the container's root is /proc/1/root. Without a command it is
    /// a shell. It is gone when it ends, the container does not notice it.
    ///
    /// Examples:
    ///     vminitctl debug -t web
    ///     vminitctl debug web -- netstat -tln
    #[command(verbatim_doc_comment)]
    Debug(Box<DebugArgs>),

    /// Look for what this host lacks, and say what to do about it
    ///
    /// Host, kernel, the guest's files, containerd and its snapshotters. Looks only: nothing is changed or started.
    /// Exit status: 1 when something that is needed is missing. As root it sees more.
    ///
    /// Examples:
    ///     vminitctl doctor
    ///     vminitctl doctor --arch arm64
    #[command(verbatim_doc_comment)]
    Doctor(DoctorArgs),

    /// End a VM: stop its container, write everything back, power off
    ///
    /// The container gets SIGTERM, and SIGKILL after --timeout; its output is handed over, disks are
    /// written back. What was still busy or dirty is said on stderr. 0: the VM has ended by itself;
    /// 1: it did not, and was killed; 125: vminitctl failed. The `vminitctl run` that owns the VM ends
    /// with its command's status (143 when SIGTERM ended that).
    ///
    /// Examples:
    ///     vminitctl stop
    ///     vminitctl stop web --timeout 2
    #[command(verbatim_doc_comment)]
    Stop(StopArgs),

    /// Print what a VM's guest is and can do: versions, services, limits
    ///
    /// Example:
    ///     vminitctl features web
    #[command(verbatim_doc_comment)]
    Features(VmArgs),

    /// Print a VM's figures in the Prometheus text format
    ///
    /// Of the agent, of each container, of streams and events. No VM listens on a port of the host:
    /// who scrapes calls this.
    ///
    /// Example:
    ///     vminitctl metrics web >/var/lib/node_exporter/web.prom
    #[command(verbatim_doc_comment)]
    Metrics(VmArgs),

    /// Print what a VM's guest knows of itself, for a report of what is wrong
    ///
    /// The state of every container, process, stream, thread, mount and descriptor. Answered also
    /// while containers or calls hang.
    ///
    /// Example:
    ///     vminitctl diag web
    #[command(verbatim_doc_comment)]
    Diag(VmArgs),

    /// Print what is made from this table
    #[command(hide = true)]
    Generate {
        /// What to print
        what: Generated,
        /// Directory for manual pages
        into: Option<PathBuf>,
    },
}

/// What can be made from the table.
#[derive(Clone, Copy, ValueEnum)]
pub enum Generated {
    /// docs/cli.md
    Markdown,
    /// Manual pages, into a directory
    Man,
    /// Completion for bash
    Bash,
    /// Completion for zsh
    Zsh,
    /// Completion for fish
    Fish,
}

/// Options of `vminitctl run`.
#[derive(Args)]
pub struct RunArgs {
    /// Directory of the host with the root filesystem; it never changes
    ///
    /// It is shared with the VM read-only; what the container writes goes to a tmpfs above it and is gone with the VM.
    /// Example: --rootfs ./rootfs
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Container",
        required_unless_present_any = ["bundle", "image"]
    )]
    pub rootfs: Option<PathBuf>,

    /// Disk image with the root filesystem, or a layer of it; may be repeated
    ///
    /// An erofs, ext4 or squashfs image, or a block device; which of them is found out when it is not said. Read-only
    /// ones lie upon each other: the first at the bottom, each further one on top of those before it. An ext4 image
    /// without ",ro" is written to: with others it is the top, whatever its place (in its directory "upper"), alone
    /// it is the root filesystem. Without a writable one, what is written goes to a tmpfs and is gone with the VM.
    /// serial= is the disk's name in the guest. Where there are more images than a VM has slots, the read-only ones
    /// without serial= become partitions of one disk, for which they are copied to TMPDIR. Two VMs can share an image
    /// that both have read-only. Examples: --image root.erofs --image state.ext4; --image root.ext4,ro
    #[arg(
        long,
        value_name = "FILE[,FSTYPE][,ro][,serial=S]",
        help_heading = "Container",
        action = ArgAction::Append,
        conflicts_with = "rootfs"
    )]
    pub image: Vec<ImageWish>,

    /// OCI bundle: directory with config.json and a root filesystem
    ///
    /// The root filesystem that config.json names is shared as with --rootfs, unless --image gives another. Files and
    /// directories of the host that its mounts bind are shared as with --volume. A CMD replaces the bundle's own.
    /// Where process.terminal is true, --tty is implied.
    #[arg(long, value_name = "DIR", help_heading = "Container", conflicts_with = "rootfs")]
    pub bundle: Option<PathBuf>,

    /// Directory or file of the host in the container; may be repeated
    ///
    /// It is shared by virtiofs and what is written there is written on the host, unless :ro is said: then the VM
    /// cannot write it, whatever runs in it. Of a file the VM sees nothing that lies beside it; a file that is
    /// replaced on the host (as editors do) stays the old one. GUEST is made if it is not there.
    /// Examples: --volume ./data:/data; --volume ./app.conf:/etc/app.conf:ro
    #[arg(
        long,
        value_name = "HOST:GUEST[:ro]",
        help_heading = "Container",
        action = ArgAction::Append
    )]
    pub volume: Vec<VolumeWish>,

    /// Empty directory of the container in the VM's memory; may be repeated
    ///
    /// With size=, mode= (default 1777), uid=, gid=, nr_inodes=, ro and noexec, after a colon and parted by commas.
    /// Example: --tmpfs /scratch:size=64M,mode=0700
    #[arg(
        long,
        value_name = "PATH[:OPTIONS]",
        help_heading = "Container",
        action = ArgAction::Append
    )]
    pub tmpfs: Vec<TmpfsWish>,

    /// Connect stdin; without it the command reads an empty file
    ///
    /// Its end is passed on. Example: tar c . | vminitctl run -i --rootfs DIR -- tar x -C /data
    #[arg(short, long, help_heading = "Container")]
    pub interactive: bool,

    /// Give the command a terminal, connected to ours
    ///
    /// Every key goes to the command, so Ctrl-C is its SIGINT; it learns our window's size and TERM; what it writes to
    /// stderr is part of stdout. Includes --interactive. Stdin must be a terminal; it is as before when we end, however
    /// we end.
    #[arg(short, long, help_heading = "Container")]
    pub tty: bool,

    /// Set an environment variable; may be given more than once
    ///
    /// It replaces one of the same name. KEY alone passes on the value that it has here. Example: -e LANG=C -e HOME
    #[arg(short, long = "env", value_name = "KEY=VALUE", help_heading = "Container", action = ArgAction::Append)]
    pub env: Vec<String>,

    /// Memory of the VM, in bytes or with a unit: 512M, 2G
    ///
    /// From 64M up. The guest keeps 64M of it to itself, the container may use the rest.
    #[arg(long, value_name = "SIZE", default_value = "512M", help_heading = "VM")]
    pub memory: MemorySize,

    /// CPUs of the VM
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "VM")]
    pub cpus: u32,

    /// Architecture of the guest: x86_64 or arm64 [default: this machine's]
    ///
    /// The command's files are to be of the same. One that is not this machine's own is emulated, which is many times slower.
    /// Example: --arch arm64
    #[arg(
        long,
        value_name = "ARCH",
        env = "VMINITD_ARCH",
        hide_env_values = true,
        default_value_t,
        hide_default_value = true,
        help_heading = "VM"
    )]
    pub arch: Arch,

    /// Network of the VM: user, or none [default: none, or user with --publish]
    ///
    /// With "user", the command has the VM's own network (10.0.2.15): it reaches what this machine reaches, as the user
    /// who runs vminitctl, and this machine itself at 10.0.2.2; names are looked up as here. From outside nobody
    /// reaches it but through --publish. No root is needed. With "none" it has a loopback interface.
    /// Example: --net user
    #[arg(long, value_name = "NETWORK", help_heading = "Network", hide_possible_values = true)]
    pub net: Option<Net>,

    /// Pass a port of this machine on to the command; may be given more than once
    ///
    /// As [IP:]HOST:GUEST[/udp]. Without an IP it is on 127.0.0.1: for this machine alone.
    /// Example: --publish 8080:80 --publish 0.0.0.0:5353:53/udp
    #[arg(long, value_name = "HOST:GUEST", help_heading = "Network", action = ArgAction::Append)]
    pub publish: Vec<Published>,

    /// Program to run the VM instead of our own: external:vfkit
    ///
    /// One that is installed (and on macOS signed) and takes vfkit's command line, by name or by path. For Macs that
    /// let no program of ours run VMs. It has no read-only shares: give the root filesystem as --image.
    /// Example: --vmm external:vfkit
    #[arg(long, value_name = "external:PROGRAM", help_heading = "VM")]
    pub vmm: Option<Choice>,

    /// Name by which other commands find the VM [default: made up]
    ///
    /// Also the host name in a container that --rootfs makes. At most 64 letters, digits, '.', '_' and '-', not
    /// beginning with '.' or '-'. As long as the VM runs, ${XDG_RUNTIME_DIR:-/run}/vminitd/NAME is its directory.
    /// Example: --name web
    #[arg(long, value_name = "NAME", help_heading = "VM")]
    pub name: Option<VmName>,

    /// Guest kernel, uncompressed [default: the one installed]
    ///
    /// The one installed is share/vminitd/x86_64/vmlinux (arm64/Image) beside this program's directory.
    #[arg(
        long,
        value_name = "FILE",
        env = "VMINITD_KERNEL",
        hide_env_values = true,
        help_heading = "VM"
    )]
    pub kernel: Option<PathBuf>,

    /// Guest initramfs [default: the one installed]
    ///
    /// The one installed is share/vminitd/x86_64/initramfs.cpio.zst beside this program's directory.
    #[arg(
        long,
        value_name = "FILE",
        env = "VMINITD_INITRAMFS",
        hide_env_values = true,
        help_heading = "VM"
    )]
    pub initramfs: Option<PathBuf>,

    /// Boot from this erofs image instead of an initramfs
    ///
    /// The guest's own root, not the container's: read-only, on the VM's first disk, with our program as
    /// /sbin/vminitd. One is installed as share/vminitd/x86_64/root.erofs beside this program's directory. --initramfs
    /// is of no effect then. Example: --root-image dist/share/vminitd/x86_64/root.erofs
    #[arg(long, value_name = "FILE", help_heading = "VM")]
    pub root_image: Option<PathBuf>,

    /// Add a word to the guest's kernel command line; may be given more than once
    ///
    /// Later words win. Example: --append vminitd.log=debug --append loglevel=7
    #[arg(long, value_name = "WORD", help_heading = "VM", action = ArgAction::Append)]
    pub append: Vec<String>,

    /// Put a host file or directory into the guest itself; may be repeated
    ///
    /// Not the container: the guest around it, a supervisor for example. Packed when the VM starts; modes and symlinks
    /// are kept, everything belongs to root there. Example: --extra ./spin-supervisor:/run/spin-stack/spin-supervisor
    #[arg(long = "extra", value_name = "HOST:GUEST", help_heading = "VM", action = ArgAction::Append)]
    pub extras: Vec<Extra>,

    /// Let the guest dial a port of the host, a Unix socket; may be repeated
    ///
    /// Programs of the guest dial context id 2, port PORT; each connection becomes one to PATH. Other ports are refused.
    /// Containers dial only when their config says so (io.vminitd.vsock=allow). Example: --guest-dial 1027=/run/vm1.sock
    #[arg(long = "guest-dial", value_name = "PORT=PATH", help_heading = "VM", action = ArgAction::Append)]
    pub guest_dials: Vec<GuestDial>,

    /// Say on stderr how long each phase took, in milliseconds
    #[arg(long, help_heading = "Output")]
    pub timings: bool,

    /// Draw boot and container, host and guest, into this SVG file
    ///
    /// A picture of who did what when, in milliseconds on one axis; any browser shows it. The guest's kernel says more
    /// on its console for it, which makes the boot a little longer. Example: --chart boot.svg
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub chart: Option<PathBuf>,

    /// Keep the guest's console in this file
    ///
    /// Without it the console's last lines are shown when something fails, and are gone otherwise. At most 64 MiB are
    /// kept. Example: --console boot.log
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub console: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Options of `vminitctl exec`.
#[derive(Args)]
pub struct ExecArgs {
    /// The VM, as `vminitctl list` shows it [default: the only one that runs]
    ///
    /// A name, a container's id or the beginning of one, with containerd's NAMESPACE/ before it if need be; or the path of
    /// a VM's control socket. Examples: --name web; --name k8s.io/4f3a; --name /run/x/ctl.sock
    #[arg(long, value_name = "VM")]
    pub name: Option<Selector>,

    /// Connect stdin; without it the command reads an empty file
    ///
    /// Its end is passed on. Example: tar c . | vminitctl exec -i -- tar x -C /data
    #[arg(short, long)]
    pub interactive: bool,

    /// Give the command a terminal, connected to ours
    ///
    /// As `vminitctl run --tty` does. Includes --interactive. Stdin must be a terminal.
    #[arg(short, long)]
    pub tty: bool,

    /// Numeric ids to run as [default: the container's]
    ///
    /// Without a group it is 0; supplementary groups there are none. Example: --user 1000:100
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<UserIds>,

    /// Directory of the container to start in [default: the container's]
    ///
    /// Example: --cwd /tmp
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,

    /// Set an environment variable; may be given more than once
    ///
    /// On top of the container's own. KEY alone passes on the value that it has here. Example: -e LANG=C -e HOME
    #[arg(short, long = "env", value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub env: Vec<String>,

    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Options of `vminitctl supervisor`.
#[derive(Args)]
pub struct SupervisorArgs {
    /// What to do
    pub what: SupervisorWish,

    /// The VM, as `vminitctl list` shows it [default: the only one that runs]
    #[arg(value_name = "VM")]
    pub name: Option<Selector>,

    /// Print one line of JSON: state, pid, restarts, next_restart_ms, last_exit
    ///
    /// What there is not is null: no process, no restart planned, no end so far.
    #[arg(long)]
    pub json: bool,
}

/// What can be asked of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SupervisorWish {
    /// Say how it is
    Status,
    /// SIGTERM, then SIGKILL after ten seconds; it stays down until it is started
    Stop,
    /// Start it with a clean slate, also one that was given up
    Start,
}

/// What `--net` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// A network in the process that runs the VM.
    User,
    /// The loopback interface.
    None,
}

/// The VM that a command is about.
#[derive(Args)]
pub struct VmArgs {
    /// The VM, as `vminitctl list` shows it [default: the only one that runs]
    ///
    /// A name, a container's id or the beginning of one, with containerd's NAMESPACE/ before it if need be; or the path of
    /// a VM's control socket. Examples: web; k8s.io/4f3a; /run/x/ctl.sock
    #[arg(value_name = "VM")]
    pub name: Option<Selector>,
}

/// Options of `vminitctl stop`.
#[derive(Args)]
pub struct StopArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Seconds from SIGTERM to SIGKILL [default: the guest's, 10]
    ///
    /// Fractions are fine: 0.5
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Restart the guest instead: its VM ends with the reason "reboot"
    #[arg(long)]
    pub reboot: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| format!("{text:?} is no time; give seconds, as in 10 or 0.5"))
}

/// Options of `vminitctl list`.
#[derive(Args)]
pub struct ListArgs {
    /// Print a line of JSON for each: name, namespace, pid, state, command, socket
    #[arg(long)]
    pub json: bool,
}

/// Options of `vminitctl events`.
#[derive(Args)]
pub struct EventsArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Begin with the first event that the guest still has, not with the next
    #[arg(short, long)]
    pub all: bool,

    /// Print each as a line of JSON: seq, time, topic, event
    #[arg(long)]
    pub json: bool,
}

/// Options of `vminitctl stats`.
#[derive(Args)]
pub struct StatsArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Print one line of JSON, names with their units
    ///
    /// A limit that there is not is null.
    #[arg(long)]
    pub json: bool,
}

/// Options of `vminitctl attach`.
#[derive(Args)]
pub struct AttachArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Another container of the VM than its first: a pod has several
    #[arg(short, long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub container: String,

    /// A process that was executed in it, by containerd's name for it
    #[arg(short, long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub exec: String,

    /// Only look: pass no input on
    #[arg(long)]
    pub no_stdin: bool,
}

/// Options of `vminitctl kill`.
#[derive(Args)]
pub struct KillArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Signal, by name or number
    ///
    /// With or without SIG, in either case: HUP, sigusr1, 9.
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM")]
    pub signal: SignalNumber,

    /// To every process of the container, not only its first
    #[arg(short, long)]
    pub all: bool,
}

/// Options of `vminitctl console` and `logs`.
#[derive(Args)]
pub struct ConsoleArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Go on with what comes, until the VM ends
    #[arg(short, long)]
    pub follow: bool,

    /// Only the last lines of what there is
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
}

/// Options of `vminitctl debug`.
#[derive(Args)]
pub struct DebugArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Connect stdin; without it the command reads an empty file
    #[arg(short, long)]
    pub interactive: bool,

    /// Give the command a terminal, connected to ours; includes --interactive
    #[arg(short, long)]
    pub tty: bool,

    /// Image with the tools instead of the one that comes with vminitctl
    ///
    /// An erofs, squashfs or ext4 image of at most 3 MiB; it is sent to the guest. Example: --toolbox strace.erofs
    #[arg(long, value_name = "FILE")]
    pub toolbox: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Options of `vminitctl doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// Whose guests are meant: x86_64 or arm64 [default: this machine's]
    #[arg(
        long,
        value_name = "ARCH",
        env = "VMINITD_ARCH",
        hide_env_values = true,
        default_value_t,
        hide_default_value = true
    )]
    pub arch: Arch,

    /// Print a line of JSON for each finding: grade, about, what, advice
    #[arg(long)]
    pub json: bool,
}

/// A signal as the guest numbers it, which is Linux' way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalNumber(pub i32);

impl std::str::FromStr for SignalNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number @ 1..=64) = text.parse() {
            return Ok(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let at = SIGNALS.iter().position(|known| *known == name);
        at.map(|at| Self(at as i32 + 1)).ok_or_else(|| {
            format!("{text:?} is no signal; give a name or 1 to 64, as in TERM or 15")
        })
    }
}

/// Linux' signals on x86_64 and arm64, from 1 on (signal(7)).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `UID` or `UID:GID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// The user's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
}

impl std::str::FromStr for UserIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |part: &str| {
            // The last one is "no change" to setuid(2).
            part.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
                format!("{part:?} is no number; give UID or UID:GID, as in 1000 or 1000:100 (names are not looked up)")
            })
        };
        match text.split_once(':') {
            Some((uid, gid)) => Ok(Self { uid: id(uid)?, gid: id(gid)? }),
            None => Ok(Self { uid: id(text)?, gid: 0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn short_help_is_a_line_per_option() {
        for command in Cli::command().get_subcommands() {
            for option in command.get_arguments() {
                let help = option.get_help().map(ToString::to_string).unwrap_or_default();
                let id = option.get_id();
                assert!((1..=75).contains(&help.len()) && !help.contains('\n'), "{id}: {help}");
            }
        }
    }

    #[test]
    fn exec_takes_its_command_with_and_without_two_dashes() {
        for line in
            [&["exec", "-t", "ls", "-l", "--name"][..], &["exec", "-t", "--", "ls", "-l", "--name"]]
        {
            let cli = Cli::try_parse_from([&["vminitctl"], line].concat()).unwrap();
            let Command::Exec(args) = cli.command else { panic!("exec is exec") };
            assert!(args.tty && args.name.is_none());
            assert_eq!(args.command, ["ls", "-l", "--name"]);
        }
    }

    #[test]
    fn timeout_is_seconds_and_an_error_says_so() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "x", "inf", "1s"] {
            assert!(seconds(text).unwrap_err().contains("10 or 0.5"), "{text}");
        }
    }

    #[test]
    fn signal_is_a_name_or_a_number_and_an_error_says_so() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("usr2", 12), ("SYS", 31), ("34", 34)]
        {
            assert_eq!(text.parse(), Ok(SignalNumber(number)), "{text}");
        }
        for text in ["", "0", "65", "SIG", "TERMX"] {
            assert!(text.parse::<SignalNumber>().unwrap_err().contains("TERM or 15"), "{text}");
        }
    }

    #[test]
    fn user_is_one_number_or_two_and_an_error_says_so() {
        assert_eq!("7".parse(), Ok(UserIds { uid: 7, gid: 0 }));
        assert_eq!("7:8".parse(), Ok(UserIds { uid: 7, gid: 8 }));
        for text in ["www", "7:", ":8", "-1", "4294967295", ""] {
            assert!(text.parse::<UserIds>().unwrap_err().contains("1000:100"), "{text}");
        }
    }
}

//! The VM of a task or of a pod: booted with the first container, ended with the shim.
//!
//! Owns: the VM, the connection to its guest, the shared root, ctl.sock.
//! Promises: a boot that fails tells why in the guest's own words, and leaves nothing; the end of the VM is known at
//! once. Never: knows of containers.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use host_shim::chain;
use host_shim::container::user_network;
use host_shim::ctl::{self, About, Attach};
use host_shim::dials;
use host_shim::external::{Choice, ChoiceError};
use host_shim::guest::{
    BOOT_DEADLINE, CallError, Guest, NotServing, Ports, SteadyGuest, unlimited, wake,
};
use host_shim::locate::{self, LocateError};
use host_shim::machine::{BootError, BootOptions, DiskError, Exited, Machine};
use host_shim::socket_path;
use host_shim::vm::{
    Accelerator, Arch, CmdlineError, Description, DescriptionError, Disk, Draft, NameError,
    Published, Serial, Share,
};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::containerd::vminitd::services::mount::v1::{MountAllRequest, MountSpec};
use vminitd_protocol::pb::vminitd::options::v1::Options;
use vminitd_protocol::pb::vminitd::v1::WaitNetworkRequest;

use super::around::{self, AroundError};
use super::cgroup::Cgroup;
use super::network::NetworkChoice;
use super::rootfs::Image;
use super::share::{GUEST_SHARE, MountError, ShareRoot, TAG};
use super::size::{Size, SizeError};
use super::spec::GUEST_SHM;

/// The socket by which other programs reach the guest, in the bundle.
pub const CONTROL: &str = "ctl.sock";

/// What the guest has printed, in the bundle.
const CONSOLE: &str = "console.log";

/// Files for the guest itself, in the bundle.
const EXTRAS: &str = "extras.tar";

/// The shared root, in the bundle.
const SHARE: &str = "share";

/// Lines of the console in the log when a VM ends that should not.
const TAIL_LINES: usize = 30;

/// A VM that serves.
pub struct Sandbox {
    /// The VM.
    pub machine: Arc<Machine>,
    /// What runs in it.
    pub guest: SteadyGuest,
    /// Absent in a VM that needs none of the host's directories.
    pub share: Option<ShareRoot>,
    /// What the network is to be.
    pub network: NetworkChoice,
    /// QEMU's user network is there from the start.
    pub user_network: bool,
    /// The container's id, for who asks by ctl.sock; set when it was started.
    pub started: watch::Sender<Option<String>>,
    disks: AtomicU32,
    control: JoinHandle<()>,
    dials: JoinHandle<()>,
    /// Looks after the guest when the host has slept.
    wakes: JoinHandle<()>,
    /// On the host.
    pub cgroup: Cgroup,
    /// Said when the guest has mounted what all containers share; see [`Sandbox::mounted`].
    mounted: Promised,
    /// The same for the network; see [`Sandbox::network_is_up`].
    network_up: Promised,
}

/// The outcome of what was begun right after the boot and is waited for only where it is needed.
type Promised = watch::Receiver<Option<Result<(), String>>>;

/// What a VM is made for.
pub struct Wish<'a> {
    /// The bundle of the first container.
    pub bundle: &'a Path,
    /// Its id.
    pub id: &'a str,
    /// Its config.
    pub config: &'a Value,
    /// What the client has said.
    pub options: &'a Options,
    /// How large.
    pub size: Size,
    /// Images that are disks from the start; they are `serial:d0`, `serial:d1` and so on.
    pub images: &'a [Image],
    /// Whether directories of the host are needed, now or for a later container.
    pub share: bool,
    /// Who lets others take part in what a container says.
    pub attach: Arc<dyn Attach>,
    /// What the network is to be.
    pub network: NetworkChoice,
    /// The ports of the user network, if it is to be there from the start.
    pub user_network: Option<Vec<Published>>,
}

/// There is no VM.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// What it should be like.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Something is not installed.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A name of it.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Words for the kernel.
    #[error("kernel command line")]
    Cmdline(#[from] CmdlineError),
    /// An annotation or option.
    #[error("io.vminitd.accelerator: {0:?} is none; give auto, hardware or emulation")]
    Accelerator(String),
    /// An annotation.
    #[error("io.vminitd.vmm")]
    VmmChoice(#[from] ChoiceError),
    /// The program itself cannot be found.
    #[error("find this program")]
    Vmm(#[source] std::io::Error),
    /// What annotations put around it.
    #[error(transparent)]
    Around(#[from] AroundError),
    /// All in all.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// The host's side of the shared root.
    #[error(transparent)]
    Share(#[from] MountError),
    /// ctl.sock.
    #[error("make {CONTROL}")]
    Control(#[source] io::Error),
    /// It does not boot.
    #[error("boot the VM")]
    Boot(#[source] BootError),
    /// It ended.
    #[error("the VM ended before it served: {0}")]
    Died(Exited),
    /// It does not serve.
    #[error("boot the VM")]
    NotServing(#[source] NotServing),
}

impl Sandbox {
    /// Boots it; returns when it serves.
    pub async fn boot(wish: Wish<'_>) -> Result<Self, SandboxError> {
        let share = match wish.share {
            true => Some(ShareRoot::make(wish.bundle.join(SHARE))?),
            false => None,
        };
        let sockets = around::dials(wish.config)?;
        let description = describe(&wish, share.as_ref(), &sockets)?;
        let cgroup = Cgroup::enter(wish.config, wish.size.memory.bytes(), wish.bundle);
        let vmm = match said_vmm(&wish)? {
            Some(choice) => choice.vmm().map_err(SandboxError::Vmm)?,
            None => locate::vmm()?.into(),
        };
        let options = BootOptions { vmm, console: wish.bundle.join(CONSOLE) };
        let (machine, dialled) =
            Machine::boot_with_dials(description, options).await.map_err(SandboxError::Boot)?;
        let machine = Arc::new(machine);
        let tell =
            |port, path: &Path, error| warn!(port, ?path, %error, "the guest's dial is refused");
        let dials = tokio::spawn(dials::serve(dialled, sockets, tell));
        info!(
            vmm = machine.vmm_pid(),
            qemu = machine.qemu_pid(),
            accelerator = machine.accelerator(),
            "the VM boots"
        );
        let guest = tokio::select! {
            guest = Guest::connect(machine.clone(), Ports::default(), BOOT_DEADLINE) => guest,
            exited = machine.exited() => {
                tell_tail(&machine);
                return Err(SandboxError::Died(exited));
            }
        };
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) if error.is_over() => {
                tell_tail(&machine);
                return Err(SandboxError::Died(machine.exited().await));
            }
            Err(error) => {
                tell_tail(&machine);
                return Err(SandboxError::NotServing(error));
            }
        };
        info!(after_ms = machine.spawned_at().elapsed().as_millis(), "the guest serves");
        let guest = SteadyGuest::new(guest, BOOT_DEADLINE);
        let tell = |error: &CallError| {
            warn!(error = %chain(error), "the host has slept; the guest's clock is not set");
        };
        let wakes = tokio::spawn(wake::follow(machine.wakes(), guest.clone(), tell));
        let mut mounts =
            vec![mount("tmpfs", "shm", GUEST_SHM, &["nosuid", "nodev", "noexec", "mode=1777"])];
        if share.is_some() {
            mounts.push(mount("virtiofs", TAG, GUEST_SHARE, &[]));
        }
        let mounted = promise(mount_all(guest.clone(), MountAllRequest { mounts }));
        let (started, is_started) = watch::channel(None);
        let control = listen(&wish, machine.clone(), is_started).map_err(SandboxError::Control)?;
        let disks = AtomicU32::new(u32::try_from(wish.images.len()).unwrap_or(u32::MAX));
        let (network, user_network) = (wish.network, wish.user_network.is_some());
        let network_up = promise(network_settles(guest.clone(), user_network));
        Ok(Self {
            machine,
            guest,
            share,
            network,
            user_network,
            started,
            disks,
            control,
            dials,
            wakes,
            cgroup,
            mounted,
            network_up,
        })
    }

    /// Waits until the guest has the shared root: nothing of a container can be made before.
    pub async fn mounted(&self) -> Result<(), String> {
        kept(&self.mounted).await
    }

    /// Waits until the guest's network is as it is to be; what takes too long is told to the log.
    pub async fn network_is_up(&self) {
        if let Err(error) = kept(&self.network_up).await {
            warn!(error, "the guest's network; the task runs without");
        }
    }

    /// Gives the running VM one more disk; returns its name.
    pub async fn attach(&self, image: &Image) -> Result<Serial, DiskError> {
        let serial = serial(self.disks.fetch_add(1, Ordering::Relaxed));
        let disk =
            Disk { serial: serial.clone(), path: image.path.clone(), read_only: image.read_only };
        self.machine.attach_disk(&disk).await?;
        Ok(serial)
    }
}

/// Begins something whose outcome is waited for later, by any number, or by nobody.
fn promise(work: impl Future<Output = Result<(), String>> + Send + 'static) -> Promised {
    let (done, promised) = watch::channel(None);
    tokio::spawn(async move {
        let outcome = work.await;
        done.send_replace(Some(outcome));
    });
    promised
}

async fn kept(promised: &Promised) -> Result<(), String> {
    let mut promised = promised.clone();
    let outcome = promised.wait_for(Option::is_some).await.ok().and_then(|done| done.clone());
    // Its task is never aborted; a defect of it would be seen here.
    outcome.unwrap_or_else(|| Err("defect in the shim".to_owned()))
}

async fn mount_all(guest: SteadyGuest, request: MountAllRequest) -> Result<(), String> {
    let call = |guest: Guest| {
        let request = request.clone();
        async move { guest.mounts().mount_all(unlimited(), &request).await }
    };
    let mounted = guest.call(call).await.map(drop);
    mounted.map_err(|error| format!("mount the shared root in the guest: {}", chain(&error)))
}

async fn network_settles(guest: SteadyGuest, wanted: bool) -> Result<(), String> {
    if !wanted {
        return Ok(());
    }
    let call = |guest: Guest| async move {
        let request = WaitNetworkRequest { timeout_ms: user_network::PATIENCE_MS };
        guest.network().wait(unlimited(), &request).await
    };
    match guest.call(call).await {
        Ok(answer) if answer.settled => Ok(()),
        Ok(_) => Err(format!("not up after {} ms", user_network::PATIENCE_MS)),
        Err(error) => Err(chain(&error)),
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.control.abort();
        self.dials.abort();
        self.wakes.abort();
    }
}

/// A disk's name, by its number.
pub fn serial(number: u32) -> Serial {
    format!("d{number}").parse().expect("a letter and digits are a serial")
}

/// Tells the log what the guest has printed last.
pub fn tell_tail(machine: &Machine) {
    for line in machine.console_tail(TAIL_LINES) {
        error!("console: {line}");
    }
}

/// The annotation that names another's program to run the VM.
fn said_vmm(wish: &Wish<'_>) -> Result<Option<Choice>, SandboxError> {
    let said = wish.config["annotations"]["io.vminitd.vmm"].as_str();
    Ok(said.map(str::parse).transpose()?)
}

fn describe(
    wish: &Wish<'_>,
    share: Option<&ShareRoot>,
    dials: &BTreeMap<u32, PathBuf>,
) -> Result<Description, SandboxError> {
    let annotation = |name: &str| wish.config["annotations"][name].as_str();
    let said = |name: &str, option: &str| {
        let option = (!option.is_empty()).then(|| option.to_owned());
        annotation(name).map(str::to_owned).or(option)
    };
    let path = |name: &str, option: &str| said(name, option).map(PathBuf::from);
    let disk = |(number, image): (usize, &Image)| Disk {
        serial: serial(u32::try_from(number).unwrap_or(u32::MAX)),
        path: image.path.clone(),
        read_only: image.read_only,
    };
    let tag = TAG.to_owned().try_into()?;
    let accelerator = match said("io.vminitd.accelerator", &wish.options.accelerator).as_deref() {
        None | Some("auto") => Accelerator::Auto,
        Some("hardware") => Accelerator::Hardware,
        Some("emulation") => Accelerator::Emulation,
        Some(other) => return Err(SandboxError::Accelerator(other.to_owned())),
    };
    let mut cmdline = said("io.vminitd.append", &wish.options.append).unwrap_or_default();
    let mut nics = Vec::new();
    if let Some(published) = &wish.user_network {
        nics.push(user_network::nic(published.clone(), true));
        cmdline = format!("{} {cmdline}", user_network::word());
    }
    let mut disks: Vec<Disk> = wish.images.iter().enumerate().map(disk).collect();
    let extras = around::extras(wish.config)?;
    if !extras.is_empty() {
        let path = wish.bundle.join(EXTRAS);
        around::pack(&extras, &path)?;
        cmdline = format!("{cmdline} spin.extras_disk={}", disks.len());
        disks.push(Disk { serial: "extras".to_owned().try_into()?, path, read_only: true });
    }
    // What containerd pulls by itself is for this machine's own.
    let arch = Arch::HOST;
    let initramfs = path("io.vminitd.initramfs", &wish.options.initramfs);
    let draft = Draft {
        name: name(wish.id).try_into()?,
        arch,
        kernel: locate::kernel(arch, path("io.vminitd.kernel", &wish.options.kernel))?,
        initramfs: Some(locate::initramfs(arch, initramfs)?),
        cmdline: cmdline.trim().parse()?,
        memory: wish.size.memory,
        cpus: wish.size.cpus,
        guest_cid: Default::default(),
        guest_dials: dials.keys().copied().collect(),
        disks,
        hotplug_slots: Default::default(),
        nics,
        shares: share
            .map(|share| Share { tag, path: share.path().to_owned(), read_only: false })
            .into_iter()
            .collect(),
        accelerator,
        options: Default::default(),
    };
    Ok(Description::try_from(draft)?)
}

/// A VM's name for people: of the id as much as a name can have.
fn name(id: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String = id.chars().filter(|c| allowed(*c)).take(60).collect();
    format!("vm-{name}")
}

fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> MountSpec {
    MountSpec {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

/// The mount in Create by which the guest binds what is in the shared root.
pub fn bind_mount(source: String) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source,
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    }
}

fn listen(
    wish: &Wish<'_>,
    machine: Arc<Machine>,
    container: watch::Receiver<Option<String>>,
) -> io::Result<JoinHandle<()>> {
    let path = wish.bundle.join(CONTROL);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket_path::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut process = tempfile::tempfile()?;
    io::Write::write_all(&mut process, wish.config["process"].to_string().as_bytes())?;
    let (ended, has_ended) = watch::channel(None);
    let kill = Arc::new(Notify::new());
    let arch = Arch::HOST;
    let attach = Some(wish.attach.clone());
    let kill_it = kill.clone();
    let about = About { process, arch, container, ended: has_ended, kill: kill_it, attach };
    Ok(tokio::spawn(async move {
        let end = async {
            tokio::select! {
                exited = machine.exited() => drop(ended.send_replace(Some(exited))),
                () = kill.notified() => machine.kill().await,
            }
            std::future::pending::<()>().await;
        };
        tokio::join!(end, ctl::serve(listener, machine.clone(), about));
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_makes_a_name_of_a_vm() {
        for id in ["c1", "-x", "a/b:c", &"x".repeat(100), ""] {
            assert!(host_shim::vm::VmName::try_from(name(id)).is_ok(), "{id}");
        }
    }
}

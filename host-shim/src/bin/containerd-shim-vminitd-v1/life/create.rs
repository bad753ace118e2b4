//! `Create`: the VM if it is the first, what the container has of the host, and the container in the guest.
//!
//! Promises: when it fails nothing of the container is left, on the host and in the guest; an agent that is lost
//! meanwhile is not noticed. Never: starts a process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host_shim::chain;
use host_shim::container::user_network::FILES;
use host_shim::guest::{CallError, Guest, unlimited};
use host_shim::vm::Serial;
use serde_json::Value;
use tokio::time::sleep;
use tracing::info;
use ttrpc::Code;
use vminitd_protocol::pb::containerd::task::v3::{
    CreateTaskRequest, CreateTaskResponse, StateRequest,
};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::vminitd::options::v1::Options;

use super::events;
use super::failure::Failure;
use super::hooks::{HookError, Hooks};
use super::network::{self, NetworkChoice};
use super::options;
use super::process::{Container, Process};
use super::rootfs::{Image, Rootfs, on_disks};
use super::sandbox::{Sandbox, Wish, bind_mount, serial};
use super::shim::Shim;
use super::size;
use super::spec::{self, Around, Bind};
use super::stdio::{Stdio, Uris, Wish as StdioWish};
use super::tap::Participants;
use crate::protocol::start::GROUPS;

/// How often it is tried when the agent is lost meanwhile.
const TRIES: usize = 5;

/// Between two questions whether a lost Create was carried out.
const STATE_PAUSE: Duration = Duration::from_millis(50);

/// How often that is asked.
const STATE_TRIES: usize = 200;

/// Files that a container without a share gets as copies.
const COPIED: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];

/// Bytes that such a file may have.
const MAX_COPY_BYTES: u64 = 64 << 10;

impl Shim {
    /// The call.
    pub async fn create(
        self: &Arc<Self>,
        request: CreateTaskRequest,
    ) -> Result<CreateTaskResponse, Failure> {
        let _reserved = self.reserve(&request.id)?;
        // It may be one of the same id.
        self.all_left().await;
        let bundle = PathBuf::from(&request.bundle);
        let mut config = read_config(&bundle)?;
        let options = options::read(request.options.as_ref())
            .map_err(|error| Failure::Invalid(chain(&error)))?;
        let rootfs =
            Rootfs::sort(&request.rootfs).map_err(|error| Failure::Invalid(error.to_string()))?;
        let mut binds = spec::binds(&config, &bundle);
        // Others may come, and want directories.
        let is_pod = GROUPS.iter().any(|group| config["annotations"][*group].is_string());
        let on_host = is_pod || !matches!(rootfs, Rootfs::Disks { .. });
        let mut files = Vec::new();
        if !on_host {
            files = copies(&mut binds, &mut config);
        }
        let share = on_host || !binds.is_empty();
        let (sandbox, disks) =
            self.sandbox_for(&bundle, &request, &config, &options, &rootfs, share).await?;
        let hooks = match before_start(&config, &request.id, &bundle).await {
            Ok(hooks) => hooks,
            Err(error) => {
                self.release(&sandbox, &request.id, &[]).await;
                return Err(Failure::failed(&error));
            }
        };
        let given = Given { disks, binds, files, hooks };
        let placed = self.place(&sandbox, &request, &bundle, &rootfs, &mut config, given).await;
        let made = match placed {
            Ok(placed) => self.make(&sandbox, request.clone(), bundle, config, placed).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.remove(&request.id);
            self.release(&sandbox, &request.id, &[]).await;
        }
        made
    }

    /// The VM, with the disks of this container: from its start, or attached now.
    async fn sandbox_for(
        self: &Arc<Self>,
        bundle: &Path,
        request: &CreateTaskRequest,
        config: &Value,
        options: &Options,
        rootfs: &Rootfs,
        share: bool,
    ) -> Result<(Arc<Sandbox>, Vec<Serial>), Failure> {
        let images: Vec<Image> = match rootfs {
            Rootfs::Disks { images, .. } => images.iter().map(|(_, image)| image.clone()).collect(),
            _ => Vec::new(),
        };
        let mut first = false;
        let boot = async || {
            first = true;
            let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
            let size = size::size(config, options, cpus)
                .map_err(|error| Failure::Invalid(chain(&error)))?;
            info!(memory_mib = size.memory.mebibytes(), cpus = size.cpus, "booting a VM");
            let network =
                network::choice(config).map_err(|error| Failure::Invalid(chain(&error)))?;
            let user_network = self.network.enter(config, &network).await;
            let user_network = user_network.map_err(|error| Failure::failed(&error))?;
            self.made_for(&request.id);
            let attach = Arc::new(Participants(Arc::downgrade(self)));
            let (id, images) = (request.id.as_str(), &images);
            let wish = Wish {
                bundle,
                id,
                config,
                options,
                size,
                images,
                share,
                attach,
                network,
                user_network,
            };
            let sandbox = Sandbox::boot(wish).await.map_err(|error| Failure::failed(&error))?;
            Ok::<_, Failure>(Arc::new(sandbox))
        };
        let sandbox = self.sandbox.get_or_try_init(boot).await?.clone();
        if first {
            events::follow(self, &sandbox);
            let count = u32::try_from(images.len()).unwrap_or(u32::MAX);
            return Ok((sandbox, (0..count).map(serial).collect()));
        }
        if self.ended.borrow().is_some() {
            return Err(self.over());
        }
        let mut disks = Vec::new();
        for image in &images {
            match sandbox.attach(image).await {
                Ok(serial) => disks.push(serial),
                Err(error) => {
                    self.release(&sandbox, &request.id, &disks).await;
                    return Err(Failure::failed(&error));
                }
            }
        }
        Ok((sandbox, disks))
    }

    /// Puts what the container has of the host where the guest finds it, and says so in its config.
    async fn place(
        &self,
        sandbox: &Arc<Sandbox>,
        request: &CreateTaskRequest,
        bundle: &Path,
        rootfs: &Rootfs,
        config: &mut Value,
        given: Given,
    ) -> Result<Placed, Failure> {
        let root = config["root"]["path"].as_str().unwrap_or("rootfs");
        let shared = match rootfs {
            Rootfs::Shared(mounts) => mounts.clone(),
            Rootfs::Bundle => vec![bind_mount(bundle.join(root).display().to_string())],
            Rootfs::Disks { .. } => Vec::new(),
        };
        let (vm, id, binds) = (sandbox.clone(), request.id.clone(), given.binds);
        let on_host = move || on_host(&vm, &id, &shared, &binds);
        let OnHost { root, placeless, places } = tokio::task::spawn_blocking(on_host)
            .await
            .map_err(|panic| Failure::failed(&panic))??;
        let mounts = match rootfs {
            Rootfs::Disks { mounts, images } => {
                let sources: Vec<String> =
                    given.disks.iter().map(|serial| format!("serial:{serial}")).collect();
                on_disks(mounts, images, &sources)
            }
            _ => root.into_iter().map(bind_mount).collect(),
        };
        let pids: Vec<u32> = self.containers().iter().map(|other| other.init.pid()).collect();
        let holder = self.first_pid().map(|pid| (std::process::id(), pid));
        let network = sandbox.network != NetworkChoice::None;
        let around = Around { pids: &pids, holder, network, placeless: &placeless };
        spec::change(config, &places, around);
        Ok(Placed { mounts, disks: given.disks, files: given.files, hooks: given.hooks })
    }

    async fn make(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        request: CreateTaskRequest,
        bundle: PathBuf,
        config: Value,
        placed: Placed,
    ) -> Result<CreateTaskResponse, Failure> {
        let wish = StdioWish {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            container: request.id.clone(),
            namespace: self.settings.namespace.clone(),
        };
        let init = Process::new(String::new(), wish, Stdio::default());
        let container = Container::new(
            request.id.clone(),
            bundle,
            request.rootfs,
            init,
            placed.disks,
            placed.hooks,
        );
        let container = Arc::new(container);
        // Before the guest has it: its event may be faster than the answer.
        self.add(container.clone());
        let mut files = placed.files;
        let json = serde_json::to_vec(&config).map_err(|error| Failure::failed(&error))?;
        files.push(("config.json".to_owned(), json));
        let bundle = CreateRequest { id: request.id.clone(), files: files.into_iter().collect() };
        for _ in 0..TRIES {
            let Some(uris) = connect(sandbox, &container.init).await? else { continue };
            let create = Making { bundle: &bundle, uris, options: request.options.clone() };
            if let Some(pid) = create.make(sandbox, &container, &placed.mounts).await? {
                container.init.set_pid(pid);
                return Ok(CreateTaskResponse { pid: self.host_pid(&request.id, "", pid) });
            }
        }
        Err(Failure::Failed(format!("the guest's agent was lost {TRIES} times meanwhile")))
    }

    /// Gives up what a container had of the host.
    pub async fn release(&self, sandbox: &Arc<Sandbox>, id: &str, disks: &[Serial]) {
        if sandbox.share.is_some() {
            let (vm, id) = (sandbox.clone(), id.to_owned());
            let remove = move || vm.share.as_ref().map(|share| share.remove(&id));
            let _ = tokio::task::spawn_blocking(remove).await;
        }
        for serial in disks {
            // One that was there from the start stays until the VM's end.
            let _ = sandbox.machine.detach_disk(serial).await;
        }
    }
}

/// The hooks that come before the container, run.
async fn before_start(config: &Value, id: &str, bundle: &Path) -> Result<Option<Hooks>, HookError> {
    let hooks = Hooks::of(config, id, bundle)?;
    if let Some(hooks) = &hooks {
        hooks.run("prestart", "creating").await?;
        hooks.run("createRuntime", "creating").await?;
    }
    Ok(hooks)
}

/// What a container is to have.
struct Given {
    disks: Vec<Serial>,
    binds: Vec<Bind>,
    files: Vec<(String, Vec<u8>)>,
    hooks: Option<Hooks>,
}

/// What it has.
struct Placed {
    mounts: Vec<Mount>,
    disks: Vec<Serial>,
    files: Vec<(String, Vec<u8>)>,
    hooks: Option<Hooks>,
}

/// What a container has of the host.
#[derive(Default)]
struct OnHost {
    /// Where the guest has its root filesystem.
    root: Option<String>,
    /// See [`Around`].
    placeless: Vec<&'static str>,
    /// Where the guest has what it binds, by the mount's number.
    places: Vec<(usize, String)>,
}

fn on_host(vm: &Sandbox, id: &str, rootfs: &[Mount], binds: &[Bind]) -> Result<OnHost, Failure> {
    let Some(share) = &vm.share else {
        return match rootfs.is_empty() && binds.is_empty() {
            true => Ok(OnHost::default()),
            false => Err(Failure::Failed(
                "this VM was made without a share of the host's directories".to_owned(),
            )),
        };
    };
    let fail = |error| Failure::failed(&error);
    let (root, placeless) = match rootfs {
        [] => (None, Vec::new()),
        mounts => (Some(share.rootfs(id, mounts).map_err(fail)?), share.placeless(id, &FILES)),
    };
    let mut places = Vec::new();
    for bind in binds {
        let name = bind.index.to_string();
        let place = share.bind(id, &name, &bind.source, bind.read_only).map_err(fail)?;
        places.push((bind.index, place));
    }
    Ok(OnHost { root, placeless, places })
}

/// Streams for the process, in the guest; `None`: the agent was lost.
pub async fn connect(sandbox: &Sandbox, process: &Process) -> Result<Option<Uris>, Failure> {
    match Stdio::open(&sandbox.guest.guest().await, &process.wish).await {
        Ok((stdio, uris)) => {
            process.set_stdio(stdio);
            Ok(Some(uris))
        }
        Err(error) if error.may_pass() => {
            // Returns when the next one serves, or when there is none to come.
            let info = |guest: Guest| async move { guest.info().await };
            sandbox.guest.call(info).await?;
            Ok(None)
        }
        Err(error) => Err(Failure::failed(&error)),
    }
}

/// One attempt.
struct Making<'a> {
    bundle: &'a CreateRequest,
    uris: Uris,
    options: Option<vminitd_protocol::pb::google::protobuf::Any>,
}

impl Making<'_> {
    /// `None`: the agent was lost, and nothing was made.
    async fn make(
        self,
        sandbox: &Sandbox,
        container: &Container,
        mounts: &[Mount],
    ) -> Result<Option<u32>, Failure> {
        let bundle =
            |guest: Guest| async move { guest.bundle().create(unlimited(), self.bundle).await };
        let path = match sandbox.guest.once(bundle).await {
            Ok(made) => made.bundle,
            Err(CallError::Lost(_)) => return Ok(None),
            // Of an earlier attempt: the files are the same.
            Err(CallError::Refused(status)) if status.code() == Code::ALREADY_EXISTS => {
                format!("/run/bundles/{}", container.id)
            }
            Err(error) => return Err(error.into()),
        };
        sandbox.mounted().await.map_err(Failure::Failed)?;
        let request = CreateTaskRequest {
            id: container.id.clone(),
            bundle: path,
            rootfs: mounts.to_vec(),
            terminal: container.init.wish.terminal,
            stdin: self.uris.stdin,
            stdout: self.uris.stdout,
            stderr: self.uris.stderr,
            options: self.options.filter(|options| !options::is_ours(options)),
            ..Default::default()
        };
        let create = |guest: Guest| async move { guest.task().create(unlimited(), &request).await };
        match sandbox.guest.once(create).await {
            Ok(made) => Ok(Some(made.pid)),
            Err(CallError::Lost(_)) => made_after_all(sandbox, &container.id).await,
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a Create that nobody has answered was carried out. One that was not is removed by the next agent.
async fn made_after_all(sandbox: &Sandbox, id: &str) -> Result<Option<u32>, Failure> {
    for _ in 0..STATE_TRIES {
        let request = StateRequest { id: id.to_owned(), exec_id: String::new() };
        let state = |guest: Guest| {
            let request = request.clone();
            async move { guest.task().state(unlimited(), &request).await }
        };
        match sandbox.guest.call(state).await {
            Ok(state) if state.status() == Status::Created => return Ok(Some(state.pid)),
            Ok(_) => sleep(STATE_PAUSE).await,
            Err(CallError::Refused(status)) if status.code() == Code::NOT_FOUND => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Failed("the guest does not say what became of the container".to_owned()))
}

fn read_config(bundle: &Path) -> Result<Value, Failure> {
    let path = bundle.join("config.json");
    let read = || -> io::Result<Value> {
        let file = std::fs::File::open(&path)?;
        Ok(serde_json::from_reader(io::BufReader::new(file))?)
    };
    read().map_err(|error| Failure::Invalid(format!("read {path:?}: {error}")))
}

/// Takes the small files that a container without a share can have as copies out of `binds`; they go into its bundle,
/// by names that its config is told.
fn copies(binds: &mut Vec<Bind>, config: &mut Value) -> Vec<(String, Vec<u8>)> {
    if !binds.iter().all(|bind| COPIED.iter().any(|path| bind.destination == Path::new(path))) {
        return Vec::new();
    }
    let mut files = Vec::new();
    binds.retain(|bind| {
        let small =
            bind.source.metadata().is_ok_and(|file| file.is_file() && file.len() <= MAX_COPY_BYTES);
        let Some(content) = small.then(|| std::fs::read(&bind.source).ok()).flatten() else {
            return true;
        };
        let name = format!("host-{}", bind.index);
        config["mounts"][bind.index]["source"] = name.as_str().into();
        files.push((name, content));
        false
    });
    files
}

//! containerd-shim-vminitd-v1: runs containerd's tasks in VMs.
//!
//! | called as | does |
//! |---|---|
//! | `... start` | starts the shim of a container, or finds that of its pod; prints where it listens |
//! | `...` without an action | is the shim: serves the Task API on the socket that is its standard input |
//! | `... delete` | cleans up after a shim that is gone; prints how the container ended |
//! | `-v`, `-info` | says what this is |
//!
//! [`protocol`] is what containerd and a shim say to each other, [`life`] what becomes of it.

mod life;
mod protocol;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use host_shim::sys::inherited::{be_private_and_unbounded, take_fd};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use host_shim::{chain, external};
use life::netns::{self, Inside};
use life::{Settings, Shim, hooks, share};
use protocol::flags::{self, Flags};
use protocol::publish::{Publisher, Target};
use protocol::{delete, info, log, service, start};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == external::COMMAND) {
        return match external::serve(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let done =
        flags::parse(std::env::args_os().skip(1)).map_err(|error| chain(&error)).and_then(run);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("containerd-shim-vminitd-v1: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut flags: Flags) -> Result<(), String> {
    if flags.version {
        return print(protocol::info::version().as_bytes());
    }
    if flags.info {
        return print(&info::info());
    }
    if flags.bundle.as_os_str().is_empty() {
        // It may be gone already when we are to delete.
        flags.bundle = std::env::current_dir().unwrap_or_default();
    }
    match flags.action.as_deref() {
        Some("start") => {
            let told = start::start(&flags).map_err(|error| chain(&error))?;
            print(told.as_bytes())
        }
        Some("delete") => print(&delete::delete(&flags.bundle)),
        Some(hooks::HOLD) => {
            io::copy(&mut io::stdin(), &mut io::sink()).map(drop).map_err(|error| chain(&error))
        }
        None => serve(flags).map_err(|error| chain(&error)),
        Some(other) => Err(format!("unknown action {other:?}; start and delete are known")),
    }
}

fn print(bytes: &[u8]) -> Result<(), String> {
    io::stdout().write_all(bytes).map_err(|error| format!("write to standard output: {error}"))
}

/// Is the shim.
fn serve(flags: Flags) -> io::Result<()> {
    log::begin(&flags.bundle, flags.debug);
    let outcome = prepare_and_serve(&flags);
    if let Err(error) = &outcome {
        error!(error = %chain(error), "the shim ends");
    }
    outcome
}

fn prepare_and_serve(flags: &Flags) -> io::Result<()> {
    let listener = UnixListener::from(take_fd(0)?);
    let socket = listener.local_addr()?.as_pathname().map(Path::to_owned);
    // Whoever started us may be the leader of a session; we are none yet.
    let _ = nix::unistd::setsid();
    be_private_and_unbounded()?;
    if let Err(error) = share::own_namespace() {
        warn!(%error, "no mount namespace of its own; mounts are seen by the host");
    }
    let _lock = hold(&flags.bundle.join(delete::LOCK))?;
    // The main thread is what the host finds by our pid: it goes into the task's network namespace, and stays there.
    let (inside, home) = netns::pair();
    let (flags, ending) = (flags.clone(), inside.clone());
    let serve = move || {
        let done = serve_all(&flags, listener, inside);
        ending.end();
        done
    };
    let serving = std::thread::Builder::new().name("shim".into()).spawn(serve)?;
    home.stay();
    serving.join().unwrap_or_else(|_| Err(io::Error::other("the thread that serves panicked")))?;
    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

fn serve_all(flags: &Flags, listener: UnixListener, inside: Inside) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_done(flags, listener, inside))?;
    runtime.shutdown_background();
    Ok(())
}

/// Says, as long as we live, that we do.
fn hold(path: &Path) -> io::Result<Flock<File>> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let mut lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

async fn until_done(flags: &Flags, listener: UnixListener, inside: Inside) -> io::Result<()> {
    let publisher = Publisher::start(Target {
        ttrpc: std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
        address: flags.address.clone(),
        binary: flags.publish_binary.clone(),
    });
    let settings = Settings { namespace: flags.namespace.clone() };
    let shim = Shim::new(settings, publisher, inside);
    let mut terminate = signal(SignalKind::terminate())?;
    // Theirs who share our terminal, if there is one.
    let _interrupts = signal(SignalKind::interrupt())?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(service::services(&shim));
    server.start().await.map_err(io::Error::other)?;
    info!(pid = std::process::id(), "serving");
    tokio::select! {
        () = shim.finished() => {}
        _ = terminate.recv() => {
            info!("asked to end by SIGTERM");
            shim.hurry();
        }
    }
    // The answer to Shutdown goes out while this takes its time.
    let hurry = async {
        while terminate.recv().await.is_some() {
            shim.hurry();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = shim.stop() => {}
        () = hurry => {}
    }
    info!("done");
    Ok(())
}

//! A program with vfkit's command line, and a real VM in QEMU behind it.
//!
//! Stands in for vfkit where there is no Mac: what is said to it is parsed as its manual (doc/usage.md) has it, and an
//! option that is not there is an error. Its quirks are kept that a driver must stand: a socket for a guest's port takes
//! connections whether or not the guest does, and closes them when not; its stdin must be a terminal; SIGHUP ends it.
//! The VM is driven by the vminit-vmm of VMINITD_DIST, as everywhere in these tests.

mod command_line;
mod rest;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use command_line::{Direction, Wish};
use host_shim::machine::{BootOptions, ExitReason, Machine};
use host_shim::vm::Description;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As it writes its own: to stderr, whole.
            eprintln!("time=now level=error msg={error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wish = command_line::parse(&arguments).map_err(io::Error::other)?;
    if !io::IsTerminal::is_terminal(&io::stdin()) {
        return Err(io::Error::other("inappropriate ioctl for device"));
    }
    let dist = std::env::var_os("VMINITD_DIST").map(PathBuf::from);
    let dist = dist.ok_or_else(|| io::Error::other("VMINITD_DIST is not set"))?;
    let options =
        BootOptions { vmm: dist.join("bin/vminit-vmm").into(), console: "/proc/self/fd/1".into() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(wish, options))
}

async fn serve(wish: Wish, options: BootOptions) -> io::Result<()> {
    let Wish { draft, sockets, rest } = wish;
    let vm = Description::try_from(draft).map_err(io::Error::other)?;
    // Before the VM runs, as it does.
    let mut listeners = Vec::new();
    for (port, direction, path) in &sockets {
        if *direction == Direction::Connect {
            listeners.push((*port, UnixListener::bind(path)?));
        }
    }
    let service = UnixListener::bind(&rest)?;
    let (machine, mut dials) =
        Machine::boot_with_dials(vm, options).await.map_err(io::Error::other)?;
    let machine = Arc::new(machine);
    tokio::spawn(rest::serve(service, machine.clone()));
    for (port, listener) in listeners {
        tokio::spawn(take(listener, port, machine.clone()));
    }
    tokio::spawn(async move {
        while let Some(dial) = dials.recv().await {
            let to = sockets.iter().find(|(port, _, _)| *port == dial.port).cloned();
            if let Some((_, Direction::Listen, path)) = to {
                // Its proxy accepts first and looks for somebody then.
                tokio::spawn(join_path(dial.accept(), path));
            }
        }
    });
    let exited = machine.exited().await;
    match exited.reason {
        ExitReason::PowerOff | ExitReason::Killed => Ok(()),
        _ => Err(io::Error::other(exited.to_string())),
    }
}

async fn take(listener: UnixListener, port: u32, machine: Arc<Machine>) {
    while let Ok((host, _)) = listener.accept().await {
        let machine = machine.clone();
        tokio::spawn(async move {
            // It closes what it has taken when the guest refuses.
            if let Ok(guest) = machine.connect(port).await {
                let (from_guest, to_guest) = guest.into_split();
                let (from_host, to_host) = host.into_split();
                tokio::join!(pass(from_guest, to_host), pass(from_host, to_guest));
            }
        });
    }
}

async fn join_path(guest: impl AsyncReadExt + AsyncWriteExt + Unpin, path: PathBuf) {
    let Ok(host) = UnixStream::connect(Path::new(&path)).await else { return };
    let (from_guest, to_guest) = tokio::io::split(guest);
    let (from_host, to_host) = host.into_split();
    tokio::join!(pass(from_guest, to_host), pass(from_host, to_guest));
}

/// One direction, to its end, and that end passed on.
async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

//! vminit-vmm: owns one VM, for whoever holds the other end of its control socket.
//!
//! Owns: the VM and all that serves it. Promises: they end with the owner's end of the socket; the main thread drives
//! the VM (Linux ties the children to it, macOS the whole VM), the control socket has threads of its own.
//! Never: decides by itself when the VM has ended well; opens a path that the owner could have opened and passed.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use host_shim::locate::{QEMU_VARIABLE, VIRTIOFSD_VARIABLE};
use host_shim::sys::inherited::{be_private_and_unbounded, take_fd};
use host_shim::vmm::hypervisor::Waker;
use host_shim::vmm::life::{Owner, owner};

#[cfg_attr(target_os = "linux", path = "qemu.rs")]
#[cfg_attr(target_os = "macos", path = "vz/mod.rs")]
mod hypervisor;

/// Runs one virtual machine for the process at the other end of a control socket.
///
/// People use vminitctl, containerd its shim; both start this program. What is said over the socket is written down
/// in protocol/proto/vminitd/vmm.proto.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Flags {
    /// File descriptor of a connected Unix stream socket
    ///
    /// Whoever holds the other end owns the VM; both end when it is closed.
    #[arg(long, value_name = "FD")]
    control_fd: RawFd,

    /// QEMU [default: from PATH]
    #[arg(long, value_name = "FILE", env = QEMU_VARIABLE)]
    qemu: Option<PathBuf>,

    /// The daemon that serves shared directories [default: next to this program, then the system's]
    #[arg(long, value_name = "FILE", env = VIRTIOFSD_VARIABLE)]
    virtiofsd: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    end_with_any_thread();
    match drive(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vminit-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A thread that panics would leave a process that looks alive and serves its guest or its owner by halves. Its end is
/// something that both notice.
fn end_with_any_thread() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
}

fn drive(flags: Flags) -> io::Result<()> {
    let socket = take_fd(flags.control_fd).and_then(|fd| {
        let socket = UnixStream::from(fd);
        // Says ENOTSOCK when it is something else.
        socket.local_addr().map(|_| socket)
    });
    let socket = socket.map_err(|error| {
        let text = format!(
            "--control-fd: {} is no connected socket ({error}); vminitctl passes one",
            flags.control_fd
        );
        io::Error::other(text)
    })?;
    be_private_and_unbounded()?;
    hypervisor::drive(flags, move |waker: &Waker| -> io::Result<Owner> { owner(socket, waker) })
}

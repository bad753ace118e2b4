//! Ports of the host that a guest dials: each is a Unix socket here.
//!
//! ```text
//! program in the guest --> CID 2, port 1027 --> vminit-vmm --> Dial --> connect(PATH) --> who listens there
//! ```
//!
//! Owns: the connections, each until both directions have ended.
//! Promises: only listed ports are dialled (vminit-vmm refuses all others at once); so is one whose
//! socket is not there; each direction ends on its own. Who listens knows the VM by the socket's path: all VMs may
//! have the same context id.
//! Never: looks into what is said.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::machine::Dial;
use crate::socket_path;

/// `PORT=PATH`: a port of the host, and the Unix socket that is it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDial {
    /// The port that the guest dials on context id 2.
    pub port: u32,
    /// The socket, listened on by somebody else.
    pub path: PathBuf,
}

impl FromStr for GuestDial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=');
        let parts = parts.and_then(|(port, path)| Some((port.parse().ok()?, path)));
        match parts {
            Some((port, path)) if !path.is_empty() => Ok(Self { port, path: path.into() }),
            _ => {
                Err(format!("{text:?} is no PORT=PATH; give for example 1027=/run/runner/vm1.sock"))
            }
        }
    }
}

/// Connects the guest's dials to their sockets, until the VM has ended and all of it is said. `tell` is called when a
/// socket cannot be connected to: that dial is refused.
pub async fn serve(
    mut dials: mpsc::Receiver<Dial>,
    sockets: BTreeMap<u32, PathBuf>,
    tell: impl Fn(u32, &Path, io::Error) + Send + Sync + 'static,
) {
    let (sockets, tell) = (Arc::new(sockets), Arc::new(tell));
    let mut connections = JoinSet::new();
    loop {
        let dial = tokio::select! {
            dial = dials.recv() => dial,
            Some(_ended) = connections.join_next() => continue,
        };
        let Some(dial) = dial else { break };
        let (sockets, tell) = (sockets.clone(), tell.clone());
        connections.spawn(async move {
            // vminit-vmm lets no other through.
            let Some(path) = sockets.get(&dial.port) else { return };
            match socket_path::connect_async(path).await {
                Ok(mut socket) => {
                    // However it ends, it ends for both.
                    let _ = tokio::io::copy_bidirectional(&mut dial.accept(), &mut socket).await;
                }
                Err(error) => tell(dial.port, path, error),
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_and_path_are_read_and_an_error_shows_how() {
        let good: GuestDial = "1027=/run/a=b.sock".parse().unwrap();
        assert_eq!(good, GuestDial { port: 1027, path: "/run/a=b.sock".into() });
        for text in ["", "1027", "1027=", "=x", "x=/y", "-1=/y", "4294967296=/y"] {
            assert!(text.parse::<GuestDial>().unwrap_err().contains("1027=/run/"), "{text}");
        }
    }
}

//! Where running VMs are looked for: those of `vminitctl run`, and those of containerd's shims.
//!
//! ```text
//! ${XDG_RUNTIME_DIR:-/run}/vminitd/<name>/ctl.sock                                  VMs of this user's vminitctl run
//! /run/containerd/io.containerd.runtime.v2.task/<namespace>/<id>/ctl.sock           VMs of containerd's containers
//! /run/k3s/containerd/io.containerd.runtime.v2.task/<namespace>/<id>/ctl.sock       the same, where k3s brings its own
//! any other                                                                         by the socket's path
//! ```
//!
//! Promises: what is said (`web`, `k8s.io/4f3a`, a beginning of an id, a socket) is one VM or an error that lists what
//! there is. Never: changes a directory of containerd's; believes that a VM lives because its socket is there.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Control, DirectoryError, running};

/// Below each of them are directories of namespaces, and below those the bundles.
const CONTAINERD: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/k3s/containerd/io.containerd.runtime.v2.task",
];

/// A VM's control socket, in its directory.
const SOCKET: &str = "ctl.sock";

/// How many are listed in an error.
const LISTED: usize = 8;

/// Which VM is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// A name or id, or a beginning of one that only one has; behind `NAMESPACE/` one of containerd's.
    Name(String),
    /// A control socket: whatever begins with `/` or `./`.
    Socket(PathBuf),
}

/// A VM that may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name, or the container's id.
    pub name: String,
    /// containerd's namespace; none when it is a `vminitctl run`'s.
    pub namespace: Option<String>,
    /// Its control socket.
    pub socket: PathBuf,
}

/// No VM, or more than one, is what was said. The caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Our own directory cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No VM has that name.
    #[error("no VM named {wanted} runs; {}", others(.running))]
    NoSuch {
        /// What was said.
        wanted: String,
        /// What runs.
        running: Vec<Place>,
    },
    /// No VM runs.
    #[error("no VM runs{}; start one: vminitctl run --name NAME --rootfs DIR -- CMD", hint(nix::unistd::geteuid().is_root()))]
    None,
    /// Several run, and none was named.
    #[error("several VMs run ({}); say which one", list(.running))]
    Several {
        /// What runs.
        running: Vec<Place>,
    },
    /// It fits several.
    #[error("{wanted} may be any of {}; say more of it", list(.running))]
    Ambiguous {
        /// What was said.
        wanted: String,
        /// What it fits.
        running: Vec<Place>,
    },
}

fn hint(is_root: bool) -> &'static str {
    if is_root { "" } else { " that you may ask (those of containerd are root's)" }
}

fn list(places: &[Place]) -> String {
    let names = places.iter().take(LISTED).map(Place::to_string);
    let mut names = names.collect::<Vec<_>>().join(", ");
    if places.len() > LISTED {
        names += &format!(" and {} more", places.len() - LISTED);
    }
    names
}

fn others(places: &[Place]) -> String {
    match places {
        [] => "none runs at all that you may ask".to_owned(),
        places => format!("running: {}", list(places)),
    }
}

impl FromStr for Selector {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.starts_with('/') || text.starts_with("./") || text.starts_with("../") {
            true => Self::Socket(text.into()),
            false => Self::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Place {
    /// The other end of its socket.
    pub fn control(&self) -> Control {
        Control::new(&self.socket)
    }

    /// What the guest has printed, unless its owner keeps that elsewhere.
    pub fn console(&self) -> PathBuf {
        self.socket.with_file_name("console.log")
    }
}

/// Every VM that may run, ours first.
pub fn all() -> Result<Vec<Place>, DirectoryError> {
    let ours = running()?.into_iter().map(|found| Place {
        name: found.name.to_string(),
        namespace: None,
        socket: found.socket(),
    });
    Ok(ours.chain(CONTAINERD.iter().flat_map(|dir| bundles(Path::new(dir)))).collect())
}

/// The VM that is meant; without a selector, the only one that runs.
pub fn lookup(selector: Option<&Selector>) -> Result<Place, LookupError> {
    match selector {
        Some(Selector::Socket(path)) => {
            let name = path.display().to_string();
            Ok(Place { name, namespace: None, socket: path.clone() })
        }
        Some(Selector::Name(wanted)) => choose(wanted, &all()?),
        None => {
            let mut running = all()?;
            match running.len() {
                0 => Err(LookupError::None),
                1 => Ok(running.remove(0)),
                _ => Err(LookupError::Several { running }),
            }
        }
    }
}

/// A whole name goes before beginnings.
fn choose(wanted: &str, running: &[Place]) -> Result<Place, LookupError> {
    let (namespace, name) = match wanted.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    let among = running.iter().filter(|place| {
        namespace.is_none_or(|namespace| place.namespace.as_deref() == Some(namespace))
    });
    let (whole, begun): (Vec<&Place>, Vec<&Place>) = among
        .filter(|place| place.name.starts_with(name) && !name.is_empty())
        .partition(|place| place.name == name);
    let found = if whole.is_empty() { begun } else { whole };
    match found[..] {
        [] => Err(LookupError::NoSuch { wanted: wanted.to_owned(), running: running.to_vec() }),
        [place] => Ok(place.clone()),
        _ => Err(LookupError::Ambiguous {
            wanted: wanted.to_owned(),
            running: found.into_iter().cloned().collect(),
        }),
    }
}

/// Bundles with a control socket. A directory that may not be read has none for us.
fn bundles(root: &Path) -> Vec<Place> {
    let below = |dir: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut found = Vec::new();
    for namespace in below(root) {
        for name in below(&root.join(&namespace)) {
            let socket = root.join(&namespace).join(&name).join(SOCKET);
            if socket.exists() {
                found.push(Place { name, namespace: Some(namespace.clone()), socket });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, namespace: Option<&str>) -> Place {
        let namespace = namespace.map(str::to_owned);
        Place { name: name.to_owned(), namespace, socket: "/x".into() }
    }

    #[test]
    fn a_vm_is_found_by_name_beginning_and_namespace() {
        let running = [
            place("web", None),
            place("web", Some("k8s.io")),
            place("4f3a77", Some("k8s.io")),
            place("4f3b", Some("default")),
            place("4f", Some("default")),
        ];
        let found = |wanted: &str| choose(wanted, &running).map(|place| place.to_string());
        assert_eq!(found("4f3a").unwrap(), "k8s.io/4f3a77");
        assert_eq!(found("4f").unwrap(), "default/4f", "a whole id goes before beginnings");
        assert_eq!(found("k8s.io/4f").unwrap(), "k8s.io/4f3a77");
        assert_eq!(found("k8s.io/web").unwrap(), "k8s.io/web");
        let error = |wanted| found(wanted).unwrap_err().to_string();
        assert_eq!(error("web"), "web may be any of web, k8s.io/web; say more of it");
        assert!(error("x").starts_with("no VM named x runs; running: web, k8s.io/web,"));
        assert!(error("default/").contains("no VM named default/"));
    }

    #[test]
    fn a_path_is_a_socket_and_everything_else_a_name() {
        assert_eq!("/a/b".parse(), Ok(Selector::Socket("/a/b".into())));
        assert_eq!("./b".parse(), Ok(Selector::Socket("./b".into())));
        assert_eq!("a/b".parse(), Ok(Selector::Name("a/b".into())));
    }

    #[test]
    fn bundles_without_a_control_socket_are_other_runtimes() {
        let root = tempfile::tempdir().unwrap();
        for id in ["ours", "runc"] {
            fs::create_dir_all(root.path().join("ns").join(id)).unwrap();
        }
        fs::write(root.path().join("ns/ours/ctl.sock"), "").unwrap();
        fs::write(root.path().join("stray"), "").unwrap();
        let found: Vec<String> = bundles(root.path()).iter().map(Place::to_string).collect();
        assert_eq!(found, ["ns/ours"]);
        assert!(bundles(Path::new("/nowhere")).is_empty());
    }
}

//! The network namespace of a task, on the host: what CNI plugins and hooks find by the task's pid.
//!
//! ```text
//! main thread    in the task's network namespace; carries out what is to be done there     /proc/<shim>/ns/net
//! "shim" thread  in the host's, with all the rest; what it starts is in the host's too
//! ```
//!
//! Owns: where the main thread is. Promises: a namespace that the config has no path for is made, and goes with the shim,
//! however that ends; a task of the host's network leaves everything where it is.
//! Never: changes the namespace of what the shim starts.

use std::io;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;
use tokio::sync::oneshot;

/// What is to be done in there.
type Work = Box<dyn FnOnce() + Send>;

/// The main thread, as the others reach it.
#[derive(Clone, Debug)]
pub struct Inside(Sender<Option<Work>>);

/// The main thread's end.
pub struct Home(Receiver<Option<Work>>);

/// Which network a task is to have, by its config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The host's.
    Host,
    /// That of the namespace at a path.
    At(PathBuf),
    /// A new one.
    New,
}

/// Both ends.
pub fn pair() -> (Inside, Home) {
    let (sender, receiver) = channel();
    (Inside(sender), Home(receiver))
}

impl Home {
    /// Does what it is told until [`Inside::end`].
    pub fn stay(self) {
        while let Ok(Some(work)) = self.0.recv() {
            work();
        }
    }
}

impl Inside {
    /// Lets the main thread go.
    pub fn end(&self) {
        let _ = self.0.send(None);
    }

    /// Does something there.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let gone = || io::Error::other("the shim's main thread is gone");
        let (done, outcome) = oneshot::channel();
        // Who no longer waits needs no answer.
        let work = Box::new(move || drop(done.send(work())));
        self.0.send(Some(work)).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// Goes where the config wants the task to be; false: that is where the host is.
    pub async fn enter(&self, wanted: Wanted) -> io::Result<bool> {
        self.run(move || go(wanted)).await
    }
}

/// There is one network for all.
#[cfg(not(target_os = "linux"))]
fn go(_: Wanted) -> io::Result<bool> {
    Ok(false)
}

#[cfg(target_os = "linux")]
fn go(wanted: Wanted) -> io::Result<bool> {
    use nix::sched::{CloneFlags, setns, unshare};
    match wanted {
        Wanted::Host => return Ok(false),
        Wanted::At(path) if is_ours(&path)? => return Ok(false),
        Wanted::At(path) => setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?,
        Wanted::New => unshare(CloneFlags::CLONE_NEWNET)?,
    }
    Ok(true)
}

/// Whether the namespace is the one that this thread is in.
#[cfg(target_os = "linux")]
fn is_ours(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (theirs, ours) = (path.metadata()?, Path::new("/proc/thread-self/ns/net").metadata()?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

/// What a config says of its network namespace.
pub fn wanted(config: &Value) -> Wanted {
    let namespaces = config["linux"]["namespaces"].as_array().map_or(&[][..], Vec::as_slice);
    match namespaces.iter().find(|namespace| namespace["type"] == "network") {
        None => Wanted::Host,
        Some(namespace) => match namespace["path"].as_str().filter(|path| !path.is_empty()) {
            Some(path) => Wanted::At(path.into()),
            None => Wanted::New,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_config_wants_the_hosts_a_named_or_a_new_namespace() {
        let of = |namespaces| wanted(&json!({ "linux": { "namespaces": namespaces } }));
        assert_eq!(of(json!([{ "type": "pid" }])), Wanted::Host);
        assert_eq!(of(json!([{ "type": "network" }])), Wanted::New);
        let at = json!([{ "type": "network", "path": "/run/netns/a" }]);
        assert_eq!(of(at), Wanted::At("/run/netns/a".into()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_main_thread_is_in_the_tasks_namespace() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let network = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let (inside, home) = pair();
        let main = std::thread::spawn(move || home.stay());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let before = network();
            let same = Wanted::At("/proc/self/ns/net".into());
            assert!(!inside.enter(Wanted::Host).await.unwrap());
            assert!(!inside.enter(same).await.unwrap());
            assert_eq!(inside.run(move || Ok(network())).await.unwrap(), before);
            assert!(inside.enter(Wanted::New).await.unwrap());
            assert_ne!(inside.run(move || Ok(network())).await.unwrap(), before);
            assert_eq!(network(), before);
            let missing = inside.enter(Wanted::At("/nowhere".into())).await.unwrap_err();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        });
        inside.end();
        main.join().unwrap();
    }
}

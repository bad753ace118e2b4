//! Hooks of the host: programs that the container's config wants run outside of it (config.md of the OCI runtime
//! specification): `prestart`, `createRuntime`, `poststart`, `poststop`. The others run in the guest.
//!
//! A hook is told a pid by which it finds the container's namespaces. The container's own are in the guest, so the pid is
//! that of a process which holds the network namespace of the config, or else the one in which the shim's main thread is.
//! Owns: that process. Promises: a hook that fails before the start fails the Create with its own words; one after it is
//! told to the log; each has its timeout. Never: runs a hook in the guest.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use host_shim::sys::namespaces::in_network;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The action by which this program does nothing but hold a namespace, until its standard input ends.
pub const HOLD: &str = "hold";

/// How long a hook may take that says nothing of it.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a hook's last words that are told.
const MAX_WORDS: u64 = 4 << 10;

/// A container's hooks.
#[derive(Debug)]
pub struct Hooks {
    hooks: Value,
    state: Value,
    /// Ends with this: its standard input is ours.
    holder: Child,
}

/// A hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The namespace cannot be made or entered.
    #[error("hold the network namespace for hooks")]
    Hold(#[source] io::Error),
    /// It cannot be started, or its output not be read.
    #[error("{kind} hook {path:?}")]
    Run {
        /// Which kind.
        kind: String,
        /// The program.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("{kind} hook {path:?} ended with {status}: {words}")]
    Failed {
        /// Which kind.
        kind: String,
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// What it wrote to stderr.
        words: String,
    },
}

impl Hooks {
    /// Those of a config; `None` when it has none for the host.
    pub fn of(config: &Value, id: &str, bundle: &Path) -> Result<Option<Self>, HookError> {
        let host = super::spec::HOST_HOOKS.iter();
        let any = host
            .map(|kind| &config["hooks"][kind])
            .any(|list| list.as_array().is_some_and(|l| !l.is_empty()));
        if !any {
            return Ok(None);
        }
        let ours = || format!("/proc/{}/ns/net", std::process::id()).into();
        let holder = hold(network(config).unwrap_or_else(ours)).map_err(HookError::Hold)?;
        let state = json!({
            "ociVersion": config["ociVersion"], "id": id, "pid": holder.id(), "bundle": bundle,
            "annotations": config["annotations"],
        });
        Ok(Some(Self { hooks: config["hooks"].clone(), state, holder }))
    }

    /// Runs all of a kind, in order, up to the first that fails. `status` is the container's.
    pub async fn run(&self, kind: &str, status: &str) -> Result<(), HookError> {
        let mut state = self.state.clone();
        state["status"] = status.into();
        for hook in self.hooks[kind].as_array().into_iter().flatten() {
            run(kind, hook, &state).await?;
        }
        Ok(())
    }

    /// The process that holds the namespace.
    #[cfg(test)]
    fn pid(&self) -> Option<u32> {
        self.holder.id()
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        let _ = self.holder.start_kill();
    }
}

/// The path of the network namespace that the config names.
fn network(config: &Value) -> Option<PathBuf> {
    let namespaces = config["linux"]["namespaces"].as_array()?;
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
    network["path"].as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn hold(network: PathBuf) -> io::Result<Child> {
    let network = Some(File::open(network)?);
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg(HOLD).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    in_network(&mut command, network.map(Into::into));
    Command::from(command).kill_on_drop(true).spawn()
}

async fn run(kind: &str, hook: &Value, state: &Value) -> Result<(), HookError> {
    let path = PathBuf::from(hook["path"].as_str().unwrap_or_default());
    let fail = |source| HookError::Run { kind: kind.to_owned(), path: path.clone(), source };
    let texts = |list: &Value| -> Vec<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (args, env) = (texts(&hook["args"]), texts(&hook["env"]));
    let mut command = Command::new(&path);
    if let Some(name) = args.first() {
        command.arg0(name).args(&args[1..]);
    }
    let env = env.iter().filter_map(|entry| entry.split_once('='));
    let mut child = command
        .env_clear()
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    let limit = hook["timeout"].as_u64().map_or(TIMEOUT, Duration::from_secs);
    let (mut stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let json = state.to_string();
    let converse = async {
        if let Some(mut stdin) = stdin.take() {
            // One that does not read it needs it not.
            let _ = stdin.write_all(json.as_bytes()).await;
        }
        let mut words = Vec::new();
        if let Some(stderr) = stderr {
            stderr.take(MAX_WORDS).read_to_end(&mut words).await?;
        }
        Ok((child.wait().await?, words))
    };
    let failed = |status: String, words: &[u8]| HookError::Failed {
        kind: kind.to_owned(),
        path: path.clone(),
        status,
        words: String::from_utf8_lossy(words).trim().to_owned(),
    };
    match timeout(limit, converse).await {
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, words))) => Err(failed(status.to_string(), &words)),
        Ok(Err(error)) => Err(fail(error)),
        Err(_) => Err(failed(format!("no answer within {} s", limit.as_secs()), b"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn sh(script: &str) -> Value {
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin", "A=b"], "timeout": 20 })
    }

    #[test]
    fn a_hook_is_told_the_state_and_has_its_own_environment() {
        block_on(async {
            let out = tempfile::NamedTempFile::new().unwrap();
            let script = format!("cat >{}; echo $A$HOME >>{0}", out.path().display());
            run("prestart", &sh(&script), &json!({ "id": "c1", "pid": 7 })).await.unwrap();
            let told = std::fs::read_to_string(out.path()).unwrap();
            assert_eq!(told, "{\"id\":\"c1\",\"pid\":7}b\n");
        });
    }

    #[test]
    fn a_hook_that_fails_is_told_with_its_last_words() {
        block_on(async {
            let error = run("createRuntime", &sh("echo no network >&2; exit 3"), &json!({}))
                .await
                .unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("createRuntime hook \"/bin/sh\" ended with")
                    && text.ends_with(": no network"),
                "{text}"
            );
            let slow = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 60"], "env": ["PATH=/bin"], "timeout": 1 });
            let text = run("prestart", &slow, &json!({})).await.unwrap_err().to_string();
            assert!(text.contains("no answer within 1 s"), "{text}");
        });
    }

    #[test]
    fn without_hooks_for_the_host_nothing_is_held() {
        block_on(async {
            let config = json!({ "hooks": { "createContainer": [sh("true")], "prestart": [] } });
            assert!(
                Hooks::of(&config, "c1", Path::new("/b"))
                    .unwrap()
                    .is_none_or(|hooks| hooks.pid().is_none())
            );
        });
    }
}

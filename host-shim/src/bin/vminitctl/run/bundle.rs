//! What to run, from the options: a config.json and the directory of the root filesystem.

use std::path::{Path, PathBuf};

use host_shim::container::{ProcessWish, default_spec};
use oci_spec::runtime::{RootBuilder, Spec};

use super::RunError;
use crate::cli::RunArgs;

/// The container as the guest gets it.
pub struct Container {
    /// config.json.
    pub config: Vec<u8>,
    /// The host's directory with the root filesystem; absolute.
    pub rootfs: PathBuf,
}

impl Container {
    /// Reads the bundle, or makes a spec for `--rootfs`.
    pub fn from_args(args: &RunArgs) -> Result<Self, RunError> {
        let env = args.env.iter().map(|entry| resolve(entry)).collect::<Result<Vec<_>, _>>()?;
        let (spec, rootfs) = match (&args.bundle, &args.rootfs) {
            (Some(bundle), _) => from_bundle(bundle, env, &args.command)?,
            (None, Some(rootfs)) if !args.command.is_empty() => {
                let hostname = args.name.clone().unwrap_or_else(|| "vm".to_owned());
                let wish = ProcessWish { args: args.command.clone(), env, hostname };
                (default_spec(&wish), rootfs.clone())
            }
            (None, Some(_)) => return Err(RunError::NoCommand),
            (None, None) => unreachable!("the option table wants one of the two"),
        };
        let config = serde_json::to_vec(&spec).expect("a spec is JSON");
        let rootfs = readable_directory(&rootfs)
            .map_err(|source| RunError::Rootfs { path: rootfs.clone(), source })?;
        Ok(Self { config, rootfs })
    }
}

fn from_bundle(
    bundle: &Path,
    env: Vec<String>,
    command: &[String],
) -> Result<(Spec, PathBuf), RunError> {
    let path = bundle.join("config.json");
    let fail = |source| RunError::Bundle { path: path.clone(), source };
    let text = std::fs::read(&path).map_err(|error| fail(error.into()))?;
    let mut spec: Spec = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
    let root =
        spec.root().as_ref().map_or_else(|| PathBuf::from("rootfs"), |root| root.path().clone());
    let process = spec.process_mut().get_or_insert_default();
    if !command.is_empty() {
        process.set_args(Some(command.to_vec()));
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(RunError::NoCommand);
    }
    process.env_mut().get_or_insert_default().extend(env);
    if process.terminal().unwrap_or(false) {
        return Err(fail("process.terminal is true; a terminal cannot be connected yet".into()));
    }
    for mount in spec.mounts().iter().flatten() {
        if let Some(source) = mount.source().as_ref().filter(|_| binds(mount)) {
            let text = format!("mount of {source:?}: host paths cannot be mounted yet");
            return Err(fail(text.into()));
        }
    }
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let in_guest = RootBuilder::default().path("rootfs").readonly(readonly).build();
    spec.set_root(Some(in_guest.expect("every field has a value")));
    Ok((spec, bundle.join(root)))
}

fn binds(mount: &oci_spec::runtime::Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

fn resolve(entry: &str) -> Result<String, RunError> {
    match entry.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(entry.to_owned()),
        None if !entry.is_empty() => std::env::var(entry)
            .map(|value| format!("{entry}={value}"))
            .map_err(|_| RunError::Env { entry: entry.to_owned() }),
        _ => Err(RunError::Env { entry: entry.to_owned() }),
    }
}

fn readable_directory(path: &Path) -> std::io::Result<PathBuf> {
    std::fs::read_dir(path)?;
    path.canonicalize()
}

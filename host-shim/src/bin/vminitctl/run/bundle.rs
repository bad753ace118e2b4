//! What to run, from the options: a config.json and what its root filesystem is made of.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use host_shim::container::{ProcessWish, Rootfs, Shares, default_spec};
use host_shim::sys::terminal::Size;
use host_shim::vm::VmName;
use oci_spec::runtime::{BoxBuilder, RootBuilder, Spec};

use super::storage::Storage;
use super::volumes;
use super::{RunError, network};
use crate::cli::RunArgs;
use crate::process::{resolve_env, set_env, term_entry};

/// The container as the guest gets it.
pub struct Container {
    spec: Spec,
    /// True when its process has a terminal.
    pub tty: bool,
    /// What the VM is to be given of the host.
    pub storage: Storage,
    /// True when it has the VM's network.
    pub network: bool,
}

impl Container {
    /// Reads the bundle, or makes a spec for `--rootfs`.
    pub fn from_args(args: &RunArgs) -> Result<Self, RunError> {
        let env = args.env.iter().map(|entry| resolve_env(entry)).collect::<Result<Vec<_>, _>>()?;
        let (mut spec, rootfs) = match &args.bundle {
            Some(bundle) => from_bundle(bundle, &args.command)?,
            None if args.command.is_empty() => return Err(RunError::NoCommand),
            None => {
                let hostname =
                    args.name.as_ref().map_or_else(|| "vm".to_owned(), VmName::to_string);
                let wish =
                    ProcessWish { args: args.command.clone(), hostname, ..Default::default() };
                (default_spec(&wish), args.rootfs.clone().unwrap_or_default())
            }
        };
        let process = spec.process_mut().get_or_insert_default();
        let tty = args.tty || process.terminal().unwrap_or(false);
        process.set_terminal(Some(tty));
        let ours = process.env_mut().get_or_insert_default();
        if tty && !ours.iter().any(|entry| entry.starts_with("TERM=")) {
            ours.push(term_entry());
        }
        set_env(ours, env);
        let mut shares = Shares::default();
        // What is missing is said before anything is copied.
        let binds = volumes::find(&spec, args, &mut shares)?;
        let storage = match args.image.is_empty() {
            true => Storage::directory(&rootfs, shares)?,
            false => Storage::images(args, shares)?,
        };
        binds.put_into(&mut spec, &storage.rootfs, args);
        let network = network::wanted(args)?;
        if network {
            // Behind the search for the host's directories: these files are the guest's.
            network::share(&mut spec);
        }
        Ok(Self { spec, tty, storage, network })
    }

    /// What Create is to mount.
    pub fn rootfs(&self) -> &Rootfs {
        &self.storage.rootfs
    }

    /// How large the terminal is when the process is made.
    pub fn set_console_size(&mut self, size: Size) {
        let size = BoxBuilder::default().height(size.height).width(size.width).build();
        if let Some(process) = self.spec.process_mut() {
            process.set_console_size(size.ok());
        }
    }

    /// What runs, for people.
    pub fn command(&self) -> String {
        let args = self.spec.process().as_ref().and_then(|process| process.args().as_ref());
        args.map(|args| args.join(" ")).unwrap_or_default()
    }

    /// What it is to be.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// config.json.
    pub fn config(&self) -> Vec<u8> {
        serde_json::to_vec(&self.spec).expect("a spec is JSON")
    }

    /// JSON of its process in a file without a name.
    pub fn process_file(&self) -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&serde_json::to_vec(self.spec.process()).expect("a process is JSON"))?;
        Ok(file)
    }
}

fn from_bundle(bundle: &Path, command: &[String]) -> Result<(Spec, PathBuf), RunError> {
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
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let in_guest = RootBuilder::default().path("rootfs").readonly(readonly).build();
    spec.set_root(Some(in_guest.expect("every field has a value")));
    Ok((spec, bundle.join(root)))
}

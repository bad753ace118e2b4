//! What is around the container in `vminitctl run`: extras for the guest, and ports that it dials.
//!
//! Owns: the extras' archive, a file in the VM's directory, which goes with that.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use host_shim::ctl::Claim;
use host_shim::dials;
use host_shim::extras::{self, Extra, ExtrasError};
use host_shim::machine::Dial;
use host_shim::vm::{Disk, Draft, Serial};
use tokio::sync::mpsc;

use super::RunError;
use crate::cli::RunArgs;

/// The serial number of the disk with the extras.
const EXTRAS_SERIAL: &str = "extras";

/// The disk with the extras, if there are any. Added to the description behind all others, and named to the guest by
/// its place among them.
pub fn add_extras(draft: &mut Draft, extras: &[Extra], claim: &Claim) -> Result<(), RunError> {
    if extras.is_empty() {
        return Ok(());
    }
    let path = claim.file("extras.tar");
    let mut archive = BufWriter::new(File::create(&path).map_err(ExtrasError::Write)?);
    extras::write(extras, &mut archive)?;
    archive.flush().map_err(ExtrasError::Write)?;
    let word = format!("{} spin.extras_disk={}", draft.cmdline, draft.disks.len());
    draft.cmdline = word.trim().parse().map_err(RunError::Cmdline)?;
    let serial = Serial::try_from(EXTRAS_SERIAL.to_owned()).expect("a constant that is a serial");
    draft.disks.push(Disk { serial, path, read_only: true });
    Ok(())
}

/// Connects the guest's dials, as long as the VM runs.
pub fn connect_dials(args: &RunArgs, dials: mpsc::Receiver<Dial>) -> tokio::task::JoinHandle<()> {
    let sockets = args.guest_dials.iter().map(|dial| (dial.port, dial.path.clone())).collect();
    let tell = |port, path: &Path, error| {
        eprintln!("vminitctl: the guest dialled port {port}, but {}: {error}", path.display());
    };
    tokio::spawn(dials::serve(dials, sockets, tell))
}

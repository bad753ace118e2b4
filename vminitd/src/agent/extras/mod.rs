//! Extras: files that the VM's owner puts into the guest by a tar archive on a disk.
//!
//! ```text
//! disk -> extract -> tar (what is in it) -> place (may it go there) -> write
//! ```
//!
//! Owns: the note that they were extracted, which outlives the agent.
//! Promises: nothing happens in a VM without such a disk, and nothing before the agent serves; what
//! hangs or fails here holds up nobody but the supervisor, and that no longer than the disk is waited
//! for; an agent that is killed in the middle is followed by one that does all of it again.
//! Never: starts the supervisor (who calls this does, when it returns).

pub mod extract;
pub mod place;
pub mod tar;
pub mod write;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use self::extract::Outcome;
use self::write::Writer;
use super::block::find::find;
use super::block::source::Source;
use super::{Agent, var};
use crate::chain;
use crate::limits::{DEVICE_PATIENCE, EXTRAS_BUFFER_BYTES, EXTRAS_SHARE_OF_MEMORY};
use crate::paths;

/// Extracts them, if there are any and it was not done. Returns when that is over, however it went.
pub async fn extract(agent: &Agent) {
    let Some(index) = agent.config.extras_disk else { return };
    if Path::new(paths::EXTRAS_DONE).exists() && !agent.config.extras_force {
        return;
    }
    let source = Source::Name(disk_name(index));
    let device = match find(&source, DEVICE_PATIENCE).await {
        Ok(device) => device,
        Err(error) => {
            error!(error = %chain(&error), "no extras");
            return;
        }
    };
    let work = tokio::task::spawn_blocking(move || from_device(&device)).await;
    match work {
        Ok(Ok(outcome)) => tell(&outcome),
        Ok(Err(error)) => error!(%error, "no extras"),
        Err(defect) => error!(%defect, "no extras"),
    }
}

/// The kernel's name of the disk with this index: `vda` to `vdz`, then `vdaa` to `vdzz`.
fn disk_name(index: u16) -> String {
    let letter = |index: u16| char::from(b'a' + (index % 26) as u8);
    match index / 26 {
        0 => format!("vd{}", letter(index)),
        round => format!("vd{}{}", letter(round - 1), letter(index)),
    }
}

fn from_device(device: &PathBuf) -> std::io::Result<Outcome> {
    let archive = BufReader::with_capacity(EXTRAS_BUFFER_BYTES, File::open(device)?);
    if let Err(error) = var::make_writable() {
        warn!(%error, "{} stays read-only", paths::VAR);
    }
    let memory = nix::sys::sysinfo::sysinfo().map_or(0, |system| system.ram_total());
    let mut writer = Writer::new(Path::new("/"))?;
    let outcome = extract::extract(archive, &mut writer, memory / EXTRAS_SHARE_OF_MEMORY);
    std::fs::write(paths::EXTRAS_DONE, "")?;
    Ok(outcome)
}

fn tell(outcome: &Outcome) {
    let Outcome { written, refused, cut } = outcome;
    match cut {
        None => info!("extras: {written} entries, {refused} refused"),
        Some(why) => {
            error!("extras: {written} entries, {refused} refused; not read further: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::disk_name;

    #[test]
    fn disks_have_the_kernels_names_also_behind_z() {
        let named =
            [(0, "vda"), (25, "vdz"), (26, "vdaa"), (51, "vdaz"), (52, "vdba"), (701, "vdzz")];
        for (index, name) in named {
            assert_eq!(disk_name(index), name);
        }
    }
}

//! The rest of the boot: what no host can ask for before it was served.
//!
//! It is done by PID 1 as soon as the first agent serves; that agent waits with whatever needs it
//! ([`boot_complete`](crate::agent::init_client::InitClient::boot_complete)), so that nobody sees a system that is half set up. Later agents find
//! it done.
//!
//! Owns: what it takes, until then.
//! Promises: done once, whichever agent is the first to serve.

use super::cgroup::{self, CgroupError};
use super::{mounts, settings};

/// What is still to be done, and what it takes.
#[derive(Debug)]
pub struct Rest {
    /// The VM's name.
    pub hostname: String,
}

impl Rest {
    /// Does it. An error ends the VM, as any of the boot's does.
    pub fn complete(self, agent: Option<i32>) -> Result<(), CgroupError> {
        settings::lift_log_limit();
        cgroup::set_up(agent)?;
        mounts::furnish();
        settings::part_users();
        settings::system(&self.hostname);
        Ok(())
    }
}

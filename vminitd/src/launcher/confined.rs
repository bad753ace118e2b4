//! The last of what a container's process loses: capabilities and system calls.
//!
//! Runs in the process itself, in the executor, when libcontainer has done everything that needs
//! either. The filter comes as late as it can: with no_new_privs right before the program, so that
//! a profile need not allow what libcontainer and we do until then; without, only somebody with
//! CAP_SYS_ADMIN may load one, so before the capabilities are dropped. Hooks that run in between
//! are filtered too.
//!
//! Promises: a process that has not got all of it executes nothing.

use std::io;
use std::path::Path;

use libcontainer::oci_spec::runtime::Spec;

use crate::link::confinement::{Capabilities, Confinement, Filter};
use crate::link::left::{Left, LeftError};
use crate::link::message::Job;
use crate::paths;
use crate::sys::{capabilities, seccomp};

/// Why nothing is executed.
#[derive(Debug, thiserror::Error)]
pub enum ConfinedError {
    /// The agent's file is no use.
    #[error(transparent)]
    File(#[from] LeftError),
    /// The kernel refused; see capabilities(7).
    #[error("{what}: {source}")]
    Capabilities {
        /// What.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the program; see seccomp(2).
    #[error("load the seccomp filter: {0}")]
    Filter(#[source] io::Error),
}

/// What the agent has left for a container's processes. An exec's capabilities are its program's.
pub fn of(container: &str, job: &Job) -> Result<Confinement, LeftError> {
    let container = Path::new(paths::CONTAINERS_DIR).join(container);
    match job {
        Job::Create { .. } | Job::Exec { .. } => Confinement::read(&container),
        // They start no program of the container's.
        Job::Log { .. } | Job::StartWithHooks | Job::DeleteWithHooks => Ok(Confinement::default()),
    }
}

/// To be done before the process waits for its start.
pub fn before_start(confinement: &Confinement, how: Confined) -> Result<(), ConfinedError> {
    if !how.no_new_privileges {
        load(confinement)?;
    }
    drop_capabilities(confinement.capabilities)?;
    if how.no_new_privileges && how.has_start_hooks {
        load(confinement)?;
    }
    Ok(())
}

/// To be done right before the program.
pub fn before_program(confinement: &Confinement, how: Confined) -> Result<(), ConfinedError> {
    match how.no_new_privileges && !how.has_start_hooks {
        true => load(confinement),
        false => Ok(()),
    }
}

fn load(confinement: &Confinement) -> Result<(), ConfinedError> {
    let Some(Filter { flags, program }) = &confinement.filter else { return Ok(()) };
    seccomp::install(&seccomp::instructions(program), *flags).map_err(ConfinedError::Filter)
}

/// The bounding set first: that takes CAP_SETPCAP.
fn drop_capabilities(sets: Capabilities) -> Result<(), ConfinedError> {
    let failed = |what| move |source| ConfinedError::Capabilities { what, source };
    capabilities::keep_in_bounding_set(sets.bounding)
        .map_err(failed("drop capabilities from the bounding set"))?;
    capabilities::set(sets.effective, sets.permitted, sets.inheritable)
        .map_err(failed("set capabilities"))?;
    capabilities::set_ambient(sets.ambient).map_err(failed("set ambient capabilities"))
}

/// When it has to be done.
#[derive(Clone, Copy, Debug)]
pub struct Confined {
    /// The process asks for no_new_privs.
    pub no_new_privileges: bool,
    /// Something of the host's runs in it between its start and its program.
    pub has_start_hooks: bool,
}

impl From<&Spec> for Confined {
    fn from(spec: &Spec) -> Self {
        let process = spec.process().as_ref();
        let no_new_privileges = process.and_then(|process| process.no_new_privileges());
        let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
        Confined {
            no_new_privileges: no_new_privileges.unwrap_or(false),
            has_start_hooks: hooks.is_some_and(|hooks| !hooks.is_empty()),
        }
    }
}

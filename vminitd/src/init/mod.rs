//! PID 1: boots, forks the agent and the launchers, reaps, keeps descriptors, powers off.
//!
//! Promises: one thread; no wait for the agent; no way out but power-off: every error of the boot
//! and every panic ends in a message on the console and a power-off, and after the boot there are
//! no errors that end anything. What serving does not need is done after it ([`boot::rest`]).
//! Never: parses what comes from outside the VM; knows what a container is.
//!
//! The pure parts decide: [`clock`], [`heartbeat`], [`launch_state`], [`processes`], [`keep`],
//! [`ending`], and the restart rule of `supervisor_monitor`. The others do: [`boot`],
//! [`agent_process`], [`launches`], [`supervisor`], [`power`], and [`event_loop`], which brings them
//! together.

pub mod agent_process;
pub mod boot;
pub mod button;
pub mod clock;
pub mod ending;
pub mod epitaph;
pub mod event_loop;
pub mod heartbeat;
pub mod keep;
pub mod launch_cgroup;
pub mod launch_state;
pub mod launches;
pub mod power;
pub mod processes;
mod strays;
pub mod supervisor;
mod supervisor_program;

use std::io;

use tracing::warn;

use self::agent_process::AgentSettings;
use self::boot::cgroup::CgroupError;
use self::boot::listeners::ListenError;
use self::boot::mounts::MountError;
use self::boot::rest::Rest;
use self::boot::root::RootError;
use self::boot::{cgroup, listeners, mounts, root, settings};
use self::ending::Patience;
use self::event_loop::{Booted, EventLoop};
use self::supervisor::Supervisor;
use crate::config::Config;
use crate::link::message::Phase;
use crate::log::{self, Role};
use crate::sys::{clock as clocks, signals};

/// Why there is no VM. Always a message on the console and a power-off.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("open a descriptor for signals")]
    Signals(#[source] io::Error),
}

/// PID 1's life.
pub fn run(arguments: &[String]) -> ! {
    let mut stamps = Stamps::default();
    stamps.take(Phase::Pid1Entry);
    signals::block_all();
    signals::default_sigpipe();
    epitaph::install_panic_hook();
    match boot(arguments, stamps) {
        // ------ From here on nothing returns an error upward. ------
        Ok(booted) => EventLoop::new(booted).run(),
        Err(error) => {
            epitaph::fatal(format_args!("boot: {}", crate::chain(&error)));
        }
    }
}

fn boot(arguments: &[String], mut stamps: Stamps) -> Result<Booted, BootError> {
    root::make_pivotable()?;
    mounts::mount_first()?;
    settings::reopen_stdio();
    let config = Config::from_system(arguments);
    log::start(Role::Init, config.log);
    for complaint in &config.complaints {
        warn!("configuration: {complaint}");
    }

    mounts::mount_rest()?;
    settings::expedite_rcu();
    cgroup::mount_hierarchy()?;
    settings::own_process();
    stamps.take(Phase::SystemInit);

    let listeners = [listeners::open(config.rpc_port)?, listeners::open(config.stream_port)?];
    stamps.take(Phase::Listening);

    let signals = signals::descriptor(event_loop::SIGNALS).map_err(BootError::Signals)?;
    let supervisor = Supervisor::new(config.supervisor_haste);
    let rest = Rest { hostname: config.hostname.clone() };
    let patience = Patience { grace: config.stop_grace, step: config.stop_step };
    let agent = AgentSettings {
        heartbeat: config.heartbeat,
        heartbeat_misses: config.heartbeat_misses,
        config,
    };
    Ok(Booted { agent, rest, signals, listeners, patience, stamps, supervisor })
}

/// The moments of the boot, for the console and for the agent.
#[derive(Clone, Debug, Default)]
pub struct Stamps(Vec<(Phase, u64)>);

impl Stamps {
    /// Now.
    pub fn take(&mut self, phase: Phase) {
        self.0.push((phase, clocks::boottime_us()));
    }

    /// What the agent is told.
    pub fn list(&self) -> Vec<(Phase, u64)> {
        self.0.clone()
    }

    /// A line for each. After serving: a line takes as long as a mount.
    pub fn print(&self) {
        for (phase, at) in &self.0 {
            let name = match phase {
                Phase::Pid1Entry => "pid1-entry",
                Phase::SystemInit => "system-init",
                Phase::Listening => "vsock-listen",
                Phase::Serving => "serve",
                Phase::AgentForked => continue,
            };
            log::to_console(&format!("VMINITD_READY uptime_us={at} phase={name}"));
        }
    }
}

//! Where hosts differ in what they expect of the guest, and what this boot does about it.
//!
//! Owns: the table of choices; every `if` on a host's habits reads one of these fields.
//! Never: knows how a choice is carried out.

use std::time::Duration;

use crate::config;
use crate::limits::STDIN_QUIET;

/// The choices of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// How `CloseIO` ends a process's stdin.
    pub close_io: CloseIo,
    /// What an output stream gets when every writer has closed.
    pub output_eof: OutputEof,
    /// Whether the guest publishes TaskDelete (else the host does).
    pub publishes_delete: bool,
    /// The namespace of events whose request carried none.
    pub default_namespace: &'static str,
    /// Whether Pause and Resume use the freezer (else the host stops the vCPUs).
    pub freezer: bool,
}

/// How `CloseIO` ends a process's stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseIo {
    /// After what the stream holds; it counts as empty once nothing came for so long, since the
    /// RPC's connection and the stream's have no common order.
    OnceQuiet(Duration),
}

/// What an output stream gets when every writer has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputEof {
    /// A half-close; the full one comes with Delete.
    HalfClose,
}

/// Our own host's habits.
pub const NATIVE: Profile = Profile {
    close_io: CloseIo::OnceQuiet(STDIN_QUIET),
    output_eof: OutputEof::HalfClose,
    publishes_delete: true,
    default_namespace: "",
    freezer: true,
};

impl From<config::Profile> for Profile {
    fn from(profile: config::Profile) -> Self {
        match profile {
            config::Profile::Native => NATIVE,
        }
    }
}

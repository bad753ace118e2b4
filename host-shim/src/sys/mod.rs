//! The system calls of the host side that std and nix have no safe wrapper for: the only place with `unsafe`.
//! Promises: fds come in borrowed and go out owned; each function's doc leads to its man page.
//! Never: decides anything.

pub mod frames;
pub mod inherited;
pub mod numbered;
pub mod own_terminal;
pub mod scm;
pub mod terminal;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod os;

pub use os::*;

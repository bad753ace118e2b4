//! A container's root filesystem from the mounts of its Create request.
//!
//! [`plan`] decides (pure), with `templates` of the protocol and [`options`] for texts (pure); [`make`] mounts,
//! and undoes.

pub mod devices;
mod filesystem;
pub mod make;
pub mod options;
pub mod place;
pub mod plan;
pub mod undo;

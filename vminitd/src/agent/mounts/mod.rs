//! A container's root filesystem from the mounts of its Create request.
//!
//! [`plan`] decides (pure), [`options`] reads option lists (pure), [`make`] mounts, and undoes.

pub mod devices;
pub mod make;
pub mod options;
pub mod plan;

//! Packs a reproducible initramfs: what goes in ([`Tree`]), how it is laid out ([`newc`], or [`erofs`] for a disk), how it is
//! compressed ([`compress`]).
//! Promises: the same files give the same bytes, whoever packs them, where and when; no root is needed.
//! Never: takes a time, an owner or an inode number from the machine that packs.
//!
//! A tree knows nothing of archives: both layouts are written from the same one.
#![forbid(unsafe_code)]

pub mod compress;
pub mod erofs;
pub mod newc;
mod tree;

pub use tree::{Node, Tree, TreeError};

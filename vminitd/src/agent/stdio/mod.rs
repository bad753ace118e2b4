//! stdio of processes: what hosts ask for ([`uri`]), the streams that they open ([`streams`],
//! [`listener`]), how the two meet in pipes ([`wiring`]), and what moves the bytes ([`output`],
//! [`input`], both on [`end`]); a [`terminal`] stands between such pipes and its process.

pub mod end;
pub mod input;
pub mod listener;
pub mod output;
pub mod streams;
pub mod terminal;
pub mod uri;
pub mod wiring;

//! Stands in for the `regex` crate, by its small sibling of the same authors and the same interface.
//!
//! oci-spec and libcontainer check a CPU list and RDT schemata with regular expressions, and bring in an engine for
//! it that is a tenth of the guest's binary: automata, look-up tables, Unicode. No feature turns that off. What is
//! missing here (Unicode classes, byte strings, sets) none of them uses; a crate that does will not compile.
//!
//! Never: is used by our own code.
#![forbid(unsafe_code)]

pub use regex_lite::*;

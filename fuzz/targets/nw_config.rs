//! `nw-config.json` of a bundle.
//!
//! Looks for: panics, more networks than are taken, and an answer that differs the second time: what was given by the
//! first reading is taken away by another.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vminitd::agent::network::container::understand;
use vminitd::limits::NETWORK_ITEMS;

fuzz_target!(|json: &[u8]| {
    let Ok(wanted) = understand(json, "container") else { return };
    assert!(wanted.len() <= NETWORK_ITEMS);
    assert_eq!(understand(json, "container").unwrap(), wanted);
});

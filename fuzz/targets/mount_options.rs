//! Mount options: a line of the input is an item of the list.
//!
//! Looks for: panics, and an option that is read otherwise when each word stands alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vminitd::agent::mounts::options::{parse, words};

fuzz_target!(|text: &str| {
    let items: Vec<String> = text.lines().map(str::to_owned).collect();
    let Ok(options) = parse(&items) else { return };
    let alone: Vec<String> = items.iter().flat_map(|item| words(item).unwrap()).collect();
    assert_eq!(parse(&alone), Ok(options), "{items:?} {alone:?}");
});

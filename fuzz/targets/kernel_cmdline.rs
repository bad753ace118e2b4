//! The kernel command line, and vminitd's flags: the input's first line is the former, each other line a flag.
//!
//! Looks for: panics, more complaints than words, and words behind `--` that have an effect: they are init's arguments,
//! and the kernel hands them over as such.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vminitd::config::Config;

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let cmdline = lines.next().unwrap_or_default();
    let flags: Vec<String> = lines.map(str::to_owned).collect();
    let config = Config::parse(cmdline, &flags);
    let words = cmdline.split_ascii_whitespace().count() + flags.len();
    assert!(config.complaints.len() <= words && config.network.len() <= words, "{config:?}");
    let before: Vec<_> =
        cmdline.split_ascii_whitespace().take_while(|word| *word != "--").collect();
    assert_eq!(Config::parse(&before.join(" "), &flags), config);
});

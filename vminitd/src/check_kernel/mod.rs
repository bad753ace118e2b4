//! `vminitd --check-kernel`: what the running kernel lacks, and which feature of ours misses it.
//!
//! [`table`] says which option serves which feature, [`config`] reads a kernel's configuration, [`inflate`] unpacks
//! it, [`probe`] asks the kernel itself where there is none to read.
//!
//! Promises: an option that is a module counts as lacking, since a guest of ours loads none; what cannot be found out
//! is said and does not count. Never: runs in PID 1 or the agent; changes anything.

mod config;
mod inflate;
mod probe;
mod table;

use std::fmt::Write;
use std::io::Write as _;
use std::process::ExitCode;

use self::config::{Config, Setting};
use self::table::{Arch, NEEDS, Need, Want};

/// Looks at the running kernel, prints, and exits with 0 when nothing is lacking, else with 1.
pub fn run() -> ExitCode {
    let report = match Config::of_running_kernel() {
        Ok((config, source)) => report(&source, |need| from_config(&config, need)),
        Err(tried) => report(
            &format!("no configuration to read ({tried}); asked the kernel instead"),
            |need| probe::ask(need.probe),
        ),
    };
    // A reader that went away is no reason to complain.
    let _ = std::io::stdout().write_all(report.text.as_bytes());
    if report.lacking == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What was found out about an option.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// As it should be.
    Good,
    /// Not so, with what it is instead: `is not set`.
    Lacking(&'static str),
    /// There is no way to know.
    Unknown,
}

struct Report {
    text: String,
    lacking: usize,
}

fn from_config(config: &Config, need: &Need) -> Found {
    match (need.want, config.get(need.option)) {
        (Want::On, Setting::Yes) | (Want::Off, Setting::No) => Found::Good,
        (Want::On, Setting::Module) => Found::Lacking("is a module, and a guest loads none"),
        (Want::On, Setting::No) => Found::Lacking("is not set"),
        (Want::Off, _) => Found::Lacking("is set, and should not be"),
    }
}

/// A line for the kernel, one for each option that is lacking, and one to sum up.
fn report(source: &str, found: impl Fn(&Need) -> Found) -> Report {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut text = format!("kernel {release}: {source}\n");
    let (mut lacking, mut unknown) = (Vec::new(), Vec::new());
    let here = NEEDS.iter().filter(|need| Arch::HERE.is_meant_by(need.arch));
    let mut asked = 0;
    for need in here {
        asked += 1;
        match found(need) {
            Found::Good => {}
            Found::Lacking(how) => lacking.push((need, how)),
            Found::Unknown => unknown.push(need.option),
        }
    }
    let width = lacking.iter().map(|(need, how)| need.option.len() + how.len()).max().unwrap_or(0);
    for (need, how) in &lacking {
        let line = format!("CONFIG_{} {how}:", need.option);
        put(&mut text, format_args!("  {line:<0$} {1}\n", width + 9, need.feature));
    }
    if !unknown.is_empty() {
        put(&mut text, format_args!("  not known: {}\n", unknown.join(" ")));
    }
    match lacking.len() {
        0 => put(&mut text, format_args!("nothing is lacking of {asked} options\n")),
        lacking => put(&mut text, format_args!("{lacking} of {asked} options are lacking\n")),
    }
    Report { text, lacking: lacking.len() }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &str) -> Report {
        let config = Config::parse(config);
        report("a test", |need| from_config(&config, need))
    }

    fn all() -> String {
        let line = |need: &Need| match need.want {
            Want::On => format!("CONFIG_{}=y\n", need.option),
            Want::Off => format!("# CONFIG_{} is not set\n", need.option),
        };
        NEEDS.iter().map(line).collect()
    }

    #[test]
    fn a_kernel_with_everything_lacks_nothing() {
        let report = of(&all());
        assert_eq!(report.lacking, 0, "{}", report.text);
        assert!(report.text.ends_with("options\n") && report.text.contains("nothing is lacking"));
    }

    #[test]
    fn what_is_lacking_is_named_with_its_feature_and_a_module_is_lacking_too() {
        let text = all()
            .replace("CONFIG_EROFS_FS=y\n", "")
            .replace("CONFIG_OVERLAY_FS=y", "CONFIG_OVERLAY_FS=m")
            .replace("# CONFIG_VSOCKETS_LOOPBACK is not set", "CONFIG_VSOCKETS_LOOPBACK=y");
        let report = of(&text);
        assert_eq!(report.lacking, 3, "{}", report.text);
        let line = |option: &str| {
            report.text.lines().find(|line| line.contains(option)).unwrap_or_default()
        };
        assert!(line("CONFIG_EROFS_FS ").contains("is not set: "), "{}", report.text);
        assert!(line("CONFIG_EROFS_FS ").contains("erofs"));
        assert!(line("CONFIG_OVERLAY_FS ").contains("is a module"));
        assert!(line("CONFIG_VSOCKETS_LOOPBACK ").contains("should not be"));
        assert!(report.text.ends_with(" options are lacking\n") && report.text.contains("\n3 of "));
    }

    #[test]
    fn what_is_not_known_does_not_count() {
        let report = report("a test", |_| Found::Unknown);
        assert_eq!(report.lacking, 0);
        assert!(report.text.contains("not known: PROC_FS "), "{}", report.text);
    }

    /// The fragments that our own kernels are built from, of one architecture.
    fn fragments(arch: &str) -> String {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernel-config");
        let read = |name: &str| std::fs::read_to_string(format!("{directory}/{name}.fragment"));
        [read("common"), read(arch)].map(|text| text.expect("a fragment")).concat()
    }

    #[test]
    fn our_own_fragments_satisfy_the_table() {
        for (name, arch) in [("x86_64", Arch::X86_64), ("arm64", Arch::Arm64)] {
            let config = Config::parse(&fragments(name));
            for need in NEEDS.iter().filter(|need| arch.is_meant_by(need.arch)) {
                assert_eq!(from_config(&config, need), Found::Good, "{name}: {}", need.option);
            }
        }
    }

    #[test]
    fn every_line_of_our_fragments_has_its_reason() {
        for name in ["x86_64", "arm64"] {
            for line in fragments(name).lines().filter(|line| line.starts_with("CONFIG_")) {
                let reason = line.split_once("  # ").map_or("", |(_, reason)| reason);
                assert!(reason.trim().len() > 2, "{name}: {line}");
            }
        }
    }

    #[test]
    fn no_option_is_in_the_table_twice() {
        let mut names: Vec<_> = NEEDS.iter().map(|need| need.option).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

//! The binary: finds out which role this process has, and plays it.
//!
//! PID 1 is init, and the agent is a fork of it; anything else is a person on some host, who gets
//! help.

use std::process::ExitCode;

use vminitd::config::Config;

const HELP: &str = "\
vminitd - PID 1 of a micro-VM and the container agent in it

This program is what a guest kernel starts as /init. On a host there is nothing to run:
start a VM with `vminitctl run`.

  --check-kernel   say what the running kernel lacks, and for which feature; exits with 1 if anything
  --version        print the version
  --help           print this

Configuration comes from the guest's kernel command line, see docs/configuration.md:
";

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if std::process::id() == 1 {
        vminitd::init::run(&arguments)
    }
    match arguments.get(1).map(String::as_str) {
        Some("--check-kernel") => vminitd::check_kernel::run(),
        Some("--version" | "-V") => {
            println!("vminitd {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("--help" | "-h") => {
            print!("{HELP}{}", Config::help());
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}{}", Config::help());
            ExitCode::from(2)
        }
    }
}

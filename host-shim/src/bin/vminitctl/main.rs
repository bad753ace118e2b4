//! vminitctl: runs containers in VMs from a command line.
//!
//! Promises: exits with the container's status, or 125 when we failed, 126 when the program cannot be executed,
//! 127 when it was not found; prints nothing of its own on stdout but what was asked for.

mod attach;
mod cli;
mod console;
mod debug;
mod doctor;
mod events;
mod exec;
mod generate;
mod inside;
mod kill;
mod list;
mod process;
mod reach;
mod run;
mod stats;
mod stop;
mod supervisor;
mod time;

use std::process::exit;

use clap::Parser;
use host_shim::{chain, external};

/// Our own failure, as `docker run` and others count.
const FAILED: i32 = 125;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == external::COMMAND) {
        if let Err(error) = external::serve(arguments) {
            eprintln!("vminitctl: {}", chain(&error));
            exit(FAILED);
        }
        return;
    }
    let cli = cli::Cli::try_parse().unwrap_or_else(|told| {
        // What was asked for (--help) is no error. A closed pipe is none either.
        let _ = told.print();
        exit(if told.use_stderr() { FAILED } else { 0 });
    });
    let outcome = match cli.command {
        cli::Command::Run(args) => run::run(*args).map_err(|error| failure(&error, error.status())),
        cli::Command::Exec(args) => {
            exec::exec(*args).map_err(|error| failure(&error, error.status()))
        }
        cli::Command::Stop(args) => stop::stop(&args).map_err(|error| failure(&error, FAILED)),
        cli::Command::Features(args) => ours(inside::features(&args)),
        cli::Command::Metrics(args) => ours(inside::metrics(&args)),
        cli::Command::Diag(args) => ours(inside::diag(&args)),
        cli::Command::Supervisor(args) => ours(supervisor::supervisor(&args)),
        cli::Command::List(args) => list::list(&args).map_err(|error| failure(&error, FAILED)),
        cli::Command::Events(args) => ours(events::events(&args)),
        cli::Command::Stats(args) => ours(stats::stats(&args)),
        cli::Command::Attach(args) => ours(attach::attach(&args)),
        cli::Command::Kill(args) => ours(kill::kill(&args)),
        cli::Command::Console(args) => ours(console::console(&args)),
        cli::Command::Logs(args) => ours(console::logs(&args)),
        cli::Command::Debug(args) => ours(debug::debug(*args)),
        cli::Command::Doctor(args) => ours(doctor::doctor(&args)),
        cli::Command::Generate { what, into } => ours(generate::generate(what, into.as_deref())),
    };
    match outcome {
        Ok(status) => exit(status),
        Err((text, status)) => {
            eprintln!("vminitctl: {text}");
            exit(status);
        }
    }
}

fn ours(outcome: Result<i32, reach::ReachError>) -> Result<i32, (String, i32)> {
    outcome.map_err(|error| failure(&error, error.status()))
}

fn failure(error: &dyn std::error::Error, status: i32) -> (String, i32) {
    (chain(error), status)
}

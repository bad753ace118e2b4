//! mac-check: what can be said of our programs for macOS without a Mac.
//!
//! ```text
//! vminit-vmm, vminitctl, ... --> macho (pure) --> libraries, classes, selectors, version --+
//! names.txt -------------------> names (pure) --> since which macOS each is there ---------+--> findings
//! sources of the VZ layer -----> guards (pure) -> calls without an availability check -----+
//! ```
//!
//! Promises: exit status 1 when something is found, and a line for each finding. Never: changes or runs what it looks at.

mod findings;
mod guards;
mod macho;
mod names;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use macho::Program;

/// Checks programs for macOS where none of them runs.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The only program that may link Virtualization.framework
    #[arg(long, value_name = "FILE")]
    vmm: PathBuf,
    /// Since which macOS each class and selector is there
    #[arg(long, value_name = "FILE")]
    names: PathBuf,
    /// Directory with the sources that call them
    #[arg(long, value_name = "DIR")]
    sources: PathBuf,
    /// The other programs
    others: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match check(&Flags::parse()) {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            findings.iter().for_each(|finding| eprintln!("{finding}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("mac-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(flags: &Flags) -> Result<Vec<String>, String> {
    let table = names::parse(&read_text(&flags.names)?).map_err(|error| error.to_string())?;
    let mut findings = Vec::new();
    for path in [&flags.vmm].into_iter().chain(&flags.others) {
        let bytes = fs::read(path).map_err(|error| format!("{path:?}: {error}"))?;
        let program =
            Program::parse(&bytes).map_err(|error| format!("{path:?} is no program: {error}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!(
            "{name}: macOS {}.{}, {} libraries, {} classes, {} selectors",
            program.oldest.0,
            program.oldest.1,
            program.libraries.len(),
            program.classes.len(),
            program.selectors.len()
        );
        findings.extend(findings::of_libraries(&name, &program, path == &flags.vmm));
        findings.extend(findings::of_names(&name, &program, &table));
        if path == &flags.vmm && program.selectors.is_empty() {
            findings.push(format!("{name}: it has no selectors: what was to be checked?"));
        }
    }
    let newer = table.newer_selectors();
    for path in sources(&flags.sources)? {
        let text = read_text(&path)?;
        let found = guards::unguarded(&text, &newer);
        findings.extend(found.into_iter().map(|finding| format!("{}: {finding}", path.display())));
    }
    Ok(findings)
}

fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"))
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(directory).map_err(|error| format!("{directory:?}: {error}"))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|ext| ext == "rs")).collect())
}

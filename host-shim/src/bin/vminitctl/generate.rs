//! `vminitctl generate`: documentation and completions, made from the table of the command line.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, Generated};
use crate::reach::{ReachError, print};

/// Prints what is asked for, or writes it into a directory; returns the exit status.
pub fn generate(what: Generated, into: Option<&Path>) -> Result<i32, ReachError> {
    let shell = match what {
        Generated::Markdown => return print(&markdown()).map(|_| 0),
        Generated::Man => return man(into.unwrap_or(Path::new("."))).map(|()| 0),
        Generated::Bash => Shell::Bash,
        Generated::Zsh => Shell::Zsh,
        Generated::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vminitctl", &mut text);
    print(&String::from_utf8_lossy(&text)).map(|_| 0)
}

/// A page of section 1 for the command and one for each of its commands.
fn man(into: &Path) -> Result<(), ReachError> {
    let fail =
        |source| ReachError::Local { what: format!("write manual pages into {into:?}"), source };
    fs::create_dir_all(into).map_err(fail)?;
    let mut root = Cli::command();
    root.build();
    let mut pages = vec![("vminitctl".to_owned(), root.clone())];
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("vminitctl-{}", command.get_name());
        // clap_mangen wants names that live as long as the program.
        let leaked: &'static str = Box::leak(name.clone().into_boxed_str());
        pages.push((name, command.clone().name(leaked)));
    }
    for (name, command) in pages {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).map_err(fail)?;
        fs::write(into.join(format!("{name}.1")), page).map_err(fail)?;
    }
    Ok(())
}

/// docs/cli.md.
pub fn markdown() -> String {
    let mut page = String::from(
        "# vminitctl\n\nMade by `vminitctl generate markdown`; a test fails when it is stale.\n",
    );
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
        // The width of a page, not of somebody's terminal.
        let sized = command.clone().term_width(100);
        let name = command.get_name().to_owned();
        let help = sized.bin_name(format!("vminitctl {name}")).render_long_help().to_string();
        let trimmed: Vec<&str> = help.lines().map(str::trim_end).collect();
        write!(page, "\n## vminitctl {name}\n\n```text\n{}\n```\n", trimmed.join("\n").trim_end())
            .expect("a String takes everything");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_cli_md_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let page = fs::read_to_string(path).expect("docs/cli.md");
        assert_eq!(page, markdown(), "stale: vminitctl generate markdown > docs/cli.md");
    }

    #[test]
    fn every_command_has_a_manual_page_and_every_shell_knows_it() {
        let into = tempfile::tempdir().unwrap();
        man(into.path()).unwrap();
        for command in ["run", "exec", "events", "doctor"] {
            let page =
                fs::read_to_string(into.path().join(format!("vminitctl-{command}.1"))).unwrap();
            assert!(
                page.contains(".TH") && page.contains("EXAMPLE") || page.contains("Example"),
                "{command}"
            );
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "vminitctl", &mut text);
                assert!(String::from_utf8(text).unwrap().contains(command), "{shell}: {command}");
            }
        }
    }
}

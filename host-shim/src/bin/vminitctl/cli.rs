//! The command line: one table, from which help and `docs/cli.md` come.
//!
//! Promises: every option says its default, its unit and what it is good for; nothing is described twice.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use host_shim::vm::MemorySize;

/// Runs containers, each in a small VM of its own.
#[derive(Parser)]
#[command(name = "vminitctl", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What vminitctl can do.
#[derive(Subcommand)]
pub enum Command {
    /// Boot a VM, run a command in it as a container, and exit with its status
    ///
    /// The command's stdout and stderr are passed on byte by byte, signals are forwarded, and the
    /// exit status is the command's (128 + signal when it was killed). 125: vminitctl failed;
    /// 126: the command cannot be executed; 127: it was not found. A second SIGINT or SIGTERM
    /// within two seconds kills the command.
    ///
    /// Example:
    ///     vminitctl run --rootfs ./rootfs -- sh -c 'echo out; echo err >&2; exit 3'
    #[command(verbatim_doc_comment)]
    Run(Box<RunArgs>),

    /// Print what is made from this table
    #[command(hide = true)]
    Generate {
        /// What to print.
        what: Generated,
    },
}

/// What can be made from the table.
#[derive(Clone, Copy, ValueEnum)]
pub enum Generated {
    /// docs/cli.md
    Markdown,
}

/// Options of `vminitctl run`.
#[derive(Args)]
pub struct RunArgs {
    /// Root filesystem: a directory of the host, which is shared read-only; what the container writes goes to a
    /// tmpfs above it and is gone with the VM
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Container",
        required_unless_present = "bundle"
    )]
    pub rootfs: Option<PathBuf>,

    /// OCI bundle: a directory with config.json and the root filesystem that it names, shared as with --rootfs. A
    /// CMD replaces the bundle's own
    #[arg(long, value_name = "DIR", help_heading = "Container", conflicts_with = "rootfs")]
    pub bundle: Option<PathBuf>,

    /// Connect stdin; without it the command reads an empty file
    #[arg(short, long, help_heading = "Container")]
    pub interactive: bool,

    /// Set an environment variable; may be given more than once. KEY alone passes on our own value
    #[arg(short, long = "env", value_name = "KEY=VALUE", help_heading = "Container", action = ArgAction::Append)]
    pub env: Vec<String>,

    /// Memory of the VM, in bytes or with a unit: 512M, 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", help_heading = "VM")]
    pub memory: MemorySize,

    /// CPUs of the VM
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "VM")]
    pub cpus: u32,

    /// Name of the VM in messages and process lists [default: made up]
    #[arg(long, value_name = "NAME", help_heading = "VM")]
    pub name: Option<String>,

    /// Guest kernel [default: share/vminitd/x86_64/vmlinux beside this program's directory]
    #[arg(
        long,
        value_name = "FILE",
        env = "VMINITD_KERNEL",
        hide_env_values = true,
        help_heading = "VM"
    )]
    pub kernel: Option<PathBuf>,

    /// Guest initramfs [default: share/vminitd/x86_64/initramfs.cpio.zst beside this program's directory]
    #[arg(
        long,
        value_name = "FILE",
        env = "VMINITD_INITRAMFS",
        hide_env_values = true,
        help_heading = "VM"
    )]
    pub initramfs: Option<PathBuf>,

    /// Add a word to the guest's kernel command line, for example vminitd.log=debug; may be given more than once
    #[arg(long, value_name = "WORD", help_heading = "VM", action = ArgAction::Append)]
    pub append: Vec<String>,

    /// Say on stderr how long each phase took
    #[arg(long, help_heading = "Output")]
    pub timings: bool,

    /// Keep the guest's console in this file [default: shown only when something fails]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub console: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// What `vminitctl generate` prints.
pub fn generate(what: Generated) -> String {
    match what {
        Generated::Markdown => markdown(),
    }
}

fn markdown() -> String {
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
    fn command_line_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn docs_cli_md_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let page = std::fs::read_to_string(path).expect("docs/cli.md");
        assert_eq!(page, markdown(), "stale: vminitctl generate markdown > docs/cli.md");
    }
}

//! `vminitctl list`: the VMs that run on this host.
//!
//! Promises: a VM that ends while it is listed is left out, not an error.

use std::io::{self, ErrorKind, Write};

use host_shim::ctl::{self, DirectoryError};
use serde_json::{Value, json};

use crate::cli::ListArgs;

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The directory of running VMs cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// Our stdout could not be written.
    #[error("output")]
    Output(#[source] io::Error),
}

/// Prints them; returns the exit status.
pub fn list(args: &ListArgs) -> Result<i32, ListError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ListError::Runtime)?;
    let mut vms = Vec::new();
    for place in ctl::all()? {
        let Ok(told) = runtime.block_on(place.control().describe(false)) else { continue };
        vms.push(json!({
            "name": place.name,
            "namespace": place.namespace,
            "pid": told.pid,
            "state": if told.container.is_empty() { "booting" } else { "running" },
            "command": command(&told.process),
            "socket": place.socket,
        }));
    }
    let text = match args.json {
        true => vms.iter().map(|vm| format!("{vm}\n")).collect(),
        false => table(&vms),
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads no further wants no more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        written => written.map(|()| 0).map_err(ListError::Output),
    }
}

/// A long id is cut to what other commands need of it.
fn table(vms: &[Value]) -> String {
    let mut table = String::from("NAME                     PID  COMMAND\n");
    for vm in vms {
        let text = |name: &str| vm[name].as_str().unwrap_or("").to_owned();
        let name = match vm["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{:.13}", text("name")),
            None => text("name"),
        };
        let state = if text("state") == "booting" { "(boots) " } else { "" };
        table += &format!("{name:<18} {:>9}  {state}{}\n", vm["pid"], text("command"));
    }
    table
}

/// The arguments of the container's process, on one line.
fn command(process: &[u8]) -> String {
    let process: serde_json::Value = serde_json::from_slice(process).unwrap_or_default();
    let words = process["args"].as_array().into_iter().flatten();
    let words: Vec<String> = words
        .filter_map(|word| word.as_str())
        .map(|word| word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_of_containerds_is_listed_with_its_namespace() {
        let vm = json!({ "name": "4f3a0123456789abcdef", "namespace": "k8s.io", "pid": 7, "state": "running", "command": "nginx" });
        let last = table(&[vm]).lines().last().map(str::to_owned).unwrap_or_default();
        let words: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(words, ["k8s.io/4f3a012345678", "7", "nginx"]);
    }

    #[test]
    fn a_command_is_one_line_whatever_is_in_it() {
        assert_eq!(command(br#"{"args":["sh","-c","a\nb\u001b[2J"]}"#), "sh -c a b [2J");
        assert_eq!(command(b"nonsense"), "");
    }
}

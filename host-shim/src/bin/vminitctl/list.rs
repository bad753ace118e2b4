//! `vminitctl list`: the VMs that run on this host.
//!
//! Promises: a VM that ends while it is listed is left out, not an error.

use std::io::{self, ErrorKind, Write};

use host_shim::ctl::{self, Control, DirectoryError};

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
pub fn list() -> Result<i32, ListError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ListError::Runtime)?;
    let mut table = String::from("NAME                     PID  COMMAND\n");
    for vm in ctl::running()? {
        let Ok(told) = runtime.block_on(Control::new(&vm.socket()).describe(false)) else {
            continue;
        };
        let state = if told.container.is_empty() { "(boots) " } else { "" };
        let command = command(&told.process);
        table += &format!("{:<18} {:>9}  {state}{command}\n", vm.name.as_str(), told.pid);
    }
    match io::stdout().write_all(table.as_bytes()) {
        // Who reads no further wants no more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        written => written.map(|()| 0).map_err(ListError::Output),
    }
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
    #[test]
    fn a_command_is_one_line_whatever_is_in_it() {
        assert_eq!(super::command(br#"{"args":["sh","-c","a\nb\u001b[2J"]}"#), "sh -c a b [2J");
        assert_eq!(super::command(b"nonsense"), "");
    }
}

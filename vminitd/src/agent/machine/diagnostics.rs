//! `Machine.Diagnostics`: all that the agent and the kernel know that a person would ask for when something hangs.
//!
//! Promises: it waits for nothing that can hang: no filesystem of a container or host is touched, no lock is held over
//! an await or a system call that can block, and it runs on a thread of its own; each section is bounded.
//! Never: says what a program could rely on: it is text for people. Figures are [`super::metrics`]'.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vminitd_protocol::pb::vminitd::v1::MachineText;

use super::{aside, freezer};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::task::container::Container;
use crate::agent::task::record::Count;
use crate::limits::DIAGNOSTICS_LINES;
use crate::sys::clock;

/// The call.
pub async fn diagnostics(agent: Arc<Agent>) -> Result<MachineText, RpcError> {
    let text = aside("diagnostics", move || collect(&agent)).await?;
    Ok(MachineText { text })
}

fn collect(agent: &Agent) -> String {
    let mut text = String::new();
    let uptime = clock::boottime_us() / 1000;
    // A String takes everything.
    let _ = writeln!(
        text,
        "vminitd {}, agent {} of this boot, up {uptime} ms",
        env!("CARGO_PKG_VERSION"),
        agent.generation
    );
    section(&mut text, "containers", containers(agent));
    section(&mut text, "being made", agent.tasks.being_made());
    section(&mut text, "processes", processes());
    section(&mut text, "streams that no process has", agent.streams.unclaimed());
    section(&mut text, "frozen filesystems", freezer::places(agent));
    let (newest, subscribers, behind) = agent.events.progress();
    section(
        &mut text,
        "events",
        vec![
            format!("newest {newest}; subscribers {subscribers}, together {behind} behind"),
            format!(
                "RPC connections {}, {} bytes not taken by the host",
                agent.connections.count(),
                agent.connections.unsent()
            ),
        ],
    );
    section(&mut text, "threads of the agent", threads());
    section(&mut text, "mounts", lines("/proc/self/mountinfo"));
    section(&mut text, "descriptors of the agent", descriptors());
    section(&mut text, "memory", lines("/proc/meminfo"));
    section(&mut text, "pressure", pressure());
    text
}

fn section(text: &mut String, title: &str, lines: Vec<String>) {
    let _ = writeln!(text, "\n{title} ({}):", lines.len());
    for line in lines.iter().take(DIAGNOSTICS_LINES) {
        let plain: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(text, "  {plain}");
    }
    if lines.len() > DIAGNOSTICS_LINES {
        let _ = writeln!(text, "  ... and {} more", lines.len() - DIAGNOSTICS_LINES);
    }
}

fn containers(agent: &Agent) -> Vec<String> {
    let mut all = agent.tasks.all();
    all.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
    all.iter().flat_map(|container| of_container(container)).collect()
}

fn of_container(container: &Container) -> Vec<String> {
    let record = container.record();
    let mut lines = vec![format!("{} in {}", container.id, record.bundle.display())];
    let file = |name: &str| {
        let text = std::fs::read_to_string(container.cgroup.path().join(name));
        text.map(|text| text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
    };
    for name in ["cgroup.events", "pids.current", "memory.current"] {
        if let Ok(text) = file(name) {
            lines.push(format!("  {name}: {text}"));
        }
    }
    for process in container.processes() {
        let name = match &process.exec {
            None => "init".to_owned(),
            Some(exec) => format!("exec {exec}"),
        };
        let bytes = |count| process.counters.get(count).load(Relaxed);
        lines.push(format!(
            "  {name}: {:?}; stdin {} bytes, stdout {}, stderr {}; rest of output {:?}",
            process.state(),
            bytes(Count::Stdin),
            bytes(Count::Stdout),
            bytes(Count::Stderr),
            process.output_rest()
        ));
        let record = process.record();
        let uris = [("stdin", record.stdin), ("stdout", record.stdout), ("stderr", record.stderr)];
        for (which, uri) in uris.into_iter().filter(|(_, uri)| !uri.is_empty()) {
            lines.push(format!("    {which}: {uri}"));
        }
    }
    for place in record.places {
        lines.push(format!("  mount: {}", place.display()));
    }
    lines
}

/// All of the guest, and where in the kernel each one waits. /proc/<pid>/cmdline is left alone: it takes a lock of
/// that process's memory, which one that hangs may hold.
fn processes() -> Vec<String> {
    let mut pids: Vec<u32> = numbers("/proc");
    pids.sort_unstable();
    pids.into_iter()
        .filter_map(|pid| task(&format!("/proc/{pid}")))
        .filter(|line| !line.is_kernel)
        .map(|line| line.text)
        .collect()
}

fn threads() -> Vec<String> {
    let mut pids = numbers("/proc/self/task");
    pids.sort_unstable();
    let line = |pid| Some(task(&format!("/proc/self/task/{pid}"))?.text);
    pids.into_iter().filter_map(line).collect()
}

struct Line {
    text: String,
    is_kernel: bool,
}

fn task(directory: &str) -> Option<Line> {
    let stat = std::fs::read_to_string(format!("{directory}/stat")).ok()?;
    let wchan = std::fs::read_to_string(format!("{directory}/wchan")).unwrap_or_default();
    let cgroup = std::fs::read_to_string(format!("{directory}/cgroup")).unwrap_or_default();
    let (pid, rest) = stat.split_once(" (")?;
    // The name may hold anything, also a parenthesis.
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let (state, parent) = (fields.next()?, fields.next()?);
    let is_kernel = parent == "2" || pid == "2";
    let cgroup = cgroup.trim().trim_start_matches("0::");
    let waits = if wchan.is_empty() || wchan == "0" { "-" } else { &wchan };
    let text =
        format!("{pid} {name}: state {state}, parent {parent}, waits in {waits}, cgroup {cgroup}");
    Some(Line { text, is_kernel })
}

fn numbers(directory: &str) -> Vec<u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn lines(path: &str) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// By what each is, and how many; those of files one by one.
fn descriptors() -> Vec<String> {
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for number in numbers("/proc/self/fd") {
        let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        // `socket:[1234]`, `pipe:[1234]`, `/dev/null`
        let target = target.to_string_lossy();
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect()
}

fn pressure() -> Vec<String> {
    let of = |what: &str| {
        lines(&format!("/proc/pressure/{what}"))
            .into_iter()
            .map(|line| format!("{what} {line}"))
            .collect::<Vec<_>>()
    };
    if Path::new("/proc/pressure").exists() {
        ["cpu", "memory", "io"].into_iter().flat_map(of).collect()
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_is_bounded_and_has_no_control_characters() {
        let mut text = String::new();
        section(&mut text, "x", vec!["a\nb".to_owned(); DIAGNOSTICS_LINES + 3]);
        assert!(text.starts_with(&format!("\nx ({}):\n  a b\n", DIAGNOSTICS_LINES + 3)));
        assert!(text.ends_with("  ... and 3 more\n"));
        assert_eq!(text.lines().count(), DIAGNOSTICS_LINES + 3);
    }

    #[test]
    fn own_threads_say_where_they_wait() {
        let threads = threads();
        assert!(!threads.is_empty() && threads.iter().all(|line| line.contains(": state ")));
        assert!(descriptors().iter().any(|line| line.contains("/")));
    }
}

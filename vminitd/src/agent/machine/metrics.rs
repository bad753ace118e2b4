//! `Machine.Metrics`: figures of the agent, its containers, streams and events in the Prometheus text
//! format, see prometheus.io/docs/instrumenting/exposition_formats.
//!
//! Promises: a figure that cannot be had is left out; every name begins with `vminitd_` and has its unit in it.
//! Never: looks at the wall clock; the scraper stamps.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vminitd_protocol::pb::vminitd::v1::MachineText;

use super::aside;
use crate::agent::Agent;
use crate::agent::cgroup::stats;
use crate::agent::errors::RpcError;
use crate::agent::task::container::Container;
use crate::agent::task::record::Count;
use crate::sys::clock;

/// The call.
pub async fn metrics(agent: Arc<Agent>) -> Result<MachineText, RpcError> {
    let text = aside("metrics", move || collect(&agent)).await?;
    Ok(MachineText { text })
}

fn collect(agent: &Agent) -> String {
    let mut page = Page::default();
    page.family("vminitd_info", "gauge", "What serves here; always 1.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.one(
        "vminitd_uptime_seconds",
        "gauge",
        "Since the kernel's start.",
        seconds(clock::boottime_us()),
    );
    let restarts = agent.generation.saturating_sub(1);
    page.one(
        "vminitd_agent_restarts_total",
        "counter",
        "Agents that ended in this boot.",
        restarts,
    );
    for (name, help, key) in OF_STATUS {
        if let Some(value) = of_status("/proc/self/status", key) {
            let value = if name.ends_with("_bytes") { value * 1024 } else { value };
            page.one(name, "gauge", help, value);
        }
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        page.one("vminitd_agent_open_fds", "gauge", "Descriptors of the agent.", fds.count());
    }
    if let Some(value) = of_status("/proc/1/status", "VmRSS") {
        page.one("vminitd_init_resident_bytes", "gauge", "Memory of init.", value * 1024);
    }
    for (name, help, key) in OF_MEMORY {
        if let Some(value) = of_status("/proc/meminfo", key) {
            page.one(name, "gauge", help, value * 1024);
        }
    }
    let connections = agent.connections.count();
    page.one(
        "vminitd_rpc_connections",
        "gauge",
        "Connections of hosts to the RPC port.",
        connections,
    );
    let unclaimed = agent.streams.unclaimed().len();
    page.one(
        "vminitd_streams_unclaimed",
        "gauge",
        "Streams that no process has claimed.",
        unclaimed,
    );
    let (newest, subscribers, behind) = agent.events.progress();
    page.one("vminitd_events_total", "counter", "Events published in this boot.", newest);
    page.one("vminitd_event_subscribers", "gauge", "Who is told of events.", subscribers);
    page.one(
        "vminitd_event_subscribers_behind",
        "gauge",
        "Events that they were not given yet.",
        behind,
    );
    let frozen = super::freezer::places(agent).len();
    page.one("vminitd_filesystems_frozen", "gauge", "Filesystems that a host has frozen.", frozen);
    let containers = agent.tasks.all();
    page.one("vminitd_containers", "gauge", "Containers, stopped ones too.", containers.len());
    of_containers(&mut page, &containers);
    page.0
}

const OF_STATUS: [(&str, &str, &str); 2] = [
    ("vminitd_agent_resident_bytes", "Memory of the agent.", "VmRSS"),
    ("vminitd_agent_threads", "Threads of the agent.", "Threads"),
];

const OF_MEMORY: [(&str, &str, &str); 2] = [
    ("vminitd_memory_bytes", "Memory of the VM.", "MemTotal"),
    ("vminitd_memory_available_bytes", "Of it, what could be used.", "MemAvailable"),
];

fn of_containers(page: &mut Page, containers: &[Arc<Container>]) {
    let figures: Vec<_> =
        containers.iter().map(|one| (one, stats::read(one.cgroup.path()).ok())).collect();
    page.family("vminitd_container_processes", "gauge", "Processes and threads in the cgroup.");
    for (container, figures) in &figures {
        let pids = figures.as_ref().and_then(|figures| figures.pids.as_ref());
        page.of(container, &[], pids.map(|pids| pids.current));
    }
    page.family("vminitd_container_cpu_seconds_total", "counter", "CPU time.");
    for (container, figures) in &figures {
        let cpu = figures.as_ref().and_then(|figures| figures.cpu.as_ref());
        page.of(container, &[], cpu.map(|cpu| seconds(cpu.usage_usec)));
    }
    page.family("vminitd_container_memory_bytes", "gauge", "Memory charged to the cgroup.");
    for (container, figures) in &figures {
        let memory = figures.as_ref().and_then(|figures| figures.memory.as_ref());
        page.of(container, &[], memory.map(|memory| memory.usage));
    }
    page.family("vminitd_container_oom_kills_total", "counter", "Kills for lack of memory.");
    for (container, figures) in &figures {
        let events = figures.as_ref().and_then(|figures| figures.memory_events.as_ref());
        page.of(container, &[], events.map(|events| events.oom_kill));
    }
    page.family("vminitd_container_execs", "gauge", "Execs that are not deleted.");
    for container in containers {
        page.of(container, &[], Some(container.processes().len() - 1));
    }
    page.family(
        "vminitd_container_output_bytes_total",
        "counter",
        "Output that has left its pipe.",
    );
    for container in containers {
        for (stream, count) in [("stdout", Count::Stdout), ("stderr", Count::Stderr)] {
            let of = |count| {
                move |process: &Arc<crate::agent::task::process::Process>| {
                    process.counters.get(count).load(Relaxed)
                }
            };
            let bytes: u64 = container.processes().iter().map(of(count)).sum();
            page.of(container, &[("stream", stream)], Some(bytes));
        }
    }
}

/// `1234567` microseconds as `1.234567`.
fn seconds(microseconds: u64) -> String {
    format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

/// The figure behind a key of a file like /proc/self/status.
fn of_status(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The text, and the family that samples belong to.
#[derive(Default)]
struct Page(String, &'static str);

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // A String takes everything.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{}{labels} {value}", self.1);
    }

    fn one(&mut self, name: &'static str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    fn of(
        &mut self,
        container: &Container,
        more: &[(&str, &str)],
        value: Option<impl std::fmt::Display>,
    ) {
        let labels = [&[("container", container.id.as_str())], more].concat();
        if let Some(value) = value {
            self.sample(&labels, value);
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_below_their_family_with_escaped_labels() {
        let mut page = Page::default();
        page.one("a_total", "counter", "Of a.", 3);
        page.family("b_bytes", "gauge", "Of b.");
        page.sample(&[("x", "q\"\\\n")], seconds(1_000_002));
        let expected = "# HELP a_total Of a.\n# TYPE a_total counter\na_total 3\n\
            # HELP b_bytes Of b.\n# TYPE b_bytes gauge\nb_bytes{x=\"q\\\"\\\\\\n\"} 1.000002\n";
        assert_eq!(page.0, expected);
    }

    #[test]
    fn figures_are_found_by_their_whole_key() {
        assert!(of_status("/proc/self/status", "Threads").is_some_and(|threads| threads > 0));
        assert_eq!(of_status("/proc/self/status", "Thread"), None);
    }
}

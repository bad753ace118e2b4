//! `vminitctl stats`: what a container uses.
//!
//! Promises: figures are the guest's counters since the container's start, with their units.

use host_shim::guest::unlimited;
use prost::Message;
use serde_json::json;
use vminitd_protocol::pb::containerd::task::v3::StatsRequest;
use vminitd_protocol::pb::io::containerd::cgroups::v2::Metrics;

use crate::cli::StatsArgs;
use crate::reach::{ReachError, print, with_guest};

/// Prints them; returns the exit status.
pub fn stats(args: &StatsArgs) -> Result<i32, ReachError> {
    with_guest(args.vm.name.as_ref(), async |vm| {
        let request = StatsRequest { id: vm.container().await? };
        let told = vm.guest.task().stats(unlimited(), &request).await;
        let told = told.map_err(|error| vm.refused(error))?.stats.unwrap_or_default();
        let metrics = Metrics::decode(&told.value[..])
            .map_err(|_| ReachError::Answer { place: vm.place.clone(), what: "Task.Stats" })?;
        print(&if args.json { json(&metrics) } else { text(&metrics) })?;
        Ok(0)
    })
}

/// The figures that both forms have, by name.
fn figures(metrics: &Metrics) -> Vec<(&'static str, u64)> {
    let cpu = metrics.cpu.unwrap_or_default();
    let memory = metrics.memory.unwrap_or_default();
    let events = metrics.memory_events.unwrap_or_default();
    let pids = metrics.pids.unwrap_or_default();
    let io = metrics.io.clone().unwrap_or_default().usage;
    vec![
        ("cpu_usec", cpu.usage_usec),
        ("cpu_user_usec", cpu.user_usec),
        ("cpu_system_usec", cpu.system_usec),
        ("cpu_throttled_usec", cpu.throttled_usec),
        ("memory_bytes", memory.usage),
        ("memory_limit_bytes", memory.usage_limit),
        ("memory_anon_bytes", memory.anon),
        ("memory_file_bytes", memory.file),
        ("memory_max_bytes", memory.max_usage),
        ("oom_kills", events.oom_kill),
        ("pids", pids.current),
        ("pids_limit", pids.limit),
        ("io_read_bytes", io.iter().map(|entry| entry.rbytes).sum()),
        ("io_write_bytes", io.iter().map(|entry| entry.wbytes).sum()),
    ]
}

fn json(metrics: &Metrics) -> String {
    // What has no limit has the largest number, or none.
    let value = |(name, value): (&str, u64)| {
        let unlimited = name.ends_with("limit") || name.ends_with("limit_bytes");
        let value = if unlimited && is_unlimited(value) { json!(null) } else { json!(value) };
        (name.to_owned(), value)
    };
    let object: serde_json::Map<_, _> = figures(metrics).into_iter().map(value).collect();
    format!("{}\n", serde_json::Value::Object(object))
}

fn is_unlimited(value: u64) -> bool {
    value == 0 || value > i64::MAX as u64 / 2
}

fn text(metrics: &Metrics) -> String {
    let figures = figures(metrics);
    let get = |name: &str| figures.iter().find(|figure| figure.0 == name).map_or(0, |f| f.1);
    let limit = |name: &str, show: fn(u64) -> String| match get(name) {
        value if is_unlimited(value) => "no limit".to_owned(),
        value => format!("of {}", show(value)),
    };
    format!(
        "cpu     {:.3} s ({:.3} s user, {:.3} s system)\n\
         memory  {} ({}; {} anonymous, {} of files), {} killed for lack of it\n\
         pids    {} ({})\n\
         io      {} read, {} written\n",
        get("cpu_usec") as f64 / 1e6,
        get("cpu_user_usec") as f64 / 1e6,
        get("cpu_system_usec") as f64 / 1e6,
        bytes(get("memory_bytes")),
        limit("memory_limit_bytes", bytes),
        bytes(get("memory_anon_bytes")),
        bytes(get("memory_file_bytes")),
        get("oom_kills"),
        get("pids"),
        limit("pids_limit", |value| value.to_string()),
        bytes(get("io_read_bytes")),
        bytes(get("io_write_bytes")),
    )
}

fn bytes(value: u64) -> String {
    match value {
        0..1024 => format!("{value} B"),
        1024..1_048_576 => format!("{:.1} KiB", value as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", value as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use vminitd_protocol::pb::io::containerd::cgroups::v2::{CpuStat, MemoryStat, PidsStat};

    use super::*;

    #[test]
    fn figures_have_units_and_no_limit_is_no_number() {
        let metrics = Metrics {
            cpu: Some(CpuStat { usage_usec: 1_500_000, ..Default::default() }),
            memory: Some(MemoryStat {
                usage: 3 << 20,
                usage_limit: u64::MAX,
                ..Default::default()
            }),
            pids: Some(PidsStat { current: 2, limit: 10 }),
            ..Default::default()
        };
        let shown = text(&metrics);
        assert!(shown.starts_with("cpu     1.500 s"), "{shown}");
        assert!(
            shown.contains("memory  3.0 MiB (no limit;") && shown.contains("2 (of 10)"),
            "{shown}"
        );
        let value: serde_json::Value = serde_json::from_str(&json(&metrics)).unwrap();
        assert_eq!(value["memory_limit_bytes"], serde_json::Value::Null);
        assert_eq!(value["pids_limit"], 10);
    }
}

//! Resources of a spec as writes to cgroup v2 files; the same for Create and Update.
//!
//! Promises: what cannot be expressed in cgroup v2, or what the kernel refuses, is an error that
//! names the field; nothing is dropped in silence but what has no effect by definition.
//! Never: handles device rules, which are a program and not a file (they are still to come).
//!
//! [`plan`] is pure; [`apply`] carries a plan out.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// Why a resource was not applied. The host's wish does not fit, or the kernel lacks something.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// cgroup v2 has nothing of the kind.
    #[error("{field} has no equivalent in cgroup v2")]
    NoEquivalent {
        /// The field, as it stands in the spec.
        field: &'static str,
    },
    /// The value is none that makes sense.
    #[error("{field}: {value} {problem}")]
    Value {
        /// The field, as it stands in the spec.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel refused.
    #[error("{field}: write {value:?} to {file}")]
    Refused {
        /// The field, as it stands in the spec.
        field: &'static str,
        /// What was written.
        value: String,
        /// Where.
        file: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    field: &'static str,
    file: String,
    value: String,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// As it stands.
    Plain,
    /// A kernel without swap lacks the file, and holds any limit on swap.
    UnlessAbsent,
    /// The file holds "quota period": keep the quota.
    KeepFirstWord,
    /// A weight of the scale 10 to 1000 for BFQ's file, if there is one; else of 1 to 10000.
    BlockWeight,
    /// Not a write: refuse when the file's figure is larger already.
    Check,
}

use How::{BlockWeight, Check, KeepFirstWord, Plain, UnlessAbsent};

/// What is to be written, in order.
pub fn plan(resources: &LinuxResources) -> Result<Vec<Write>, ResourceError> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        plan_memory(memory, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        plan_cpu(cpu, &mut writes)?;
    }
    // 0 is what containerd sends for "not set".
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()).filter(|l| *l != 0) {
        write(&mut writes, "pids.limit", "pids.max", maximum(limit));
    }
    if let Some(io) = resources.block_io() {
        plan_block_io(io, &mut writes)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if size.contains('/') {
            return Err(value("hugepageLimits.pageSize", size, "is no page size"));
        }
        let file = format!("hugetlb.{size}.max");
        write(&mut writes, "hugepageLimits", &file, maximum(page.limit()));
    }
    if let Some(network) = resources.network() {
        if network.class_id().is_some_and(|id| id != 0) {
            return Err(ResourceError::NoEquivalent { field: "network.classID" });
        }
        if network.priorities().as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(ResourceError::NoEquivalent { field: "network.priorities" });
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        if let Some(handles) = limits.hca_handles() {
            line.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limits.hca_objects() {
            line.push_str(&format!(" hca_object={objects}"));
        }
        write(&mut writes, "rdma", "rdma.max", line);
    }
    plan_unified(resources, &mut writes)?;
    Ok(writes)
}

/// Carries a plan out on the cgroup at `path`; stops at the first write that is refused.
pub fn apply(path: &Path, plan: &[Write]) -> Result<(), ResourceError> {
    for write in plan {
        carry_out(path, write).map_err(|source| ResourceError::Refused {
            field: write.field,
            value: write.value.clone(),
            file: write.file.clone(),
            source,
        })?;
    }
    Ok(())
}

fn carry_out(path: &Path, write: &Write) -> io::Result<()> {
    let file = path.join(&write.file);
    match write.how {
        Plain => put(&file, &write.value),
        UnlessAbsent => match put(&file, &write.value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        },
        KeepFirstWord => {
            let current = fs::read_to_string(&file)?;
            let first = current.split_whitespace().next().unwrap_or("max");
            put(&file, &format!("{first} {}", write.value))
        }
        BlockWeight => {
            let bfq = path.join("io.bfq.weight");
            if bfq.exists() {
                return put(&bfq, &write.value);
            }
            let (device, weight) = match write.value.rsplit_once(' ') {
                Some((device, weight)) => (format!("{device} "), weight),
                None => (String::new(), &*write.value),
            };
            let weight: u64 = weight.parse().map_err(io::Error::other)?;
            put(&file, &format!("{device}{}", 1 + weight.saturating_sub(10) * 9999 / 990))
        }
        Check => {
            let current = fs::read_to_string(&file)?;
            let (current, limit) = (current.trim().parse::<u64>(), write.value.parse::<u64>());
            match (current, limit) {
                (Ok(current), Ok(limit)) if current > limit => Err(io::Error::other(format!(
                    "{current} bytes are in use already (checkBeforeUpdate)"
                ))),
                _ => Ok(()),
            }
        }
    }
}

/// Without O_CREAT, so that a file which no controller offers is an error.
fn put(file: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

fn plan_memory(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<(), ResourceError> {
    let kernel = [("memory.kernel", memory.kernel()), ("memory.kernelTCP", memory.kernel_tcp())];
    for (field, limit) in kernel {
        if limit.is_some_and(|limit| limit > 0) {
            return Err(ResourceError::NoEquivalent { field });
        }
    }
    if memory.swappiness().is_some() {
        return Err(ResourceError::NoEquivalent { field: "memory.swappiness" });
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(ResourceError::NoEquivalent { field: "memory.disableOOMKiller" });
    }
    let limit = limit_of("memory.limit", memory.limit())?;
    let reservation = limit_of("memory.reservation", memory.reservation())?;
    if let (Some(limit @ 1..), Some(true)) = (limit, memory.check_before_update()) {
        let (field, file) = ("memory.limit", "memory.current".to_owned());
        writes.push(Write { field, file, value: limit.to_string(), how: Check });
    }
    // The spec's figure is memory and swap together, cgroup v2's is swap alone.
    match (limit_of("memory.swap", memory.swap())?, limit) {
        (None, _) => {}
        (Some(-1), _) => {
            push(writes, "memory.swap", "memory.swap.max", "max".to_owned(), UnlessAbsent);
        }
        (Some(swap), Some(limit @ 1..)) if swap >= limit => {
            let swap = (swap - limit).to_string();
            push(writes, "memory.swap", "memory.swap.max", swap, UnlessAbsent);
        }
        (Some(swap), Some(_)) => {
            return Err(value("memory.swap", swap, "is less than memory.limit"));
        }
        (Some(swap), None) => {
            return Err(value("memory.swap", swap, "needs a memory.limit, which it includes"));
        }
    }
    if let Some(limit) = limit {
        write(writes, "memory.limit", "memory.max", maximum(limit));
    }
    if let Some(reservation) = reservation {
        write(writes, "memory.reservation", "memory.low", maximum(reservation));
    }
    Ok(())
}

fn plan_cpu(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<(), ResourceError> {
    if cpu.realtime_runtime().is_some_and(|t| t != 0) {
        return Err(ResourceError::NoEquivalent { field: "cpu.realtimeRuntime" });
    }
    if cpu.realtime_period().is_some_and(|t| t != 0) {
        return Err(ResourceError::NoEquivalent { field: "cpu.realtimePeriod" });
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        write(writes, "cpu.shares", "cpu.weight", weight_of(shares).to_string());
    }
    let quota = cpu.quota().map(|quota| if quota > 0 { quota.to_string() } else { "max".into() });
    match (quota, cpu.period().filter(|period| *period != 0)) {
        (Some(quota), Some(period)) => {
            write(writes, "cpu.quota", "cpu.max", format!("{quota} {period}"));
        }
        (Some(quota), None) => write(writes, "cpu.quota", "cpu.max", quota),
        (None, Some(period)) => {
            push(writes, "cpu.period", "cpu.max", period.to_string(), KeepFirstWord);
        }
        (None, None) => {}
    }
    if let Some(burst) = cpu.burst() {
        write(writes, "cpu.burst", "cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = cpu.idle() {
        write(writes, "cpu.idle", "cpu.idle", idle.to_string());
    }
    for (field, file, list) in
        [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
    {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            write(writes, field, file, list.clone());
        }
    }
    Ok(())
}

fn plan_block_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<(), ResourceError> {
    let no_leaf = Err(ResourceError::NoEquivalent { field: "blockIO.leafWeight" });
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        return no_leaf;
    }
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        push(writes, "blockIO.weight", "io.weight", weight.to_string(), BlockWeight);
    }
    for device in io.weight_device().iter().flatten() {
        if device.leaf_weight().is_some_and(|weight| weight != 0) {
            return no_leaf;
        }
        if let Some(weight) = device.weight() {
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            push(writes, "blockIO.weightDevice", "io.weight", line, BlockWeight);
        }
    }
    let mut throttle = |field, key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            write(writes, field, "io.max", line);
        }
    };
    throttle("blockIO.throttleReadBpsDevice", "rbps", io.throttle_read_bps_device());
    throttle("blockIO.throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device());
    throttle("blockIO.throttleReadIOPSDevice", "riops", io.throttle_read_iops_device());
    throttle("blockIO.throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device());
    Ok(())
}

fn plan_unified(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<(), ResourceError> {
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, text) in unified {
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return Err(value("unified", file, "is no file of a controller"));
        }
        // Membership, freezing and killing are the agent's.
        if file.starts_with("cgroup.") {
            return Err(value("unified", file, "is not a resource"));
        }
        write(writes, "unified", file, text.clone());
    }
    Ok(())
}

fn write(writes: &mut Vec<Write>, field: &'static str, file: &str, value: String) {
    push(writes, field, file, value, Plain);
}

fn push(writes: &mut Vec<Write>, field: &'static str, file: &str, value: String, how: How) {
    writes.push(Write { field, file: file.to_owned(), value, how });
}

fn value(field: &'static str, value: impl ToString, problem: &'static str) -> ResourceError {
    ResourceError::Value { field, value: value.to_string(), problem }
}

/// 0 is what containerd sends for "not set", -1 is "no limit".
fn limit_of(field: &'static str, limit: Option<i64>) -> Result<Option<i64>, ResourceError> {
    match limit {
        None | Some(0) => Ok(None),
        Some(limit @ (-1 | 1..)) => Ok(Some(limit)),
        Some(limit) => Err(value(field, limit, "is neither a limit nor -1")),
    }
}

fn maximum(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// cgroup v1's shares (2 to 262144, 1024 by default) on cgroup v2's scale (1 to 10000, 100 by
/// default), by the curve through these three points that runtimes agree on.
fn weight_of(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: &str) -> Result<Vec<(String, String)>, String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let plan = plan(&resources).map_err(|error| error.to_string())?;
        Ok(plan.into_iter().map(|write| (write.file, write.value)).collect())
    }

    #[track_caller]
    fn check(json: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|(file, value)| ((*file).into(), (*value).into())).collect();
        assert_eq!(planned(json), Ok(expected), "{json}");
    }

    #[track_caller]
    fn refused(json: &str, field: &str) {
        let error = planned(json).unwrap_err();
        assert!(error.contains(field), "{json}: {error}");
    }

    #[test]
    fn memory_is_split_into_memory_and_swap() {
        check(r#"{"memory":{"limit":1048576}}"#, &[("memory.max", "1048576")]);
        check(
            r#"{"memory":{"limit":1000,"swap":1500,"reservation":500}}"#,
            &[("memory.swap.max", "500"), ("memory.max", "1000"), ("memory.low", "500")],
        );
        check(
            r#"{"memory":{"limit":-1,"swap":-1}}"#,
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
        check(r#"{"memory":{"limit":0,"swap":0,"kernel":-1,"disableOOMKiller":false}}"#, &[]);
    }

    #[test]
    fn what_has_no_equivalent_is_named() {
        refused(r#"{"memory":{"limit":1000,"swap":500}}"#, "memory.swap: 500 is less");
        refused(r#"{"memory":{"swap":500}}"#, "memory.swap: 500 needs");
        refused(r#"{"memory":{"limit":-2}}"#, "memory.limit: -2");
        refused(r#"{"memory":{"kernel":5}}"#, "memory.kernel");
        refused(r#"{"memory":{"kernelTCP":5}}"#, "memory.kernelTCP");
        refused(r#"{"memory":{"swappiness":60}}"#, "memory.swappiness");
        refused(r#"{"memory":{"disableOOMKiller":true}}"#, "memory.disableOOMKiller");
        refused(r#"{"cpu":{"realtimeRuntime":5}}"#, "cpu.realtimeRuntime");
        refused(r#"{"cpu":{"realtimePeriod":5}}"#, "cpu.realtimePeriod");
        refused(r#"{"blockIO":{"leafWeight":5}}"#, "blockIO.leafWeight");
        refused(r#"{"network":{"classID":5}}"#, "network.classID");
        refused(r#"{"network":{"priorities":[{"name":"eth0","priority":1}]}}"#, "priorities");
        refused(r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, "pageSize");
    }

    #[test]
    fn cpu_pids_io_and_the_rest_find_their_files() {
        check(
            r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":10,"idle":1,
                "cpus":"0-1","mems":"0"},"pids":{"limit":7}}"#,
            &[
                ("cpu.weight", "100"),
                ("cpu.max", "50000 100000"),
                ("cpu.max.burst", "10"),
                ("cpu.idle", "1"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "7"),
            ],
        );
        check(
            r#"{"cpu":{"quota":-1},"pids":{"limit":-1}}"#,
            &[("cpu.max", "max"), ("pids.max", "max")],
        );
        check(r#"{"pids":{"limit":0},"cpu":{"shares":0,"cpus":""}}"#, &[]);
        check(
            r#"{"blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":99}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":0}]},
                "hugepageLimits":[{"pageSize":"2MB","limit":4096}],
                "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10}}}"#,
            &[
                ("io.weight", "500"),
                ("io.max", "8:0 rbps=99"),
                ("io.max", "8:1 wiops=max"),
                ("hugetlb.2MB.max", "4096"),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10"),
            ],
        );
    }

    #[test]
    fn unified_comes_last_and_only_for_files_of_controllers() {
        check(
            r#"{"unified":{"memory.high":"5","cpu.max":"1 2"},"memory":{"limit":10}}"#,
            &[("memory.max", "10"), ("cpu.max", "1 2"), ("memory.high", "5")],
        );
        for file in ["cgroup.procs", "../memory.max", "memory", ".x"] {
            refused(&format!(r#"{{"unified":{{"{file}":"1"}}}}"#), "unified");
        }
    }

    #[test]
    fn shares_meet_the_three_points_of_the_curve() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 100, 10_000));
        assert_eq!((weight_of(1), weight_of(u64::MAX)), (1, 10_000));
    }

    /// A directory stands in for the kernel's: the files' contents are what is asserted.
    #[test]
    fn writes_go_to_files_that_exist_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        let run = |json: &str| {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            apply(dir.path(), &plan(&resources).unwrap())
        };
        for (file, content) in [
            ("memory.max", "max"),
            ("memory.current", "5000"),
            ("cpu.max", "7000 100000"),
            ("io.weight", ""),
        ] {
            fs::write(dir.path().join(file), content).unwrap();
        }
        // No memory.swap.max here: a kernel without swap.
        run(r#"{"memory":{"limit":1000,"swap":1000}}"#).unwrap();
        assert_eq!(&read("memory.max")[..4], "1000");
        run(r#"{"cpu":{"period":50000}}"#).unwrap();
        assert_eq!(&read("cpu.max")[..10], "7000 50000");
        run(r#"{"blockIO":{"weight":1000}}"#).unwrap();
        assert_eq!(read("io.weight"), "10000");
        let error = run(r#"{"pids":{"limit":7}}"#).unwrap_err();
        assert!(error.to_string().contains("pids.limit: write \"7\" to pids.max"), "{error}");
        let error = run(r#"{"memory":{"limit":1000,"checkBeforeUpdate":true}}"#).unwrap_err();
        assert!(error.to_string().contains("memory.limit"), "{error}");
    }
}

//! Resources of a spec as writes to cgroup v2 files, the same for Create and Update: pure.
//!
//! Promises: what cannot be expressed in cgroup v2 is an error that names the field; nothing is
//! dropped in silence but what says "as it is" by definition. docs/resources.md has the table.
//! Never: handles device rules, which are a program and not a file (`devices`); writes (`apply`).
//!
//! "Not set" is null, absent, and for most fields 0, since that is what containerd sends.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// Why there is no plan. The host's wish.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
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
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The field that it is for, as it stands in the spec.
    pub field: &'static str,
    /// The file, below the cgroup.
    pub file: String,
    /// What is written, or what it is made of.
    pub value: String,
    /// How it is written.
    pub how: How,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it stands.
    Plain,
    /// A kernel that lacks the file holds any such limit.
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
pub fn plan(resources: &LinuxResources) -> Result<Vec<Write>, PlanError> {
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
        if size.is_empty() || !size.chars().all(|letter| letter.is_ascii_alphanumeric()) {
            return Err(value("hugepageLimits.pageSize", size, "is no page size"));
        }
        let (file, reserved) = (format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max"));
        write(&mut writes, "hugepageLimits", &file, maximum(page.limit()));
        // What is mapped and not touched yet counts too: else a program would map more than it may
        // use, and die of SIGBUS instead of being told.
        push(&mut writes, "hugepageLimits", &reserved, maximum(page.limit()), UnlessAbsent);
    }
    if let Some(network) = resources.network() {
        if network.class_id().is_some_and(|id| id != 0) {
            return Err(PlanError::NoEquivalent { field: "network.classID" });
        }
        if network.priorities().as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(PlanError::NoEquivalent { field: "network.priorities" });
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        if device.is_empty() || device.contains(char::is_whitespace) {
            return Err(value("rdma", format!("{device:?}"), "is no device"));
        }
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

fn plan_memory(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<(), PlanError> {
    let kernel = [("memory.kernel", memory.kernel()), ("memory.kernelTCP", memory.kernel_tcp())];
    for (field, limit) in kernel {
        if limit.is_some_and(|limit| limit > 0) {
            return Err(PlanError::NoEquivalent { field });
        }
    }
    if memory.swappiness().is_some() {
        return Err(PlanError::NoEquivalent { field: "memory.swappiness" });
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(PlanError::NoEquivalent { field: "memory.disableOOMKiller" });
    }
    if memory.use_hierarchy() == Some(false) {
        return Err(PlanError::NoEquivalent { field: "memory.useHierarchy" });
    }
    let limit = limit_of("memory.limit", memory.limit())?;
    let reservation = limit_of("memory.reservation", memory.reservation())?;
    if let (Some(limit @ 1..), Some(true)) = (limit, memory.check_before_update()) {
        let (field, file) = ("memory.limit", "memory.current".to_owned());
        writes.push(Write { field, file, value: limit.to_string(), how: Check });
    }
    // The spec's figure is memory and swap together, cgroup v2's is swap alone.
    match (limit_of("memory.swap", memory.swap())?, limit) {
        // An unlimited total has unlimited swap, as in cgroup v1.
        (Some(-1), _) | (None, Some(-1)) => {
            push(writes, "memory.swap", "memory.swap.max", "max".to_owned(), UnlessAbsent);
        }
        (None, _) => {}
        (Some(swap), Some(limit @ 1..)) if swap >= limit => {
            let swap = (swap - limit).to_string();
            push(writes, "memory.swap", "memory.swap.max", swap, UnlessAbsent);
        }
        (Some(swap), Some(1..)) => {
            return Err(value("memory.swap", swap, "is less than memory.limit"));
        }
        (Some(swap), _) => {
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

fn plan_cpu(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<(), PlanError> {
    if cpu.realtime_runtime().is_some_and(|t| t != 0) {
        return Err(PlanError::NoEquivalent { field: "cpu.realtimeRuntime" });
    }
    if cpu.realtime_period().is_some_and(|t| t != 0) {
        return Err(PlanError::NoEquivalent { field: "cpu.realtimePeriod" });
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        write(writes, "cpu.shares", "cpu.weight", weight_of(shares).to_string());
    }
    let quota = cpu.quota().filter(|quota| *quota != 0).map(maximum);
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

fn plan_block_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<(), PlanError> {
    let no_leaf = Err(PlanError::NoEquivalent { field: "blockIO.leafWeight" });
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

/// Of the files that are not a controller's, the ones that limit something. Membership, freezing,
/// killing and delegation are the agent's.
const CORE_FILES: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

fn plan_unified(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<(), PlanError> {
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, text) in unified {
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return Err(value("unified", file, "is no file of a controller"));
        }
        if file.starts_with("cgroup.") && !CORE_FILES.contains(&file.as_str()) {
            return Err(value("unified", file, "is not a resource"));
        }
        // The kernel reads one line per write.
        let text = text.trim_end_matches('\n');
        for line in text.split('\n') {
            write(writes, "unified", file, format!("{line}\n"));
        }
    }
    Ok(())
}

fn write(writes: &mut Vec<Write>, field: &'static str, file: &str, value: String) {
    push(writes, field, file, value, Plain);
}

fn push(writes: &mut Vec<Write>, field: &'static str, file: &str, value: String, how: How) {
    writes.push(Write { field, file: file.to_owned(), value, how });
}

fn value(field: &'static str, value: impl ToString, problem: &'static str) -> PlanError {
    PlanError::Value { field, value: value.to_string(), problem }
}

/// 0 is what containerd sends for "not set", -1 is "no limit".
fn limit_of(field: &'static str, limit: Option<i64>) -> Result<Option<i64>, PlanError> {
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
        check(r#"{"memory":{"limit":-1}}"#, &[("memory.swap.max", "max"), ("memory.max", "max")]);
        check(
            r#"{"memory":{"limit":1000,"swap":1000}}"#,
            &[("memory.swap.max", "0"), ("memory.max", "1000")],
        );
        check(r#"{"memory":{"limit":0,"swap":0,"kernel":-1,"disableOOMKiller":false}}"#, &[]);
    }

    #[test]
    fn what_has_no_equivalent_is_named() {
        refused(r#"{"memory":{"limit":1000,"swap":500}}"#, "memory.swap: 500 is less");
        refused(r#"{"memory":{"swap":500}}"#, "memory.swap: 500 needs");
        refused(r#"{"memory":{"limit":-1,"swap":500}}"#, "memory.swap: 500 needs");
        refused(r#"{"memory":{"limit":-2}}"#, "memory.limit: -2");
        refused(r#"{"memory":{"useHierarchy":false}}"#, "memory.useHierarchy");
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
        refused(r#"{"rdma":{"mlx5 hca_handle=9":{"hcaHandles":1}}}"#, "rdma");
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
        // What containerd sends for "as it is".
        check(r#"{"cpu":{"quota":0,"period":0}}"#, &[]);
        check(r#"{"cpu":{"quota":0,"period":5000}}"#, &[("cpu.max", "5000")]);
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
                ("hugetlb.2MB.rsvd.max", "4096"),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10"),
            ],
        );
    }

    #[test]
    fn unified_comes_last_and_only_for_files_of_controllers() {
        check(
            r#"{"unified":{"memory.high":"5","cpu.max":"1 2"},"memory":{"limit":10}}"#,
            &[("memory.max", "10"), ("cpu.max", "1 2\n"), ("memory.high", "5\n")],
        );
        check(
            r#"{"unified":{"io.max":"8:0 rbps=1\n8:1 rbps=2\n","cgroup.max.depth":"1"}}"#,
            &[("cgroup.max.depth", "1\n"), ("io.max", "8:0 rbps=1\n"), ("io.max", "8:1 rbps=2\n")],
        );
        for file in ["cgroup.procs", "cgroup.freeze", "../memory.max", "memory", ".x"] {
            refused(&format!(r#"{{"unified":{{"{file}":"1"}}}}"#), "unified");
        }
    }

    #[test]
    fn shares_meet_the_three_points_of_the_curve() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 100, 10_000));
        assert_eq!((weight_of(1), weight_of(u64::MAX)), (1, 10_000));
    }

    /// A field, a value that can be expressed, and the file that it must show up in.
    const EXPRESSIBLE: [(&str, &str, &str, &str); 17] = [
        ("memory", "limit", "1000", "memory.max"),
        ("memory", "reservation", "500", "memory.low"),
        ("cpu", "shares", "512", "cpu.weight"),
        ("cpu", "quota", "5000", "cpu.max"),
        ("cpu", "period", "10000", "cpu.max"),
        ("cpu", "burst", "100", "cpu.max.burst"),
        ("cpu", "idle", "1", "cpu.idle"),
        ("cpu", "cpus", r#""0-1""#, "cpuset.cpus"),
        ("cpu", "mems", r#""0""#, "cpuset.mems"),
        ("pids", "limit", "7", "pids.max"),
        ("blockIO", "weight", "500", "io.weight"),
        ("blockIO", "weightDevice", r#"[{"major":8,"minor":0,"weight":10}]"#, "io.weight"),
        ("blockIO", "throttleReadBpsDevice", r#"[{"major":8,"minor":0,"rate":9}]"#, "io.max"),
        ("blockIO", "throttleWriteBpsDevice", r#"[{"major":8,"minor":0,"rate":9}]"#, "io.max"),
        ("blockIO", "throttleReadIOPSDevice", r#"[{"major":8,"minor":0,"rate":9}]"#, "io.max"),
        ("blockIO", "throttleWriteIOPSDevice", r#"[{"major":8,"minor":0,"rate":9}]"#, "io.max"),
        ("unified", "memory.high", r#""max""#, "memory.high"),
    ];

    /// The same for what cannot.
    const INEXPRESSIBLE: [(&str, &str, &str); 8] = [
        ("memory", "kernel", "5"),
        ("memory", "kernelTCP", "5"),
        ("memory", "swappiness", "0"),
        ("memory", "disableOOMKiller", "true"),
        ("cpu", "realtimeRuntime", "5"),
        ("cpu", "realtimePeriod", "5"),
        ("blockIO", "leafWeight", "5"),
        ("network", "classID", "5"),
    ];

    proptest::proptest! {
        /// Whatever is combined: each field is in the plan, or the plan is refused for one that
        /// cannot be.
        #[test]
        fn no_field_is_dropped_in_silence(
            expressible in proptest::collection::btree_set(0..EXPRESSIBLE.len(), 0..8),
            inexpressible in proptest::collection::btree_set(0..INEXPRESSIBLE.len(), 0..2),
        ) {
            let mut json = serde_json::json!({});
            let wanted: Vec<_> = expressible.iter().map(|index| EXPRESSIBLE[*index]).collect();
            let unwanted: Vec<_> = inexpressible.iter().map(|index| INEXPRESSIBLE[*index]).collect();
            for (section, field, value) in wanted.iter().map(|(s, f, v, _)| (s, f, v)).chain(unwanted.iter().map(|(s, f, v)| (s, f, v))) {
                json[section][field] = serde_json::from_str(value).unwrap();
            }
            match planned(&json.to_string()) {
                Ok(writes) => {
                    proptest::prop_assert!(unwanted.is_empty());
                    for (_, field, _, file) in wanted {
                        proptest::prop_assert!(writes.iter().any(|(f, _)| f == file), "{} of {}", field, json);
                    }
                }
                Err(error) => {
                    let named = unwanted.iter().any(|(section, field, _)| error.starts_with(&format!("{section}.{field} ")));
                    proptest::prop_assert!(named, "{} of {}", error, json);
                }
            }
        }
    }
}

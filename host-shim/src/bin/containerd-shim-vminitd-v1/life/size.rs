//! How large a VM is to be, and what else can be said about it.
//!
//! What counts, the first that says something: annotations `io.vminitd.*` of the container, the runtime options, the
//! limits of the spec (a pod's whole, as Kubernetes' annotations have it), defaults.
//! Promises: a VM has room for the container's memory limit beside the guest's own needs. Never: looks at the host, but
//! for the number of its CPUs, which it is given.

use host_shim::vm::{MemorySize, MemorySizeError};
use serde_json::Value;
use vminitd_protocol::pb::vminitd::options::v1::Options;

/// Memory of a VM whose container has no limit.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// Least memory beside what the container may use: the guest's kernel, its agent, and what it keeps back.
const GUEST_MEMORY: u64 = 128 << 20;

/// Least memory of a VM, whatever the limit: with less, hardly any program starts.
const LEAST_MEMORY: u64 = 192 << 20;

/// A page table more for each so many bytes.
const KERNEL_SHARE: u64 = 64;

const MIB: u64 = 1 << 20;

/// What a VM is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its memory.
    pub memory: MemorySize,
    /// Its CPUs.
    pub cpus: u32,
}

/// A wish that cannot be understood. Whoever wrote the annotation or option reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A size.
    #[error("{name}")]
    Memory {
        /// Which annotation or option.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: MemorySizeError,
    },
    /// A number.
    #[error("io.vminitd.cpus: {text:?} is no number of CPUs; give 2")]
    Cpus {
        /// What was given.
        text: String,
    },
}

/// Says how large. `host_cpus` is how many there are.
pub fn size(config: &Value, options: &Options, host_cpus: u32) -> Result<Size, SizeError> {
    let annotation = |name: &str| config["annotations"][name].as_str();
    let memory =
        |name, text: &str| text.parse().map_err(|source| SizeError::Memory { name, source });
    let memory = match (annotation("io.vminitd.memory"), options.memory.as_str()) {
        (Some(text), _) => memory("io.vminitd.memory", text)?,
        (None, "") => for_limit(memory_limit(config)),
        (None, text) => memory("runtime option memory", text)?,
    };
    let cpus = match (annotation("io.vminitd.cpus"), options.cpus) {
        (Some(text), _) => {
            let cpus = text.parse().ok().filter(|cpus| *cpus > 0);
            cpus.ok_or_else(|| SizeError::Cpus { text: text.to_owned() })?
        }
        (None, 0) => cpu_limit(config).unwrap_or(1).clamp(1, host_cpus.max(1)),
        (None, cpus) => cpus,
    };
    Ok(Size { memory, cpus })
}

/// A limit in bytes, of the pod if there is one.
fn memory_limit(config: &Value) -> Option<u64> {
    let pod = config["annotations"]["io.kubernetes.cri.sandbox-memory"].as_str();
    let pod = pod.and_then(|bytes| bytes.parse::<i64>().ok());
    let own = config["linux"]["resources"]["memory"]["limit"].as_i64();
    let limit = pod.filter(|bytes| *bytes > 0).or(own)?;
    // Above, it is no limit: runc takes what comes near 2^63 as none.
    u64::try_from(limit).ok().filter(|bytes| (1..1 << 40).contains(bytes))
}

fn for_limit(limit: Option<u64>) -> MemorySize {
    let Some(limit) = limit else {
        return MemorySize::try_from(DEFAULT_MEMORY).expect("a constant within the limits");
    };
    let bytes = (limit + GUEST_MEMORY + limit / KERNEL_SHARE).max(LEAST_MEMORY);
    let bytes = bytes.next_multiple_of(2 * MIB);
    let most = MemorySize::try_from(host_shim::limits::MAX_MEMORY_BYTES);
    MemorySize::try_from(bytes).or(most).expect("the largest is one")
}

/// Whole CPUs that the quota comes to.
fn cpu_limit(config: &Value) -> Option<u32> {
    let pod = |name: &str| config["annotations"][name].as_str()?.parse::<i64>().ok();
    let own = |name: &str| config["linux"]["resources"]["cpu"][name].as_i64();
    let quota = pod("io.kubernetes.cri.sandbox-cpu-quota").filter(|n| *n > 0).or(own("quota"))?;
    let period =
        pod("io.kubernetes.cri.sandbox-cpu-period").filter(|n| *n > 0).or(own("period"))?;
    let (quota, period) = (u64::try_from(quota).ok()?, u64::try_from(period).ok()?);
    (quota > 0 && period > 0).then(|| u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(config: &Value) -> (u64, u32) {
        let Size { memory, cpus } = size(config, &Options::default(), 4).unwrap();
        (memory.mebibytes(), cpus)
    }

    #[test]
    fn without_a_word_it_is_the_default() {
        assert_eq!(of(&json!({})), (512, 1));
        assert_eq!(
            of(&json!({ "linux": { "resources": { "memory": { "limit": -1 } } } })),
            (512, 1)
        );
    }

    #[test]
    fn a_limit_fits_in_and_a_pods_wins_over_a_containers() {
        let own = json!({ "linux": { "resources": {
            "memory": { "limit": 1 << 30 }, "cpu": { "quota": 150_000, "period": 100_000 },
        }}});
        assert_eq!(of(&own), (1024 + 128 + 16, 2));
        let mut pod = own.clone();
        pod["annotations"] = json!({
            "io.kubernetes.cri.sandbox-memory": "268435456",
            "io.kubernetes.cri.sandbox-cpu-quota": "900000", "io.kubernetes.cri.sandbox-cpu-period": "100000",
        });
        assert_eq!(of(&pod), (256 + 128 + 4, 4));
    }

    #[test]
    fn annotations_win_over_options_and_both_over_limits() {
        let config = json!({ "linux": { "resources": { "memory": { "limit": 1 << 30 } } } });
        let options = Options { memory: "2G".into(), cpus: 3, ..Default::default() };
        let Size { memory, cpus } = size(&config, &options, 1).unwrap();
        assert_eq!((memory.mebibytes(), cpus), (2048, 3));
        let mut config = config;
        config["annotations"] = json!({ "io.vminitd.memory": "300M", "io.vminitd.cpus": "2" });
        let Size { memory, cpus } = size(&config, &options, 1).unwrap();
        assert_eq!((memory.mebibytes(), cpus), (300, 2));
    }

    #[test]
    fn a_wish_that_is_none_is_named() {
        let error = |name: &str| {
            let config = json!({ "annotations": { name: "lots" } });
            host_shim::chain(&size(&config, &Options::default(), 1).unwrap_err())
        };
        assert!(error("io.vminitd.memory").starts_with("io.vminitd.memory: \"lots\" is no size"));
        assert!(error("io.vminitd.cpus").contains("\"lots\" is no number"));
    }

    proptest! {
        #[test]
        fn a_vm_is_larger_than_its_containers_limit(limit in 1u64..(1 << 39)) {
            let config = json!({ "linux": { "resources": { "memory": { "limit": limit } } } });
            let (mebibytes, _) = of(&config);
            prop_assert!(mebibytes * MIB >= limit + GUEST_MEMORY);
            prop_assert!(mebibytes * MIB <= limit + limit / 32 + (256 << 20));
        }
    }
}

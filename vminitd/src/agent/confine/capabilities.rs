//! `process.capabilities` as the kernel has them.
//!
//! Promises: a set that is not named is empty, as runc has it (and not what PID 1 has); what the
//! kernel would refuse is an error that names the capability.

use oci_spec::runtime::{Capability, LinuxCapabilities};

use crate::link::confinement::Capabilities;

/// Why the sets are no use: the kernel would answer EPERM. The host's fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("process.capabilities.{set} has CAP_{capability}, which {other} has not")]
pub struct CapabilityError {
    set: &'static str,
    capability: Capability,
    other: &'static str,
}

/// The sets of a config; none at all without the section.
pub fn of(section: Option<&LinuxCapabilities>) -> Result<Capabilities, CapabilityError> {
    let Some(section) = section else { return Ok(Capabilities::default()) };
    let bits = |set: &Option<oci_spec::runtime::Capabilities>| {
        set.iter().flatten().map(|capability| 1 << number(*capability)).sum()
    };
    let sets = Capabilities {
        bounding: bits(section.bounding()),
        effective: bits(section.effective()),
        permitted: bits(section.permitted()),
        inheritable: bits(section.inheritable()),
        ambient: bits(section.ambient()),
    };
    subset("effective", sets.effective, "permitted", sets.permitted)?;
    subset("inheritable", sets.inheritable, "bounding", sets.bounding)?;
    subset("ambient", sets.ambient, "permitted", sets.permitted)?;
    subset("ambient", sets.ambient, "inheritable", sets.inheritable)?;
    Ok(sets)
}

fn subset(
    set: &'static str,
    of: u64,
    other: &'static str,
    all: u64,
) -> Result<(), CapabilityError> {
    let first = BY_NUMBER.iter().enumerate().find(|(number, _)| (of & !all) & (1 << number) != 0);
    match first {
        Some((_, capability)) => Err(CapabilityError { set, capability: *capability, other }),
        None => Ok(()),
    }
}

fn number(capability: Capability) -> usize {
    BY_NUMBER.iter().position(|other| *other == capability).unwrap_or_default()
}

/// In the order of linux/capability.h.
const BY_NUMBER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn section(json: &str) -> LinuxCapabilities {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn sets_that_are_not_named_are_empty() {
        assert_eq!(of(None), Ok(Capabilities::default()));
        let sets = of(Some(&section(r#"{"bounding":["CAP_CHOWN","CAP_SETPCAP"]}"#))).unwrap();
        assert_eq!(sets, Capabilities { bounding: 1 | 1 << 8, ..Default::default() });
    }

    #[test]
    fn numbers_are_the_kernels() {
        let all = r#"["CAP_CHECKPOINT_RESTORE","CAP_SYS_ADMIN","CAP_MKNOD","CAP_SYSLOG"]"#;
        let sets = of(Some(&section(&format!(r#"{{"permitted":{all}}}"#)))).unwrap();
        assert_eq!(sets.permitted, 1 << 40 | 1 << 21 | 1 << 27 | 1 << 34);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_named() {
        let text = |json| of(Some(&section(json))).unwrap_err().to_string();
        assert_eq!(
            text(r#"{"effective":["CAP_KILL"],"permitted":["CAP_CHOWN"]}"#),
            "process.capabilities.effective has CAP_KILL, which permitted has not"
        );
        assert_eq!(
            text(r#"{"inheritable":["CAP_NET_RAW"]}"#),
            "process.capabilities.inheritable has CAP_NET_RAW, which bounding has not"
        );
        assert_eq!(
            text(r#"{"ambient":["CAP_KILL"],"permitted":["CAP_KILL"]}"#),
            "process.capabilities.ambient has CAP_KILL, which inheritable has not"
        );
    }
}

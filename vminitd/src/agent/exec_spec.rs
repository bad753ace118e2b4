//! The OCI process of an exec: read, checked, and put as the launcher takes it.
//!
//! Promises: whatever cannot be honoured is an error that names it, when the exec is added.
//! Never: looks at the container.

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit,
    PosixRlimitType, Process, Scheduler,
};

use super::confine::capabilities::{self, CapabilityError};
use super::spec::console_size;
use crate::link::confinement::Capabilities;
use crate::link::exec_program::ExecProgram;
use crate::sys::process::Scheduling;
use crate::sys::terminal::Size;

/// Why a process is no use. The host's fault.
#[derive(Debug, thiserror::Error)]
pub enum ExecSpecError {
    /// It is not the JSON of an OCI process.
    #[error("parse the process")]
    Parse {
        /// Where, and what was expected.
        #[source]
        source: serde_json::Error,
    },
    /// There is nothing to run.
    #[error("the config has no process.args")]
    NoArguments,
    /// Sets that the kernel would refuse.
    #[error(transparent)]
    Capabilities(#[from] CapabilityError),
    /// A list of CPUs that is none.
    #[error("process.execCPUAffinity {0:?} is no list of CPUs")]
    Cpus(String),
    /// Beyond what the kernel knows.
    #[error("process.ioPriority {0} is not from 0 to 7")]
    IoPriority(i64),
}

/// An exec's process.
#[derive(Debug)]
pub struct ExecProcess {
    /// What runs; its capabilities are the ones below.
    pub program: ExecProgram,
    /// The size that it wants its terminal to have.
    pub size: Option<Size>,
    /// What it may do; None: what the container's init may.
    pub capabilities: Option<Capabilities>,
}

/// Reads an exec's process.
pub fn exec_process(json: &[u8]) -> Result<ExecProcess, ExecSpecError> {
    let process: Process =
        serde_json::from_slice(json).map_err(|source| ExecSpecError::Parse { source })?;
    let program = program(&process)?;
    let section = process.capabilities().as_ref();
    let capabilities = section.map(|section| capabilities::of(Some(section))).transpose()?;
    Ok(ExecProcess { program, size: console_size(&process), capabilities })
}

/// What a process of the spec's runs, but for its capabilities.
pub fn program(process: &Process) -> Result<ExecProgram, ExecSpecError> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(ExecSpecError::NoArguments);
    }
    let affinity = process.exec_cpu_affinity().as_ref();
    let cpus = |list: Option<&String>| list.map_or(Ok(vec![]), |list| cpus(list));
    let user = process.user();
    Ok(ExecProgram {
        args,
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        limits: process.rlimits().iter().flatten().map(limit).collect(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
        scheduling: process.scheduler().as_ref().map(scheduling),
        cpus_before: cpus(affinity.and_then(|affinity| affinity.initial().as_ref()))?,
        cpus: cpus(affinity.and_then(|affinity| affinity.cpu_affinity_final().as_ref()))?,
        capabilities: Capabilities::default(),
    })
}

fn limit(limit: &PosixRlimit) -> (u32, u64, u64) {
    use PosixRlimitType as Type;
    let resource = match limit.typ() {
        Type::RlimitCpu => libc::RLIMIT_CPU,
        Type::RlimitFsize => libc::RLIMIT_FSIZE,
        Type::RlimitData => libc::RLIMIT_DATA,
        Type::RlimitStack => libc::RLIMIT_STACK,
        Type::RlimitCore => libc::RLIMIT_CORE,
        Type::RlimitRss => libc::RLIMIT_RSS,
        Type::RlimitNproc => libc::RLIMIT_NPROC,
        Type::RlimitNofile => libc::RLIMIT_NOFILE,
        Type::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        Type::RlimitAs => libc::RLIMIT_AS,
        Type::RlimitLocks => libc::RLIMIT_LOCKS,
        Type::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        Type::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        Type::RlimitNice => libc::RLIMIT_NICE,
        Type::RlimitRtprio => libc::RLIMIT_RTPRIO,
        Type::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    (resource, limit.soft(), limit.hard())
}

/// IOPRIO_PRIO_VALUE in linux/ioprio.h.
fn io_priority(wanted: &LinuxIOPriority) -> Result<u16, ExecSpecError> {
    let class: u16 = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u16::try_from(wanted.priority()).ok().filter(|level| *level < 8);
    Ok(class << 13 | level.ok_or(ExecSpecError::IoPriority(wanted.priority()))?)
}

/// SCHED_* and SCHED_FLAG_* in linux/sched.h.
fn scheduling(wanted: &Scheduler) -> Scheduling {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    Scheduling {
        policy,
        flags: wanted.flags().iter().flatten().map(flag).sum(),
        nice: wanted.nice().unwrap_or(0),
        priority: wanted.priority().unwrap_or(0).cast_unsigned(),
        runtime: wanted.runtime().unwrap_or(0),
        deadline: wanted.deadline().unwrap_or(0),
        period: wanted.period().unwrap_or(0),
        ..Default::default()
    }
}

/// `0-3,7`.
fn cpus(list: &str) -> Result<Vec<usize>, ExecSpecError> {
    let bad = || ExecSpecError::Cpus(list.to_owned());
    let number = |text: &str| {
        let number = text.trim().parse::<usize>().ok();
        number.filter(|cpu| *cpu < CPUS).ok_or_else(bad)
    };
    let mut found = vec![];
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        found.extend(first..=last);
    }
    Ok(found)
}

/// What a cpu_set_t has room for.
const CPUS: usize = 8 * size_of::<libc::cpu_set_t>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_put_as_the_kernel_has_it() {
        let json = br#"{"cwd":"/w","args":["a","b"],"env":["X=1"],
            "user":{"uid":1,"gid":2,"umask":23,"additionalGids":[3]},"noNewPrivileges":true,
            "rlimits":[{"type":"RLIMIT_NOFILE","soft":7,"hard":9}],"oomScoreAdj":5,
            "ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":4},
            "scheduler":{"policy":"SCHED_BATCH","nice":3,"flags":["SCHED_RESET_ON_FORK"]},
            "execCPUAffinity":{"initial":"0-2","final":"1,3"}}"#;
        let ExecProcess { program, capabilities, .. } = exec_process(json).unwrap();
        assert_eq!(capabilities, None);
        let wanted = ExecProgram {
            args: vec!["a".into(), "b".into()],
            env: vec!["X=1".into()],
            cwd: "/w".into(),
            uid: 1,
            gid: 2,
            groups: vec![3],
            umask: Some(23),
            limits: vec![(libc::RLIMIT_NOFILE, 7, 9)],
            no_new_privileges: true,
            oom_score_adj: Some(5),
            io_priority: Some(3 << 13 | 4),
            scheduling: Some(Scheduling { policy: 3, flags: 1, nice: 3, ..Default::default() }),
            cpus_before: vec![0, 1, 2],
            cpus: vec![1, 3],
            capabilities: Capabilities::default(),
        };
        assert_eq!(program, wanted);
    }

    #[test]
    fn lists_of_cpus_that_are_none_are_refused() {
        for list in ["x", "3-1", "1-", "1024", "-1"] {
            assert!(cpus(list).is_err(), "{list}");
        }
        assert_eq!(cpus(" 1 , 3-4 ").unwrap(), [1, 3, 4]);
    }
}

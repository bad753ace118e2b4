//! Plans against the rules, one by one and all together.

use proptest::prelude::*;

use super::*;
use crate::vm::tests::draft;
use crate::vm::{Draft, Nic, Published};

fn mac() -> Mac {
    Mac {
        macos: (15, 2),
        arch: Arch::HOST,
        cpus: 1..=8,
        memory: 128 << 20..=8 << 30,
        rosetta: Rosetta::Installed,
        nested: true,
    }
}

fn planned(draft: Draft, options: Options, mac: &Mac) -> Result<Plan, PlanError> {
    plan(&Description::try_from(Draft { options, ..draft }).unwrap(), mac)
}

fn told(draft: Draft, options: Options, mac: &Mac) -> String {
    planned(draft, options, mac).unwrap_err().to_string()
}

fn nic(network: Network) -> Draft {
    let nic = Nic { mac: "52:54:00:00:00:01".parse().unwrap(), network };
    Draft { nics: vec![nic], ..draft() }
}

#[test]
fn a_description_is_planned_as_it_is() {
    let disk = Disk { serial: "a".parse().unwrap(), path: "/a".into(), read_only: true };
    let cmdline = "loglevel=7 -- -debug".parse().unwrap();
    let draft = Draft {
        disks: vec![disk.clone()],
        cmdline,
        hotplug_slots: 0.try_into().unwrap(),
        ..nic(Network::User { published: Vec::new(), removable: false })
    };
    let plan = planned(draft, Options::default(), &mac()).unwrap();
    assert_eq!(plan.cmdline, "console=hvc0 quiet panic=-1 loglevel=7 -- -debug");
    assert_eq!((plan.disks, plan.cpus, plan.memory), (vec![disk], 1, 512 << 20));
    assert_eq!((plan.nics.len(), plan.rosetta, plan.notes), (1, None, Vec::new()));
}

#[test]
fn what_less_will_do_for_is_clamped_and_said() {
    let draft = Draft { cpus: 9, memory: "9G".parse().unwrap(), ..draft() };
    let plan = planned(draft, Options::default(), &mac()).unwrap();
    assert_eq!((plan.cpus, plan.memory), (8, 8 << 30));
    let notes: Vec<String> = plan.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "the VM gets 8 CPUs instead of 9: this Mac gives one 1 to 8",
            "the VM gets 8192 MiB of memory instead of 9216: this Mac gives one 128 to 8192",
            "no disk can be attached while the VM runs: Virtualization.framework cannot do that",
        ]
    );
}

#[test]
fn what_the_framework_has_not_is_refused_by_name() {
    let (other, none) =
        (Arch::ALL.into_iter().find(|a| *a != Arch::HOST).unwrap(), Options::default());
    let refused = |draft, part: &str| {
        let told = told(draft, none.clone(), &mac());
        assert!(told.contains(part), "{told}");
    };
    refused(Draft { arch: other, ..draft() }, other.name());
    refused(Draft { accelerator: Accelerator::Emulation, ..draft() }, "emulates nothing");
    refused(Draft { guest_cid: Cid::try_from(9).unwrap(), ..draft() }, "cannot be 9");
    let published: Vec<Published> = vec!["8080:80".parse().unwrap()];
    refused(nic(Network::User { published, removable: false }), "52:54:00:00:00:01");
    refused(nic(Network::Stream { socket: "/s".into() }), "user network");
}

#[test]
fn what_came_later_is_refused_before() {
    let old = |macos| Mac { macos, ..mac() };
    let (nested, save) = (
        Options { nested: true, ..Options::default() },
        Options { save_and_restore: true, ..Options::default() },
    );
    assert!(told(draft(), Options::default(), &old((12, 7))).contains("macOS 13.0, this is 12.7"));
    assert!(told(draft(), save.clone(), &old((13, 6))).contains("macOS 14.0"));
    assert!(planned(draft(), save.clone(), &old((14, 0))).is_ok());
    assert!(told(draft(), nested.clone(), &old((14, 9))).contains("macOS 15.0"));
    assert!(told(draft(), nested.clone(), &Mac { nested: false, ..mac() }).contains("CPU cannot"));
    assert!(planned(draft(), nested, &mac()).unwrap().nested);
}

#[test]
fn rosetta_is_shared_where_it_is_and_else_said_how_it_comes() {
    let rosetta = Options { rosetta: true, ..Options::default() };
    let with = |rosetta| Mac { rosetta, ..mac() };
    assert_eq!(planned(draft(), rosetta.clone(), &mac()).unwrap().rosetta, Some(ROSETTA_TAG));
    assert_eq!(
        planned(draft(), rosetta.clone(), &with(Rosetta::NotSupported)),
        Err(PlanError::NoRosetta)
    );
    assert!(
        told(draft(), rosetta.clone(), &with(Rosetta::NotInstalled)).contains("softwareupdate")
    );
    let tag = ROSETTA_TAG.to_owned().try_into().unwrap();
    let shares = vec![Share { tag, path: "/s".into(), read_only: true }];
    let taken = planned(Draft { shares: shares.clone(), ..draft() }, rosetta.clone(), &mac());
    assert_eq!(taken, Err(PlanError::RosettaTag));
    assert!(planned(Draft { shares, ..draft() }, Options::default(), &mac()).is_ok());
}

#[test]
fn an_interface_is_attached_as_was_wished() {
    let attached = |network| {
        let plan = planned(nic(network), Options::default(), &mac()).unwrap();
        plan.nics[0].1.clone()
    };
    assert_eq!(
        attached(Network::User { published: Vec::new(), removable: false }),
        Attachment::Nat
    );
    let socket = PathBuf::from("/run/frames.sock");
    assert_eq!(attached(Network::Datagram { socket: socket.clone() }), Attachment::Frames(socket));
    let interface = "en0".to_owned();
    assert_eq!(
        attached(Network::Bridged { interface: interface.clone() }),
        Attachment::Bridged(interface)
    );
}

proptest! {
    /// The model: every plan is within the Mac's limits, in whole MiB, and says when it is not what was wished.
    #[test]
    fn a_plan_is_within_the_limits_and_honest(
        wished_cpus in 1u32..=255, wished in 64u64..=1 << 20,
        least_cpus in 0u32..4, more_cpus in 0u32..300, least in 0u64..1 << 32, more in 0u64..1 << 40,
    ) {
        let cpus = least_cpus..=least_cpus + more_cpus;
        let mac = Mac { cpus: cpus.clone(), memory: least..=least + more, ..mac() };
        let memory = (wished << 20).try_into().unwrap();
        let hotplug_slots = 0.try_into().unwrap();
        let made = planned(Draft { cpus: wished_cpus, memory, hotplug_slots, ..draft() }, Options::default(), &mac);
        let whole_mebibyte = (mac.memory.end() >> 20 << 20) >= *mac.memory.start() && mac.memory.end() >> 20 > 0;
        prop_assert_eq!(made.is_ok(), whole_mebibyte && *cpus.end() > 0);
        if let Ok(plan) = made {
            prop_assert!(cpus.contains(&plan.cpus) && plan.cpus > 0);
            prop_assert!(mac.memory.contains(&plan.memory) && plan.memory % (1 << 20) == 0);
            let same = (plan.cpus == wished_cpus) as usize + (plan.memory == wished << 20) as usize;
            prop_assert_eq!(plan.notes.len(), 2 - same);
        }
    }
}

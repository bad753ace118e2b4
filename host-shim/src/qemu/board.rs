//! What QEMU's machine of each architecture is: the only place of the QEMU driver where architectures differ.
//! Promises: pure data and functions of it.
//! Never: says which devices of ours are on it; those are the same on every machine.

use super::accelerator::Engine;
use crate::vm::Arch;

/// The machine that guests of one architecture run on.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    /// `-machine`, without the memory.
    pub machine: &'static str,
    /// `-cpu` where instructions are emulated.
    pub emulated_cpu: &'static str,
    /// What the kernel is told: where its console is, that a panic ends the VM, and to keep boot messages that are
    /// no warnings to itself, since each byte on an emulated serial line costs microseconds.
    pub cmdline: &'static str,
    /// It can tell a guest that it goes on from a saved state (vmgenid).
    pub generation_id: bool,
    sockets: Sockets,
}

/// Where disks go that are attached later.
#[derive(Clone, Copy, Debug)]
enum Sockets {
    /// A bridge with 31 slots, all of which the guest watches by ACPI. Not a root port per disk: with four of them a
    /// guest executes 0.7 % more until it serves, with this bridge 0.05 %.
    Bridge,
    /// A root port for each: without ACPI there is only PCI Express' own way.
    RootPorts,
}

/// What disks are plugged into.
const BUS: &str = "hot";

/// Where the root ports are: above the slots that QEMU gives to devices without an address, below those of many disks
/// ([`super::args`]); eight to a slot.
const FIRST_PORT_SLOT: u32 = 0xc;

const X86_64: Board = Board {
    // Without the devices of the machine's own that nothing of ours uses: less for a guest to reach, and for a kernel
    // to look at.
    machine: "q35,sata=off,smbus=off,usb=off,i8042=off,vmport=off",
    // `max` needs no page-table isolation, which halves every system call under emulation.
    // Without fast string instructions the kernel clears and copies pages by words: emulation executes `rep stosb` byte by
    // byte (a boot takes 15 % less of the host's CPU time without them, a container's life 20 %).
    emulated_cpu: "max,-erms,-fsrm",
    // And to take per-CPU memory in pages instead of pieces of 2 MiB: the first such piece is used up when the agent's
    // cgroup is made, and for the next one the kernel makes 4 MiB of tables, on the CPU that the agent is to start on
    // (counted in instructions, exec of the agent takes a sixth without that).
    cmdline: "console=ttyS0 quiet panic=-1 percpu_alloc=page",
    generation_id: true,
    sockets: Sockets::Bridge,
};

const ARM64: Board = Board {
    // `max`: what the accelerator has, GICv3 under emulation.
    machine: "virt,gic-version=max,acpi=off",
    // Pointer authentication by the architecture's own cipher takes longer to emulate than all else; and vectors of
    // the newer kind, saved at every switch, are of no use where each is emulated.
    emulated_cpu: "max,pauth-impdef=on,sve=off,sme=off",
    // Per-CPU memory in pages is not to be had here (see X86_64): that needs NUMA.
    cmdline: "console=ttyAMA0 quiet panic=-1",
    // QEMU's device wants ACPI.
    generation_id: false,
    sockets: Sockets::RootPorts,
};

impl Board {
    /// The machine for guests of this architecture.
    pub fn of(arch: Arch) -> &'static Self {
        match arch {
            Arch::X86_64 => &X86_64,
            Arch::Arm64 => &ARM64,
        }
    }

    /// `-accel` and `-cpu`.
    pub fn processor(&self, engine: Engine) -> (&'static str, &'static str) {
        match engine {
            Engine::Kvm => ("kvm", "host"),
            Engine::Tcg => ("tcg,thread=multi", self.emulated_cpu),
        }
    }

    /// The devices that disks are plugged into, as `-device` wants them.
    pub fn socket_devices(&self, slots: u32) -> Vec<String> {
        match self.sockets {
            Sockets::Bridge if slots == 0 => Vec::new(),
            Sockets::Bridge => vec![format!("pcie-pci-bridge,id={BUS}")],
            Sockets::RootPorts => (0..slots).map(root_port).collect(),
        }
    }

    /// `bus` and `addr` of the disk in a slot.
    pub fn socket(&self, slot: usize) -> (String, String) {
        match self.sockets {
            Sockets::Bridge => (BUS.to_owned(), format!("{:x}", slot + 1)),
            Sockets::RootPorts => (port_name(slot), "0".to_owned()),
        }
    }
}

fn root_port(slot: u32) -> String {
    let (place, function) = (FIRST_PORT_SLOT + slot / 8, slot % 8);
    let first = if function == 0 { ",multifunction=on" } else { "" };
    let name = port_name(slot as usize);
    // The chassis and the slot's number only have to differ. Nothing of ours uses I/O ports, of which there are few.
    format!(
        "pcie-root-port,id={name},chassis={},addr={place:x}.{function}{first},io-reserve=0",
        slot + 1
    )
}

fn port_name(slot: usize) -> String {
    format!("{BUS}port{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_HOTPLUG_SLOTS;

    #[test]
    fn every_slot_has_a_place_of_its_own_that_a_device_makes() {
        for arch in Arch::ALL {
            let board = Board::of(arch);
            let devices = board.socket_devices(MAX_HOTPLUG_SLOTS);
            let mut seen = std::collections::BTreeSet::new();
            for slot in 0..MAX_HOTPLUG_SLOTS as usize {
                let (bus, address) = board.socket(slot);
                assert!(devices.iter().any(|device| device.contains(&format!("id={bus}"))));
                assert!(seen.insert((bus, address)), "{arch}: slot {slot}");
            }
            assert!(board.socket_devices(0).is_empty(), "{arch}");
        }
    }

    #[test]
    fn ports_stay_below_the_slots_of_many_disks() {
        let most = FIRST_PORT_SLOT + MAX_HOTPLUG_SLOTS / 8;
        assert!(most <= super::super::args::FIRST_DISK_SLOT as u32, "{most:x}");
    }
}

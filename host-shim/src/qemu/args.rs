//! QEMU's command line, as a function of the VM and of the numbers of the fds that it inherits.
//! Promises: nothing in it comes from an owner unchecked (names hold no comma, files are fds).
//! Never: opens, starts or looks at anything.

use std::os::fd::RawFd;

use super::accelerator::Engine;
use super::board::Board;
use crate::limits::MAX_DISKS;
use crate::vm::{Cmdline, CmdlineError, Description, HotplugSlots, Network, Nic};

/// What QEMU may not do once it runs.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// QEMU's name of what is in a slot for what comes and goes: of the device and of what is behind it.
pub fn hot_name(index: usize) -> String {
    format!("hot{index}")
}

/// The slots of interfaces that can be taken away: the last, since disks take the first that is free.
fn removable_slot(slots: HotplugSlots, number: usize) -> Option<usize> {
    (slots.get() as usize).checked_sub(1 + number)
}

/// How many disks get a slot of their own.
const FEW_DISKS: usize = 8;

/// Above the slots that QEMU gives to devices without an address, which it takes from the lowest on.
pub(super) const FIRST_DISK_SLOT: usize = 0x10;

const _: () = assert!(FIRST_DISK_SLOT + MAX_DISKS / 8 < 0x1f);

/// What the kernel is told besides [`Board::cmdline`] where virtiofsd writes an emulated guest's memory.
///
/// Emulation keeps its translation of a page of code until it sees a write to the page, and virtiofsd's writes it
/// does not see: programs read from a share then execute what was in the page before, and crash (a busybox shell
/// that starts another applet: 4 of 4 times; with this 0 of 4). A page that the guest itself clears when it takes it
/// into use has no translation any more when virtiofsd fills it.
const CMDLINE_EMULATED_SHARES: &str = "init_on_alloc=1";

/// Numbers of the fds that QEMU inherits.
#[derive(Clone, Debug)]
pub struct Fds {
    /// The kernel's file.
    pub kernel: RawFd,
    /// The initramfs' file, if there is one.
    pub initramfs: Option<RawFd>,
    /// The disks' files, in order.
    pub disks: Vec<RawFd>,
    /// Where the guest's console is written.
    pub console: RawFd,
    /// A connected socket for QMP.
    pub qmp: RawFd,
    /// A connected socket to the vsock device; a probe boot has none.
    pub vsock: Option<RawFd>,
    /// Connected sockets to the virtiofsd of each share, in order.
    pub shares: Vec<RawFd>,
}

/// The arguments that make QEMU run `vm` on `engine`.
pub fn arguments(vm: &Description, engine: Engine, fds: &Fds) -> Result<Vec<String>, CmdlineError> {
    let mut args = Args::default();
    args.machine(vm, engine);
    args.boot(vm, engine, fds)?;
    args.console(fds);
    args.flag("-chardev", format!("socket,id=qmp,fd={}", fds.qmp));
    args.flag("-mon", "chardev=qmp,mode=control");
    args.flag("-device", "virtio-rng-pci");
    // A guest that goes on from a saved state sees another number here, and reseeds its random pool.
    if Board::of(vm.arch()).generation_id {
        args.flag("-device", "vmgenid,guid=auto");
    }
    if let Some(fd) = fds.vsock {
        args.flag("-chardev", format!("socket,id=vsock,fd={fd}"));
        args.flag("-device", "vhost-user-vsock-pci,chardev=vsock");
    }
    for (index, (disk, fd)) in vm.disks().iter().zip(&fds.disks).enumerate() {
        let set = args.fd_set(*fd);
        // By default a writable image is opened for reading first, for which the set has no fd. What the guest flushes
        // is flushed to the file; that is QEMU's default too, but a promise of ours.
        let read_only = if disk.read_only { "on" } else { "off" };
        args.flag(
            "-drive",
            format!("file={set},if=none,id=disk{index},format=raw,readonly={read_only},auto-read-only=off,cache.no-flush=off"),
        );
        let address = disk_address(index, vm.disks().len());
        args.flag(
            "-device",
            format!("virtio-blk-pci,drive=disk{index},serial={}{address}", disk.serial),
        );
    }
    for device in Board::of(vm.arch()).socket_devices(vm.hotplug_slots().get()) {
        args.flag("-device", device);
    }
    for (index, nic) in vm.nics().iter().enumerate() {
        let removable = vm.removable_nics().position(|mac| mac == nic.mac);
        let slot = removable.and_then(|number| removable_slot(vm.hotplug_slots(), number));
        let (id, place) = match slot {
            Some(slot) => {
                let (id, (bus, address)) = (hot_name(slot), Board::of(vm.arch()).socket(slot));
                let place = format!(",id={id},bus={bus},addr={address},disable-legacy=on");
                (id, place)
            }
            None => (format!("net{index}"), String::new()),
        };
        args.flag("-netdev", netdev(&id, nic));
        // No program for booting from it: the guest has its kernel already, and QEMU's package may be without.
        let device = format!("virtio-net-pci,netdev={id},mac={},romfile={place}", nic.mac);
        args.flag("-device", device);
    }
    for (index, (share, fd)) in vm.shares().iter().zip(&fds.shares).enumerate() {
        args.flag("-chardev", format!("socket,id=share{index},fd={fd}"));
        args.flag(
            "-device",
            format!("vhost-user-fs-pci,chardev=share{index},tag={},queue-size=1024", share.tag),
        );
    }
    Ok(args.list)
}

/// Where a disk goes: wherever there is room as long as they are few, else eight to a slot, from the middle of the bus
/// on. Either way the guest finds them in their order.
fn disk_address(index: usize, count: usize) -> String {
    if count <= FEW_DISKS {
        return String::new();
    }
    let (slot, function) = (FIRST_DISK_SLOT + index / 8, index % 8);
    let first = if function == 0 { ",multifunction=on" } else { "" };
    format!(",addr={slot:x}.{function}{first}")
}

/// IPv6 is off in a user network: a host without it would give the guest a way to nowhere, which programs try first.
fn netdev(id: &str, nic: &Nic) -> String {
    match &nic.network {
        Network::User { published, .. } => {
            let mut text = format!("user,id={id},ipv6=off");
            for port in published {
                let kind = if port.udp { "udp" } else { "tcp" };
                let (address, host, guest) = (port.address, port.host, port.guest);
                text.push_str(&format!(",hostfwd={kind}:{address}:{host}-:{guest}"));
            }
            text
        }
        // Both are refused before it comes to this: QEMU would want a name of its own beside the socket's, and a
        // helper with root's rights.
        Network::Datagram { socket } => {
            format!("dgram,id={id},remote.type=unix,remote.path={}", socket.display())
        }
        Network::Bridged { interface } => format!("bridge,id={id},br={interface}"),
        Network::Stream { socket } => {
            let path = socket.display();
            format!("stream,id={id},server=off,addr.type=unix,addr.path={path}")
        }
    }
}

#[derive(Default)]
struct Args {
    list: Vec<String>,
    fd_sets: u32,
}

impl Args {
    fn flag(&mut self, name: &str, value: impl Into<String>) {
        self.list.extend([name.to_owned(), value.into()]);
    }

    fn machine(&mut self, vm: &Description, engine: Engine) {
        let board = Board::of(vm.arch());
        let (accelerator, cpu) = board.processor(engine);
        let memory = vm.memory().mebibytes();
        self.flag("-name", vm.name().as_str());
        self.flag("-accel", accelerator);
        self.flag("-cpu", cpu);
        self.flag("-machine", format!("{},memory-backend=mem0", board.machine));
        self.flag("-m", format!("{memory}M"));
        // Shared, because the vsock device and virtiofsd read and write it.
        self.flag("-object", format!("memory-backend-memfd,id=mem0,size={memory}M,share=on"));
        self.flag("-smp", vm.cpus().to_string());
        self.list.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        self.flag("-display", "none");
        self.flag("-sandbox", SANDBOX);
    }

    fn boot(&mut self, vm: &Description, engine: Engine, fds: &Fds) -> Result<(), CmdlineError> {
        // QEMU opens these by itself and knows no fd sets there.
        self.flag("-kernel", format!("/proc/self/fd/{}", fds.kernel));
        if let Some(fd) = fds.initramfs {
            self.flag("-initrd", format!("/proc/self/fd/{fd}"));
        }
        let mut ours = Cmdline::parse(Board::of(vm.arch()).cmdline)?;
        if engine == Engine::Tcg && !vm.shares().is_empty() {
            ours = ours.word(CMDLINE_EMULATED_SHARES)?;
        }
        self.flag("-append", vm.cmdline().after(ours)?.to_string());
        Ok(())
    }

    fn console(&mut self, fds: &Fds) {
        let set = self.fd_set(fds.console);
        self.flag("-chardev", format!("file,id=console,path={set},append=on"));
        self.flag("-serial", "chardev:console");
    }

    fn fd_set(&mut self, fd: RawFd) -> String {
        self.fd_sets += 1;
        self.flag("-add-fd", format!("fd={fd},set={}", self.fd_sets));
        format!("/dev/fdset/{}", self.fd_sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::draft;
    use crate::vm::{Arch, Disk, Draft, Share};

    fn fds() -> Fds {
        Fds {
            kernel: 10,
            initramfs: Some(11),
            disks: vec![12],
            console: 13,
            qmp: 14,
            vsock: Some(15),
            shares: vec![16],
        }
    }

    /// On the machine that these tests' words are about.
    fn text(draft: Draft, engine: Engine) -> String {
        let draft = Draft { arch: Arch::X86_64, ..draft };
        arguments(&Description::try_from(draft).unwrap(), engine, &fds()).unwrap().join(" ")
    }

    #[test]
    fn the_sandbox_is_on_and_nothing_comes_by_default() {
        let text = text(draft(), Engine::Tcg);
        for part in [
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-nodefaults",
            "-no-reboot",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_disk_is_an_fd_with_its_serial() {
        let disk = Disk {
            serial: "layer0".parse().unwrap(),
            path: "/secret,evil=on".into(),
            read_only: true,
        };
        let text = text(Draft { disks: vec![disk], ..draft() }, Engine::Tcg);
        assert!(text.contains(
            "-add-fd fd=12,set=2 -drive file=/dev/fdset/2,if=none,id=disk0,format=raw,readonly=on,"
        ));
        assert!(text.contains("readonly=on,auto-read-only=off,cache.no-flush=off "), "{text}");
        assert!(text.contains("virtio-blk-pci,drive=disk0,serial=layer0"));
        assert!(!text.contains("secret"), "no path of the owner's: {text}");
    }

    #[test]
    fn many_disks_share_slots_and_one_machine_in_two_has_a_bridge_for_more() {
        let disks = |count: usize| {
            let disk = |index| Disk {
                serial: format!("d{index}").parse().unwrap(),
                path: "/d".into(),
                read_only: true,
            };
            (0..count).map(disk).collect::<Vec<_>>()
        };
        let all = |count| {
            let fds = Fds { disks: (100..100 + count as RawFd).collect(), ..fds() };
            let draft = Draft { arch: Arch::X86_64, disks: disks(count), ..draft() };
            arguments(&Description::try_from(draft).unwrap(), Engine::Tcg, &fds).unwrap().join(" ")
        };
        assert!(!all(FEW_DISKS).contains("addr="));
        let many = all(MAX_DISKS);
        assert!(many.contains("serial=d0,addr=10.0,multifunction=on "));
        assert!(many.contains("serial=d63,addr=17.7 "));
        assert!(many.contains("-device pcie-pci-bridge,id=hot"));
        let none = Draft { hotplug_slots: 0.try_into().unwrap(), ..draft() };
        let none = Description::try_from(none).unwrap();
        let none = arguments(&none, Engine::Tcg, &fds()).unwrap().join(" ");
        assert!(!none.contains("bridge"), "{none}");
    }

    #[test]
    fn an_interface_is_on_its_network_without_a_boot_program() {
        let nic = |mac: &str, network| Nic { mac: mac.parse().unwrap(), network };
        let user = Network::User {
            published: vec!["8080:80".parse().unwrap(), "0.0.0.0:53:53/udp".parse().unwrap()],
            removable: false,
        };
        let stream = Network::Stream { socket: "/run/switch.sock".into() };
        let nics = vec![nic("52:54:00:00:00:01", user), nic("52:54:00:00:00:02", stream)];
        let text = text(Draft { nics, ..draft() }, Engine::Tcg);
        for part in [
            "-netdev user,id=net0,ipv6=off,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:53-:53 ",
            "-device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,romfile= ",
            "-netdev stream,id=net1,server=off,addr.type=unix,addr.path=/run/switch.sock ",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn an_interface_that_can_be_taken_away_is_on_the_bridge_in_the_last_slot() {
        let network = Network::User { published: Vec::new(), removable: true };
        let nics = vec![Nic { mac: "52:54:00:00:00:01".parse().unwrap(), network }];
        let text = text(Draft { nics, ..draft() }, Engine::Tcg);
        for part in [
            "-netdev user,id=hot30,ipv6=off ",
            "-device virtio-net-pci,netdev=hot30,mac=52:54:00:00:00:01,romfile=,id=hot30,bus=hot,addr=1f,disable-legacy=on",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_share_is_a_socket_with_its_tag() {
        let share = Share { tag: "rootfs".parse().unwrap(), path: "/r".into(), read_only: true };
        let text = text(Draft { shares: vec![share], ..draft() }, Engine::Tcg);
        assert!(text.contains(
            "-chardev socket,id=share0,fd=16 -device vhost-user-fs-pci,chardev=share0,tag=rootfs"
        ));
    }

    #[test]
    fn an_emulated_guest_with_a_share_clears_the_pages_that_it_takes() {
        let share = Share { tag: "rootfs".parse().unwrap(), path: "/r".into(), read_only: true };
        let shares = vec![share];
        let told = |draft, engine| text(draft, engine).contains("init_on_alloc=1");
        assert!(told(Draft { shares: shares.clone(), ..draft() }, Engine::Tcg));
        assert!(!told(Draft { shares, ..draft() }, Engine::Kvm));
        assert!(!told(draft(), Engine::Tcg));
    }

    #[test]
    fn another_architecture_is_another_machine_with_the_same_devices() {
        let share = Share { tag: "rootfs".parse().unwrap(), path: "/r".into(), read_only: true };
        let draft = Draft { arch: Arch::Arm64, shares: vec![share], ..draft() };
        let text = arguments(&Description::try_from(draft).unwrap(), Engine::Tcg, &fds())
            .unwrap()
            .join(" ");
        for part in [
            "-machine virt,",
            "-append console=ttyAMA0 quiet panic=-1 init_on_alloc=1",
            "-device vhost-user-vsock-pci,chardev=vsock",
            "-device vhost-user-fs-pci,chardev=share0,tag=rootfs",
            "-device pcie-root-port,id=hotport0,",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        for part in ["percpu_alloc", "vmgenid"] {
            assert!(!text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_owners_words_come_after_ours() {
        let cmdline = Cmdline::parse("loglevel=7 -- -debug").unwrap();
        let text = text(Draft { cmdline, ..draft() }, Engine::Kvm);
        assert!(
            text.contains(
                "-append console=ttyS0 quiet panic=-1 percpu_alloc=page loglevel=7 -- -debug"
            ),
            "{text}"
        );
        assert!(text.contains("-accel kvm -cpu host"));
    }
}

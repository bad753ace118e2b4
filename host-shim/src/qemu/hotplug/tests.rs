//! Hotplug against a small model of QEMU that fails, refuses and is late at random.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SLOTS: u32 = 3;

/// Any: what the board has to say is its own tests' matter.
fn board() -> &'static Board {
    Board::of(crate::vm::Arch::HOST)
}

fn hotplug() -> Hotplug<u32> {
    Hotplug::new(board(), HotplugSlots::try_from(SLOTS).unwrap(), vec![serial("cold")], &[])
}

fn serial(text: &str) -> Serial {
    text.parse().unwrap()
}

fn disk(text: &str) -> NewDisk {
    let file = tempfile::tempfile().unwrap().into();
    NewDisk { serial: serial(text), read_only: true, host_device: false, file }
}

/// What QEMU holds, and what it has yet to answer.
#[derive(Default)]
struct Qemu {
    fds: BTreeSet<u64>,
    nodes: BTreeSet<String>,
    devices: BTreeSet<String>,
    /// Devices that the guest was asked to let go.
    asked: BTreeSet<String>,
    commands: Vec<Value>,
}

impl Qemu {
    /// Carries the oldest command out, or fails it.
    fn answer(&mut self, fail: bool) -> Option<(u64, Result<(), String>)> {
        if self.commands.is_empty() {
            return None;
        }
        let command = self.commands.remove(0);
        let arguments = &command["arguments"];
        let text = |key: &str| arguments[key].as_str().unwrap().to_owned();
        let id = command["id"].as_u64().unwrap();
        let removes = matches!(command["execute"].as_str().unwrap(), "blockdev-del" | "remove-fd");
        if fail && !removes {
            return Some((id, Err("no".to_owned())));
        }
        match command["execute"].as_str().unwrap() {
            "add-fd" => assert!(self.fds.insert(arguments["fdset-id"].as_u64().unwrap())),
            "blockdev-add" => {
                let set: u64 = arguments["file"]["filename"].as_str().unwrap()
                    ["/dev/fdset/".len()..]
                    .parse()
                    .unwrap();
                assert!(self.fds.contains(&set), "a node needs its fd");
                assert!(self.nodes.insert(text("node-name")));
            }
            "device_add" => {
                assert!(self.nodes.contains(&text("drive")), "a device needs its node");
                assert!(self.devices.insert(text("id")));
            }
            "device_del" => {
                if !self.devices.contains(&text("id")) {
                    // It went after it had been given up, and before this came.
                    return Some((id, Err("no such device".to_owned())));
                }
                self.asked.insert(text("id"));
            }
            "blockdev-del" => {
                assert!(!self.devices.contains(&text("node-name")), "the node is in use");
                assert!(self.nodes.remove(&text("node-name")));
            }
            "remove-fd" => assert!(self.fds.remove(&arguments["fdset-id"].as_u64().unwrap())),
            other => panic!("{other}"),
        }
        Some((id, Ok(())))
    }

    /// The guest lets go of what it was asked for first.
    fn let_go(&mut self) -> Option<String> {
        let device = self.asked.pop_first()?;
        self.devices.remove(&device).then_some(device)
    }
}

#[test]
fn an_image_becomes_a_device_and_goes_again() {
    let (mut hotplug, now) = (hotplug(), Instant::now());
    let mut lines = Vec::new();
    let mut actions = hotplug.attach(disk("late"), 1);
    let mut command = 0;
    for detached in [false, true] {
        if detached {
            actions = hotplug.detach(&serial("late"), 2, now);
        }
        loop {
            match actions.pop().unwrap() {
                Action::Send { line, fd } => {
                    assert_eq!(fd.is_some(), line.contains("add-fd"));
                    lines.push(line.clone());
                    command += 1;
                    actions = hotplug.answered(command, Ok(()));
                    if line.contains("device_del") {
                        actions = hotplug.deleted("hot0");
                    }
                }
                Action::Done(reply) => break assert_eq!(reply, if detached { 2 } else { 1 }),
                other => panic!("{other:?}"),
            }
        }
    }
    let words = ["add-fd", "blockdev-add", "device_add", "device_del", "blockdev-del", "remove-fd"];
    assert_eq!(lines.len(), words.len());
    for (line, word) in lines.iter().zip(words) {
        assert!(line.contains(&format!("\"execute\":\"{word}\"")), "{line}");
    }
    assert!(lines[1].contains("/dev/fdset/1000") && lines[1].contains("\"read-only\":true"));
    assert!(lines[1].contains(r#""cache":{"no-flush":false}"#), "{}", lines[1]);
    assert!(lines[2].contains("\"serial\":\"late\""), "{}", lines[2]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (mut hotplug, now) = (hotplug(), Instant::now());
    let text = |actions: Vec<Action<u32>>| match actions.into_iter().next() {
        Some(Action::Failed { text, .. }) => text,
        other => panic!("{other:?}"),
    };
    for name in ["a", "b", "c"] {
        hotplug.attach(disk(name), 0);
    }
    assert_eq!(text(hotplug.attach(disk("d"), 0)), "all 3 slots for disks to attach are taken");
    assert_eq!(text(hotplug.attach(disk("a"), 0)), "a disk \"a\" is attached already");
    assert_eq!(text(hotplug.attach(disk("cold"), 0)), "a disk \"cold\" is attached already");
    assert_eq!(text(hotplug.detach(&serial("x"), 0, now)), "no disk \"x\" is attached");
    assert_eq!(
        text(hotplug.detach(&serial("a"), 0, now)),
        "disk \"a\" is being attached or detached"
    );
    assert_eq!(
        text(hotplug.detach(&serial("cold"), 0, now)),
        "disk \"cold\" is there for the VM's whole life"
    );
    let mut none: Hotplug<u32> =
        Hotplug::new(board(), HotplugSlots::try_from(0).unwrap(), Vec::new(), &[]);
    assert_eq!(
        text(none.attach(disk("a"), 0)),
        "this VM was started without slots for disks to attach"
    );
}

proptest! {
    /// Whatever fails and whenever: every request is answered once, and when all is quiet QEMU holds exactly the disks
    /// that were answered as attached and not as detached.
    #[test]
    fn whatever_fails_each_request_is_answered_once_and_nothing_is_left(
        steps in proptest::collection::vec((0u8..7, 0usize..4, any::<bool>()), 1..80),
    ) {
        let mut hotplug = hotplug();
        let (mut qemu, mut now, mut next) = (Qemu::default(), Instant::now(), 0u32);
        let mut open = BTreeSet::new();
        let names = ["a", "b", "c", "d"];
        let quiet = (0..60).map(|step| ([2, 3][step % 2], 0, false));
        for (step, which, fail) in steps.into_iter().chain(quiet) {
            let actions = match step {
                0 | 1 => {
                    next += 1;
                    open.insert(next);
                    if step == 0 {
                        hotplug.attach(disk(names[which]), next)
                    } else {
                        hotplug.detach(&serial(names[which]), next, now)
                    }
                }
                2 => qemu.answer(fail).map_or(Vec::new(), |(id, result)| hotplug.answered(id, result)),
                3 => qemu.let_go().map_or(Vec::new(), |device| hotplug.deleted(&device)),
                4 => {
                    now += UNPLUG_TIMEOUT;
                    hotplug.late(now)
                }
                5 => hotplug.kept(&name(which)),
                _ => {
                    now += Duration::from_secs(1);
                    hotplug.answered(u64::MAX, Ok(()))
                }
            };
            for action in actions {
                match action {
                    Action::Send { line, fd } => {
                        prop_assert_eq!(fd.is_some(), line.contains("add-fd"));
                        qemu.commands.push(serde_json::from_str(&line).unwrap());
                    }
                    Action::Done(reply) | Action::Failed { reply, .. } => {
                        prop_assert!(open.remove(&reply), "{} was answered twice", reply);
                    }
                }
            }
        }
        // A guest that keeps a disk for ever is given up after a while.
        for action in hotplug.late(now + 2 * UNPLUG_TIMEOUT) {
            if let Action::Failed { reply, .. } = action { open.remove(&reply); }
        }
        prop_assert!(open.is_empty(), "unanswered: {:?}", open);
        let attached = hotplug.slots.iter().filter(|slot| matches!(slot, Slot::Taken { phase: Phase::Attached, .. })).count();
        let taken = hotplug.slots.iter().filter(|slot| matches!(slot, Slot::Taken { .. })).count();
        prop_assert_eq!((attached, attached, attached), (taken, qemu.devices.len(), qemu.nodes.len()));
        prop_assert_eq!(qemu.fds.len(), attached);
    }
}

/// The names of the commands that actions send, and whether somebody was answered.
fn told(actions: &[Action<u32>]) -> Vec<String> {
    let tell = |action: &Action<u32>| match action {
        Action::Send { line, .. } => {
            let line: Value = serde_json::from_str(line).unwrap();
            format!("{} {}", line["execute"].as_str().unwrap(), line["arguments"])
        }
        Action::Done(_) => "done".to_owned(),
        Action::Failed { text, .. } => text.clone(),
    };
    actions.iter().map(tell).collect()
}

#[test]
fn an_interface_comes_on_a_tap_and_one_from_the_start_can_go() {
    let mac: MacAddress = "52:54:00:00:00:01".parse().unwrap();
    let mut hotplug: Hotplug<u32> =
        Hotplug::new(board(), HotplugSlots::try_from(SLOTS).unwrap(), vec![], &[mac]);
    let tap = || tempfile::tempfile().unwrap().into();
    let twice = told(&hotplug.attach_tap(mac, tap(), 0));
    assert_eq!(twice, ["there is an interface 52:54:00:00:00:01 already"]);
    assert_eq!(told(&hotplug.detach_nic(mac, 1, Instant::now())), ["device_del {\"id\":\"hot2\"}"]);
    assert_eq!(told(&hotplug.answered(1, Ok(()))), [""; 0]);
    assert_eq!(told(&hotplug.deleted("hot2")), ["netdev_del {\"id\":\"hot2\"}"]);
    assert_eq!(told(&hotplug.answered(2, Ok(()))), ["done"]);

    assert_eq!(told(&hotplug.attach_tap(mac, tap(), 2)), ["getfd {\"fdname\":\"hot0\"}"]);
    let netdev = "netdev_add {\"fd\":\"hot0\",\"id\":\"hot0\",\"type\":\"tap\"}";
    assert_eq!(told(&hotplug.answered(3, Ok(()))), [netdev]);
    let device = told(&hotplug.answered(4, Ok(())));
    assert!(
        device[0].starts_with("device_add ") && device[0].contains(&mac.to_string()),
        "{device:?}"
    );
    assert_eq!(told(&hotplug.answered(5, Ok(()))), ["done"]);

    let other: MacAddress = "52:54:00:00:00:02".parse().unwrap();
    hotplug.attach_tap(other, tap(), 3);
    hotplug.answered(6, Ok(()));
    let closes = told(&hotplug.answered(7, Err("no".to_owned())));
    assert_eq!(closes, ["closefd {\"fdname\":\"hot1\"}"]);
    let failed = told(&hotplug.answered(8, Ok(())));
    assert_eq!(failed, ["attach interface 52:54:00:00:00:02: no"]);
}

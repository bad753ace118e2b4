//! What the kernel announces of devices: a head and `KEY=value` words, each ended by a NUL.
//!
//! Promises: takes any bytes; of words that come twice the first counts.
//! Never: receives anything.

/// An announcement, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uevent<'a> {
    /// `add`, `change`, `remove`...
    pub action: &'a [u8],
    /// `block`, `net`, `pci`...
    pub subsystem: &'a [u8],
    /// The device's name below /dev; empty when it has none there.
    pub name: &'a [u8],
}

impl<'a> Uevent<'a> {
    /// Takes an announcement apart; `None` when it does not say what happened to what kind of device.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut words = bytes.split(|byte| *byte == 0);
        // `add@/devices/...`: the words say the same again. A device manager's own begin otherwise.
        words.next().filter(|head| head.contains(&b'@'))?;
        let (mut action, mut subsystem, mut name) = (None, None, None);
        for word in words {
            let Some(equals) = word.iter().position(|byte| *byte == b'=') else { continue };
            let (key, value) = (&word[..equals], &word[equals + 1..]);
            let wanted = match key {
                b"ACTION" => &mut action,
                b"SUBSYSTEM" => &mut subsystem,
                b"DEVNAME" => &mut name,
                _ => continue,
            };
            wanted.get_or_insert(value);
        }
        Some(Self { action: action?, subsystem: subsystem?, name: name.unwrap_or_default() })
    }

    /// Whether a block device may be there now that was not before: a new one, or one whose content
    /// or partitions changed.
    pub fn may_bring_a_disk(&self) -> bool {
        self.subsystem == b"block" && self.action != b"remove"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_disk_that_is_added_is_told_from_what_goes_and_from_other_devices() {
        let text = |action: &str, subsystem: &str| {
            format!(
                "{action}@/devices/pci0000:00/virtio1/block/vda\0ACTION={action}\0DEVPATH=/devices/pci0000:00/virtio1/block/vda\0SUBSYSTEM={subsystem}\0MAJOR=254\0DEVNAME=vda\0DEVTYPE=disk\0SEQNUM=700\0"
            )
        };
        let brings = |text: String| Uevent::parse(text.as_bytes()).unwrap().may_bring_a_disk();
        assert!(brings(text("add", "block")) && brings(text("change", "block")));
        assert!(!brings(text("remove", "block")) && !brings(text("add", "net")));
        assert_eq!(Uevent::parse(text("add", "block").as_bytes()).unwrap().name, b"vda");
        assert_eq!(Uevent::parse(b"libudev\0ACTION=add\0SUBSYSTEM=block\0"), None);
    }

    proptest! {
        /// The model: what was put in, in any order, among other words.
        #[test]
        fn words_in_any_order_are_found(
            action in "[a-z]{1,8}", subsystem in "[a-z]{1,8}", name in "[a-z0-9/]{0,8}",
            others in proptest::collection::vec("[B-C]{1,4}(=[a-z=@]{0,5})?", 0..6), turn in 0usize..9,
        ) {
            let mut words = vec![format!("ACTION={action}"), format!("SUBSYSTEM={subsystem}"), format!("DEVNAME={name}")];
            words.extend(others);
            let turn = turn % words.len();
            words.rotate_left(turn);
            let text = format!("{action}@/devices/x\0{}\0", words.join("\0"));
            let parsed = Uevent::parse(text.as_bytes());
            prop_assert_eq!(parsed, Some(Uevent { action: action.as_bytes(), subsystem: subsystem.as_bytes(), name: name.as_bytes() }));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Uevent::parse(&bytes);
            let _ = Uevent::parse(&[b"add@/x\0", &bytes[..]].concat());
        }
    }
}

//! A container's root filesystem as the mounts of its Create, and the shares that it has beside it.
//!
//! ```text
//!   mounts/0 .. n-1    read-only layers, the lowest first
//!   mounts/n           what is written to: an ext4 image or a tmpfs
//!   mounts/n+1 ..      shares, which config.json binds into the container
//!   rootfs             the overlay of layers and top (or a writable image alone)
//! ```
//!
//! Promises: with Delete all of it is unmounted; a share's place does not depend on the container's name.

use vminitd_protocol::pb::containerd::types::Mount;

use crate::images::stack::{Layer, Stack};
use crate::vm::Tag;

/// What a root filesystem is made of.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// The lowest first.
    lower: Vec<Mount>,
    /// What is written to.
    upper: Mount,
    /// Beside it: tag, and whether it is read-only.
    shares: Vec<(Tag, bool)>,
}

impl Rootfs {
    /// A directory of the host, shared read-only under `tag`, below a tmpfs.
    pub fn shared(tag: &str) -> Self {
        Self { lower: vec![mount("virtiofs", tag, &["ro"])], upper: tmpfs(), shares: Vec::new() }
    }

    /// The layers of a stack, whose disks the VM has.
    pub fn images(stack: &Stack) -> Self {
        let layer = |layer: &Layer, options: &[&str]| {
            mount(layer.kind.name(), &source(stack, layer), options)
        };
        Self {
            lower: stack.lower.iter().map(|lower| layer(lower, &["ro"])).collect(),
            upper: stack.upper.as_ref().map_or_else(tmpfs, |upper| layer(upper, &[])),
            shares: Vec::new(),
        }
    }

    /// Adds shares of the VM, in order.
    pub fn with_shares(mut self, shares: impl IntoIterator<Item = (Tag, bool)>) -> Self {
        self.shares.extend(shares);
        self
    }

    /// Where share `index` is, below the bundle: a mount's source in config.json.
    pub fn share_place(&self, index: usize) -> String {
        let before = if self.lower.is_empty() { 0 } else { self.lower.len() + 1 };
        format!("mounts/{}", before + index)
    }

    /// The mounts for Create. `bundle` is the directory that Bundle.Create answered.
    pub fn mounts(&self, bundle: &str) -> Vec<Mount> {
        let shares = self.shares.iter().map(|(tag, read_only)| {
            mount("virtiofs", tag.as_str(), if *read_only { &["ro"] } else { &[] })
        });
        if self.lower.is_empty() {
            return shares.chain([self.upper.clone()]).collect();
        }
        let top = self.lower.len();
        // Overlay takes the uppermost first.
        let layers: Vec<_> = (0..top).rev().map(|n| format!("{bundle}/mounts/{n}")).collect();
        let overlay = mount(
            "overlay",
            "overlay",
            &[
                &format!("lowerdir={}", layers.join(":")),
                &format!("upperdir={bundle}/mounts/{top}/upper"),
                &format!("workdir={bundle}/mounts/{top}/work"),
            ],
        );
        let layers = self.lower.iter().chain([&self.upper]).cloned();
        layers.chain(shares).chain([overlay]).collect()
    }
}

/// The mounts for Create that put the share `tag` below a writable layer in the guest's memory.
pub fn shared_rootfs(tag: &str, bundle: &str) -> Vec<Mount> {
    Rootfs::shared(tag).mounts(bundle)
}

fn tmpfs() -> Mount {
    mount("tmpfs", "tmpfs", &["mode=0755"])
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

/// By the disk's name: its letter in the guest depends on what else there is.
fn source(stack: &Stack, layer: &Layer) -> String {
    let serial = &stack.disks[layer.disk].serial;
    match layer.partition {
        Some(number) => format!("serial:{serial}:{number}"),
        None => format!("serial:{serial}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::kind::Kind;
    use crate::images::stack::{Content, StackDisk};

    fn text(mounts: &[Mount]) -> Vec<String> {
        let line = |mount: &Mount| {
            format!("{} {} {}", mount.r#type, mount.source, mount.options.join(" "))
        };
        mounts.iter().map(line).collect()
    }

    fn layer(kind: Kind, disk: usize, partition: Option<usize>) -> Layer {
        Layer { kind, disk, partition }
    }

    fn disk(serial: &str) -> StackDisk {
        let content = Content::Image("/i".into());
        StackDisk { serial: serial.parse().unwrap(), content, read_only: true }
    }

    #[test]
    fn layers_are_stacked_with_the_last_on_top_and_the_writable_one_above() {
        let stack = Stack {
            disks: vec![disk("layers"), disk("top")],
            lower: vec![layer(Kind::Erofs, 0, Some(1)), layer(Kind::Squashfs, 0, Some(2))],
            upper: Some(layer(Kind::Ext4, 1, None)),
        };
        let share = ("v0".parse().unwrap(), true);
        let rootfs = Rootfs::images(&stack).with_shares([share]);
        assert_eq!(
            text(&rootfs.mounts("/b")),
            [
                "erofs serial:layers:1 ro",
                "squashfs serial:layers:2 ro",
                "ext4 serial:top ",
                "virtiofs v0 ro",
                "overlay overlay lowerdir=/b/mounts/1:/b/mounts/0 upperdir=/b/mounts/2/upper workdir=/b/mounts/2/work",
            ]
        );
        assert_eq!(rootfs.share_place(0), "mounts/3");
    }

    #[test]
    fn a_writable_image_alone_is_the_root() {
        let upper = Some(layer(Kind::Ext4, 0, None));
        let stack = Stack { disks: vec![disk("d")], lower: Vec::new(), upper };
        let rootfs = Rootfs::images(&stack).with_shares([("v0".parse().unwrap(), false)]);
        assert_eq!(text(&rootfs.mounts("/b")), ["virtiofs v0 ", "ext4 serial:d "]);
        assert_eq!(rootfs.share_place(0), "mounts/0");
    }
}

//! Images as disks of a VM and as layers of a root filesystem.
//!
//! ```text
//!   the writable image, or a tmpfs      <- what the container writes
//!   the last read-only image
//!   ...
//!   the first read-only image
//! ```
//!
//! Promises: each image is a disk of its own as long as there are slots; beyond that the read-only ones that nobody
//! named are partitions of one disk. Never: opens an image.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::gpt::MAX_PARTITIONS;
use super::image::Image;
use super::kind::Kind;
use crate::vm::Serial;

/// The serial of the disk with the packed layers.
const PACKED: &str = "layers";

/// How images become disks and layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The disks, in the order in which the VM is to have them.
    pub disks: Vec<StackDisk>,
    /// The read-only layers, the lowest first.
    pub lower: Vec<Layer>,
    /// The writable one above them, or alone.
    pub upper: Option<Layer>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackDisk {
    /// Its name in the guest.
    pub serial: Serial,
    /// What is on it.
    pub content: Content,
    /// The guest cannot write it.
    pub read_only: bool,
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One image.
    Image(PathBuf),
    /// These images, by their place in the list, as partitions from 1 on.
    Packed(Vec<usize>),
}

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its filesystem.
    pub kind: Kind,
    /// Its disk, by the disk's place in the list.
    pub disk: usize,
    /// Its partition, from 1 on; `None`: the whole disk.
    pub partition: Option<usize>,
}

/// Images that make no root. The caller's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StackError {
    /// Only one can be on top.
    #[error(
        "{one:?} and {other:?} are both writable, and only one can be on top: give {other:?},ro"
    )]
    TwoWritable {
        /// The first.
        one: PathBuf,
        /// The second.
        other: PathBuf,
    },
    /// More than fit a VM, even packed.
    #[error(
        "{given} images need more disks than there are slots ({slots}); those without serial= and with ,ro are packed"
    )]
    Slots {
        /// How many were given.
        given: usize,
        /// How many disks there may be.
        slots: usize,
    },
    /// More than fit one disk.
    #[error("{given} layers are more than the {MAX_PARTITIONS} partitions that a disk can have")]
    Partitions {
        /// How many were to be packed.
        given: usize,
    },
}

impl Stack {
    /// Distributes the images over at most `slots` disks.
    pub fn plan(images: &[Image], slots: usize) -> Result<Self, StackError> {
        let mut writable = images.iter().filter(|image| !image.read_only);
        if let (Some(one), Some(other)) = (writable.next(), writable.next()) {
            let (one, other) = (one.path.clone(), other.path.clone());
            return Err(StackError::TwoWritable { one, other });
        }
        let pack = images.len() > slots;
        let is_packed = |image: &Image| pack && image.read_only && image.serial.is_none();
        let packed: Vec<usize> =
            (0..images.len()).filter(|index| is_packed(&images[*index])).collect();
        let own = images.len() - packed.len();
        if own + usize::from(!packed.is_empty()) > slots {
            return Err(StackError::Slots { given: images.len(), slots });
        }
        if packed.len() > MAX_PARTITIONS {
            return Err(StackError::Partitions { given: packed.len() });
        }

        let mut serials = Serials::new(images);
        let mut stack = Self { disks: Vec::new(), lower: Vec::new(), upper: None };
        if !packed.is_empty() {
            let content = Content::Packed(packed.clone());
            let serial = serials.free(PACKED);
            stack.disks.push(StackDisk { serial, content, read_only: true });
        }
        for (index, image) in images.iter().enumerate() {
            let (disk, partition) = match packed.iter().position(|packed| *packed == index) {
                Some(place) => (0, Some(place + 1)),
                None => {
                    let serial = match &image.serial {
                        Some(serial) => serial.clone(),
                        None => serials.free(&format!("image{index}")),
                    };
                    let content = Content::Image(image.path.clone());
                    stack.disks.push(StackDisk { serial, content, read_only: image.read_only });
                    (stack.disks.len() - 1, None)
                }
            };
            let layer = Layer { kind: image.kind, disk, partition };
            match image.read_only {
                true => stack.lower.push(layer),
                false => stack.upper = Some(layer),
            }
        }
        Ok(stack)
    }
}

/// Serials that are taken.
struct Serials(BTreeSet<String>);

impl Serials {
    fn new(images: &[Image]) -> Self {
        let wished = images.iter().filter_map(|image| image.serial.as_ref());
        Self(wished.map(Serial::to_string).collect())
    }

    /// `wish`, or something like it that nobody has.
    fn free(&mut self, wish: &str) -> Serial {
        let mut others = (1..).map(|number| format!("{wish}.{number}"));
        let mut name = wish.to_owned();
        while !self.0.insert(name.clone()) {
            name = others.next().expect("numbers do not end");
        }
        name.parse().expect("letters and digits, and few of them")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(name: usize, read_only: bool, serial: Option<&str>) -> Image {
        Image {
            path: format!("/{name}").into(),
            kind: if read_only { Kind::Erofs } else { Kind::Ext4 },
            read_only,
            serial: serial.map(|serial| serial.parse().unwrap()),
            bytes: 4096,
        }
    }

    #[test]
    fn erofs_and_a_writable_ext4_are_two_disks() {
        let stack =
            Stack::plan(&[image(0, true, None), image(1, false, Some("state"))], 16).unwrap();
        let serials: Vec<_> = stack.disks.iter().map(|disk| disk.serial.as_str()).collect();
        assert_eq!(serials, ["image0", "state"]);
        assert_eq!(stack.lower, [Layer { kind: Kind::Erofs, disk: 0, partition: None }]);
        assert_eq!(stack.upper, Some(Layer { kind: Kind::Ext4, disk: 1, partition: None }));
    }

    #[test]
    fn two_writable_images_are_refused_by_name() {
        let error = Stack::plan(&[image(0, false, None), image(1, false, None)], 16).unwrap_err();
        let text =
            "\"/0\" and \"/1\" are both writable, and only one can be on top: give \"/1\",ro";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_made_up_serial_gives_way_to_one_that_was_wished() {
        let images = [image(0, true, None), image(1, true, Some("image0"))];
        let stack = Stack::plan(&images, 2).unwrap();
        let serials: Vec<_> = stack.disks.iter().map(|disk| disk.serial.as_str()).collect();
        assert_eq!(serials, ["image0.1", "image0"]);
    }

    #[test]
    fn images_at_the_limit_have_disks_and_one_more_is_packed_but_for_those_with_a_name() {
        let mut images: Vec<_> = (0..4).map(|name| image(name, true, None)).collect();
        assert_eq!(Stack::plan(&images, 4).unwrap().disks.len(), 4);
        images.push(image(4, true, Some("mine")));
        let stack = Stack::plan(&images, 4).unwrap();
        assert_eq!(stack.disks.len(), 2);
        assert_eq!(stack.disks[0].content, Content::Packed(vec![0, 1, 2, 3]));
        let named: Vec<_> =
            (0..5).map(|name| image(name, true, Some(&format!("n{name}")))).collect();
        assert!(matches!(Stack::plan(&named, 4), Err(StackError::Slots { given: 5, slots: 4 })));
        let many: Vec<_> = (0..=MAX_PARTITIONS).map(|name| image(name, true, None)).collect();
        assert!(matches!(Stack::plan(&many, 4), Err(StackError::Partitions { given: 256 })));
    }

    proptest! {
        /// The model: every image is found where the stack says it is, in the order of the list.
        #[test]
        fn every_image_is_found_where_the_stack_says(
            named in proptest::collection::vec(any::<bool>(), 1..24), writable in proptest::option::of(0usize..24), slots in 1usize..20,
        ) {
            let images: Vec<_> = named.iter().enumerate().map(|(index, named)| {
                let serial = format!("s{index}");
                image(index, writable != Some(index), named.then_some(&serial))
            }).collect();
            let Ok(stack) = Stack::plan(&images, slots) else {
                let alone = images.iter().filter(|image| !image.read_only || image.serial.is_some()).count();
                prop_assert!(images.len() > slots && alone + 1 > slots.min(images.len()));
                return Ok(());
            };
            prop_assert!(stack.disks.len() <= slots);
            let serials: BTreeSet<_> = stack.disks.iter().map(|disk| disk.serial.as_str()).collect();
            prop_assert_eq!(serials.len(), stack.disks.len());
            let path = |layer: &Layer| {
                let disk = &stack.disks[layer.disk];
                match (&disk.content, layer.partition) {
                    (Content::Image(path), None) => (path.clone(), disk.read_only),
                    (Content::Packed(list), Some(number)) => (images[list[number - 1]].path.clone(), disk.read_only),
                    other => panic!("{other:?}"),
                }
            };
            let lower: Vec<_> = stack.lower.iter().map(path).collect();
            let wanted: Vec<_> = images.iter().filter(|image| image.read_only).map(|image| (image.path.clone(), true)).collect();
            prop_assert_eq!(lower, wanted);
            let upper = images.iter().find(|image| !image.read_only).map(|image| (image.path.clone(), false));
            prop_assert_eq!(stack.upper.as_ref().map(path), upper);
        }
    }
}

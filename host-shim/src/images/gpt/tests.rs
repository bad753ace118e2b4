//! What is written is held against the parser, against a model of where partitions may lie, and against sfdisk(8).

use std::io::Write;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// The disk, its images left out: all zero.
fn disk(layout: &Layout) -> Vec<u8> {
    let mut disk = layout.head();
    let tail = layout.tail();
    disk.resize(layout.bytes() as usize - tail.len(), 0);
    disk.extend(tail);
    disk
}

fn pack(sizes: &[u64]) -> Layout {
    let names: Vec<String> = (0..sizes.len()).map(|index| format!("layer{index}")).collect();
    let images: Vec<_> = names.iter().map(String::as_str).zip(sizes.iter().copied()).collect();
    Layout::pack(&images).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model: partitions in order, each of its image's size in whole sectors, aligned, apart from each other and
    /// from both tables.
    #[test]
    fn what_is_written_is_read_and_every_image_has_its_place(sizes in proptest::collection::vec(1u64..3_000_000, 1..12)) {
        let layout = pack(&sizes);
        let disk = disk(&layout);
        prop_assert_eq!(disk.len() as u64, layout.bytes());
        let sectors = layout.bytes() / SECTOR;
        let table = Table::parse(&disk, sectors).unwrap();
        prop_assert_eq!(&Table::parse_backup(&disk, sectors).unwrap(), &table);
        prop_assert_eq!(&Table::parse_backup(&layout.tail(), sectors).unwrap(), &table);
        prop_assert_eq!(&Table::parse(&layout.head(), sectors).unwrap(), &table);
        prop_assert_eq!(table.entries.len(), sizes.len());
        let mut free = layout.head().len() as u64;
        for ((entry, bytes), offset) in table.entries.iter().zip(&sizes).zip(layout.offsets()) {
            prop_assert_eq!(entry.first * SECTOR, offset);
            prop_assert_eq!(offset % (1 << 20), 0);
            prop_assert!(offset >= free);
            free = (entry.last + 1) * SECTOR;
            prop_assert!(free - offset >= *bytes && free - offset < bytes + SECTOR);
        }
        prop_assert!(free <= layout.bytes() - layout.tail().len() as u64);
    }

    #[test]
    fn a_changed_byte_of_a_table_is_seen(at in 512usize..17_408, bit in 0u8..8) {
        let layout = pack(&[5000, 70_000]);
        let mut head = layout.head();
        prop_assert_eq!(head.len(), 17_408);
        // The rest of the header's sector is reserved, and no part of any checksum.
        prop_assume!(!(512 + HEADER_BYTES..1024).contains(&at));
        head[at] ^= 1 << bit;
        prop_assert!(Table::parse(&head, layout.bytes() / SECTOR).is_err());
    }

    /// Checksums do not keep a hostile disk from being read: here they are right.
    #[test]
    fn hostile_numbers_are_refused_or_harmless(at in 24usize..88, value in any::<u64>(), entry in 0usize..256, field in any::<u64>(), sectors in 0u64..9000) {
        let layout = pack(&[5000, 70_000]);
        let mut head = layout.head();
        head[1024 + entry..][..8].copy_from_slice(&field.to_le_bytes());
        head[512 + at..][..8.min(92 - at)].copy_from_slice(&value.to_le_bytes()[..8.min(92 - at)]);
        let entries = crc::crc32(&head[1024..]);
        head[512 + 88..][..4].copy_from_slice(&entries.to_le_bytes());
        head[512 + 16..][..4].fill(0);
        let header = crc::crc32(&head[512..][..92]);
        head[512 + 16..][..4].copy_from_slice(&header.to_le_bytes());
        if let Ok(table) = Table::parse(&head, sectors) {
            for entry in table.entries {
                prop_assert!(entry.first <= entry.last && entry.last < sectors);
            }
        }
    }

    #[test]
    fn noise_is_no_table(bytes in proptest::collection::vec(any::<u8>(), 0..4096), sectors in any::<u64>()) {
        prop_assert!(Table::parse(&bytes, sectors).is_err());
        prop_assert!(Table::parse_backup(&bytes, sectors).is_err());
    }
}

#[test]
fn sfdisk_sees_what_was_written_and_finds_no_fault() {
    let layout = pack(&[1, 4096, 3 << 20, 1_000_001]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&disk(&layout)).unwrap();
    let sfdisk = |argument: &str| {
        let output = Command::new("sfdisk").arg(argument).arg(file.path()).output();
        let output = output.expect("sfdisk, of util-linux or fdisk");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (good, text) = sfdisk("--verify");
    assert!(good && text.contains("No errors detected"), "{text}");
    let (_, text) = sfdisk("--dump");
    assert!(text.contains("label: gpt"), "{text}");
    for (number, (start, size)) in
        [(2048, 1), (4096, 8), (6144, 6144), (12288, 1954)].iter().enumerate()
    {
        let line =
            text.lines().find(|line| line.contains(&format!("name=\"layer{number}\""))).unwrap();
        let words: String = line.split_whitespace().collect();
        assert!(words.contains(&format!("start={start},size={size},")), "{line}");
    }
}

#[test]
fn a_hundred_partitions_fit_and_so_do_as_many_as_linux_sees() {
    for (count, good) in [(100, true), (MAX_PARTITIONS, true), (MAX_PARTITIONS + 1, false)] {
        let images = vec![("x", 4096); count];
        assert_eq!(Layout::pack(&images).is_ok(), good, "{count}");
    }
    let layout = pack(&[4096; MAX_PARTITIONS]);
    let table = Table::parse(&layout.head(), layout.bytes() / SECTOR).unwrap();
    assert_eq!(table.entries.last().unwrap().number as usize, MAX_PARTITIONS);
    let ids: std::collections::BTreeSet<_> = table.entries.iter().map(|entry| entry.guid).collect();
    assert_eq!(ids.len(), MAX_PARTITIONS);
}

#[test]
fn the_same_images_give_the_same_bytes_and_others_do_not() {
    assert_eq!(disk(&pack(&[7, 8])), disk(&pack(&[7, 8])));
    assert_ne!(pack(&[7, 8]).head(), pack(&[7, 9]).head());
}

#[test]
fn what_cannot_be_placed_is_named() {
    let text = |images: &[(&str, u64)]| Layout::pack(images).unwrap_err().to_string();
    assert_eq!(text(&[]), "a disk without partitions");
    assert_eq!(text(&[("a", 0)]), "partition \"a\" would be empty");
    assert_eq!(text(&[("a", u64::MAX)]), "the disk would have more than 2^63 bytes");
    assert_eq!(text(&[("a", 1 << 61), ("b", 1 << 61)]), "the disk would have more than 2^63 bytes");
    assert!(text(&[(&"n".repeat(37), 1)]).contains("37 UTF-16 units"));
    assert!(Layout::pack(&[(&"n".repeat(36), 1)]).is_ok());
}

#[test]
fn partitions_that_overlap_are_refused() {
    let layout = pack(&[5000, 70_000]);
    let mut head = layout.head();
    let first = head[1024 + 32..1024 + 40].to_vec();
    head[1024 + 128 + 32..][..8].copy_from_slice(&first);
    let entries = crc::crc32(&head[1024..]);
    head[512 + 88..][..4].copy_from_slice(&entries.to_le_bytes());
    head[512 + 16..][..4].fill(0);
    let header = crc::crc32(&head[512..][..92]);
    head[512 + 16..][..4].copy_from_slice(&header.to_le_bytes());
    let error = Table::parse(&head, layout.bytes() / SECTOR).unwrap_err();
    assert_eq!(error, ParseError::Overlap { one: 1, other: 2 });
}

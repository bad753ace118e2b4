//! Partition tables: the input is a disk, of whole sectors or not.
//!
//! Looks for: panics, a partition outside of the disk, two that overlap, numbers out of order, and names that are too
//! long; in the table at the beginning and in the one at the end.
#![no_main]

use host_shim::images::gpt::{MAX_ENTRIES, MAX_NAME_UNITS, SECTOR, Table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut disk = input.to_vec();
    // Random input has no right checksums: where the first byte, which nobody reads, is odd, they are made right, as an
    // attacker would.
    if disk.first().is_some_and(|byte| byte & 1 == 1) {
        seal(&mut disk);
    }
    let sectors = disk.len() as u64 / SECTOR;
    for table in [Table::parse(&disk, sectors), Table::parse_backup(&disk, sectors)] {
        let Ok(table) = table else { continue };
        assert!(table.entries.len() <= MAX_ENTRIES as usize);
        let mut places = Vec::new();
        let mut before = 0;
        for entry in &table.entries {
            assert!(entry.number > before, "{entry:?}");
            before = entry.number;
            assert!(entry.first <= entry.last && entry.last < sectors, "{entry:?} of {sectors}");
            assert!(entry.name.encode_utf16().count() <= MAX_NAME_UNITS, "{entry:?}");
            places.push((entry.first, entry.last));
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 < pair[1].0), "{places:?}");
    }
});

/// Makes the checksums of the table in sector 1 right, if its numbers lead anywhere.
fn seal(disk: &mut [u8]) -> Option<()> {
    const HEADER: usize = SECTOR as usize;
    let number = |disk: &[u8], at: usize, length: usize| {
        let bytes = disk.get(HEADER + at..HEADER + at + length)?;
        Some(bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let size = usize::try_from(number(disk, 12, 4)?).ok()?;
    let from = usize::try_from(number(disk, 72, 8)?.checked_mul(SECTOR)?).ok()?;
    let length = number(disk, 80, 4)?.checked_mul(number(disk, 84, 4)?)?;
    let entries = disk.get(from..from.checked_add(usize::try_from(length).ok()?)?)?;
    let sum = crc32(entries).to_le_bytes();
    disk.get_mut(HEADER + 88..HEADER + 92)?.copy_from_slice(&sum);
    disk.get_mut(HEADER + 16..HEADER + 20)?.fill(0);
    let sum = crc32(disk.get(HEADER..HEADER.checked_add(size)?)?).to_le_bytes();
    disk.get_mut(HEADER + 16..HEADER + 20)?.copy_from_slice(&sum);
    Some(())
}

/// The checksum by its definition, bit by bit; the parser's own is not asked what it is to find.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

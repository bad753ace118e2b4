//! Superblocks of dm-verity.
//!
//! Looks for: panics, sums that overflow, and a line for the kernel that has not the ten words that it should.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vminitd::agent::block::superblock::{BYTES, Superblock};

fuzz_target!(|input: &[u8]| {
    let Some((bytes, rest)) = input.split_first_chunk::<BYTES>() else { return };
    let Ok(superblock) = Superblock::parse(bytes) else { return };
    assert_eq!(superblock.data_bytes() / u64::from(superblock.data_block), superblock.data_blocks);
    let offset = rest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let Some(first) = superblock.first_hash_block(offset) else { return };
    assert!(
        u128::from(first) * u128::from(superblock.hash_block) >= u128::from(offset) + BYTES as u128
    );
    let table =
        superblock.table("254:0", "254:16", first, &[0x5a; 32]).expect("a root hash of 32 bytes");
    assert_eq!(table.split(' ').filter(|word| !word.is_empty()).count(), 10, "{table}");
});

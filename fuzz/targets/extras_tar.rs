//! Tar archives: the input is read as the extras disk is, header by header.
//!
//! Looks for: panics, a NUL in a name or target that is to be extracted, data behind what has none, and mode bits that
//! no file has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vminitd::agent::extras::tar::{BLOCK, Kind, Step, Tar, is_kept, padding};
use vminitd::limits::TAR_META_BYTES;

fuzz_target!(|input: &[u8]| {
    let mut tar = Tar::default();
    let mut rest = input;
    while let Some((block, behind)) = rest.split_first_chunk::<BLOCK>() {
        rest = behind;
        let mut block = *block;
        // Random input has no right checksum: a block whose last byte, which nobody reads, is odd gets one.
        if block[BLOCK - 1] & 1 == 1 {
            seal(&mut block);
        }
        let size = match tar.header(&block) {
            Ok(Step::Zero) => continue,
            Ok(Step::Meta(size)) => {
                let bytes = usize::try_from(size).ok().and_then(|size| rest.get(..size));
                if is_kept(size) {
                    assert!(size <= TAR_META_BYTES);
                    let Some(bytes) = bytes else { return };
                    if tar.meta(Some(bytes)).is_err() {
                        return;
                    }
                } else if tar.meta(None).is_err() {
                    return;
                }
                size
            }
            Ok(Step::Entry(entry)) => {
                assert_eq!(entry.mode & !0o7777, 0, "{entry:?}");
                match &entry.kind {
                    Kind::Refused(_) => {}
                    kind => {
                        assert!(!entry.name.contains(&0), "{entry:?}");
                        assert!(matches!(kind, Kind::File) || entry.size == 0, "{entry:?}");
                    }
                }
                if let Kind::Symlink(target) | Kind::HardLink(target) = &entry.kind {
                    assert!(!target.contains(&0), "{entry:?}");
                }
                entry.size
            }
            Err(_) => return,
        };
        assert!(
            padding(size) < BLOCK as u64 && size.wrapping_add(padding(size)) % BLOCK as u64 == 0
        );
        let next = usize::try_from(size).ok().and_then(|size| rest.get(size..));
        let next = next.and_then(|rest| rest.get(padding(size) as usize..));
        let Some(next) = next else { return };
        rest = next;
    }
});

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

//! How it proves its point: each format is read back by a decoder, the legacy lz4 frame by hand as the kernel does.

use std::io::{Read, Write};

use initramfs::compress::{Compression, LevelError, Method};
use proptest::prelude::*;

/// What a legacy block unpacks to; the kernel's constant.
const LZ4_BLOCK: usize = 8 << 20;

fn pack(compression: Compression, level: Option<u32>, bytes: &[u8], piece: usize) -> Vec<u8> {
    let method = Method::new(compression, level).unwrap();
    let mut writer = method.writer(vec![], bytes.len() as u64).unwrap();
    for piece in bytes.chunks(piece) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.finish().unwrap()
}

fn unpack(compression: Compression, packed: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => packed.to_vec(),
        Compression::Gzip => {
            let mut bytes = vec![];
            flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
            bytes
        }
        Compression::Zstd => zstd::decode_all(packed).unwrap(),
        Compression::Lz4 => unpack_legacy(packed),
    }
}

fn unpack_legacy(packed: &[u8]) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(packed[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(number(0), 0x184C_2102);
    let mut bytes = vec![];
    let mut at = 4;
    while at < packed.len() {
        assert_eq!(bytes.len() % LZ4_BLOCK, 0, "only the last block may be short");
        let length = number(at);
        assert!(
            length > 0 && length <= LZ4_BLOCK + LZ4_BLOCK / 255 + 16,
            "the kernel takes no such block"
        );
        let block = &packed[at + 4..at + 4 + length];
        bytes.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).unwrap());
        at += 4 + length;
    }
    bytes
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn lz4_blocks_end_at_eight_mebibytes() {
    for length in [LZ4_BLOCK - 1, LZ4_BLOCK, LZ4_BLOCK + 1, 2 * LZ4_BLOCK, 2 * LZ4_BLOCK + 5] {
        let bytes = noise(length);
        let packed = pack(Compression::Lz4, None, &bytes, 3 << 20);
        assert!(unpack_legacy(&packed) == bytes, "{length}");
    }
}

#[test]
fn gzip_header_tells_neither_time_nor_name_nor_system() {
    let packed = pack(Compression::Gzip, None, b"x", 1);
    let (magic, deflate, flags, best, unknown) = ([0x1f, 0x8b], 8, 0, 2, 255);
    assert_eq!(packed[..10], [magic[0], magic[1], deflate, flags, 0, 0, 0, 0, best, unknown]);
}

#[test]
fn zstd_window_is_no_larger_than_the_archive_and_never_above_eight_mebibytes() {
    // RFC 8878, 3.1.1.1: frame header descriptor after the magic; bit 5 is "single segment", whose window is the content's size.
    let small = pack(Compression::Zstd, None, &noise(100_000), 4096);
    assert_eq!(small[..4], 0xFD2F_B528_u32.to_le_bytes());
    assert_ne!(small[4] & 0x20, 0);
    let large = pack(Compression::Zstd, Some(22), &vec![7; 9 << 20], 1 << 20);
    assert_eq!(large[4] & 0x20, 0);
    let (exponent, mantissa) = (u64::from(large[5] >> 3), u64::from(large[5] & 7));
    let base = 1u64 << (10 + exponent);
    assert_eq!(base + base / 8 * mantissa, 8 << 20);
}

#[test]
fn levels_are_checked() {
    use Compression::{Gzip, Lz4, None as Plain, Zstd};
    for (compression, level, good) in [
        (Gzip, 0, true),
        (Gzip, 9, true),
        (Gzip, 10, false),
        (Zstd, 0, false),
        (Zstd, 1, true),
        (Zstd, 22, true),
        (Zstd, 23, false),
        (Lz4, 1, false),
        (Plain, 0, false),
    ] {
        assert_eq!(Method::new(compression, Some(level)).is_ok(), good, "{compression} {level}");
    }
    let error: LevelError = Method::new(Zstd, Some(23)).unwrap_err();
    assert_eq!(error.to_string(), "level 23 is out of range; zstd has 1 to 22");
    let error = Method::new(Lz4, Some(1)).unwrap_err();
    assert_eq!(error.to_string(), "lz4 has no levels; leave the level out");
}

#[test]
fn higher_levels_are_smaller() {
    // Words of a small vocabulary in no order.
    let words = noise(60_000).into_iter().map(|byte| format!("word{} ", byte % 50));
    let text: Vec<u8> = words.flat_map(String::into_bytes).collect();
    for (compression, low, high) in [(Compression::Gzip, 1, 9), (Compression::Zstd, 1, 19)] {
        let [low, high] =
            [low, high].map(|level| pack(compression, Some(level), &text, 1 << 16).len());
        assert!(high < low, "{compression}: {low}, {high}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn bytes_come_back_and_pieces_do_not_show(
        noisy in prop::collection::vec(any::<u8>(), 0..3000),
        zeros in 0usize..100_000,
        piece in 1usize..5000,
    ) {
        let bytes = [noisy.as_slice(), &vec![0; zeros], &noisy].concat();
        for compression in Compression::ALL {
            let packed = pack(compression, None, &bytes, piece);
            prop_assert!(unpack(compression, &packed) == bytes, "{compression}");
            prop_assert!(packed == pack(compression, None, &bytes, usize::MAX), "{compression}");
        }
    }
}

//! The reader against archives made here by the format's own table, and against bytes that are none.

use proptest::prelude::*;

use super::*;

/// A header; `magic` is ustar's unless a test says otherwise.
fn header(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    let sum = checksum(block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn entry(step: Step) -> Entry {
    match step {
        Step::Entry(entry) => entry,
        other => panic!("no entry: {other:?}"),
    }
}

#[test]
fn each_kind_is_told_with_name_mode_and_size() {
    let mut tar = Tar::default();
    for (kind, told) in [
        (b'0', Kind::File),
        (0, Kind::File),
        (b'7', Kind::File),
        (b'1', Kind::HardLink(b"/t".to_vec())),
        (b'2', Kind::Symlink(b"/t".to_vec())),
        (b'3', Kind::Refused("a device")),
        (b'4', Kind::Refused("a device")),
        (b'5', Kind::Directory),
        (b'6', Kind::Refused("a named pipe")),
        (b'S', Kind::Refused("a sparse file")),
        (b'Z', Kind::Refused("of an unknown type")),
    ] {
        let size = if matches!(told, Kind::File | Kind::Refused(_)) { 77 } else { 0 };
        let step = tar.header(&header(b"/a/b", kind, 0o4755, 77, b"/t")).unwrap();
        assert_eq!(
            entry(step),
            Entry { name: b"/a/b".to_vec(), kind: told, mode: 0o4755, size },
            "{kind}"
        );
    }
    assert_eq!(tar.header(&[0; BLOCK]), Ok(Step::Zero));
}

#[test]
fn ustar_prefix_is_part_of_the_name_and_gnu_has_none() {
    let mut block = header(b"name", b'0', 0o644, 0, b"");
    block[345..350].copy_from_slice(b"/deep");
    seal(&mut block);
    assert_eq!(entry(Tar::default().header(&block).unwrap()).name, b"/deep/name");
    block[257..265].copy_from_slice(b"ustar  \0");
    seal(&mut block);
    assert_eq!(entry(Tar::default().header(&block).unwrap()).name, b"name");
}

#[test]
fn long_names_and_sizes_come_from_the_headers_before_and_are_for_one_entry() {
    let mut tar = Tar::default();
    let long = vec![b'x'; 300];
    let record = [b"313 path=", &long[..], b"aaa\n"].concat();
    assert_eq!(record.len(), 313);
    assert_eq!(tar.header(&header(b"h", b'x', 0, 313, b"")), Ok(Step::Meta(313)));
    tar.meta(Some(&[&record[..], b"20 size=8589934592\n\x00"[..20].as_ref()].concat()))
        .unwrap_err();
    // The right length this time.
    let mut tar = Tar::default();
    tar.header(&header(b"h", b'x', 0, 0, b"")).unwrap();
    tar.meta(Some(&[&record[..], b"19 size=8589934592\n", b"14 linkpath=t\n"].concat())).unwrap();
    let told = entry(tar.header(&header(b"short", b'0', 0o600, 1, b"")).unwrap());
    assert_eq!((told.name.len(), told.size), (303, 8 << 30));
    let next = entry(tar.header(&header(b"short", b'0', 0o600, 1, b"")).unwrap());
    assert_eq!((next.name, next.size), (b"short".to_vec(), 1));

    for (kind, check) in [(b'L', true), (b'K', false)] {
        tar.header(&header(b"././@LongLink", kind, 0, 301, b"")).unwrap();
        tar.meta(Some(&[&long[..], b"\0"].concat())).unwrap();
        let told = entry(tar.header(&header(b"n", b'2', 0o777, 0, b"t")).unwrap());
        let expected =
            if check { (long.clone(), b"t".to_vec()) } else { (b"n".to_vec(), long.clone()) };
        assert_eq!((told.name, told.kind), (expected.0, Kind::Symlink(expected.1)));
    }
}

#[test]
fn name_that_is_too_long_or_has_a_nul_refuses_its_entry_only() {
    let mut tar = Tar::default();
    tar.header(&header(b"h", b'x', 0, 1 << 30, b"")).unwrap();
    assert!(!is_kept(1 << 30));
    tar.meta(None).unwrap();
    let told = entry(tar.header(&header(b"n", b'0', 0, 5, b"")).unwrap());
    assert_eq!((told.kind, told.size), (Kind::Refused("its name is too long"), 5));
    tar.header(&header(b"h", b'x', 0, 12, b"")).unwrap();
    tar.meta(Some(b"12 path=a\0b\n")).unwrap();
    let told = entry(tar.header(&header(b"n", b'0', 0, 5, b"")).unwrap());
    assert_eq!(told.kind, Kind::Refused("its name has a NUL"));
    assert_eq!(entry(tar.header(&header(b"n", b'0', 0, 5, b"")).unwrap()).kind, Kind::File);
}

#[test]
fn damaged_header_is_an_error() {
    let mut block = header(b"/a", b'0', 0o644, 3, b"");
    block[0] ^= 1;
    assert_eq!(Tar::default().header(&block), Err(TarError::Checksum));
    let mut block = header(b"/a", b'0', 0o644, 3, b"");
    block[124] = b'9';
    seal(&mut block);
    assert_eq!(Tar::default().header(&block), Err(TarError::Number("size")));
}

#[test]
fn sizes_of_gnu_may_be_binary_and_nonsense_is_none() {
    assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(8 << 30));
    assert_eq!(number(&[0xff; 12]), None);
    assert_eq!(number(b"00000000644\0"), Some(0o644));
    assert_eq!(number(b"   644 \0"), Some(0o644));
    assert_eq!(number(b"-1\0"), None);
    assert_eq!((padding(0), padding(1), padding(512), padding(u64::MAX)), (0, 511, 0, 1));
}

proptest! {
    /// The model: what the header was made from.
    #[test]
    fn what_was_written_is_read(
        name in "[a-zA-Z0-9/._-]{1,100}", mode in 0u32..0o10000, size in 0u64..1 << 33, kind in prop::sample::select(b"0512".to_vec()),
    ) {
        let told = entry(Tar::default().header(&header(name.as_bytes(), kind, mode, size, b"t")).unwrap());
        prop_assert_eq!(&told.name, name.as_bytes());
        prop_assert_eq!(told.mode, mode);
        let is_file = kind == b'0' && !name.ends_with('/');
        prop_assert_eq!(told.size, if is_file { size } else { 0 });
        prop_assert_eq!(told.kind == Kind::File, is_file);
    }

    #[test]
    fn any_blocks_are_survived(blocks in prop::collection::vec((any::<[u8; 32]>(), any::<u8>(), any::<bool>(), any::<Vec<u8>>()), 0..20)) {
        let mut tar = Tar::default();
        for (noise, kind, sealed, meta) in blocks {
            let mut block = [0; BLOCK];
            for (at, byte) in noise.iter().enumerate() {
                block[at * 16] = *byte;
            }
            block[156] = kind;
            if sealed {
                seal(&mut block);
            }
            if let Ok(Step::Meta(size)) = tar.header(&block) {
                let _ = tar.meta(is_kept(size).then_some(&meta));
            }
        }
    }

    #[test]
    fn any_pax_records_are_survived(bytes: Vec<u8>, text in "[0-9]{1,3} [a-z]{0,9}=?[a-z]{0,9}\n?") {
        for bytes in [bytes, text.into_bytes()] {
            let mut tar = Tar::default();
            tar.header(&header(b"h", b'x', 0, 9, b"")).unwrap();
            let _ = tar.meta(Some(&bytes));
        }
    }
}

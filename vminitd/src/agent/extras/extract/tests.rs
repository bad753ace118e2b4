//! Whole archives into a directory of the test's: what the system's tar packs, and what no tar would.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const ROOM: u64 = 1 << 30;

fn header(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    let mut entry = header(name.as_bytes(), b'0', 0o640, data.len() as u64, b"");
    entry.extend(data);
    entry.resize(entry.len() + padding(data.len() as u64) as usize, 0);
    entry
}

fn into(root: &Path, archive: &[u8], room: u64) -> Outcome {
    extract(archive, &mut Writer::new(root).unwrap(), room)
}

fn read(root: &TempDir, path: &str) -> Option<String> {
    std::fs::read_to_string(root.path().join(path)).ok()
}

#[test]
fn what_tar_packs_comes_out_with_modes_and_links_and_again_the_same() {
    let from = tempfile::tempdir().unwrap();
    let make = |path: &str, text: &str| std::fs::write(from.path().join(path), text).unwrap();
    let deep = format!("opt/{}/{}", "d".repeat(120), "e".repeat(120));
    std::fs::create_dir_all(from.path().join(&deep)).unwrap();
    make("opt/tool", "#!/bin/sh\n");
    make(&format!("{deep}/deep"), "deep");
    std::fs::hard_link(from.path().join("opt/tool"), from.path().join("opt/zool")).unwrap();
    symlink("tool", from.path().join("opt/link")).unwrap();
    let mode = |path: &str, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(from.path().join(path), mode).unwrap();
    };
    mode("opt/tool", 0o4751);
    mode("opt", 0o2775);
    for format in ["gnu", "pax"] {
        let tar = Command::new("tar")
            .args(["-cf", "-", &format!("--format={format}"), "--transform=s,^,/,S", "-P", "opt"])
            .current_dir(from.path())
            .output()
            .unwrap();
        assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
        let root = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let outcome = into(root.path(), &tar.stdout, ROOM);
            assert_eq!(outcome.cut, None);
            assert_eq!(outcome.refused, 0, "{format}");
            let tool = root.path().join("opt/tool").metadata().unwrap();
            assert_eq!((tool.mode() & 0o7777, tool.nlink()), (0o4751, 2), "{format}");
            assert_eq!(tool.ino(), root.path().join("opt/zool").metadata().unwrap().ino());
            assert_eq!(root.path().join("opt").metadata().unwrap().mode() & 0o7777, 0o2775);
            assert_eq!(read(&root, "opt/link").as_deref(), Some("#!/bin/sh\n"));
            assert_eq!(read(&root, &format!("{deep}/deep")).as_deref(), Some("deep"));
            assert_eq!(std::fs::read_dir(root.path().join("opt")).unwrap().count(), 4);
        }
    }
}

#[test]
fn hostile_entries_are_refused_one_by_one_and_the_rest_is_written() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("theirs"), "theirs").unwrap();
    // What a link that is there already leads to is not the extras' to have.
    symlink(outside.path(), root.path().join("away")).unwrap();
    symlink(outside.path().join("theirs"), root.path().join("alias")).unwrap();
    std::fs::create_dir(root.path().join("full")).unwrap();
    std::fs::write(root.path().join("full/x"), "").unwrap();
    let mut archive = Vec::new();
    for name in
        ["/../up", "relative", "/a/../b", "/init", "/dev/x", "/run/vminitd/x", "/away/x", "/full"]
    {
        archive.extend(file(name, b"bad"));
    }
    archive.extend(header(b"/device", b'4', 0o666, 0, b""));
    archive.extend(header(b"/pipe", b'6', 0o666, 0, b""));
    archive.extend(header(b"/out", b'2', 0o777, 0, b"/proc/1/root"));
    archive.extend(header(b"/hard", b'1', 0o777, 0, b"/away/theirs"));
    archive.extend(header(b"/hard2", b'1', 0o777, 0, b"/alias"));
    archive.extend(header(b"/hard3", b'1', 0o777, 0, b"/init"));
    archive.extend(header(b"/hard4", b'1', 0o777, 0, b"/not/there"));
    let bad = 15;
    // Over a link: the link is replaced, what it leads to stays.
    archive.extend(file("/alias", b"ours"));
    // Through one of the archive's own.
    archive.extend(header(b"/own", b'2', 0o777, 0, b"/etc"));
    archive.extend(file("/own/x", b"bad"));
    archive.extend(file("/etc/good", b"good"));
    archive.extend([0; 2 * BLOCK]);
    let outcome = into(root.path(), &archive, ROOM);
    assert_eq!(outcome, Outcome { written: 3, refused: bad + 1, cut: None });
    assert_eq!(read(&root, "alias").as_deref(), Some("ours"));
    assert_eq!(read(&root, "etc/good").as_deref(), Some("good"));
    assert_eq!(std::fs::read_to_string(outside.path().join("theirs")).unwrap(), "theirs");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    let names = std::fs::read_dir(root.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["alias", "away", "etc", "full", "own"]);
}

#[test]
fn more_than_the_room_is_refused_and_what_is_cut_leaves_no_half_file() {
    let root = tempfile::tempdir().unwrap();
    let archive = [file("/a", &[1; 600]), file("/b", &[2; 600]), file("/c", &[3; 100])].concat();
    let outcome = into(root.path(), &archive, 1000);
    // Without zeros at its end it is cut, too: who knows what is missing.
    assert_eq!(
        (outcome.written, outcome.refused, outcome.cut.as_deref()),
        (2, 1, Some("it ends too early"))
    );
    assert!(root.path().join("a").exists() && !root.path().join("b").exists());

    let root = tempfile::tempdir().unwrap();
    let huge =
        [file("/a", b"a"), header(b"/huge", b'0', 0o600, 1 << 32, b""), file("/z", b"")].concat();
    let outcome = into(root.path(), &huge, 1 << 40);
    assert_eq!(
        (outcome.written, outcome.refused, outcome.cut.as_deref()),
        (1, 1, Some("it ends too early"))
    );
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn no_archive_is_an_error_and_an_empty_one_is_none() {
    let root = tempfile::tempdir().unwrap();
    let cut = |bytes: &[u8]| into(root.path(), bytes, ROOM).cut;
    assert_eq!(cut(&[0; 10 * BLOCK]), None);
    assert_eq!(cut(&[7; 10 * BLOCK]).as_deref(), Some("a header's check sum is wrong"));
    assert_eq!(cut(b"").as_deref(), Some("it ends too early"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The model: the last entry of each name wins, unless a directory is in its way.
    #[test]
    fn last_of_a_name_wins(entries in prop::collection::vec(("[ab](/[ab]){0,2}", 0usize..1500), 0..12), cut_at in any::<prop::sample::Index>()) {
        let root = tempfile::tempdir().unwrap();
        let mut archive = Vec::new();
        let mut model: std::collections::BTreeMap<String, usize> = Default::default();
        for (number, (name, size)) in entries.iter().enumerate() {
            archive.extend(file(&format!("/{name}"), &vec![number as u8; *size]));
            let below = model.keys().any(|other| other.starts_with(&format!("{name}/")));
            let above = model.keys().any(|other| name.starts_with(&format!("{other}/")));
            if !below && !above {
                model.insert(name.clone(), number);
            }
        }
        archive.extend([0; 2 * BLOCK]);
        prop_assert_eq!(into(root.path(), &archive, ROOM).cut, None);
        for (name, number) in &model {
            let (_, size) = entries[*number];
            prop_assert!(std::fs::read(root.path().join(name)).unwrap() == vec![*number as u8; size]);
        }
        // Any beginning of it leaves whole files only.
        let cut = tempfile::tempdir().unwrap();
        let at = cut_at.index(archive.len());
        into(cut.path(), &archive[..at], ROOM);
        for (name, _) in &entries {
            if let Ok(data) = std::fs::read(cut.path().join(name)) {
                prop_assert!(entries.iter().enumerate().any(|(n, (other, size))| other == name && data == vec![n as u8; *size]));
            }
        }
    }
}

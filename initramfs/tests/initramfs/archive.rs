//! How it proves its point: trees of real files are packed, and read back by a strict reader.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, fs::symlink, net::UnixListener},
    path::Path,
    time::{Duration, SystemTime},
};

use initramfs::{Tree, TreeError, newc};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::cpio::{self, Entry};

fn packed(tree: &Tree) -> Vec<u8> {
    let mut archive = vec![];
    newc::write(tree, &mut archive).unwrap();
    assert_eq!(archive.len() as u64, newc::length(tree));
    archive
}

fn entries(tree: &Tree) -> Vec<Entry> {
    let entries = cpio::read(&packed(tree));
    assert!(entries.windows(2).all(|pair| pair[0].name < pair[1].name), "not sorted");
    assert!(entries.iter().zip(1..).all(|(entry, inode)| entry.inode == inode));
    entries
}

/// Name, mode, content of one entry.
fn find<'a>(entries: &'a [Entry], name: &str) -> &'a Entry {
    let found = entries.iter().find(|entry| entry.name == name.as_bytes());
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn file(dir: &Path, name: &str, mode: u32, content: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "program", 0o600, b"not executable here");
    dir
}

fn default_tree(dir: &TempDir) -> Tree {
    Tree::with_init(&dir.path().join("program")).unwrap()
}

#[test]
fn default_image_holds_the_program_directories_and_two_nodes() {
    let entries = entries(&default_tree(&dir()));
    let listed: Vec<_> = entries
        .iter()
        .map(|entry| {
            (std::str::from_utf8(&entry.name).unwrap(), entry.mode, entry.links, entry.device)
        })
        .collect();
    let none = (0, 0);
    assert_eq!(
        listed,
        [
            ("dev", 0o040_755, 2, none),
            ("dev/console", 0o020_600, 1, (5, 1)),
            ("dev/null", 0o020_666, 1, (1, 3)),
            ("etc", 0o040_755, 2, none),
            ("init", 0o100_755, 1, none),
            ("proc", 0o040_755, 2, none),
            ("root", 0o040_700, 2, none),
            ("run", 0o040_755, 2, none),
            ("sys", 0o040_755, 2, none),
            ("tmp", 0o041_777, 2, none),
            ("var", 0o040_755, 2, none),
        ]
    );
    assert_eq!(find(&entries, "init").content, b"not executable here");
}

#[test]
fn added_directory_keeps_modes_and_links() {
    let dir = dir();
    let root = dir.path().join("root");
    file(&root, "bin/sh", 0o4755, b"shell");
    file(&root, "bin/empty", 0o400, b"");
    fs::set_permissions(root.join("bin"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("../../nowhere", root.join("bin/link")).unwrap();
    let mut tree = default_tree(&dir);
    tree.add(&root, Path::new("/srv/a//./rootfs/")).unwrap();

    let entries = entries(&tree);
    assert_eq!(find(&entries, "srv").mode, 0o040_755);
    assert_eq!(find(&entries, "srv/a").mode, 0o040_755);
    assert_eq!(find(&entries, "srv/a/rootfs/bin").mode, 0o040_711);
    let shell = find(&entries, "srv/a/rootfs/bin/sh");
    assert_eq!((shell.mode, shell.content.as_slice()), (0o104_755, b"shell".as_slice()));
    let empty = find(&entries, "srv/a/rootfs/bin/empty");
    assert_eq!((empty.mode, empty.content.len()), (0o100_400, 0));
    let link = find(&entries, "srv/a/rootfs/bin/link");
    assert_eq!((link.mode, link.content.as_slice()), (0o120_777, b"../../nowhere".as_slice()));
}

#[test]
fn directory_is_added_to_one_that_the_image_has() {
    let dir = dir();
    file(dir.path(), "etc/motd", 0o644, b"hello");
    fs::set_permissions(dir.path().join("etc"), fs::Permissions::from_mode(0o750)).unwrap();
    let mut tree = default_tree(&dir);
    tree.add(&dir.path().join("etc"), Path::new("/etc")).unwrap();
    let entries = entries(&tree);
    assert_eq!(find(&entries, "etc").mode, 0o040_750, "the one that was added by name counts");
    assert_eq!(find(&entries, "etc/motd").content, b"hello");
}

#[test]
fn directory_is_added_to_the_root() {
    let dir = dir();
    file(dir.path(), "more/usr/share/x", 0o644, b"x");
    let mut tree = default_tree(&dir);
    tree.add(&dir.path().join("more"), Path::new("/")).unwrap();
    assert_eq!(find(&entries(&tree), "usr/share/x").content, b"x");
    let error = tree.add(&dir.path().join("program"), Path::new("/")).unwrap_err();
    assert_eq!(error.to_string(), "destination \"/\" takes a directory only; name the file too");
}

#[test]
fn each_refusal_names_the_path() {
    let dir = dir();
    let program = dir.path().join("program");
    file(dir.path(), "tree/init", 0o644, b"another");
    file(dir.path(), "tree2/sub/x", 0o644, b"");
    let _socket = UnixListener::bind(dir.path().join("tree2/sub/socket")).unwrap();
    symlink("/etc", dir.path().join("link")).unwrap();
    let mut tree = default_tree(&dir);
    tree.add(&dir.path().join("link"), Path::new("/conf")).unwrap();

    let here = dir.path().display().to_string();
    let too_long = format!("/{}", "n".repeat(4096));
    for (source, dest, text) in [
        ("program", "init2", "destination \"init2\" is not absolute; give it from / on".into()),
        ("program", "/a/../b", "destination \"/a/../b\" has \"..\" in it".into()),
        ("program", "/init", "/init is in the image already".into()),
        ("tree", "/", "/init is in the image already".into()),
        ("program", "/dev/console", "/dev/console is in the image already".into()),
        ("program", "/etc", "/etc is in the image already".into()),
        ("program", "/init/x", "/init/x cannot be below /init, which is not a directory".into()),
        (
            "program",
            "/conf/x/y",
            "/conf/x/y cannot be below /conf, which is not a directory".into(),
        ),
        ("tree", "/conf", "/conf is in the image already".into()),
        (
            "program",
            "/TRAILER!!!",
            "destination \"TRAILER!!!\" is the name that ends an archive".into(),
        ),
        (
            "program",
            &too_long,
            format!(
                "destination \"{}\" is longer than the 4095 bytes that the kernel takes",
                &too_long[1..]
            ),
        ),
        ("nothing", "/x", format!("cannot read {here}/nothing")),
        (
            "tree2",
            "/y",
            format!(
                "{here}/tree2/sub/socket is a socket; only files, directories and links can be added"
            ),
        ),
        (
            "/dev/null",
            "/z",
            "/dev/null is a character device; only files, directories and links can be added"
                .into(),
        ),
    ] {
        let error = tree.add(&dir.path().join(source), Path::new(dest)).unwrap_err();
        assert_eq!(error.to_string(), text, "{source} to {dest}");
    }
    tree.add(&program, Path::new(&too_long[..4096])).unwrap();
    assert_eq!(entries(&tree).iter().map(|entry| entry.name.len()).max(), Some(4095));
}

#[test]
fn directory_added_twice_must_have_one_mode() {
    let dir = dir();
    for (name, mode) in [("a", 0o755), ("b", 0o755), ("c", 0o700)] {
        file(dir.path(), &format!("{name}/in-{name}"), 0o644, b"");
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut tree = default_tree(&dir);
    tree.add(&dir.path().join("a"), Path::new("/x")).unwrap();
    tree.add(&dir.path().join("b"), Path::new("/x")).unwrap();
    let third = tree.add(&dir.path().join("c"), Path::new("/x"));
    assert!(matches!(third, Err(TreeError::Duplicate { .. })));
    let entries = entries(&tree);
    assert!(
        find(&entries, "x/in-a").content.is_empty() && find(&entries, "x/in-b").content.is_empty()
    );
}

#[test]
fn program_that_is_no_file_is_refused() {
    let error = Tree::with_init(Path::new("/dev/null")).unwrap_err();
    assert_eq!(error.to_string(), "/dev/null is a character device; /init must be a program");
    let error = Tree::with_init(Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nowhere/at/all");
    assert!(Tree::with_init(Path::new("/tmp")).is_err());
}

#[test]
fn program_may_be_a_link() {
    let dir = dir();
    symlink("program", dir.path().join("link")).unwrap();
    let tree = Tree::with_init(&dir.path().join("link")).unwrap();
    assert_eq!(find(&entries(&tree), "init").mode, 0o100_755);
}

#[test]
fn file_that_changes_its_length_meanwhile_is_an_error() {
    let dir = dir();
    for content in [b"shorter".as_slice(), b"now it is longer than before", b""] {
        file(dir.path(), "program", 0o755, b"of a certain length");
        let tree = default_tree(&dir);
        file(dir.path(), "program", 0o755, content);
        let error = newc::write(&tree, &mut vec![]).unwrap_err();
        let path = dir.path().join("program").canonicalize().unwrap();
        assert_eq!(
            error.to_string(),
            format!("{} was 19 bytes long and no longer is", path.display())
        );
    }
}

#[test]
fn file_of_four_gigabytes_is_refused_and_the_one_below_is_not() {
    let dir = dir();
    let big = fs::File::create(dir.path().join("big")).unwrap();
    big.set_len(1 << 32).unwrap();
    let mut tree = default_tree(&dir);
    tree.add(&dir.path().join("big"), Path::new("/big")).unwrap();
    let error = newc::write(&tree, &mut std::io::sink()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/big is 4294967296 bytes long, more than the 4294967295 that an initramfs can hold"
    );
}

/// Other machines have other times, other directory orders and other inode numbers.
#[test]
fn same_files_give_the_same_bytes() {
    let make = |names: &[&str], age: u64| {
        let dir = dir();
        for name in names {
            file(dir.path(), &format!("add/{name}"), 0o644, name.as_bytes());
            let touched = fs::File::open(dir.path().join("add").join(name)).unwrap();
            touched.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let mut tree = default_tree(&dir);
        tree.add(&dir.path().join("add"), Path::new("/opt")).unwrap();
        packed(&tree)
    };
    assert_eq!(make(&["a", "b/c", "z", "b-c"], 0), make(&["z", "b-c", "b/c", "a"], 1_000_000));
}

#[test]
fn order_of_additions_does_not_show() {
    let dir = dir();
    file(dir.path(), "deep/x", 0o644, b"x");
    fs::set_permissions(dir.path().join("deep"), fs::Permissions::from_mode(0o711)).unwrap();
    let additions = [("deep", "/a/b"), ("program", "/a/b/c"), ("program", "/a/y")];
    let pack = |order: [usize; 3]| {
        let mut tree = default_tree(&dir);
        for index in order {
            let (source, dest) = additions[index];
            tree.add(&dir.path().join(source), Path::new(dest)).unwrap();
        }
        packed(&tree)
    };
    assert_eq!(pack([0, 1, 2]), pack([2, 1, 0]));
    assert_eq!(pack([0, 1, 2]), pack([1, 2, 0]));
}

/// A path of one or two parts: any bytes but the two that no file system takes.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not in names", |byte| !matches!(byte, 0 | b'/'));
    let part = prop::collection::vec(byte, 1..40)
        .prop_filter("not a name", |name| name != b"." && name != b"..");
    prop::collection::vec(part, 1..3).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_names_and_sizes_come_back(
        files in prop::collection::btree_map(name(), prop::collection::vec(any::<u8>(), 0..70), 0..20)
    ) {
        let dir = dir();
        let root = dir.path().join("files");
        fs::create_dir(&root).unwrap();
        let mut expected = BTreeMap::new();
        for (name, content) in files {
            let path = root.join(OsStr::from_bytes(&name));
            // A name may be another's directory: the model has what the file system took.
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && fs::write(&path, &content).is_ok() {
                expected.insert([b"d/".as_slice(), &name].concat(), content);
            }
        }
        let mut tree = Tree::default();
        tree.add(&root, Path::new("/d")).unwrap();
        let entries = entries(&tree).into_iter().filter(|entry| entry.mode & 0o170_000 == 0o100_000);
        let found: BTreeMap<_, _> = entries.map(|entry| (entry.name, entry.content)).collect();
        prop_assert_eq!(found, expected);
    }
}

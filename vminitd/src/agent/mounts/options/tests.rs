//! Options one by one, and any mix of them beside a model.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn parsed(list: &[&str]) -> Result<Options, OptionError> {
    let list: Vec<String> = list.iter().map(|option| (*option).to_owned()).collect();
    parse(&list)
}

fn text(list: &[&str]) -> String {
    parsed(list).unwrap_err().to_string()
}

fn data(options: &Options) -> Vec<(&str, Option<&str>)> {
    options.data.iter().map(|(key, value)| (&**key, value.as_deref())).collect()
}

#[test]
fn flags_and_data_are_told_apart() {
    let options = parsed(&["ro", "nosuid,nodev", "noatime", "size=64m", "index=off", "userxattr"]);
    let options = options.unwrap();
    assert_eq!(options.attributes, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOATIME);
    assert_eq!(options.superblock, ["ro"]);
    assert_eq!(
        data(&options),
        [("size", Some("64m")), ("index", Some("off")), ("userxattr", None)]
    );
}

#[test]
fn later_option_wins() {
    let options = parsed(&["ro", "noexec", "noatime", "rw", "exec", "strictatime"]).unwrap();
    assert_eq!((options.attributes, &*options.superblock), (ATTR_STRICTATIME, &[][..]));
    assert_eq!(parsed(&["defaults", "sync", "async"]).unwrap(), Options::default());
    let options = parsed(&["size=1m", "mode=700", "size=2m", "shared", "rslave"]).unwrap();
    assert_eq!(data(&options), [("mode", Some("700")), ("size", Some("2m"))]);
    assert_eq!(options.propagation, libc::MS_SLAVE | libc::MS_REC);
    // Each adds a layer.
    let options = parsed(&["lowerdir+=/a", "lowerdir+=/b"]).unwrap();
    assert_eq!(data(&options), [("lowerdir+", Some("/a")), ("lowerdir+", Some("/b"))]);
}

#[test]
fn access_times_are_kept_as_the_last_word_says() {
    for (list, attributes) in [
        (&["noatime"][..], ATTR_NOATIME),
        (&["noatime", "atime"], ATTR_RELATIME),
        (&["noatime", "nostrictatime"], ATTR_NOATIME),
        (&["strictatime", "atime"], ATTR_STRICTATIME),
        (&["strictatime", "nostrictatime"], ATTR_RELATIME),
        (&["noatime", "relatime"], ATTR_RELATIME),
        (&["relatime", "norelatime"], ATTR_RELATIME),
        (&["noatime", "nodiratime"], ATTR_NOATIME | ATTR_NODIRATIME),
    ] {
        let options = parsed(list).unwrap();
        assert!(options.atime && options.attributes == attributes, "{list:?}: {options:?}");
    }
    assert!(!parsed(&["nodiratime"]).unwrap().atime);
}

#[test]
fn binds_and_propagation_are_understood() {
    let options = parsed(&["rbind", "ro", "rslave"]).unwrap();
    assert!(options.bind && options.recursive);
    assert_eq!(options.propagation, libc::MS_SLAVE | libc::MS_REC);
    assert!(!parsed(&["rbind", "bind"]).unwrap().recursive);
    let options = parsed(&["bind", "ro=recursive,nosuid=recursive,rw"]).unwrap();
    assert_eq!(
        (options.attributes, options.below),
        (ATTR_NOSUID, ATTR_RDONLY | ATTR_NOSUID),
        "the mount itself may be written to"
    );
}

#[test]
fn read_only_goes_for_the_mount_the_filesystem_or_both() {
    for (option, attributes, superblock) in [
        ("ro", ATTR_RDONLY, &["ro"][..]),
        ("ro=vfs", ATTR_RDONLY, &[]),
        ("ro=fs", 0, &["ro"]),
        ("ro,rw=vfs", 0, &["ro"]),
        ("ro,rw=fs", ATTR_RDONLY, &[]),
    ] {
        let options = parsed(&[option]).unwrap();
        assert_eq!(
            (options.attributes, &*options.superblock),
            (attributes, superblock),
            "{option}"
        );
    }
    assert!(text(&["ro=1"]).contains("\"ro=1\": there are recursive, vfs and fs"));
    assert!(text(&["nosuid=vfs"]).contains("there is recursive"));
}

#[test]
fn commas_in_quotes_and_behind_a_backslash_are_part_of_a_value() {
    let options = parsed(&[r#"context="system_u:object_r:c1,c2",ro"#]).unwrap();
    assert_eq!(data(&options), [("context", Some("system_u:object_r:c1,c2"))]);
    assert_eq!(options.attributes, ATTR_RDONLY);
    let options = parsed(&[r"lowerdir=/a\,b:/c,,index=off,"]).unwrap();
    assert_eq!(data(&options), [("lowerdir", Some(r"/a\,b:/c")), ("index", Some("off"))]);
    // Not around the whole value: they stay.
    assert_eq!(data(&parsed(&[r#"a=x"y,z""#]).unwrap()), [("a", Some(r#"x"y,z""#))]);
    assert!(text(&[r#"a="b,ro"#]).contains("a quotation mark is not closed"));
    assert!(text(&["ro,=x"]).contains("\"=x\": has no name"));
}

#[test]
fn what_speaks_to_others_changes_nothing_and_users_get_what_mount_gives_them() {
    let list = [
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "nouser",
        "nogroup",
        "silent",
        "comment=a b",
        "x-systemd.automount",
        "x-foo=1",
        "X-bar",
        "X-fstrim.notrim",
    ];
    assert_eq!(parsed(&list).unwrap(), Options::default());
    let three = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    assert_eq!(parsed(&["user"]).unwrap().attributes, three);
    assert_eq!(parsed(&["users", "exec"]).unwrap().attributes, ATTR_NOSUID | ATTR_NODEV);
}

#[test]
fn images_maps_and_verity_are_fields_of_their_own() {
    let options = parsed(&["loop,offset=1M,sizelimit=4096,direct-io"]).unwrap();
    let image = Image { offset: 1 << 20, size_limit: 4096, direct: true };
    assert_eq!((options.image, &*options.data), (Some(image), &[][..]));
    assert!(text(&["loop=/dev/loop3"]).contains("the guest's choice"));
    assert!(text(&["offset=4"]).contains("only with loop"));
    for wrong in ["", "x", "1T", "-1", "1 K", "99999999999999999999", "18446744073709551615G"] {
        assert!(text(&["loop", &format!("offset={wrong}")]).contains("no size"), "{wrong:?}");
    }
    for (size, bytes) in [("0", 0), ("2K", 2048), ("2KiB", 2048), ("1g", 1 << 30)] {
        let options = parsed(&["loop", &format!("offset={size}")]).unwrap();
        assert_eq!(options.image.unwrap().offset, bytes, "{size}");
    }

    let options = parsed(&["uidmap=0:1000:10,10:2000:5", "gidmap=0:1:2"]).unwrap();
    let map = options.id_map.unwrap();
    assert_eq!(IdMap::lines(&map.users), "0 1000 10\n10 2000 5\n");
    assert_eq!(map.groups, [Range { inside: 0, outside: 1, count: 2 }]);
    assert!(text(&["uidmap=0:1:2"]).contains("only with gidmap"));
    for wrong in ["", "0:1", "0:1:2:3", "0:1:x", "0:1:-2", "+0:1:2", "0:1:2,", "4294967296:0:1"] {
        let text = text(&[&format!("uidmap={wrong}"), "gidmap=0:1:2"]);
        assert!(text.contains("is not INSIDE:OUTSIDE:COUNT"), "{wrong:?}: {text}");
    }
    for wrong in ["0:1:0", "4294967295:0:1", "0:4294967290:6"] {
        assert!(text(&[&format!("uidmap={wrong}"), "gidmap=0:1:2"]).contains("empty or ends"));
    }
    let many = vec!["0:1:2"; crate::limits::ID_RANGES + 1].join(",");
    assert!(text(&[&format!("uidmap={many}"), "gidmap=0:1:2"]).contains("more ranges"));

    let hash = "0aFF".repeat(8);
    let root = format!("X-vminitd.verity.roothash={hash}");
    let verity = parsed(&[&root, "X-vminitd.verity.hashoffset=8192"]).unwrap().verity.unwrap();
    assert_eq!((verity.tree, verity.root_hash.len()), (Tree::Offset(8192), 16));
    assert_eq!(verity.root_hash[..2], [0x0a, 0xff]);
    let verity = parsed(&[&root, "X-vminitd.verity.hashdev=serial:h"]).unwrap().verity.unwrap();
    assert_eq!(verity.tree, Tree::Device(Source::try_from("serial:h").unwrap()));
    assert!(text(&[&root]).contains("only with .hashoffset or .hashdev"));
    assert!(text(&["X-vminitd.verity.hashoffset=1"]).contains("only with .roothash"));
    for wrong in ["", "0", "0g", "é0", &"00".repeat(65)] {
        let root = format!("X-vminitd.verity.roothash={wrong}");
        assert!(text(&[&root]).contains("no hash in hexadecimal"), "{wrong:?}");
    }
}

#[test]
fn what_is_not_served_is_named() {
    for option in [
        "remount",
        "move",
        "helper=x",
        "uhelper=y",
        "X-containerd.mkdir.path=/x",
        "X-containerd.foo",
        "X-vminitd.foo=1",
        "X-vminitd.verity.salt=00",
        "X-mount.mkdir",
        "X-mount.idmap=u:0:1:2",
        "verity.roothash=00",
        "encryption=aes",
    ] {
        let unsupported = Err(OptionError::Unsupported(option.to_owned()));
        assert_eq!(parsed(&["ro", option]), unsupported);
    }
}

/// A word, and what it does to a model that knows nothing of the parser's tables.
type Effect = fn(&mut Model);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    flags: std::collections::BTreeSet<&'static str>,
    atime: &'static str,
    propagation: &'static str,
    bind: &'static str,
    data: Vec<(String, String)>,
}

const WORDS: &[(&str, Effect)] = &[
    ("ro", |m| {
        m.flags.insert("ro");
    }),
    ("rw", |m| {
        m.flags.remove("ro");
    }),
    ("nosuid", |m| {
        m.flags.insert("nosuid");
    }),
    ("suid", |m| {
        m.flags.remove("nosuid");
    }),
    ("noexec", |m| {
        m.flags.insert("noexec");
    }),
    ("exec", |m| {
        m.flags.remove("noexec");
    }),
    ("nodev", |m| {
        m.flags.insert("nodev");
    }),
    ("dev", |m| {
        m.flags.remove("nodev");
    }),
    ("sync", |m| {
        m.flags.insert("sync");
    }),
    ("async", |m| {
        m.flags.remove("sync");
    }),
    ("lazytime", |m| {
        m.flags.insert("lazytime");
    }),
    ("nolazytime", |m| {
        m.flags.remove("lazytime");
    }),
    ("noatime", |m| m.atime = "noatime"),
    ("strictatime", |m| m.atime = "strictatime"),
    ("relatime", |m| m.atime = "relatime"),
    ("rbind", |m| m.bind = "rbind"),
    ("bind", |m| m.bind = "bind"),
    ("private", |m| m.propagation = "private"),
    ("rshared", |m| m.propagation = "rshared"),
    ("defaults", |_| {}),
    ("nofail", |_| {}),
    ("x-initrd.mount", |_| {}),
];

/// What is recognised of the result, in the model's words.
fn seen(options: &Options) -> Model {
    let mut flags = std::collections::BTreeSet::new();
    let bits = [
        ("ro", ATTR_RDONLY),
        ("nosuid", ATTR_NOSUID),
        ("noexec", ATTR_NOEXEC),
        ("nodev", ATTR_NODEV),
    ];
    flags.extend(
        bits.iter().filter(|(_, bit)| options.attributes & bit != 0).map(|(name, _)| *name),
    );
    assert_eq!(flags.contains("ro"), options.superblock.contains(&"ro"));
    flags.extend(options.superblock.iter().copied());
    let atime = match (options.atime, options.attributes & ATTR_ATIME_FIELD) {
        (false, 0) => "",
        (true, ATTR_RELATIME) => "relatime",
        (true, ATTR_NOATIME) => "noatime",
        (true, ATTR_STRICTATIME) => "strictatime",
        other => panic!("{other:?}"),
    };
    let propagation = match options.propagation {
        0 => "",
        libc::MS_PRIVATE => "private",
        it if it == libc::MS_SHARED | libc::MS_REC => "rshared",
        other => panic!("{other}"),
    };
    let bind = match (options.bind, options.recursive) {
        (false, false) => "",
        (true, false) => "bind",
        (true, true) => "rbind",
        other => panic!("{other:?}"),
    };
    let data = options.data.iter().map(|(key, value)| (key.clone(), value.clone().unwrap()));
    Model { flags, atime, propagation, bind, data: data.collect() }
}

/// A value as one writes it in a list, with quotes where it needs them.
fn quoted(value: &str) -> String {
    if value.contains(',') { format!("\"{value}\"") } else { value.to_owned() }
}

#[derive(Clone, Debug)]
enum Word {
    Known(usize),
    Data(&'static str, String),
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        3 => (0..WORDS.len()).prop_map(Word::Known),
        1 => (select(vec!["size", "lowerdir", "index", "a.b"]), "[a-z/:=, ]{0,8}")
            .prop_map(|(key, value)| Word::Data(key, value)),
    ]
}

proptest! {
    /// However a list is cut into items, it is the model's.
    #[test]
    fn any_list_is_what_the_model_makes_of_it(
        list in proptest::collection::vec((word(), any::<bool>()), 0..12),
    ) {
        let mut model = Model::default();
        let mut items: Vec<String> = Vec::new();
        for (word, joined) in &list {
            let text = match word {
                Word::Known(index) => {
                    WORDS[*index].1(&mut model);
                    WORDS[*index].0.to_owned()
                }
                Word::Data(key, value) => {
                    model.data.retain(|(known, _)| known != key);
                    model.data.push(((*key).to_owned(), value.clone()));
                    format!("{key}={}", quoted(value))
                }
            };
            match items.last_mut() {
                Some(item) if *joined => *item = format!("{item},{text}"),
                _ => items.push(text),
            }
        }
        let options = parse(&items);
        prop_assert!(options.is_ok(), "{items:?}: {options:?}");
        prop_assert_eq!(seen(&options.unwrap()), model, "{:?}", items);
    }

    /// Whatever comes: no panic, and what was split and is joined again is the same.
    #[test]
    fn any_text_is_options_or_an_error(items in proptest::collection::vec("[a-z=,\"\\\\:0-9.X+-]{0,24}", 0..4)) {
        let _ = parse(&items);
        for item in &items {
            if let Ok(all) = words(item) {
                prop_assert_eq!(words(&all.join(",")), Ok(all), "{}", item);
            }
        }
    }
}

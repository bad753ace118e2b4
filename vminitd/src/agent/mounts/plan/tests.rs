//! Lists of mounts one by one, and any mix of kinds and templates beside a model.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const BUNDLE: &str = "/run/bundles/c1";

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn planned(list: &[Mount]) -> Result<Vec<Planned>, PlanError> {
    plan(Path::new(BUNDLE), list)
}

fn text(list: &[Mount]) -> String {
    planned(list).unwrap_err().to_string()
}

fn device(name: &str) -> Source {
    Source::Device(Device::try_from(name).unwrap())
}

fn value<'a>(planned: &'a Planned, key: &str) -> &'a str {
    let (_, value) = planned.options.data.iter().find(|(known, _)| known == key).unwrap();
    value.as_deref().unwrap()
}

#[test]
fn last_mount_is_the_rootfs_and_the_others_are_numbered() {
    let mounts = [
        mount("erofs", "/dev/vda", &["ro"]),
        mount("tmpfs", "", &[]),
        mount("overlay", "", &["lowerdir=/a"]),
    ];
    let planned = planned(&mounts).unwrap();
    let places: Vec<_> = planned.iter().map(|mount| mount.place.to_str().unwrap()).collect();
    assert_eq!(places, ["mounts/0", "mounts/1", "rootfs"]);
    let source = device("/dev/vda");
    assert_eq!(planned[0].what, What::Filesystem { kind: "erofs", source });
    assert_eq!(plan(Path::new(BUNDLE), &[]), Ok(vec![]));
}

#[test]
fn bind_is_one_by_type_and_by_option() {
    for (kind, options, recursive) in [
        ("bind", &[][..], false),
        ("none", &["bind"], false),
        ("", &["rbind"], true),
        ("rbind", &[], true),
        ("format/bind", &["rbind"], true),
    ] {
        let planned = planned(&[mount(kind, "/x", options)]).unwrap();
        assert_eq!(planned[0].what, What::Bind { source: "/x".into() });
        assert_eq!(planned[0].options.recursive, recursive);
    }
}

#[test]
fn sources_are_devices_images_words_or_trees() {
    for (kind, source, wanted) in [
        ("erofs", "/dev/vdb1", device("/dev/vdb1")),
        ("ext4", "serial:data:7", device("serial:data:7")),
        ("squashfs", "/run/share/layer.sqfs", Source::Path("/run/share/layer.sqfs".into())),
        ("erofs", "/run/share/layer.erofs", Source::Path("/run/share/layer.erofs".into())),
        ("virtiofs", "tag", Source::Word("tag".into())),
        ("tmpfs", "", Source::Word("tmpfs".into())),
        ("overlay", "none", Source::Word("none".into())),
    ] {
        let planned = planned(&[mount(kind, source, &[])]).unwrap();
        let What::Filesystem { source, .. } = &planned[0].what else { panic!("{kind}") };
        assert_eq!(*source, wanted);
    }
}

/// What containerd's snapshotters and the hosts' shims send for layers below a writable disk.
#[test]
fn layers_below_a_writable_disk_are_put_together() {
    let list = [
        mount("ext4", "/dev/vdc", &["rw"]),
        mount("erofs", "/dev/vda", &["ro"]),
        mount("erofs", "/dev/vdb", &["ro"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0750:1000:1001",
                "X-containerd.mkdir.path={{ mount 0 }}/more",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ overlay 2 1 }}",
            ],
        ),
    ];
    let planned = planned(&list).unwrap();
    let overlay = &planned[3];
    assert_eq!(
        overlay.what,
        What::Filesystem { kind: "overlay", source: Source::Word("overlay".into()) }
    );
    assert_eq!(value(overlay, "upperdir"), "/run/bundles/c1/mounts/0/upper");
    assert_eq!(value(overlay, "workdir"), "/run/bundles/c1/mounts/0/work");
    assert_eq!(value(overlay, "lowerdir"), "/run/bundles/c1/mounts/2:/run/bundles/c1/mounts/1");
    let made: Vec<_> = overlay
        .directories
        .iter()
        .map(|it| (it.place.to_str().unwrap(), it.mode, it.uid, it.gid))
        .collect();
    assert_eq!(
        made,
        [
            ("mounts/0/upper", 0o755, 0, 0),
            ("mounts/0/work", 0o750, 1000, 1001),
            ("mounts/0/more", 0o700, 0, 0)
        ]
    );
    assert_eq!(overlay.place, Path::new("rootfs"));
}

#[test]
fn templates_are_replaced_in_source_target_and_options_and_see_what_came_of_them() {
    let list = [
        mount("virtiofs", "tag", &[]),
        Mount {
            target: "{{ source 0 }}/{{ target 0 }}x".into(),
            ..mount("format/bind", "{{ mount 0 }}/a", &[])
        },
        mount("format/bind", "{{ source 1 }}/{{ target 1 }}", &[]),
    ];
    let planned = planned(&list).unwrap();
    assert_eq!(planned[1].what, What::Bind { source: "/run/bundles/c1/mounts/0/a".into() });
    assert_eq!(planned[1].place, Path::new("mounts/1/tag/x"));
    let source = "/run/bundles/c1/mounts/0/a/tag/x".into();
    assert_eq!(planned[2].what, What::Bind { source });
    // Without the prefix they are text.
    let plain = plan(Path::new(BUNDLE), &[mount("bind", "/{{ mount 9 }}", &[])]).unwrap();
    assert_eq!(plain[0].what, What::Bind { source: "/{{ mount 9 }}".into() });
}

#[test]
fn template_that_names_no_earlier_mount_is_an_error_that_names_its_own() {
    let good = mount("tmpfs", "", &[]);
    for (template, wanted) in [("mount 1", 1), ("source 2", 2), ("overlay 0 7", 7)] {
        let list = [
            good.clone(),
            mount("format/overlay", "", &[&format!("lowerdir={{{{ {template} }}}}")]),
        ];
        assert_eq!(
            text(&list),
            format!(
                "mount 1: \"{{{{ {template} }}}}\" refers to mount {wanted}, and 1 come before this one"
            )
        );
    }
    assert!(text(&[mount("format/tmpfs", "{{ x", &[])]).starts_with("mount 0: "));
}

#[test]
fn directories_are_made_below_the_mounts_of_the_bundle_and_nowhere_else() {
    let with = |value: &str| {
        let option = format!("X-containerd.mkdir.path={value}");
        planned(&[mount("mkdir/tmpfs", "", &[&option])])
    };
    for wrong in [
        "/etc",
        "",
        "upper",
        "/run/bundles/c1",
        "/run/bundles/c1/mounts",
        "/run/bundles/c1/mounts/",
        "/run/bundles/c1/mounts/.",
        "/run/bundles/c1/rootfs/x",
        "/run/bundles/c1/mountsx/y",
        "/run/bundles/c1/mounts/../rootfs",
        "/run/bundles/c1/mounts/0/../../../x",
        "/run/bundles/c10/mounts/x",
        "//run/bundles/c1/mounts/0",
    ] {
        let error = with(wrong).unwrap_err();
        assert!(matches!(error, PlanError::Directory { index: 0, .. }), "{wrong}: {error}");
        assert!(error.to_string().ends_with("is not below the bundle's mounts"), "{error}");
    }
    for (wrong, problem) in [
        (":888", "has no mode"),
        (":1777", "has no mode"),
        (":", "has no mode"),
        (":+7", "has no mode"),
        (":700:x", "has no user id"),
        (":700:-1", "has no user id"),
        (":700:4294967295", "has no user id"),
        (":700:0:", "has no group id"),
        (":700:0:0:0", "is not PATH"),
    ] {
        let error = with(&format!("/run/bundles/c1/mounts/0/x{wrong}")).unwrap_err().to_string();
        assert!(error.contains(problem), "{wrong}: {error}");
    }
    let colon = plan(
        Path::new("/run/a:b"),
        &[mount("mkdir/tmpfs", "", &["X-containerd.mkdir.path=/run/a:b/mounts/x:700"])],
    );
    assert_eq!(colon.unwrap()[0].directories[0].place, Path::new("mounts/x"));
}

#[test]
fn options_of_containerd_that_nobody_consumes_are_errors() {
    for (kind, option) in [
        ("tmpfs", "X-containerd.mkdir.path=/run/bundles/c1/mounts/x"),
        ("format/tmpfs", "X-containerd.mkdir.path=/run/bundles/c1/mounts/x"),
        ("mkdir/tmpfs", "X-containerd.mkdir.mode=7"),
        ("mkdir/tmpfs", "X-containerd.mkfs.fs=ext4"),
        ("tmpfs", "X-containerd.foo"),
    ] {
        let text = text(&[mount(kind, "", &[option])]);
        assert_eq!(text, format!("mount 0: mount option {option:?} is not supported"));
    }
}

#[test]
fn what_is_not_served_is_named_with_its_place() {
    let good = mount("tmpfs", "", &[]);
    for (kind, shown) in [
        ("nfs", "nfs"),
        ("", ""),
        ("proc", "proc"),
        ("mkfs/ext4", "mkfs/ext4"),
        ("format/", ""),
        ("mkdir/format/overlay", "format/overlay"),
        ("format/format/bind", "format/bind"),
    ] {
        let text = text(&[good.clone(), mount(kind, "/x", &[])]);
        assert_eq!(text, format!("mount 1: type {shown:?} is not supported"));
    }
    for source in ["/dev/sda", "/dev/vd/../sda", "relative", "", "serial:", "/dev/vd"] {
        assert!(text(&[mount("ext4", source, &[])]).contains("is not a block device"), "{source}");
    }
    assert!(text(&[mount("bind", "relative", &[])]).contains("absolute path"));
    assert!(text(&[mount("virtiofs", "", &[])]).contains("tag"));
    assert!(text(&[mount("tmpfs", "", &["loop"])]).contains("loop with a mount of type \"tmpfs\""));
    assert!(text(&[mount("bind", "/x", &["loop"])]).contains("loop with"));
    let verity = ["X-vminitd.verity.roothash=00", "X-vminitd.verity.hashoffset=1"];
    assert!(text(&[mount("virtiofs", "t", &verity)]).contains("X-vminitd.verity with"));
    let placed = Mount { target: "/a/../../b".to_owned(), ..good.clone() };
    assert!(text(&[placed]).contains("target \"/a/../../b\" leads out"));
    let placed = Mount { target: "/a//b/.".to_owned(), ..good };
    assert_eq!(planned(&[placed]).unwrap()[0].place, Path::new("rootfs/a/b"));
}

#[test]
fn limits_on_mounts_options_and_bytes_hold() {
    let good = mount("tmpfs", "", &[]);
    assert!(planned(&vec![good.clone(); ROOTFS_MOUNTS]).is_ok());
    assert!(planned(&vec![good; ROOTFS_MOUNTS + 1]).is_err());
    assert!(planned(&[mount("tmpfs", "", &vec!["ro"; MOUNT_OPTIONS + 1])]).is_err());
    // Each twice as long as the one before.
    let mut list = vec![mount("tmpfs", &"x".repeat(1024), &[])];
    for n in 0..100 {
        list.push(mount("format/tmpfs", &format!("{{{{ source {n} }}}}{{{{ source {n} }}}}"), &[]));
    }
    assert!(matches!(planned(&list), Err(PlanError::Template { error: TemplateError::Long, .. })));
    let layers = format!("o={{{{ overlay 0 {} }}}}", ROOTFS_MOUNTS - 2);
    let mut list = vec![mount("tmpfs", "", &[]); ROOTFS_MOUNTS - 1];
    list.push(mount("format/overlay", "", &vec![&*layers; MOUNT_OPTIONS]));
    assert_eq!(planned(&list), Err(PlanError::Long));
    // All layers there can be, in a bundle with the longest id.
    let bundle = Path::new("/run/bundles").join("x".repeat(crate::limits::ID_BYTES));
    list[ROOTFS_MOUNTS - 1].options.truncate(1);
    assert!(plan(&bundle, &list).is_ok());
}

/// A mount of the model: what its place, source and options must come to.
#[derive(Clone, Debug)]
enum Kind {
    Layer(&'static str, char),
    Bind(usize),
    Overlay(usize, usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (select(vec!["erofs", "ext4"]), proptest::char::range('a', 'z'))
            .prop_map(|(kind, disk)| Kind::Layer(kind, disk)),
        (0..6usize).prop_map(Kind::Bind),
        (0..6usize, 0..6usize).prop_map(|(a, b)| Kind::Overlay(a, b)),
    ]
}

proptest! {
    #[test]
    fn any_list_comes_to_what_the_model_says_or_names_the_first_wrong_mount(
        kinds in proptest::collection::vec(kind(), 1..7),
    ) {
        let place = |n: usize| format!("{BUNDLE}/mounts/{n}");
        let mut list = Vec::new();
        let (mut wanted, mut wrong) = (Vec::new(), None);
        for (index, kind) in kinds.iter().enumerate() {
            let highest = match kind {
                Kind::Layer(kind, disk) => {
                    let source = format!("/dev/vd{disk}");
                    list.push(mount(kind, &source, &["ro"]));
                    wanted.push((source, String::new()));
                    None
                }
                Kind::Bind(n) => {
                    list.push(mount("format/bind", &format!("{{{{ mount {n} }}}}/tree"), &[]));
                    wanted.push((format!("{}/tree", place(*n)), String::new()));
                    Some(*n)
                }
                Kind::Overlay(a, b) => {
                    let option = format!("lowerdir={{{{ overlay {a} {b} }}}}");
                    list.push(mount("format/overlay", "", &[&option]));
                    let mut layers: Vec<String> = (*a.min(b)..=*a.max(b)).map(place).collect();
                    if a > b {
                        layers.reverse();
                    }
                    wanted.push(("overlay".to_owned(), layers.join(":")));
                    Some(*a.max(b))
                }
            };
            if highest.is_some_and(|n| n >= index) && wrong.is_none() {
                wrong = Some(index);
            }
        }
        match (planned(&list), wrong) {
            (Ok(all), None) => {
                for (index, (one, (source, layers))) in all.iter().zip(&wanted).enumerate() {
                    let last = index + 1 == list.len();
                    let at = if last { "rootfs".to_owned() } else { format!("mounts/{index}") };
                    prop_assert_eq!(&one.place, Path::new(&at));
                    let found = match &one.what {
                        What::Bind { source } => source.display().to_string(),
                        What::Filesystem { source: Source::Word(word), .. } => word.clone(),
                        What::Filesystem { source: Source::Device(device), .. } => device.to_string(),
                        What::Filesystem { source: Source::Path(path), .. } => path.display().to_string(),
                    };
                    prop_assert_eq!(&found, source);
                    if !layers.is_empty() {
                        prop_assert_eq!(value(one, "lowerdir"), layers);
                    }
                }
            }
            (Err(PlanError::Template { index, .. }), Some(wrong)) => prop_assert_eq!(index, wrong),
            (other, wrong) => prop_assert!(false, "{other:?} {wrong:?}"),
        }
    }
}

//! Mounts made and undone, each in a mount namespace of its own thread.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use vminitd_protocol::pb::containerd::types::Mount;

use super::*;
use crate::agent::mounts::plan::{PlanError, plan as plan_in};

fn plan(list: &[Mount]) -> Result<Vec<Planned>, PlanError> {
    plan_in(Path::new("/bundle"), list)
}

fn make(bundle: &Path, planned: &[Planned]) -> Result<(), MountError> {
    super::make(Ground::Bundle(bundle), planned)
}

fn undo(bundle: &Path, places: &[PathBuf]) -> Result<(), UnmountError> {
    super::undo(Ground::Bundle(bundle), places)
}

fn mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.as_ref().to_str().unwrap().to_owned(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

/// Runs in a mount namespace of its own (that of one thread), so that nothing is left on this
/// machine whatever happens. Needs root, which CI has.
fn in_namespace(test: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        use nix::mount::MsFlags;
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS) {
            eprintln!("skipped: no mount namespace: {errno}");
            return;
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // overlayfs wants upper and work on a filesystem that is no overlay itself.
        let none = None::<&str>;
        nix::mount::mount(none, dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        test(dir.path());
        let _ = umount2(dir.path(), MntFlags::MNT_DETACH);
    };
    std::thread::spawn(run).join().unwrap();
}

fn mounts_below(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!("{}/", path.display());
    table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(&below)).count()
}

#[test]
fn overlay_of_a_hundred_layers_shows_each_and_goes_without_a_trace() {
    in_namespace(|dir| {
        let bundle = dir.join("bundle");
        fs::create_dir(&bundle).unwrap();
        let layers: Vec<String> = (0..100)
            .map(|layer| {
                let path = dir.join(format!("a-rather-long-name-of-a-layer:{layer}"));
                fs::create_dir(&path).unwrap();
                fs::write(path.join(format!("file-{layer}")), "x").unwrap();
                path.to_str().unwrap().replace(':', "\\:")
            })
            .collect();
        for sub in ["upper", "work"] {
            fs::create_dir(dir.join(sub)).unwrap();
        }
        let options = [
            format!("lowerdir={}", layers.join(":")),
            format!("upperdir={}", dir.join("upper").display()),
            format!("workdir={}", dir.join("work").display()),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let planned =
            plan(&[mount("tmpfs", "", &["size=1m"]), mount("overlay", "", &options)]).unwrap();
        make(&bundle, &planned).unwrap();
        assert_eq!(fs::read_dir(bundle.join("rootfs")).unwrap().count(), 100);
        fs::write(bundle.join("rootfs/new"), "y").unwrap();
        assert_eq!(fs::read_to_string(dir.join("upper/new")).unwrap(), "y");
        assert_eq!(mounts_below(&bundle), 2);
        undo(&bundle, &places(&planned)).unwrap();
        assert_eq!(mounts_below(&bundle), 0);
        undo(&bundle, &places(&planned)).unwrap();
    });
}

#[test]
fn failure_in_the_middle_leaves_no_mount_and_says_what_and_why() {
    in_namespace(|dir| {
        let missing = dir.join("missing");
        let planned = plan(&[
            mount("tmpfs", "", &[]),
            mount("overlay", "", &[&format!("lowerdir={}", missing.display())]),
        ])
        .unwrap();
        let error = crate::chain(&make(dir, &planned).unwrap_err());
        assert!(error.contains("overlay") && error.contains("missing"), "{error}");
        assert!(error.contains("No such file"), "{error}");
        assert_eq!(mounts_below(dir), 0);
        let planned = plan(&[mount("tmpfs", "", &["colour=red"])]).unwrap();
        let error = crate::chain(&make(dir, &planned).unwrap_err());
        assert!(error.contains("colour=red"), "{error}");
    });
}

#[test]
fn bind_is_read_only_when_asked_and_the_source_stays_writable() {
    in_namespace(|dir| {
        let (bundle, tree) = (dir.join("bundle"), dir.join("tree"));
        fs::create_dir(&bundle).unwrap();
        fs::create_dir(&tree).unwrap();
        let planned = plan(&[mount("bind", &tree, &["ro"])]).unwrap();
        make(&bundle, &planned).unwrap();
        let error = fs::write(bundle.join("rootfs/file"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        fs::write(tree.join("file"), "x").unwrap();
        assert_eq!(fs::read_to_string(bundle.join("rootfs/file")).unwrap(), "x");
        undo(&bundle, &places(&planned)).unwrap();
    });
}

#[test]
fn symlink_in_place_of_a_mount_point_leads_nowhere() {
    in_namespace(|dir| {
        let (bundle, elsewhere) = (dir.join("bundle"), dir.join("elsewhere"));
        fs::create_dir(&bundle).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, bundle.join("rootfs")).unwrap();
        let planned = plan(&[mount("tmpfs", "", &[])]).unwrap();
        assert!(matches!(make(&bundle, &planned), Err(MountError::Place { .. })));
        assert_eq!(mounts_below(dir), 0);
        symlink(&elsewhere, bundle.join("mounts")).unwrap();
        let two = plan(&[mount("tmpfs", "", &[]), mount("tmpfs", "", &[])]).unwrap();
        assert!(matches!(make(&bundle, &two), Err(MountError::Place { .. })));
    });
}

#[test]
fn overlay_on_a_fresh_tmpfs_gets_its_directories_and_no_symlink_leads_them_elsewhere() {
    in_namespace(|dir| {
        let (bundle, tree) = (dir.join("bundle"), dir.join("tree"));
        fs::create_dir(&bundle).unwrap();
        fs::create_dir(&tree).unwrap();
        let at = |key: &str, name: &str| format!("{key}={}/mounts/1/{name}", bundle.display());
        let lower = format!("lowerdir={}/mounts/0", bundle.display());
        let (upper, work) = (at("upperdir", "upper"), at("workdir", "work"));
        let planned = plan(&[
            mount("bind", &tree, &["ro"]),
            mount("tmpfs", "", &[]),
            mount("overlay", "", &[&lower, &upper, &work]),
        ])
        .unwrap();
        make(&bundle, &planned).unwrap();
        fs::write(bundle.join("rootfs/new"), "x").unwrap();
        assert_eq!(fs::read_dir(&tree).unwrap().count(), 0);
        undo(&bundle, &places(&planned)).unwrap();

        symlink(dir, tree.join("upper")).unwrap();
        let upper = format!("upperdir={}/mounts/0/upper/evil", bundle.display());
        let planned =
            plan(&[mount("bind", &tree, &[]), mount("overlay", "", &[&lower, &upper, &work])]);
        assert!(make(&bundle, &planned.unwrap()).is_err());
        assert!(!dir.join("evil").exists());
    });
}

#[test]
fn place_that_has_a_mount_already_is_refused() {
    in_namespace(|dir| {
        let planned = plan(&[mount("tmpfs", "", &[])]).unwrap();
        make(dir, &planned).unwrap();
        assert!(matches!(make(dir, &planned), Err(MountError::Place { .. })));
        undo(dir, &places(&planned)).unwrap();
        assert_eq!(mounts_below(dir), 0);
    });
}

fn error_of(result: Result<(), MountError>) -> String {
    crate::chain(&result.unwrap_err())
}

#[test]
fn bind_has_the_attributes_that_it_was_given_and_those_below_when_asked() {
    in_namespace(|dir| {
        let (bundle, tree) = (dir.join("bundle"), dir.join("tree"));
        fs::create_dir_all(tree.join("below")).unwrap();
        fs::create_dir(&bundle).unwrap();
        let none = None::<&str>;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(none, &tree.join("below"), Some("tmpfs"), flags, none).unwrap();
        let flags_of = |place: &str| {
            let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let place = bundle.join(place).display().to_string();
            let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&*place));
            line.unwrap().split(' ').nth(5).unwrap().to_owned()
        };
        for (options, here, below) in [
            (&["rbind", "noatime", "nosuid"][..], "rw,nosuid,noatime", "rw,relatime"),
            (&["rbind", "ro=recursive", "noexec"], "ro,noexec,relatime", "ro,relatime"),
            (&["rbind", "ro=recursive", "rw"], "rw,relatime", "ro,relatime"),
        ] {
            let planned = plan(&[mount("bind", &tree, options)]).unwrap();
            make(&bundle, &planned).unwrap();
            assert_eq!((&*flags_of("rootfs"), &*flags_of("rootfs/below")), (here, below));
            undo(&bundle, &places(&planned)).unwrap();
            assert_eq!(mounts_below(&bundle), 0);
        }
    });
}

#[test]
fn directories_are_made_with_mode_and_owner_and_old_ones_stay_as_they_are() {
    in_namespace(|dir| {
        let mkdir =
            |rest: &str| format!("X-containerd.mkdir.path={}/mounts/0/{rest}", dir.display());
        let (new, deep, old) = (mkdir("new:0751:7:8"), mkdir("a/b"), mkdir("new:0700:1:1"));
        let list = [mount("tmpfs", "", &[]), mount("mkdir/tmpfs", "", &[&new, &deep, &old])];
        let planned = plan_in(dir, &list).unwrap();
        make(dir, &planned).unwrap();
        let of = |name: &str| {
            let found = fs::metadata(dir.join("mounts/0").join(name)).unwrap();
            (found.permissions().mode() & 0o7777, found.uid(), found.gid())
        };
        assert_eq!(of("new"), (0o751, 7, 8));
        assert_eq!((of("a"), of("a/b")), ((0o755, 0, 0), (0o700, 0, 0)));
        undo(dir, &places(&planned)).unwrap();
        assert_eq!(mounts_below(dir), 0);
    });
}

/// A layer that tries to get a directory, a mount's source or an overlay's parts from elsewhere.
#[test]
fn symlinks_in_a_layer_lead_nowhere() {
    in_namespace(|dir| {
        let (bundle, layer, secret) = (dir.join("bundle"), dir.join("layer"), dir.join("secret"));
        for directory in [&bundle, &layer, &secret, &layer.join("real")] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(secret.join("image"), "secret").unwrap();
        symlink(&secret, layer.join("out")).unwrap();
        symlink("../../../secret", layer.join("up")).unwrap();
        symlink("real", layer.join("in")).unwrap();
        let at = |rest: &str| format!("{}/mounts/0/{rest}", bundle.display());
        let layered = mount("bind", &layer, &[]);
        for link in ["out", "up", "in"] {
            let upper = format!("upperdir={}", at(&format!("{link}/upper")));
            let (lower, work) =
                (format!("lowerdir={}", at("real")), format!("workdir={}", at("w")));
            let mkdir = format!("X-containerd.mkdir.path={}", at(&format!("{link}/new")));
            let evil = format!("lowerdir={}", at(&format!("real:{}", at(link))));
            for second in [
                mount("mkdir/tmpfs", "", &[&mkdir]),
                mount("overlay", "", &[&lower, &upper, &work]),
                mount("overlay", "", &[&evil]),
                mount("bind", at(link), &[]),
                mount("bind", at(&format!("{link}/image")), &[]),
                mount("erofs", at(&format!("{link}/image")), &[]),
                mount("ext4", at(&format!("{link}/image")), &["loop"]),
            ] {
                let planned = plan_in(&bundle, &[layered.clone(), second.clone()]).unwrap();
                let error = error_of(make(&bundle, &planned));
                assert!(error.ends_with("(os error 40)"), "{second:?}: {error}");
                assert_eq!(mounts_below(&bundle), 0);
            }
        }
        assert_eq!(fs::read_dir(&secret).unwrap().count(), 1);
        assert_eq!(fs::read_dir(layer.join("real")).unwrap().count(), 0);
        // What is really there may be used.
        let real = plan_in(&bundle, &[layered, mount("bind", at("real"), &["ro"])]).unwrap();
        make(&bundle, &real).unwrap();
        assert!(fs::read_dir(bundle.join("rootfs")).unwrap().next().is_none());
        undo(&bundle, &places(&real)).unwrap();
    });
}

#[test]
fn target_is_a_directory_below_the_mounts_place() {
    in_namespace(|dir| {
        let target = Mount { target: "/a/b".to_owned(), ..mount("tmpfs", "", &[]) };
        let planned = plan(&[target.clone(), target]).unwrap();
        make(dir, &planned).unwrap();
        fs::write(dir.join("rootfs/a/b/file"), "").unwrap();
        assert_eq!(mounts_below(dir), 2);
        undo(dir, &places(&planned)).unwrap();
        assert_eq!(mounts_below(dir), 0);
        assert!(!dir.join("rootfs/a/b/file").exists());
        fs::remove_dir(dir.join("rootfs/a/b")).unwrap();
        symlink("/", dir.join("rootfs/a/b")).unwrap();
        assert!(matches!(make(dir, &planned), Err(MountError::Place { .. })));
    });
}

#[test]
fn ids_are_mapped_where_the_filesystem_does_it_and_layers_of_an_overlay_too() {
    in_namespace(|dir| {
        let (bundle, tree) = (dir.join("bundle"), dir.join("tree"));
        fs::create_dir(&bundle).unwrap();
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), "x").unwrap();
        std::os::unix::fs::chown(tree.join("file"), Some(3), Some(4)).unwrap();
        let owner = |place: &str| {
            let found = fs::metadata(bundle.join(place)).unwrap();
            (found.uid(), found.gid())
        };
        let maps = ["uidmap=0:1000:10", "gidmap=0:2000:10"];
        let planned = plan(&[mount("bind", &tree, &maps)]).unwrap();
        if let Err(error) = make(&bundle, &planned) {
            let error = crate::chain(&error);
            assert!(error.contains("map its ids"), "{error}");
            eprintln!("skipped: {error}");
            return;
        }
        assert_eq!(owner("rootfs/file"), (1003, 2004));
        undo(&bundle, &places(&planned)).unwrap();

        let (upper, work, other) = (dir.join("upper"), dir.join("work"), dir.join("other"));
        let lower = format!("lowerdir={}:{}", other.display(), tree.display());
        for directory in [&upper, &work, &other] {
            fs::create_dir(directory).unwrap();
        }
        let (upper, work) =
            (format!("upperdir={}", upper.display()), format!("workdir={}", work.display()));
        let options = [&lower, &upper, &work, maps[0], maps[1]];
        let planned = plan(&[mount("overlay", "", &options)]).unwrap();
        make(&bundle, &planned).unwrap();
        assert_eq!(owner("rootfs/file"), (1003, 2004));
        assert_eq!(mounts_below(&bundle), 1, "the layers are not left on top of each other");
        undo(&bundle, &places(&planned)).unwrap();
        assert_eq!(mounts_below(&bundle), 0);

        let overlapping = ["uidmap=0:1:5,3:9:5", maps[1]];
        let planned = plan(&[mount("bind", &tree, &overlapping)]).unwrap();
        assert!(error_of(make(&bundle, &planned)).contains("map its ids: Invalid argument"));
    });
}

#[test]
fn mount_in_use_is_named_with_its_user_and_stays_unless_it_is_to_go() {
    in_namespace(|dir| {
        let list = [mount("tmpfs", "", &[]), mount("tmpfs", "", &[])];
        let planned = plan(&list).unwrap();
        make(dir, &planned).unwrap();
        let mut sleeper =
            Command::new("sleep").arg("60").current_dir(dir.join("rootfs")).spawn().unwrap();
        let place = Path::new("rootfs");
        let error = super::super::undo::unmount(Ground::Bundle(dir), place).unwrap_err();
        let text = crate::chain(&error);
        let user = format!("rootfs, used by process {} (sleep): ", sleeper.id());
        assert!(text.contains(&user) && text.contains("busy"), "{text}");
        assert_eq!(mounts_below(dir), 2);
        undo(dir, &places(&planned)).unwrap();
        assert_eq!(mounts_below(dir), 0);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();

        let list = [mount("tmpfs", "", &[])];
        let planned = plan(&list).unwrap();
        make(dir, &planned).unwrap();
        fs::create_dir(dir.join("rootfs/a b")).unwrap();
        let none = None::<&str>;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(none, &dir.join("rootfs/a b"), Some("tmpfs"), flags, none).unwrap();
        let error = super::super::undo::unmount(Ground::Bundle(dir), place).unwrap_err();
        let mount = format!("used by the mount {}/rootfs/a b", dir.display());
        assert!(crate::chain(&error).contains(&mount), "{error}");
        undo(dir, &places(&planned)).unwrap();
        assert_eq!(mounts_below(dir), 0);
    });
}

/// Needs mke2fs and loop devices.
#[test]
fn image_file_is_mounted_through_a_loop_device_that_goes_with_it() {
    in_namespace(|dir| {
        let image = dir.join("image");
        File::create(&image).and_then(|file| file.set_len(8 << 20)).unwrap();
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).status();
        if !made.is_ok_and(|status| status.success()) || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: no mke2fs or no loop devices");
            return;
        }
        let planned = plan(&[mount("ext4", &image, &["noatime"])]).unwrap();
        make(dir, &planned).unwrap();
        fs::write(dir.join("rootfs/file"), "x").unwrap();
        undo(dir, &places(&planned)).unwrap();
        let planned = plan(&[mount("ext4", &image, &["loop", "ro"])]).unwrap();
        make(dir, &planned).unwrap();
        assert_eq!(fs::read_to_string(dir.join("rootfs/file")).unwrap(), "x");
        undo(dir, &places(&planned)).unwrap();
        let planned = plan(&[mount("erofs", dir, &[])]).unwrap();
        assert!(error_of(make(dir, &planned)).contains("neither a block device nor a file"));
    });
}

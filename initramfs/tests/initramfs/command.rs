//! How it proves its point: the built command runs, and cpio, gzip, zstd and lz4 read what it wrote, where they are installed.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// In a directory with `program` and `motd`.
fn dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("program"), vec![b'p'; 100_000]).unwrap();
    fs::write(dir.path().join("motd"), "hello\n").unwrap();
    dir
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_initramfs"));
    command.args(arguments).current_dir(dir).output().unwrap()
}

fn succeeds(dir: &Path, arguments: &[&str]) {
    let output = run(dir, arguments);
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(
        output.status.success() && out.is_empty() && err.is_empty(),
        "{arguments:?}: {out}{err}"
    );
}

/// The filter's output for the file, or `None` when the tool is not installed.
fn filtered(tool: &str, flags: &[&str], file: &Path) -> Option<Vec<u8>> {
    let input = File::open(file).unwrap();
    let command = Command::new(tool).args(flags).stdin(input).stderr(Stdio::null()).output();
    match command {
        Ok(output) => {
            assert!(output.status.success(), "{tool}: {}", output.status);
            Some(output.stdout)
        }
        Err(_) => {
            eprintln!("skipped: no {tool} on this machine");
            None
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn two_runs_are_identical_and_tools_read_them() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let add = ["--init", "program", "--add", "motd:/etc/motd"];
    succeeds(dir.path(), &[&add[..], &["--compress", "none", "-o", "plain"]].concat());
    let plain = fs::read(at("plain")).unwrap();
    for (compression, tool) in [("none", "cat"), ("gzip", "gzip"), ("zstd", "zstd"), ("lz4", "lz4")]
    {
        for out in ["one", "two"] {
            succeeds(dir.path(), &[&add[..], &["--compress", compression, "-o", out]].concat());
        }
        let one = fs::read(at("one")).unwrap();
        assert!(one == fs::read(at("two")).unwrap(), "{compression}");
        let flags = if tool == "cat" { &[][..] } else { &["-dc"] };
        if let Some(bytes) = filtered(tool, flags, &at("one")) {
            assert!(bytes == plain, "{compression}");
        }
    }
    let Some(list) = filtered("cpio", &["-it", "--quiet"], &at("plain")) else {
        return;
    };
    let list = String::from_utf8(list).unwrap();
    let expected = "dev dev/console dev/null etc etc/motd init proc root run sys tmp var";
    assert_eq!(list.split_whitespace().collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn default_is_zstd() {
    let dir = dir();
    succeeds(dir.path(), &["--init", "program", "-o", "default"]);
    succeeds(
        dir.path(),
        &["--init", "program", "-o", "zstd", "--compress", "zstd", "--level", "19"],
    );
    let [default, zstd] = ["default", "zstd"].map(|name| fs::read(dir.path().join(name)).unwrap());
    assert!(default == zstd);
}

#[test]
fn umask_and_who_packs_do_not_show() {
    let dir = dir();
    succeeds(dir.path(), &["--init", "program", "-o", "one"]);
    fs::set_permissions(dir.path().join("program"), fs::Permissions::from_mode(0o400)).unwrap();
    let program = env!("CARGO_BIN_EXE_initramfs");
    let script = format!("umask 077; exec '{program}' --init program -o two");
    let status = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().unwrap();
    assert!(status.success());
    let [one, two] = ["one", "two"].map(|name| fs::read(dir.path().join(name)).unwrap());
    assert!(one == two);
}

#[test]
fn source_may_have_a_colon() {
    let dir = dir();
    fs::create_dir(dir.path().join("a:")).unwrap();
    fs::write(dir.path().join("a:/b:c"), "").unwrap();
    succeeds(
        dir.path(),
        &["--init", "program", "--add", "a:/b:c:/d", "-o", "out", "--compress", "none"],
    );
}

#[test]
fn failure_leaves_the_old_output_and_nothing_else() {
    let dir = dir();
    fs::write(dir.path().join("out"), "old").unwrap();
    let output = run(dir.path(), &["--init", "program", "--add", "nothing:/x", "-o", "out"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text, "initramfs: cannot read nothing: No such file or directory (os error 2)\n");

    assert_eq!(fs::read(dir.path().join("out")).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["motd", "out", "program"]);
}

/// The length is found too much only when some of the archive is written.
#[test]
fn failure_while_packing_leaves_no_part() {
    let dir = dir();
    let big = File::create(dir.path().join("big")).unwrap();
    big.set_len(1 << 32).unwrap();
    let output = run(
        dir.path(),
        &["--init", "program", "--add", "big:/big", "-o", "out", "--compress", "lz4"],
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let expected = "initramfs: /big is 4294967296 bytes long, more than the 4294967295 that an initramfs can hold\n";
    assert_eq!(text, expected);
    assert_eq!(names(dir.path()), ["big", "motd", "program"]);
}

#[test]
fn output_that_cannot_be_made_is_named() {
    let dir = dir();
    let output = run(dir.path(), &["--init", "program", "-o", "no/such/dir"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        text,
        "initramfs: cannot write no/such/dir: No such file or directory (os error 2)\n"
    );
}

#[test]
fn pipe_as_output_is_written_and_not_replaced() {
    let dir = dir();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || {
            let mut bytes = vec![];
            File::open(pipe).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    succeeds(dir.path(), &["--init", "program", "-o", "pipe", "--compress", "none"]);
    assert_eq!(reader.join().unwrap()[..6], *b"070701");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn usage_errors_say_what_would_do_and_exit_with_two() {
    let dir = dir();
    for (arguments, hint) in [
        (
            &["--init", "program", "-o", "x", "--add", "motd:etc/motd"][..],
            "give SRC:DEST with an absolute DEST",
        ),
        (&["--init", "program", "-o", "x", "--add", "motd"], "give SRC:DEST with an absolute DEST"),
        (
            &["--init", "program", "-o", "x", "--compress", "xz"],
            "[possible values: none, gzip, zstd, lz4]",
        ),
        (&["--init", "program"], "--output <OUT>"),
        (&["-o", "x"], "--init <FILE>"),
    ] {
        let output = run(dir.path(), arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text.contains(hint), "{arguments:?}: {text}");
    }
}

/// The command itself is a dynamic program in an ordinary build.
#[test]
fn dynamic_program_is_packed_with_a_warning_that_names_its_loader() {
    let dir = dir();
    let program = Path::new("/proc/self/exe").canonicalize().unwrap();
    let program = program.to_str().unwrap();
    let output = run(dir.path(), &["--init", program, "-o", "out", "--compress", "none"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    if cfg!(target_feature = "crt-static") {
        assert!(text.is_empty(), "{text}");
        return;
    }
    let loader = text.split("it needs ").nth(1).expect(&text);
    let loader = loader.split(", which").next().unwrap();
    assert!(Path::new(loader).exists(), "{text}");
    let add = format!("{loader}:{loader}");
    succeeds(dir.path(), &["--init", program, "-o", "out", "--compress", "none", "--add", &add]);
}

#[test]
fn help_teaches() {
    let output = run(Path::new("/"), &["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["Examples:", "SRC:DEST", "static", "zstd", "[default: 19]"] {
        assert!(text.contains(word), "{word}");
    }
}

#[test]
fn two_runs_give_the_same_erofs_image_and_leave_nothing_beside_it() {
    let dir = dir();
    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        eprintln!("skipped: no mkfs.erofs on this machine");
        return;
    }
    for name in ["one", "two"] {
        let (format, add) = (["--format", "erofs"], ["--add", "motd:/etc/motd"]);
        let rest = ["--init", "program", "-o", name];
        succeeds(dir.path(), &[&format[..], &add, &rest].concat());
        // Another inode and another time.
        fs::rename(dir.path().join("motd"), dir.path().join("motd.old")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        fs::write(dir.path().join("motd"), "hello\n").unwrap();
    }
    let [one, two] = ["one", "two"].map(|name| fs::read(dir.path().join(name)).unwrap());
    assert!(one == two, "two runs differ");
    // The superblock's magic; EROFS_SUPER_OFFSET and EROFS_SUPER_MAGIC_V1 in the kernel's erofs_fs.h.
    assert_eq!(one[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
    assert_eq!(names(dir.path()), ["motd", "motd.old", "one", "program", "two"]);
}

#[test]
fn compression_is_refused_for_an_erofs_image() {
    let dir = dir();
    let arguments = ["--format", "erofs", "--compress", "gzip", "--init", "program", "-o", "out"];
    let output = run(dir.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("leave them out with --format erofs"));
}

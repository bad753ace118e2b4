//! The root filesystem that test containers share: busybox with its applets, and our guest programs.
//!
//! Promises: made once per test run, read-only for every guest.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use host_shim::vm::Arch;
use tempfile::TempDir;

use crate::vm::arch;

/// Directories that a container expects to find, or to mount on.
const DIRECTORIES: [&str; 11] =
    ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "guest", "data", "usr/bin"];

/// Our programs that a container may run.
const PROGRAMS: [&str; 4] = ["misbehave", "inspect", "attack", "supervised"];

/// The directory on the host. It is removed with the test process.
pub fn rootfs() -> &'static Path {
    static ROOTFS: OnceLock<TempDir> = OnceLock::new();
    let dir = ROOTFS.get_or_init(|| {
        let dir =
            tempfile::Builder::new().prefix("vminitd-rootfs-").tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our directory");
        fill(dir.path());
        // A static's destructor does not run; the process's end does this instead.
        remove_at_exit(dir.path());
        dir
    });
    dir.path()
}

/// A static program of `test-guest`, built by `./dev test`.
pub fn guest_program(name: &str) -> PathBuf {
    let directory = std::env::var_os("VMINITD_TEST_BIN").unwrap_or_else(|| {
        panic!("VMINITD_TEST_BIN is not set; run the VM tests with `./dev test`")
    });
    let path = PathBuf::from(directory).join(name);
    assert!(path.exists(), "{}: not built; run the VM tests with `./dev test`", path.display());
    path
}

/// A static busybox of the guests' architecture.
pub fn busybox() -> PathBuf {
    match std::env::var_os("VMINITD_TEST_BUSYBOX") {
        Some(named) => PathBuf::from(named),
        None if arch() == Arch::HOST => our_busybox(),
        None => panic!("no busybox for {} guests; run the VM tests with `./dev test`", arch()),
    }
}

/// The one of this machine, which can be asked for its applets: another architecture's has the same.
fn our_busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let found = places.into_iter().find(|place| place.exists());
    found.expect("busybox-static is not installed; run the VM tests with `./dev test`")
}

fn fill(root: &Path) {
    for directory in DIRECTORIES {
        fs::create_dir_all(root.join(directory)).expect("a new directory");
    }
    fs::copy(busybox(), root.join("bin/busybox")).expect("copy of busybox");
    let applets = Command::new(our_busybox()).arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet)).expect("a new link");
    }
    for program in PROGRAMS {
        fs::copy(guest_program(program), root.join("bin").join(program))
            .expect("copy of a program");
    }
    fs::write(root.join("bin/not-executable"), "#!/bin/sh\n").expect("a new file");
    fs::set_permissions(root.join("bin/not-executable"), fs::Permissions::from_mode(0o644))
        .expect("our file");
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a new file");
}

/// Removes a directory at the process's end, for what is in a static.
pub(crate) fn remove_at_exit(path: &Path) {
    static PATHS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    extern "C" fn remove() {
        for path in PATHS.lock().iter().flat_map(|paths| paths.iter()) {
            let _ = fs::remove_dir_all(path);
        }
    }
    let mut paths = PATHS.lock().expect("nobody panics with it");
    if paths.is_empty() {
        // SAFETY: `remove` is a plain function that lives as long as the process and does not unwind.
        unsafe { libc::atexit(remove) };
    }
    paths.push(path.to_owned());
}

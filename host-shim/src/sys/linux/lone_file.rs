//! A process that finds one file of the host in an otherwise empty directory: unshare(2), mount(2).
//!
//! Rejected: sharing the directory that the file lies in (a guest would reach what is beside it), and a hard link in
//! a directory of ours (cannot cross filesystems, and changes the file's link count).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::sys::numbered::check;

/// Where the process finds its directory. Every Linux system has it, and no program that serves files needs it.
pub const DIRECTORY: &str = "/sys";

/// The directory as a filesystem: room for one more inode than its root, and no content.
const OPTIONS: &std::ffi::CStr = c"mode=0755,nr_inodes=2,size=4k";

/// Lets `command` find `file` as `name` in [`DIRECTORY`], in a mount namespace of its own (and, without root, in a
/// user namespace, where it is the only user).
pub fn show(command: &mut Command, file: &Path, name: &str) -> io::Result<()> {
    let file = CString::new(file.as_os_str().as_bytes())?;
    let place = CString::new(format!("{DIRECTORY}/{name}"))?;
    let directory = CString::new(DIRECTORY)?;
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let maps = (!user.is_root()).then(|| {
        [
            (c"/proc/self/setgroups", b"deny".to_vec()),
            (c"/proc/self/uid_map", format!("0 {user} 1").into_bytes()),
            (c"/proc/self/gid_map", format!("0 {group} 1").into_bytes()),
        ]
    });
    let enter = move || {
        let mut flags = libc::CLONE_NEWNS;
        if maps.is_some() {
            flags |= libc::CLONE_NEWUSER;
        }
        // SAFETY: plain numbers; what is unshared is the child's own.
        check(unsafe { libc::unshare(flags) })?;
        for (path, content) in maps.iter().flatten() {
            write(path, content)?;
        }
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        mount(
            Some(c"file"),
            &directory,
            Some(c"tmpfs"),
            libc::MS_NOSUID | libc::MS_NODEV,
            Some(OPTIONS),
        )?;
        // SAFETY: the path ends with NUL and lives through the call; nobody else is at /sys in this namespace.
        check(unsafe { libc::mknod(place.as_ptr(), libc::S_IFREG | 0o600, 0) })?;
        mount(Some(&file), &place, None, libc::MS_BIND, None)?;
        // So that nothing comes to lie beside the file. Its own mount stays as it is.
        let flags =
            libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
        mount(None, &directory, None, flags, None)
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor locks, and all that
    // it passes was allocated before.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

type Text<'a> = Option<&'a std::ffi::CStr>;

fn mount(
    source: Text<'_>,
    target: &std::ffi::CStr,
    kind: Text<'_>,
    flags: libc::c_ulong,
    data: Text<'_>,
) -> io::Result<()> {
    let pointer = |text: Text<'_>| text.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: each pointer is null or to a text that ends with NUL and lives through the call.
    check(unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    })
}

fn write(path: &std::ffi::CStr, content: &[u8]) -> io::Result<()> {
    // SAFETY: the path ends with NUL; the buffer and its length are the slice's; the fd is closed by the exec.
    let written = unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        libc::write(fd, content.as_ptr().cast(), content.len())
    };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_finds_the_file_and_nothing_else_and_can_add_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "one\n").unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ls -A /sys; cat /sys/file; echo two >>/sys/file; touch /sys/new || echo refused",
        ]);
        show(&mut command, &path, "file").unwrap();
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "file\none\nrefused\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}

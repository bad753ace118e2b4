//! The end of the VM, from the moment when nobody is left to be asked.
//!
//! Promises: every step is bounded in time; the last one is reboot(2), whatever became of those
//! before; what was still dirty or busy is in the stop report. Where nothing holds data, nothing is
//! waited for.
//! Never: returns; exits, which the kernel would answer with a panic.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::warn;

use super::clock::Clock;
use super::ending::{Ending, Step};
use crate::shutdown::Event;
use crate::sys::clone::{self, Forked};
use crate::sys::shared_text::SharedText;
use crate::sys::{block, clock as clocks, pidfd, wait};
use crate::{log, paths};

/// How long unwritten data may take to reach its disk when init itself has failed.
pub const LAST_SYNC: Duration = Duration::from_secs(10);
/// How long the console may take for what was written to it.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often the end of a child is looked for.
const LOOK: Duration = Duration::from_micros(300);

/// Does what is left of an end whose agent is through, and ends the VM.
pub fn finish(mut ending: Ending, clock: &mut Clock) -> ! {
    // With nothing to lose there is nothing to wait for, nor a reason to end what runs: its end alone costs as much as
    // all the rest.
    let holds_data = !mounts_with_data().is_empty() || !writable_disks().is_empty();
    while let Some(step) = ending.current() {
        match step {
            _ if !holds_data => {}
            // Not here: the loop has done them.
            Step::Agent | Step::Supervisor => {}
            Step::Processes => end_processes(&mut ending, clock),
            Step::Unmount => unmount_all(&mut ending, clock),
            Step::Sync => sync(&mut ending, clock),
            Step::Flush => flush_disks(&mut ending, clock),
        }
        clock.advance(clocks::monotonic());
        let in_time = ending.deadline().is_none_or(|deadline| clock.now() < deadline);
        let event = if in_time { Event::Done(step) } else { Event::TimerFired };
        ending.handle(event, clock.now());
    }
    ending.report();
    now(ending.restart)
}

/// Writes out what the kernel holds back, but waits no longer than this: a dead disk or a dead
/// file server must not keep the VM.
pub fn sync_within(limit: Duration) {
    let start = Instant::now();
    if !bounded(nix::unistd::sync, || start.elapsed() > limit) {
        warn!("gave up on a filesystem that does not answer");
    }
}

/// Ends the VM as it is.
pub fn now(restart: bool) -> ! {
    log::drain_console(LAST_WORDS);
    let mode = if restart { RebootMode::RB_AUTOBOOT } else { RebootMode::RB_POWER_OFF };
    let _ = reboot(mode);
    // Not reached, unless this kernel cannot even do that: then its panic is the way out.
    clone::exit_now(1)
}

fn end_processes(ending: &mut Ending, clock: &mut Clock) {
    // Frozen processes die of this too, unlike of the signal below.
    if let Err(error) = std::fs::write(format!("{}/cgroup.kill", paths::CGROUP_CONTAINERS), "1") {
        warn!("kill the containers: {error}");
    }
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // ESRCH: nobody else is there.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => warn!("kill all processes: {error}"),
    }
    while let Some(children) = children() {
        while let Ok(Some(pid)) = wait::peek() {
            drop(wait::reap(pid));
        }
        clock.advance(clocks::monotonic());
        if ending.deadline().is_some_and(|deadline| clock.now() >= deadline) {
            for pid in children.split_ascii_whitespace() {
                ending.left(format!("process {pid} ({}) does not die", name_of(pid)));
            }
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// The pids of init's children, if there are some.
fn children() -> Option<String> {
    let children = std::fs::read_to_string("/proc/self/task/1/children").ok()?;
    (!children.trim().is_empty()).then_some(children)
}

fn name_of(pid: &str) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Unmounts what holds data, the latest mount first.
fn unmount_all(ending: &mut Ending, clock: &mut Clock) {
    for Mount { place, kind } in mounts_with_data().iter().rev() {
        if !within_share(ending, clock, |say| unmount_one(place, kind, say)) {
            ending.left(format!("unmount {place} ({kind}) does not answer"));
        }
    }
}

fn unmount_one(place: &str, kind: &str, say: &dyn Fn(String)) {
    // One that is frozen would stay so, and dirty.
    let directory = std::fs::File::open(place);
    if let Ok(directory) = &directory {
        let _ = block::thaw(directory.as_fd());
    }
    if place == "/" {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(error) = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>) {
            say(format!("/ ({kind}) stays writable: {}", error.desc()));
        }
        return;
    }
    drop(directory);
    match umount2(place, MntFlags::empty()) {
        // EINVAL: it went with the one that it was mounted on.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => {
            say(format!("unmount {place} ({kind}): {}", error.desc()));
            // Detached it is written out here, by sync, and by its device's end.
            if let Ok(directory) = std::fs::File::open(place) {
                let _ = block::sync_filesystem(directory.as_fd());
            }
            let _ = umount2(place, MntFlags::MNT_DETACH);
        }
    }
}

fn sync(ending: &mut Ending, clock: &mut Clock) {
    let until = ending.deadline();
    let done = bounded(nix::unistd::sync, || {
        clock.advance(clocks::monotonic());
        until.is_some_and(|until| clock.now() >= until)
    });
    if !done {
        ending.left(format!("not written back: {}", dirty()));
    }
}

fn flush_disks(ending: &mut Ending, clock: &mut Clock) {
    for disk in writable_disks() {
        let flush = |say: &dyn Fn(String)| {
            let flushed = std::fs::File::open(Path::new("/dev").join(&disk))
                .and_then(|device| device.sync_all());
            if let Err(error) = flushed {
                say(format!("flush {disk}: {error}"));
            }
        };
        if !within_share(ending, clock, flush) {
            ending.left(format!("flush {disk} does not answer"));
        }
    }
}

/// What the kernel says that it holds back.
fn dirty() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let lines =
        text.lines().filter(|line| line.starts_with("Dirty:") || line.starts_with("Writeback:"));
    lines
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Disks that can be written, by their names below /dev.
fn writable_disks() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(paths::SYS_BLOCK) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| !NO_DISKS.iter().any(|kind| name.starts_with(kind)))
        .filter(|name| {
            let read_only = std::fs::read_to_string(format!("{}/{name}/ro", paths::SYS_BLOCK));
            read_only.is_ok_and(|flag| flag.trim() == "0")
        })
        .collect()
}

/// Block devices without a cache of their own: their data is a file's or in memory.
const NO_DISKS: &[&str] = &["loop", "ram", "zram"];

/// A mounted filesystem.
struct Mount {
    place: String,
    kind: String,
}

/// Mounted filesystems that may hold data somebody could miss, in the order of mounting.
fn mounts_with_data() -> Vec<Mount> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    with_data(&table)
}

fn with_data(table: &str) -> Vec<Mount> {
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let writable = fields.next()?.split(',').any(|option| option == "rw");
        let of_interest = !IN_MEMORY.contains(&kind) && (place != "/" || writable);
        of_interest.then(|| Mount { place: unescape(place), kind: kind.to_owned() })
    });
    mounts.collect()
}

/// Filesystems without data that anybody could miss.
const IN_MEMORY: &[&str] = &[
    "bpf",
    "cgroup2",
    "debugfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "proc",
    "rootfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// /proc/self/mounts writes blanks, tabs, newlines and backslashes in octal, see fstab(5).
fn unescape(text: &str) -> String {
    let (mut plain, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                rest = &tail[3..];
            }
            (byte, _) => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Does it in a child, within its share of the step's time; what it says is left. False when it was not done in time.
fn within_share(ending: &mut Ending, clock: &mut Clock, act: impl FnOnce(&dyn Fn(String))) -> bool {
    let words = SharedText::new();
    let say = |word: String| {
        if let Ok(words) = &words {
            words.append(&word);
        }
    };
    clock.advance(clocks::monotonic());
    let until = clock.now() + ending.share_of_step(clock.now());
    let done = bounded(
        || act(&say),
        || {
            clock.advance(clocks::monotonic());
            clock.now() >= until
        },
    );
    words
        .iter()
        .flat_map(|words| words.read().lines().map(String::from).collect::<Vec<_>>())
        .for_each(|word| ending.left(word));
    done
}

/// Does it in a child, so that one that hangs is left behind. False when it was.
fn bounded(act: impl FnOnce(), mut too_late: impl FnMut() -> bool) -> bool {
    match clone::fork(None) {
        Ok(Forked::Child) => {
            act();
            clone::exit_now(0)
        }
        Ok(Forked::Parent { pid, pidfd: child }) => {
            while !matches!(wait::reap(pid), Ok(Some(_)) | Err(_)) {
                if too_late() {
                    let _ = pidfd::send_signal(child.as_fd(), Signal::SIGKILL as i32);
                    return false;
                }
                std::thread::sleep(LOOK);
            }
            true
        }
        // No memory for a child: then it may as well hang.
        Err(_) => {
            act();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_back_as_they_are() {
        assert_eq!(unescape(r"/a\040b\134c\0x"), "/a b\\c\\0x");
        assert_eq!(unescape(r"/\303\251"), "/é");
    }

    #[test]
    fn what_holds_data_is_unmounted_and_a_read_only_root_is_not() {
        let table = "rootfs / rootfs rw 0 0\n\
            /dev/vda / erofs ro,relatime 0 0\n\
            tmpfs /run tmpfs rw 0 0\n\
            /dev/vdb /data\\040one ext4 rw 0 0\n\
            tag /share virtiofs ro 0 0\n\
            overlay /o overlay rw 0 0\n";
        let places: Vec<String> = with_data(table).into_iter().map(|mount| mount.place).collect();
        assert_eq!(places, ["/data one", "/share", "/o"]);
        let root = with_data("/dev/vda / ext4 rw 0 0\n");
        assert_eq!((root[0].place.as_str(), root[0].kind.as_str()), ("/", "ext4"));
    }
}

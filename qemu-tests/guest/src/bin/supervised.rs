//! An injected supervisor that does as it is told: each start notes what it found, then carries out its line of
//! /run/spin-stack/orders (the first start the first line, and so on; the last line is for all that follow).
//!
//! Orders: `exit CODE MILLIS`, `run`, `ignore-term`, `leave CODE` (on SIGTERM), `say COUNT` (numbered lines of 64
//! bytes, then run), `dial PORT TEXT` (to the host; notes what came back, then run).
//!
//! Promises: a start is noted in /run/spin-stack/starts, a line each, before anything else is done.
//! Never: is built into an image that we ship.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::exit;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use nix::time::{ClockId, clock_gettime};

const DIRECTORY: &str = "/run/spin-stack";

fn main() {
    let started = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    let found = what_was_found(Duration::from(started).as_micros());
    let path = format!("{DIRECTORY}/starts");
    let _ = fs::create_dir_all(DIRECTORY);
    let mut starts = File::options().create(true).append(true).open(&path).expect("/run is there");
    writeln!(starts, "{found}").expect("room");
    let number = fs::read_to_string(&path).expect("ours").lines().count();

    let orders = fs::read_to_string(format!("{DIRECTORY}/orders")).unwrap_or_default();
    let order = orders.lines().nth(number - 1).or(orders.lines().last()).unwrap_or("run");
    println!("start {number}: {order}");
    let words: Vec<&str> = order.split(' ').collect();
    let parse = |text: &str| text.parse::<u64>().expect("a number");
    match words.as_slice() {
        ["exit", code, millis] => {
            sleep(Duration::from_millis(parse(millis)));
            exit(parse(code) as i32);
        }
        ["run"] => {}
        ["ignore-term"] => on_term(-1),
        ["leave", code] => on_term(parse(code) as i32),
        ["say", count] => {
            for line in 0..parse(count) {
                println!("{line:063}");
            }
        }
        ["dial", port, text] => {
            let answer = dial(parse(port) as u32, text);
            fs::write(format!("{DIRECTORY}/dialled"), answer).expect("room");
        }
        other => panic!("no order: {other:?}"),
    }
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// What a test may want to know of a start, as `key=value` words.
fn what_was_found(at: u128) -> String {
    let mut found = format!("at={at} pid={}", std::process::id());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Rust's runtime ignores SIGPIPE before main: what was there is seen by the others.
    for key in ["SigBlk", "NSpid"] {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        let _ = write!(found, " {key}={}", line.unwrap_or("?"));
    }
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    let ignored = ignored.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(u64::MAX);
    let _ = write!(found, " ignored={:x}", ignored & !(1 << (libc::SIGPIPE - 1)));
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let _ = write!(
        found,
        " oom={} cgroup={}",
        read("/proc/self/oom_score_adj"),
        read("/proc/self/cgroup")
    );
    let _ = write!(found, " file={}", read("/run/spin-supervisor.pid"));
    let mut fds: Vec<i32> = fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // The directory itself.
        .filter(|fd| {
            fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|to| !to.starts_with("/proc"))
        })
        .collect();
    fds.sort_unstable();
    let _ = write!(found, " fds={fds:?}").map(|()| found = found.replace(", ", ","));
    let own = std::env::current_exe().unwrap_or_default();
    let cwd = std::env::current_dir().unwrap_or_default();
    let _ = write!(found, " exe={} cwd={}", own.display(), cwd.display());
    let root = std::env::var("SPINBOX_OVERLAY_ROOT").unwrap_or_else(|_| "-".to_owned());
    let _ = write!(found, " root={root}");
    found
}

/// What to exit with, or -1.
static CODE: AtomicI32 = AtomicI32::new(-1);

/// Says so on SIGTERM, and leaves with `code` unless that is -1.
fn on_term(code: i32) {
    extern "C" fn told(_: i32) {
        let text = b"told to end\n";
        // SAFETY: write(2) and _exit(2) are async-signal-safe, and the text is as long as it is.
        unsafe {
            libc::write(1, text.as_ptr().cast(), text.len());
            if CODE.load(Ordering::Relaxed) >= 0 {
                libc::_exit(CODE.load(Ordering::Relaxed));
            }
        }
    }
    CODE.store(code, Ordering::Relaxed);
    // SAFETY: the handler does what handlers may, see there.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(told)) }.expect("a handler for SIGTERM");
    println!("ready");
}

/// Sends the text to a port of the host, ends its direction, and returns what comes back, or why nothing does.
fn dial(port: u32, text: &str) -> String {
    let made = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None);
    let made = made.expect("vsock is in the kernel");
    if let Err(errno) = connect(made.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port)) {
        return format!("connect: {errno:?}");
    }
    let mut stream = File::from(made);
    let talk = (|| {
        stream.write_all(text.as_bytes())?;
        nix::sys::socket::shutdown(stream.as_raw_fd(), nix::sys::socket::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    })();
    match talk {
        Ok(answer) => format!("answer: {answer}"),
        Err(error) => format!("talk: {error}"),
    }
}

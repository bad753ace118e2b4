//! A container's program that misbehaves on request: `misbehave VICE [ARG...]`.
//!
//! Owns: nothing; every vice is a function below, and `misbehave` alone lists them.
//! Promises: what it prints is the same for the same arguments, so that a test can compare bytes.
//! Never: is built into an image that we ship.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::exit;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, getppid, setsid};

/// Name, what it does with its arguments, and the code.
type Vice = (&'static str, &'static str, fn(&[String]));

const VICES: &[Vice] = &[
    ("exit", "CODE: exit with it", |a| exit(number(a, 0) as i32)),
    ("burst", "STDOUT_BYTES STDERR_BYTES: write that much pseudo-random output and exit", burst),
    ("look", ": print what PID 1 could have left behind in this process", |_| look()),
    ("orphans", "COUNT MILLIS: leave grandchildren that live that long, and exit", orphans),
    ("hold-stdout", "MILLIS: exit at once, but leave a grandchild that holds stdout", hold_stdout),
    ("ignore-term", ": print `ready`, sleep, ignore SIGTERM", |_| ignore_term()),
    ("handle-term", "CODE: print `ready`, exit with CODE on SIGTERM", handle_term),
    ("kill-self", "SIGNAL: die of it, in a child whose status becomes ours", kill_self),
    ("close-stdin", "MILLIS: close stdin at once and live on", close_stdin),
    ("never-read", ": print `ready` and never read stdin", |_| never_read()),
    ("vsock", "CID PORT: print the errno of making and connecting an AF_VSOCK socket", vsock),
    ("io-uring", ": print the errno of io_uring_setup", |_| io_uring()),
    ("hang", ": sleep for ever", |_| hang()),
    ("eat-memory", "MIB: touch that much and hold it for ever", eat_memory),
    ("uncover", ": unmount the root and print what is in /run below it", |_| uncover()),
    ("ticks", "COUNT MILLIS: print a numbered line at that pace", ticks),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let vice = args.first().and_then(|name| VICES.iter().find(|vice| vice.0 == name));
    match vice {
        Some(vice) => vice.2(&args[1..]),
        None => {
            for (name, what, _) in VICES {
                println!("misbehave {name} {what}");
            }
            exit(64);
        }
    }
}

fn number(args: &[String], at: usize) -> u64 {
    args.get(at).and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        eprintln!("misbehave: argument {} is no number", at + 1);
        exit(64)
    })
}

fn millis(args: &[String], at: usize) -> Duration {
    Duration::from_millis(number(args, at))
}

/// The bytes that `burst` writes: `seed` tells the two streams apart.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn burst(args: &[String]) {
    let (out, err) = (noise(1, number(args, 0) as usize), noise(2, number(args, 1) as usize));
    let writer = std::thread::spawn(move || {
        std::io::stderr().write_all(&err).expect("stderr is open");
    });
    std::io::stdout().write_all(&out).expect("stdout is open");
    std::io::stdout().flush().expect("stdout is open");
    writer.join().expect("the writer does not panic");
}

fn look() {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    // SigIgn is of no use here: Rust's start-up ignores SIGPIPE. Tests read it from busybox.
    for field in ["SigBlk", "SigPnd", "NoNewPrivs", "Seccomp", "Umask", "Groups"] {
        if let Some(line) = status.lines().find(|line| line.starts_with(&format!("{field}:"))) {
            println!("{}", line.replace('\t', " "));
        }
    }
    println!("oom_score_adj: {}", read_trimmed("/proc/self/oom_score_adj"));
    println!("cwd: {}", std::env::current_dir().expect("a directory").display());
    println!("cgroup: {}", read_trimmed("/proc/self/cgroup"));
    for limit in read_trimmed("/proc/self/limits").lines().filter(|l| l.starts_with("Max open")) {
        println!("{}", limit.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    // The directory fd of the listing itself is the one above the highest of ours.
    let mut fds: Vec<(u32, String)> = fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, target.display().to_string()))
        })
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .collect();
    fds.sort();
    for (fd, target) in fds {
        println!("fd {fd}: {}", target.split(':').next().unwrap_or(""));
    }
    let keys = fs::read_to_string("/proc/keys").unwrap_or_default();
    println!("keys: {}", keys.lines().filter(|line| line.contains("_ses")).count());
}

fn read_trimmed(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

/// Forks a child that forks `count` grandchildren running `body`, and waits for the child only.
fn leave_grandchildren(count: u64, body: impl Fn()) {
    // SAFETY: this program has one thread here, so that the child may run any code.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("our child");
        }
        ForkResult::Child => {
            setsid().expect("a fresh child leads no group");
            for _ in 0..count {
                // SAFETY: as above.
                if let ForkResult::Child = unsafe { fork() }.expect("fork") {
                    body();
                    exit(0);
                }
            }
            exit(0);
        }
    }
}

fn orphans(args: &[String]) {
    let life = millis(args, 1);
    leave_grandchildren(number(args, 0), || sleep(life));
    println!("left");
}

fn hold_stdout(args: &[String]) {
    let life = millis(args, 0);
    let parent = std::process::id();
    leave_grandchildren(1, || {
        while getppid().as_raw() == parent as i32 {
            sleep(Duration::from_millis(1));
        }
        sleep(life);
        println!("late");
    });
    println!("early");
}

fn ignore_term() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.expect("SIGTERM may be ignored");
    println!("ready");
    hang();
}

fn handle_term(args: &[String]) {
    extern "C" fn leave(_: libc::c_int) {
        let code = CODE.load(std::sync::atomic::Ordering::Relaxed);
        // SAFETY: _exit is async-signal-safe.
        unsafe { libc::_exit(code) }
    }
    static CODE: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
    CODE.store(number(args, 0) as i32, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the handler only calls _exit.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(leave)) }.expect("a handler for SIGTERM");
    println!("ready");
    hang();
}

fn kill_self(args: &[String]) {
    let number = number(args, 0) as i32;
    // SAFETY: this program has one thread here.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            use nix::sys::wait::{WaitStatus, waitpid};
            match waitpid(child, None).expect("our child") {
                WaitStatus::Exited(_, code) => exit(code),
                WaitStatus::Signaled(_, signal, _) => exit(128 + signal as i32),
                other => panic!("neither exited nor killed: {other:?}"),
            }
        }
        ForkResult::Child => {
            let signal = Signal::try_from(number).expect("a signal's number");
            nix::sys::signal::raise(signal).expect("raise");
            hang();
        }
    }
}

fn close_stdin(args: &[String]) {
    // SAFETY: fd 0 is open and nobody else in this program uses it.
    drop(unsafe { fs::File::from_raw_fd(0) });
    println!("closed");
    sleep(millis(args, 0));
}

fn never_read() {
    println!("ready");
    hang();
}

fn vsock(args: &[String]) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
    let made = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None);
    match made {
        Err(errno) => println!("socket: {errno:?}"),
        Ok(fd) => {
            let address = VsockAddr::new(number(args, 0) as u32, number(args, 1) as u32);
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => println!("connected"),
                Err(errno) => println!("connect: {errno:?}"),
            }
        }
    }
}

fn io_uring() {
    let mut params = [0u8; 120];
    // SAFETY: the kernel writes at most the 120 bytes of struct io_uring_params.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    match nix::errno::Errno::result(result) {
        Ok(_) => println!("made"),
        Err(errno) => println!("io_uring_setup: {errno:?}"),
    }
}

fn hang() {
    std::io::stdout().flush().expect("stdout is open");
    loop {
        sleep(Duration::from_secs(3600));
    }
}

fn eat_memory(args: &[String]) {
    // Or, at the limit, the kernel may read the program's pages again and again for minutes before it kills.
    // SAFETY: takes an integer.
    unsafe { libc::mlockall(libc::MCL_CURRENT) };
    let mut eaten = Vec::new();
    for _ in 0..number(args, 0) {
        eaten.push(noise(eaten.len() as u64, 1 << 20));
    }
    println!("ate {}", eaten.len());
    let mut last = [0];
    // Keeps the memory alive until the test ends stdin.
    let _ = std::io::stdin().read(&mut last);
    hang();
}

fn uncover() {
    let namespace = fs::File::open("/proc/self/ns/mnt").expect("/proc is mounted");
    // SAFETY: a path that ends in NUL, and a descriptor that is open.
    let results = unsafe {
        // Entering a namespace means to be at its root.
        let detached = libc::umount2(c"/".as_ptr(), libc::MNT_DETACH);
        [detached, libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS)]
    };
    assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
    for entry in fs::read_dir("/run").into_iter().flatten().flatten() {
        println!("{}", entry.file_name().to_string_lossy());
    }
}

fn ticks(args: &[String]) {
    let pause = millis(args, 1);
    for tick in 0..number(args, 0) {
        println!("{tick}");
        std::io::stdout().flush().expect("stdout is open");
        sleep(pause);
    }
}

//! Programs that take all there is of something that the kernel has once for everybody.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::exit;
use std::time::Duration;

/// `hog epoll|inotify|processes`: takes all, prints how much, and holds it until it is killed;
/// `hog disk DIRECTORY...`: fills them, prints how many MiB, and exits with 3.
pub fn hog(what: &str, rest: &[&str]) {
    let taken = match what {
        "epoll" => epoll(),
        "inotify" => inotify(),
        "processes" => processes(),
        "disk" => {
            let taken: u64 = rest.iter().map(|directory| fill(directory)).sum();
            println!("{}", taken >> 20);
            exit(3);
        }
        _ => exit(64),
    };
    println!("{taken}");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// More than the kernel allows by default in a VM of this size (some 100,000).
const WATCHES: u64 = 200_000;

/// Watches of pipes by as many epolls as it takes.
fn epoll() -> u64 {
    let mut watched = vec![];
    for _ in 0..100 {
        watched.push(std::io::pipe().expect("a pipe").0);
    }
    let mut taken = 0;
    // A process has room for so many descriptors; the rest is its children's.
    loop {
        let mut here = 0;
        for _ in 0..800 {
            // SAFETY: takes an integer.
            let epoll = unsafe { libc::epoll_create1(0) };
            if epoll < 0 {
                break;
            }
            for pipe in &watched {
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
                // SAFETY: the event outlives the call.
                let added = unsafe {
                    libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, pipe.as_raw_fd(), &raw mut event)
                };
                if added < 0 {
                    return taken + here;
                }
                here += 1;
            }
            if taken + here >= WATCHES {
                return taken + here;
            }
        }
        taken += here;
        if !go_on_in_child() {
            break;
        }
    }
    taken
}

fn inotify() -> u64 {
    let mut taken = 0;
    // SAFETY: takes an integer.
    while unsafe { libc::inotify_init1(0) } >= 0 {
        taken += 1;
    }
    taken
}

fn processes() -> u64 {
    let mut taken = 0;
    loop {
        // SAFETY: this process has one thread, and the child only waits.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            },
            -1 => return taken,
            _ => taken += 1,
        }
    }
}

/// The parent sleeps on what it has, the child returns, with the same descriptors closed.
fn go_on_in_child() -> bool {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: takes integers; nothing above the watched pipes is used again.
            unsafe { libc::close_range(110, u32::MAX, 0) };
            true
        }
        -1 => false,
        _ => loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        },
    }
}

fn fill(directory: &str) -> u64 {
    let (block, mut written) = (vec![7_u8; 1 << 20], 0);
    let Ok(mut file) = File::create(format!("{directory}/filled")) else { return 0 };
    while let Ok(bytes) = file.write(&block) {
        written += bytes as u64;
        if bytes == 0 || written > 1 << 30 {
            break;
        }
    }
    written
}

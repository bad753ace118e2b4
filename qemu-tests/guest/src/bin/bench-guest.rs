//! What `./dev bench` runs inside the VM: the containers' programs, and a driver that measures from within.
//!
//! | called as | what it does |
//! |---|---|
//! | `exit` | ends at once |
//! | `sleep` | waits for a signal |
//! | `pour COUNT` | writes that many blocks of 64 KiB to standard output |
//! | `read PATH BYTES BLOCK` | reads so much of a file, and prints the microseconds that it took |
//! | `drive` | reads a command a line, answers with a line each ([`obey`]); its container sees the guest's root on /guest |
//!
//! Promises: a command that fails is answered with `error ...`, and the next one is taken.
//! Never: is built into an image that we ship.

#[path = "bench-guest/disks.rs"]
mod disks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket,
};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, chroot, fork, pause};

/// Bytes of one write.
const BLOCK: usize = 64 * 1024;
const CRUN: &str = "/usr/bin/crun";
/// crun's state, and the pid files.
const CRUN_ROOT: &str = "/run/bench-crun";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["exit"] => {}
        ["sleep"] => pause(),
        ["pour", count] => {
            let count = count.parse().expect("a number");
            pour(&mut io::stdout().lock(), count).expect("standard output");
        }
        ["read", path, bytes, block] => {
            let number = |word: &str| word.parse().expect("a number");
            let took = disks::read(path, number(bytes), number(block)).expect("a file");
            println!("{}", micros(took));
        }
        ["drive"] => drive().expect("standard input and output"),
        _ => {
            eprintln!("bench-guest exit | sleep | pour COUNT | read PATH BYTES BLOCK | drive");
            std::process::exit(64);
        }
    }
}

fn pour(to: &mut impl Write, count: usize) -> io::Result<()> {
    let block = vec![b'x'; BLOCK];
    (0..count).try_for_each(|_| to.write_all(&block))
}

fn drive() -> io::Result<()> {
    chroot("/guest")?;
    chdir("/")?;
    // Or PID 1 would get crun's containers.
    nix::sys::prctl::set_child_subreaper(true)?;
    fs::create_dir_all(CRUN_ROOT)?;
    let mut measuring = Measuring::default();
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = obey(&words, &mut measuring).unwrap_or_else(|error| format!("error {error}"));
        println!("{answer}");
    }
    Ok(())
}

/// What goes on between two commands.
#[derive(Default)]
struct Measuring {
    counter: Option<Counter>,
    profile: Option<Profile>,
}

/// | command | answer |
/// |---|---|
/// | `crun BUNDLE ID` | microseconds of create, start, delete and of the whole life, then user and system time |
/// | `crun-start BUNDLE ID` | starts a container that stays |
/// | `crun-exec ID` | microseconds of an exec in it |
/// | `crun-count BUNDLE ID` | system calls of a whole life: how many, then `0/NUMBER/COUNT` for each |
/// | `count` | counts system calls of init, agent and whatever they fork, from now on |
/// | `counted` | how many there were since `count`, then `WHO/NUMBER/COUNT`, WHO being 1 (init), 2 (the agent's threads of then), 0 |
/// | `profile` | samples the CPU from now on |
/// | `profiled` | `AGENT PID:PLACE PID:PLACE ...`, a sample each: `CALL/FUNCTION` of the kernel, or an address in user space |
/// | `memory` | PSS of init and agent in KiB |
/// | `mappings` | the same by mapping: `NAME FLAGS PSS`, comma-separated, those of 8 KiB and more |
/// | `clock` | microseconds since boot, and of these idle |
/// | `drop-caches` | nothing of files and disks is in memory any more |
/// | `read-disk SERIAL BYTES BLOCK` | microseconds to read so much of a disk |
/// | `mount-layers SERIAL COUNT` | microseconds of the kernel's to mount a disk's first partitions and an overlay of them |
/// | `listen PORT COUNT` | `listening`; then a connection gets that many blocks of 64 KiB, and `done` |
fn obey(words: &[&str], measuring: &mut Measuring) -> io::Result<String> {
    let Measuring { counter, profile } = measuring;
    match words {
        ["crun", bundle, id] => crun_life(bundle, id).map(|times| join(&times)),
        ["crun-start", bundle, id] => {
            create(bundle, id)?;
            crun(&["start", id]).map(|()| "started".to_owned())
        }
        ["crun-exec", id] => {
            let begun = Instant::now();
            crun(&["exec", id, "/bin/bench-guest", "exit"])?;
            Ok(micros(begun.elapsed()).to_string())
        }
        ["crun-count", bundle, id] => crun_count(bundle, id),
        ["count"] => {
            *counter = Some(Counter::start()?);
            Ok("counting".to_owned())
        }
        ["counted"] => match counter.take() {
            Some(counter) => counter.stop(),
            None => Err(io::Error::other("nothing is counted")),
        },
        ["profile"] => {
            *profile = Some(Profile::start()?);
            Ok("profiling".to_owned())
        }
        ["profiled"] => match profile.take() {
            Some(profile) => Ok(format!("{} {}", agent()?, profile.stop())),
            None => Err(io::Error::other("nothing is profiled")),
        },
        ["memory"] => Ok(format!("{} {}", pss(1)?, pss(agent()?)?)),
        ["mappings"] => Ok(format!("init: {}; agent: {}", mappings(1)?, mappings(agent()?)?)),
        ["clock"] => clock(),
        ["drop-caches"] => disks::drop_caches().map(|()| "dropped".to_owned()),
        ["read-disk", serial, bytes, block] => {
            let (bytes, block) = (bytes.parse(), block.parse());
            let (bytes, block) =
                (bytes.map_err(io::Error::other)?, block.map_err(io::Error::other)?);
            disks::read(&disks::node(serial)?, bytes, block).map(|took| micros(took).to_string())
        }
        ["mount-layers", serial, count] => {
            let count = count.parse().map_err(io::Error::other)?;
            let took = disks::mount_layers(&disks::node(serial)?, count)?;
            Ok(micros(took).to_string())
        }
        ["listen", port, count] => {
            let port = port.parse().map_err(io::Error::other)?;
            serve_blocks(port, count.parse().map_err(io::Error::other)?)
        }
        _ => Err(io::Error::other("no such command")),
    }
}

fn join(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

fn crun(arguments: &[&str]) -> io::Result<()> {
    let mut command = Command::new(CRUN);
    command.args(["--root", CRUN_ROOT, "--cgroup-manager", "cgroupfs"]).args(arguments);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("crun {}: {status}", arguments.join(" ")))),
    }
}

/// The container's init, a child of ours since crun ended.
fn create(bundle: &str, id: &str) -> io::Result<Pid> {
    let pid_file = format!("{CRUN_ROOT}.{id}");
    crun(&["create", "--bundle", bundle, "--pid-file", &pid_file, id])?;
    let pid = fs::read_to_string(&pid_file)?;
    fs::remove_file(&pid_file)?;
    Ok(Pid::from_raw(pid.trim().parse().map_err(io::Error::other)?))
}

fn crun_life(bundle: &str, id: &str) -> io::Result<[u64; 6]> {
    let before = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let begun = Instant::now();
    let pid = create(bundle, id)?;
    let created = Instant::now();
    crun(&["start", id])?;
    let started = Instant::now();
    waitpid(pid, None)?;
    let exited = Instant::now();
    crun(&["delete", id])?;
    let deleted = Instant::now();
    let after = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let used = |after: nix::sys::time::TimeVal, before| (after - before).num_microseconds() as u64;
    Ok([
        micros(created - begun),
        micros(started - created),
        micros(deleted - exited),
        micros(deleted - begun),
        used(after.user_time(), before.user_time()),
        used(after.system_time(), before.system_time()),
    ])
}

fn crun_count(bundle: &str, id: &str) -> io::Result<String> {
    // SAFETY: this process has no other thread, so the child may do what it likes.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = nix::sys::prctl::set_child_subreaper(true);
            // Until the tracer is there.
            let _ = raise(Signal::SIGSTOP);
            let done = crun_life(bundle, id);
            std::process::exit(i32::from(done.is_err()));
        }
        ForkResult::Parent { child } => {
            waitpid(child, Some(WaitPidFlag::WUNTRACED))?;
            ptrace::seize(child, follow())?;
            ptrace::interrupt(child)?;
            kill(child, Signal::SIGCONT)?;
            count_until(Some(child), &[])
        }
    }
}

fn follow() -> ptrace::Options {
    use ptrace::Options;
    Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
}

/// How often each of init (1), the agent (its pid) and all others (0) made each system call.
type Calls = BTreeMap<(i32, u64), u64>;

/// Lets all tracees run and counts their system calls, until `last` has exited, or until a signal with `None`.
fn count_until(last: Option<Pid>, agent: &[Pid]) -> io::Result<String> {
    let mut calls = Calls::new();
    // Each call is seen at its entry and at its exit.
    let mut inside = BTreeSet::new();
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL));
        let (pid, signal) = match status {
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                if !inside.remove(&pid) {
                    inside.insert(pid);
                    let who = match pid.as_raw() {
                        1 => 1,
                        _ if agent.contains(&pid) => 2,
                        _ => 0,
                    };
                    let number = ptrace::getregs(pid).map_or(u64::MAX, |regs| number(&regs));
                    *calls.entry((who, number)).or_default() += 1;
                }
                (pid, None)
            }
            Ok(WaitStatus::PtraceEvent(pid, _, _)) => (pid, None),
            Ok(WaitStatus::Stopped(pid, signal)) => {
                (pid, Some(signal).filter(|signal| *signal != Signal::SIGTRAP))
            }
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                if Some(pid) == last {
                    break;
                }
                continue;
            }
            Ok(_) => continue,
            // Told to end.
            Err(Errno::EINTR | Errno::ECHILD) => break,
            Err(errno) => return Err(errno.into()),
        };
        // ESRCH: killed meanwhile.
        let _ = ptrace::syscall(pid, signal);
    }
    let mut text = calls.values().sum::<u64>().to_string();
    for ((who, number), count) in calls {
        text.push_str(&format!(" {who}/{number}/{count}"));
    }
    Ok(text)
}

/// A process that counts, since a tracer has to wait for its tracees all the time.
struct Counter {
    tracer: Pid,
    result: io::PipeReader,
}

impl Counter {
    fn start() -> io::Result<Self> {
        let (mut result, mut writer) = io::pipe()?;
        let agent = agent()?;
        let mut traced = vec![Pid::from_raw(1)];
        for thread in fs::read_dir(format!("/proc/{agent}/task"))? {
            let id = thread?.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
            traced.push(Pid::from_raw(id));
        }
        // SAFETY: this process has no other thread, so the child may do what it likes.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let counted = Self::count(&traced, &mut writer);
                let text = counted.unwrap_or_else(|error| format!("error {error}"));
                let sent = writer.write_all(text.as_bytes());
                // Its tracees go on without it.
                std::process::exit(i32::from(sent.is_err()));
            }
            ForkResult::Parent { child } => {
                drop(writer);
                let mut started = [0];
                result.read_exact(&mut started)?;
                Ok(Self { tracer: child, result })
            }
        }
    }

    fn count(traced: &[Pid], started: &mut impl Write) -> io::Result<String> {
        extern "C" fn nothing(_: i32) {}
        let action =
            SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing; it is there so that waiting is interrupted.
        unsafe { sigaction(Signal::SIGTERM, &action) }?;
        for pid in traced {
            ptrace::seize(*pid, follow())?;
            ptrace::interrupt(*pid)?;
        }
        started.write_all(b"\n")?;
        count_until(None, &traced[1..])
    }

    fn stop(mut self) -> io::Result<String> {
        let tracer = self.tracer;
        let (done, is_done) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let read = self.result.read_to_string(&mut text);
            let _ = done.send(());
            read.map(|_| text)
        });
        // A signal that comes between two waits interrupts nothing.
        while is_done.recv_timeout(Duration::from_millis(20)).is_err() {
            kill(tracer, Signal::SIGTERM)?;
        }
        waitpid(tracer, None)?;
        let text = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
        Ok(text.trim().to_owned())
    }
}

/// Samples of the CPU, by the kernel's clock; see perf_event_open(2).
struct Profile {
    _event: OwnedFd,
    /// The ring's header page, followed by [`RING_PAGES`] of records.
    ring: *const u8,
}

const PAGE: usize = 4096;
/// Room for some 50,000 samples.
const RING_PAGES: usize = 4096;
const SAMPLES_A_SECOND: u64 = 4000;

impl Profile {
    fn start() -> io::Result<Self> {
        // struct perf_event_attr up to its second version's end: type and size, config, frequency, what a sample has
        // (address, pid, calls), how it is read, flags (idle left out, frequency, calls of the kernel alone).
        let flags: u64 = 1 << 7 | 1 << 10 | 1 << 22;
        let attr: [u64; 9] = [1 | 72 << 32, 0, SAMPLES_A_SECOND, 1 | 2 | 32, 0, flags, 0, 0, 0];
        // SAFETY: the kernel reads as many bytes as the size says, and makes a descriptor that nobody else has.
        let event = unsafe {
            let event = libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, 0, -1, 8);
            Errno::result(event)?;
            <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(event as i32)
        };
        let length = (1 + RING_PAGES) * PAGE;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, event.as_raw_fd());
        // SAFETY: a new mapping, which lives as long as this process.
        let ring =
            unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0) };
        if ring == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { _event: event, ring: ring.cast() })
    }

    fn stop(self) -> String {
        // SAFETY: data_head lies at 1024 of the header page; the kernel writes the ring, which is larger than all that
        // it is asked for, front to back.
        let records = unsafe {
            let head = self.ring.add(1024).cast::<u64>().read_volatile() as usize;
            std::slice::from_raw_parts(self.ring.add(PAGE), head.min(RING_PAGES * PAGE))
        };
        let symbols = kernel_symbols();
        let mut text = String::new();
        let word = |at: usize| -> Option<u64> {
            let bytes = records.get(at..at + 8)?;
            Some(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        let name = |address: u64| {
            let at = symbols.partition_point(|(start, _)| *start <= address).checked_sub(1)?;
            symbols.get(at).map(|(_, name)| name.as_str())
        };
        let mut at = 0;
        // A header of kind and size, address, pid and thread, length of the call chain, the chain.
        while let (Some(header), Some(address), Some(pid), Some(calls)) =
            (word(at), word(at + 8), word(at + 16), word(at + 24))
        {
            let (kind, size) = (header as u32, (header >> 48) as usize);
            if kind == 9 {
                let chain = (0..calls as usize).filter_map(|call| name(word(at + 32 + 8 * call)?));
                let mut entry = chain.filter(|name| {
                    name.starts_with("__x64_sys_")
                        || name.contains("page_fault")
                        || *name == "ret_from_fork"
                });
                let pid = pid as u32;
                match (name(address), entry.next_back()) {
                    (Some(place), Some(entry)) => text.push_str(&format!("{pid}:{entry}/{place} ")),
                    (Some(place), None) => text.push_str(&format!("{pid}:-/{place} ")),
                    (None, _) => text.push_str(&format!("{pid}:{address:x} ")),
                }
            }
            at += size.max(8);
        }
        text.trim_end().to_owned()
    }
}

/// The kernel's functions by address; user space lies below them all.
fn kernel_symbols() -> Vec<(u64, String)> {
    let text = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let symbol = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let function = words.next()?.eq_ignore_ascii_case("t") && address >> 63 == 1;
        function.then(|| Some((address, words.next()?.to_owned())))?
    };
    let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
    symbols.sort();
    symbols
}

fn agent() -> io::Result<i32> {
    let entries = fs::read_dir("/proc")?;
    let mut pids =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_agent = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "vminitd-agent\n")
    };
    pids.find(is_agent).ok_or_else(|| io::Error::other("no agent runs"))
}

fn pss(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    number.ok_or_else(|| io::Error::other("no Pss line"))
}

fn mappings(pid: i32) -> io::Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut name, mut all) = (String::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["Pss:", kib, "kB"] if kib.parse::<u64>().is_ok_and(|kib| kib >= 8) => {
                all.push(format!("{name} {kib}"));
            }
            [_, flags, _, _, _, rest @ ..] if flags.len() == 4 => {
                name = format!("{} {flags}", rest.first().unwrap_or(&"anonymous"));
            }
            _ => {}
        }
    }
    Ok(all.join(", "))
}

/// Microseconds since the boot and of these idle, the first CPU's alone, in ticks of 10 ms (the benchmark's VMs have one);
/// and how often that CPU has changed from one thread to another.
fn clock() -> io::Result<String> {
    let text = fs::read_to_string("/proc/uptime")?;
    let mut seconds = text.split_ascii_whitespace().filter_map(|word| word.parse::<f64>().ok());
    let mut next = || (seconds.next().unwrap_or_default() * 1e6) as u64;
    let stat = fs::read_to_string("/proc/stat")?;
    let switches = stat.lines().find_map(|line| line.strip_prefix("ctxt "));
    Ok(format!("{} {} {}", next(), next(), switches.unwrap_or("0")))
}

fn serve_blocks(port: u32, count: usize) -> io::Result<String> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen(&listener, Backlog::new(1)?)?;
    println!("listening");
    let connection = accept(listener.as_raw_fd())?;
    // SAFETY: accept(2) has just made it, and nobody else has it.
    let connection = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(connection) };
    pour(&mut File::from(connection), count)?;
    Ok("done".to_owned())
}

/// The system call that a process has entered.
fn number(registers: &libc::user_regs_struct) -> u64 {
    #[cfg(target_arch = "x86_64")]
    return registers.orig_rax;
    #[cfg(target_arch = "aarch64")]
    return registers.regs[8];
}

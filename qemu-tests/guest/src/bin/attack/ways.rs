//! The ways out, a function each.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::name;

/// Name, and what it reaches or what keeps it from that.
pub type Way = (&'static str, fn() -> Result<String, String>);

pub const WAYS: &[Way] = &[
    ("vsock", vsock),
    ("vsock-pair", vsock_pair),
    ("io-uring", io_uring),
    ("x32-socket", x32_socket),
    ("int80-socket", int80_socket),
    ("inherited-fds", inherited_fds),
    ("cgroup-tree", cgroup_tree),
    ("cgroup-limit", cgroup_limit),
    ("cgroup-v1", cgroup_v1),
    ("cgroup-handle", cgroup_handle),
    ("guest-run", guest_run),
    ("mount-namespaces", mount_namespaces),
    ("parent-namespaces", parent_namespaces),
    ("processes", processes),
    ("proc-mount", proc_mount),
    ("signal", signal),
    ("core-pattern", || write_proc("kernel/core_pattern", "core\n")),
    ("sysctl", || rewrite("/proc/sys/kernel/pid_max")),
    ("sysrq", || open_to_write("/proc/sysrq-trigger").map(|_| "it opens".to_owned())),
    ("module", module),
    ("kexec", kexec),
    ("devtmpfs", || mounted("devtmpfs", "null")),
    ("debugfs", || mounted("debugfs", "")),
    ("tracefs", || mounted("tracefs", "")),
    ("bpffs", || mounted("bpf", "")),
    ("securityfs", || mounted("securityfs", "")),
    ("sysfs", || {
        remount("/sys")?;
        rewrite("/sys/kernel/rcu_expedited")
    }),
    ("disk", || device(SFlag::S_IFBLK, 254, 0)),
    ("memory", || device(SFlag::S_IFCHR, 1, 1)),
    ("kmsg", || device(SFlag::S_IFCHR, 1, 11)),
    ("kernel-log", kernel_log),
    ("clock", clock),
    ("ports", ports),
    ("perf", perf),
    ("bpf-programs", bpf_programs),
    ("bpf-detach", bpf_detach),
    ("oom-score", || {
        write("/proc/self/oom_score_adj", "-1000").map(|()| "it is spared".to_owned())
    }),
    ("agent-keys", agent_keys),
];

fn errno<T>(result: Result<T, Errno>, what: &str) -> Result<T, String> {
    result.map_err(|errno| format!("{what}: {}", name(errno)))
}

fn io<T>(result: std::io::Result<T>, what: &str) -> Result<T, String> {
    let errno = |error: &std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    result.map_err(|error| format!("{what}: {}", name(errno(&error))))
}

fn checked(answer: libc::c_long, what: &str) -> Result<libc::c_long, String> {
    errno(Errno::result(answer), what)
}

/// The agent's ports, from within: the local address, the host, this VM's own, any.
fn vsock() -> Result<String, String> {
    let mut why = String::new();
    for cid in [1, 2, 3, u32::MAX] {
        for port in [1024, 1025] {
            // SAFETY: takes integers.
            let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) };
            let fd = checked(fd.into(), "socket")? as i32;
            // SAFETY: plain data, for which all zero is valid.
            let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
            address.svm_family = libc::AF_VSOCK as u16;
            (address.svm_cid, address.svm_port) = (cid, port);
            let length = size_of_val(&address) as u32;
            // SAFETY: the address outlives the call and has that length.
            let answer = unsafe { libc::connect(fd, (&raw const address).cast(), length) };
            match checked(answer.into(), "connect") {
                // A connection that is accepted and closed at once is none.
                Ok(_) if answers(fd) => return Ok(format!("cid {cid} port {port} answers")),
                Ok(_) => why = format!("cid {cid} port {port} hangs up"),
                Err(error) => why = error,
            }
        }
    }
    Err(why)
}

/// Whether there is anybody: the agent answers a ping on its RPC port with a frame.
fn answers(fd: i32) -> bool {
    // SAFETY: the descriptor is open and nobody else's.
    let mut socket = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.write_all(&[0; 10]).is_ok() && socket.read(&mut [0; 16]).is_ok_and(|bytes| bytes > 0)
}

fn vsock_pair() -> Result<String, String> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    let answer =
        unsafe { libc::socketpair(libc::AF_VSOCK, libc::SOCK_STREAM, 0, fds.as_mut_ptr()) };
    checked(answer.into(), "socketpair").map(|_| "a pair".to_owned())
}

fn io_uring() -> Result<String, String> {
    let mut parameters = [0_u8; 120];
    // SAFETY: io_uring_setup(2) writes a struct io_uring_params, of 120 bytes.
    let answer = unsafe { libc::syscall(425, 1, parameters.as_mut_ptr()) };
    checked(answer, "io_uring_setup").map(|_| "a ring".to_owned())
}

#[cfg(target_arch = "x86_64")]
fn x32_socket() -> Result<String, String> {
    // SAFETY: takes integers.
    let answer = unsafe { libc::syscall(0x4000_0000 + libc::SYS_socket, libc::AF_VSOCK, 1, 0) };
    checked(answer, "socket").map(|_| "a socket".to_owned())
}

/// The 32-bit entry, where filters by number see other numbers.
#[cfg(target_arch = "x86_64")]
fn int80_socket() -> Result<String, String> {
    let mut answer: i64 = 359; // socket on i386
    // SAFETY: takes integers; rbx is saved by hand, as the compiler keeps it for itself. The 32-bit entry clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "push rbx", "mov ebx, 40", "int 0x80", "pop rbx",
            inout("rax") answer, in("rcx") 1, in("rdx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match answer as i32 {
        fd if fd >= 0 => Ok("a socket".to_owned()),
        error => Err(format!("socket: {}", name(Errno::from_raw(-error)))),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x32_socket() -> Result<String, String> {
    Err("no such calls here".to_owned())
}

#[cfg(not(target_arch = "x86_64"))]
fn int80_socket() -> Result<String, String> {
    Err("no such calls here".to_owned())
}

fn inherited_fds() -> Result<String, String> {
    let own = io(fs::read_dir("/proc/self/fd"), "/proc/self/fd")?;
    let others = own
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|fd| *fd > 2);
    // One is the directory that is being read.
    let others: Vec<_> =
        others.filter_map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).ok()).collect();
    let others: Vec<_> = others.iter().filter(|path| !path.starts_with("/proc")).collect();
    if others.is_empty() { Err("none".to_owned()) } else { Ok(format!("{others:?}")) }
}

/// A fresh mount of a cgroup hierarchy; what of it is not ours?
fn cgroup_tree() -> Result<String, String> {
    foreign_cgroups(&fresh("cgroup2", "cgroup2", None)?)
}

fn foreign_cgroups(root: &str) -> Result<String, String> {
    let found =
        ["vminitd", "containers"].into_iter().find(|name| Path::new(root).join(name).exists());
    found.map(|name| format!("cgroup {name}")).ok_or("only its own cgroup".to_owned())
}

/// To lift its own limit.
fn cgroup_limit() -> Result<String, String> {
    let root = fresh("cgroup2", "cgroup2", None)
        .or_else(|_| remount("/sys/fs/cgroup").map(|()| "/sys/fs/cgroup".to_owned()))?;
    write(&format!("{root}/memory.max"), "max").map(|()| "memory.max is its to write".to_owned())
}

/// Version 1 has a release_agent.
fn cgroup_v1() -> Result<String, String> {
    fresh("v1", "cgroup", Some("none,name=attack")).map(|_| "a hierarchy".to_owned())
}

/// By handle, past every mount: the root cgroup is number 1.
fn cgroup_handle() -> Result<String, String> {
    let root = fresh("cgroup2", "cgroup2", None).unwrap_or("/sys/fs/cgroup".to_owned());
    let mount = io(File::open(&root), "open the mount")?;
    // struct file_handle: bytes, type (FILEID_KERNFS), then the number.
    let mut handle = [0_u8; 16];
    handle[..4].copy_from_slice(&8_u32.to_ne_bytes());
    handle[4..8].copy_from_slice(&0xfe_u32.to_ne_bytes());
    handle[8..].copy_from_slice(&1_u64.to_ne_bytes());
    // SAFETY: the handle has the layout and length that it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            handle.as_mut_ptr(),
            libc::O_RDONLY,
        )
    };
    let fd = checked(fd, "open_by_handle_at")?;
    foreign_cgroups(&format!("/proc/self/fd/{fd}"))
}

fn guest_run() -> Result<String, String> {
    let places = [
        "/run/vminitd",
        "/run/bundles",
        "/proc/1/root/run/vminitd",
        "/proc/self/root/run/vminitd",
        "/../run/vminitd",
    ];
    let found = places.into_iter().find(|path| Path::new(path).exists());
    found.map(str::to_owned).ok_or("no such directory".to_owned())
}

/// Linux 6.12 lists all mount namespaces to whoever administers their user namespace.
fn mount_namespaces() -> Result<String, String> {
    let own = io(File::open("/proc/self/ns/mnt"), "open")?;
    let own_number = io(own.metadata(), "stat")?.ino();
    let mut why = String::new();
    // NS_MNT_GET_NEXT and NS_MNT_GET_PREV in linux/nsfs.h; both give 16 bytes of struct mnt_ns_info.
    for request in [0x8010_b70b_u64, 0x8010_b70c] {
        let mut info = [16_u64; 2];
        // SAFETY: room for the structure.
        let fd = unsafe { libc::ioctl(own.as_raw_fd(), request, info.as_mut_ptr()) };
        match checked(fd.into(), "ioctl") {
            Err(error) => why = error,
            Ok(fd) => {
                // SAFETY: the kernel has just made it for us.
                let other = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
                if io(other.metadata(), "stat")?.ino() != own_number {
                    return Ok("another mount namespace".to_owned());
                }
            }
        }
    }
    Err(why)
}

fn parent_namespaces() -> Result<String, String> {
    let mut why = String::new();
    for kind in ["pid", "user"] {
        let own = io(File::open(format!("/proc/self/ns/{kind}")), "open")?;
        // SAFETY: NS_GET_PARENT in linux/nsfs.h takes nothing.
        let fd = unsafe { libc::ioctl(own.as_raw_fd(), 0xb702) };
        match checked(fd.into(), "ioctl") {
            Ok(_) => return Ok(format!("the parent of its {kind} namespace")),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn processes() -> Result<String, String> {
    foreign_processes("/proc")
}

fn proc_mount() -> Result<String, String> {
    foreign_processes(&fresh("proc", "proc", None)?)
}

fn foreign_processes(proc: &str) -> Result<String, String> {
    for entry in io(fs::read_dir(proc), "read /proc")?.filter_map(Result::ok) {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if ["vminitd-agent", "kthreadd"].contains(&name.trim()) {
            return Ok(format!("process {:?}", entry.file_name()));
        }
    }
    Err("only its own".to_owned())
}

/// Every number that a process could have.
fn signal() -> Result<String, String> {
    // SAFETY: takes nothing.
    let own = [1, unsafe { libc::getpid() }, unsafe { libc::getppid() }];
    for pid in (1..=32_768).filter(|pid| !own.contains(pid)) {
        // SAFETY: takes integers; signal 0 only asks.
        if unsafe { libc::kill(pid, 0) } == 0 {
            return Ok(format!("process {pid}"));
        }
    }
    Err("nobody there".to_owned())
}

fn module() -> Result<String, String> {
    // SAFETY: no memory is passed.
    let answer = unsafe { libc::syscall(libc::SYS_init_module, 0, 0, 0) };
    checked(answer, "init_module").map(|_| "loaded".to_owned())
}

fn kexec() -> Result<String, String> {
    // SAFETY: no segments, so nothing is read.
    let answer = unsafe { libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0) };
    checked(answer, "kexec_load").map(|_| "loaded".to_owned())
}

fn device(kind: SFlag, major: u64, minor: u64) -> Result<String, String> {
    let path = format!("/dev/attack-{major}-{minor}");
    errno(
        mknod(path.as_str(), kind, Mode::from_bits_truncate(0o600), makedev(major, minor)),
        "mknod",
    )?;
    let opened = io(File::open(&path), "open");
    let _ = fs::remove_file(&path);
    opened.map(|_| "it opens".to_owned())
}

fn kernel_log() -> Result<String, String> {
    let mut text = [0_u8; 4096];
    // SAFETY: room for that many bytes; 3 is SYSLOG_ACTION_READ_ALL.
    let answer = unsafe { libc::syscall(libc::SYS_syslog, 3, text.as_mut_ptr(), text.len()) };
    checked(answer, "syslog").map(|_| "it reads".to_owned())
}

/// To what it is already.
fn clock() -> Result<String, String> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both point to a timespec.
    let answer = unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
        libc::clock_settime(libc::CLOCK_REALTIME, &raw const now)
    };
    checked(answer.into(), "clock_settime").map(|_| "it is set".to_owned())
}

#[cfg(target_arch = "x86_64")]
fn ports() -> Result<String, String> {
    // SAFETY: takes integers.
    let answer = unsafe { libc::syscall(libc::SYS_iopl, 3) };
    checked(answer, "iopl").map(|_| "all ports".to_owned())
}

#[cfg(not(target_arch = "x86_64"))]
fn ports() -> Result<String, String> {
    Err("no ports here".to_owned())
}

/// Of every process, on one CPU.
fn perf() -> Result<String, String> {
    let mut attributes = [0_u32; 32];
    // PERF_TYPE_SOFTWARE, the size, PERF_COUNT_SW_CPU_CLOCK.
    (attributes[0], attributes[1]) = (1, 128);
    // SAFETY: the attributes have the size that they say.
    let answer =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, 0) };
    checked(answer, "perf_event_open").map(|_| "every process".to_owned())
}

/// The first instructions of bpf(2), by number, with room for its attributes.
fn bpf(command: i32, attributes: &mut [u32; 32]) -> Result<libc::c_long, String> {
    // SAFETY: the attributes have the size that is passed; the commands below read and write numbers only.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes))
    };
    checked(answer, "bpf")
}

fn bpf_programs() -> Result<String, String> {
    // BPF_PROG_GET_NEXT_ID, after none.
    bpf(11, &mut [0; 32]).map(|_| "their numbers".to_owned())
}

/// The device rules of its own cgroup.
fn bpf_detach() -> Result<String, String> {
    let root = fresh("cgroup2", "cgroup2", None).unwrap_or("/sys/fs/cgroup".to_owned());
    let cgroup = io(File::open(root), "open the cgroup")?;
    let mut attributes = [0; 32];
    // BPF_PROG_QUERY: of a cgroup, BPF_CGROUP_DEVICE, with room for one number.
    let mut number = 0_u32;
    let room = (&raw mut number) as u64;
    (attributes[0], attributes[1]) = (cgroup.as_raw_fd() as u32, 6);
    (attributes[4], attributes[5], attributes[6]) = (room as u32, (room >> 32) as u32, 1);
    bpf(16, &mut attributes)?;
    let mut program = [0; 32];
    program[0] = number;
    // BPF_PROG_GET_FD_BY_ID, then BPF_PROG_DETACH.
    let fd = bpf(13, &mut program)?;
    let mut detach = [0; 32];
    (detach[0], detach[1], detach[2]) = (cgroup.as_raw_fd() as u32, fd as u32, 6);
    bpf(9, &mut detach).map(|_| "its device rules are gone".to_owned())
}

/// Keys of another session than its own.
fn agent_keys() -> Result<String, String> {
    let text = io(fs::read_to_string("/proc/keys"), "/proc/keys")?;
    let sessions = text.lines().filter(|line| line.contains("_ses")).count();
    if sessions > 1 { Ok(format!("{sessions} sessions")) } else { Err("only its own".to_owned()) }
}

fn mounted(kind: &str, file: &str) -> Result<String, String> {
    let place = fresh(kind, kind, None)?;
    match Path::new(&place).join(file).exists() {
        true => Ok("mounted".to_owned()),
        false => Err("mounted, and empty".to_owned()),
    }
}

/// A mount of its own.
fn fresh(name: &str, kind: &str, options: Option<&str>) -> Result<String, String> {
    let place = format!("/tmp/attack-{name}-{}", std::process::id());
    io(fs::create_dir_all(&place), "mkdir")?;
    let options = options.map(|text| CString::new(text).expect("no zero"));
    errno(
        mount(Some(name), place.as_str(), Some(kind), MsFlags::empty(), options.as_deref()),
        "mount",
    )?;
    Ok(place)
}

/// Makes a mount writable. A mount in the way is left to lie over it.
fn remount(place: &str) -> Result<(), String> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    errno(mount(None::<&str>, place, None::<&str>, flags, None::<&str>), "remount")
}

fn open_to_write(path: &str) -> Result<File, String> {
    io(File::options().write(true).open(path), "open")
}

fn write(path: &str, text: &str) -> Result<(), String> {
    let mut file = open_to_write(path)?;
    io(file.write_all(text.as_bytes()), "write")
}

/// In a /proc of its own if it can have one.
fn write_proc(name: &str, text: &str) -> Result<String, String> {
    let proc = fresh("proc", "proc", None).unwrap_or("/proc".to_owned());
    write(&format!("{proc}/sys/{name}"), text).map(|()| "written".to_owned())
}

/// What is in it already.
fn rewrite(path: &str) -> Result<String, String> {
    let text = io(fs::read_to_string(path), "read")?;
    match path.strip_prefix("/proc/sys/") {
        Some(name) => write_proc(name, &text),
        None => write(path, &text).map(|()| "written".to_owned()),
    }
}

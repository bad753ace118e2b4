//! PID 1 of a VM that does nothing but vsock: a listener per behaviour, for the tests of the vsock device.
//!
//! | port | what it does with a connection |
//! |---|---|
//! | 1 | sends back what it gets, then the end when it gets one |
//! | 2 | reads to the end, then sends `COUNT HASH` of what it got |
//! | 3 | reads a line `SEED COUNT`, sends that many bytes of noise, closes |
//! | 4 | sends `hello`, then the end; reads to the end; dials the host's port 9001 and sends `COUNT HASH` there |
//! | 5 | never reads and never closes |
//! | 6 | closes at once |
//! | 7 | reads to the end as fast as it can, then sends a byte |
//! | 8 | reads a line `COUNT`, sends that many bytes as fast as it can, closes |
//! | 10 | reads a command to the end, obeys ([`obey`]), sends the answer |
//!
//! Dials the host's port 9000 when it is up. Owns: the VM. Promises: any other port is closed.
//! Never: is built into an image that we ship.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect,
    listen, shutdown, socket,
};

const HOST: u32 = libc::VMADDR_CID_HOST;
const ANY: u32 = libc::VMADDR_CID_ANY;
/// Where the host hears that we are up, and of results that have no connection of their own.
const READY_PORT: u32 = 9000;
const RESULT_PORT: u32 = 9001;
/// Bytes of one read or write.
const CHUNK: usize = 64 * 1024;
/// Stack of a connection's thread: a chunk and some calls.
const STACK: usize = 256 * 1024;
/// Open files of this process: a thousand connections and room.
const FILES: u64 = 8192;

type Service = fn(File) -> io::Result<()>;

fn main() {
    if let Err(error) = serve() {
        eprintln!("vsock-peer: fatal: {error}");
    }
    // PID 1 must not return.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn serve() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES)?;
    let none: Option<&str> = None;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    let services: [(u32, Service); 9] = [
        (1, echo),
        (2, sink),
        (3, source),
        (4, talk_first),
        (5, hold),
        (6, |_| Ok(())),
        (7, drain),
        (8, pour),
        (10, command),
    ];
    for (port, service) in services {
        let listener = listen_on(port)?;
        thread::spawn(move || accept_all(&listener, service));
    }
    dial(READY_PORT)?;
    eprintln!("vsock-peer: ready");
    loop {
        thread::park();
    }
}

fn listen_on(port: u32) -> io::Result<OwnedFd> {
    let listener = vsock()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, port))?;
    listen(&listener, Backlog::MAXCONN)?;
    Ok(listener)
}

fn accept_all(listener: &OwnedFd, service: Service) {
    loop {
        let stream = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(fd) => File::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }),
            Err(error) => {
                eprintln!("vsock-peer: accept: {error}");
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        let run = move || {
            if let Err(error) = service(stream) {
                eprintln!("vsock-peer: connection: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(run) {
            eprintln!("vsock-peer: thread: {error}");
        }
    }
}

fn vsock() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn dial(port: u32) -> io::Result<File> {
    let stream = vsock()?;
    connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(File::from(stream))
}

fn end_writing(stream: &File) -> io::Result<()> {
    Ok(shutdown(stream.as_raw_fd(), Shutdown::Write)?)
}

fn echo(mut stream: File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return end_writing(&stream);
        }
        stream.write_all(&chunk[..count])?;
    }
}

fn sink(mut stream: File) -> io::Result<()> {
    let result = read_to_end(&mut stream)?;
    stream.write_all(result.as_bytes())
}

fn source(stream: File) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let mut words = line.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
    let (seed, count) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    Noise::new(seed).write_to(&stream, count)
}

fn talk_first(mut stream: File) -> io::Result<()> {
    stream.write_all(b"hello")?;
    end_writing(&stream)?;
    let result = read_to_end(&mut stream)?;
    dial(RESULT_PORT)?.write_all(result.as_bytes())
}

fn hold(stream: File) -> io::Result<()> {
    std::mem::forget(stream);
    Ok(())
}

fn drain(mut stream: File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk)? > 0 {}
    stream.write_all(b".")
}

fn pour(mut stream: File) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let mut left = number(line.trim());
    let chunk = vec![0; CHUNK];
    while left > 0 {
        let some = left.min(CHUNK as u64);
        stream.write_all(&chunk[..some as usize])?;
        left -= some;
    }
    Ok(())
}

fn command(mut stream: File) -> io::Result<()> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let answer = obey(&words).unwrap_or_else(|error| match error.raw_os_error() {
        Some(number) => format!("errno {number}"),
        None => format!("error {error}"),
    });
    stream.write_all(answer.as_bytes())
}

fn obey(words: &[&str]) -> io::Result<String> {
    match words {
        // Dials the host, sends TEXT and the end, answers with the reply.
        ["dial", port, text] => {
            let mut stream = dial(number(port) as u32)?;
            stream.write_all(text.as_bytes())?;
            end_writing(&stream)?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply)?;
            Ok(reply)
        }
        // Dials the host COUNT times one after the other; answers how many were accepted and echoed a byte.
        ["storm", port, count] => {
            let good = (0..number(count)).filter(|_| ping(number(port) as u32).is_ok()).count();
            Ok(good.to_string())
        }
        // Dials the host and sends COUNT bytes of noise, without waiting for anybody to read them.
        ["send", port, count] => {
            let stream = dial(number(port) as u32)?;
            Noise::new(1).write_to(&stream, number(count))?;
            std::mem::forget(stream);
            Ok("sent".to_owned())
        }
        // Answers how many descriptors this process has: what a lost connection would leave behind.
        ["files"] => Ok(fs::read_dir("/proc/self/fd")?.count().to_string()),
        // The driver goes and comes back, without a reboot; the answer is the last thing it carries.
        ["rebind"] => {
            soon(|| {
                let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
                let device = fs::read_dir(driver)?
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .find(|name| name.starts_with("virtio"))
                    .ok_or(io::ErrorKind::NotFound)?;
                fs::write(format!("{driver}/unbind"), &device)?;
                fs::write(format!("{driver}/bind"), &device)?;
                dial(READY_PORT).map(drop)
            });
            Ok("soon".to_owned())
        }
        ["reboot"] => {
            soon(|| Ok(reboot(RebootMode::RB_AUTOBOOT).map(drop)?));
            Ok("soon".to_owned())
        }
        ["off"] => {
            soon(|| Ok(reboot(RebootMode::RB_POWER_OFF).map(drop)?));
            Ok("soon".to_owned())
        }
        _ => Err(io::Error::other("unknown command")),
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or(0)
}

fn ping(port: u32) -> io::Result<()> {
    let mut stream = dial(port)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Does it when the answer to the command has had time to leave.
fn soon(what: fn() -> io::Result<()>) {
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        if let Err(error) = what() {
            eprintln!("vsock-peer: {error}");
        }
    });
}

fn read_to_end(stream: &mut File) -> io::Result<String> {
    let mut chunk = vec![0; CHUNK];
    let (mut total, mut hash) = (0u64, Hash::default());
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(format!("{total} {:016x}", hash.finish()));
        }
        total += count as u64;
        hash.update(&chunk[..count]);
    }
}

/// Pseudo-random bytes; the tests have the same generator.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }

    fn write_to(mut self, mut stream: &File, mut count: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        while count > 0 {
            let some = count.min(CHUNK as u64) as usize;
            self.fill(&mut chunk[..some]);
            stream.write_all(&chunk[..some])?;
            count -= some as u64;
        }
        Ok(())
    }
}

/// A checksum that depends on every byte's place, eight at a time; the tests have the same.
#[derive(Default)]
struct Hash {
    state: u64,
    rest: Vec<u8>,
}

impl Hash {
    fn update(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut words = self.rest.chunks_exact(8);
        for word in &mut words {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        let left = words.remainder().to_vec();
        self.rest = left;
    }

    fn finish(&mut self) -> u64 {
        for byte in std::mem::take(&mut self.rest) {
            self.state =
                (self.state.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        self.state
    }
}

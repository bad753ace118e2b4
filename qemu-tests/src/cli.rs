//! vminitctl as a person has it: in a directory of running VMs of its own, on a terminal or not.
//!
//! Owns: a pty, and the program on it; it is killed with its test.
//! Promises: what a test sees of the terminal is what a person would. Never: knows what the program does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{PATIENCE_S, Wish, rootfs};

/// Where a test's VMs are found: not among others of this machine.
pub struct Vms(TempDir);

impl Vms {
    /// No VM runs yet.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vminitd-vms-").tempdir();
        Self(dir.expect("a directory"))
    }

    /// `vminitctl ARGS`.
    pub fn vminitctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(vminitctl());
        command.args(args).env("XDG_RUNTIME_DIR", self.0.path());
        command.env("TERM", "test-term").stdin(Stdio::null());
        command
    }

    /// `vminitctl run ARGS --rootfs ... -- COMMAND`.
    pub fn run(&self, args: &[&str], command: &[&str]) -> Command {
        let mut run = self.vminitctl(&["run"]);
        run.args(args).arg("--rootfs").arg(rootfs()).arg("--").args(command);
        run
    }

    /// The directory of a VM.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("vminitd").join(name)
    }
}

impl Default for Vms {
    fn default() -> Self {
        Self::new()
    }
}

/// The program.
pub fn vminitctl() -> PathBuf {
    let dist = std::env::var_os("VMINITD_DIST")
        .expect("VMINITD_DIST is not set; run the VM tests with `./dev test`");
    PathBuf::from(dist).join("bin/vminitctl")
}

/// A bundle whose container shares the guest's pid namespace, so that it can signal the agent.
pub fn bundle_beside_the_agent(script: &str) -> TempDir {
    let bundle = tempfile::tempdir().expect("a directory");
    let mut wish = Wish::sh(script).in_guest_pid_namespace().with_guest_root();
    // The guest's own root is no path of the host's; what is in the pid namespace does.
    let mounts = wish.spec["mounts"].as_array_mut().expect("the default spec has some");
    mounts.retain(|mount| mount["destination"] != "/guest");
    std::fs::write(bundle.path().join("config.json"), wish.spec.to_string()).expect("a new file");
    std::os::unix::fs::symlink(rootfs(), bundle.path().join("rootfs")).expect("a new link");
    bundle
}

/// A program with a terminal of its own, which the test types into and looks at.
pub struct OnTerminal {
    child: Child,
    keyboard: Option<File>,
    /// Kept so that the terminal's settings can be looked at when the program has ended.
    terminal: File,
    screen: Receiver<Vec<u8>>,
    /// What was on the screen and has not been looked for yet.
    seen: Vec<u8>,
    before: Termios,
}

impl OnTerminal {
    /// Starts it on a terminal of 33 rows and 99 columns, in a session of its own.
    pub fn start(command: &Command) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pty");
        let terminal = File::from(pty.slave);
        // A setting that a program which merely guessed the usual ones would not put back.
        let mut before = tcgetattr(&terminal).expect("a terminal");
        before.local_flags.remove(LocalFlags::ECHOK);
        tcsetattr(&terminal, SetArg::TCSANOW, &before).expect("a terminal");
        let fd = || terminal.try_clone().expect("a descriptor");
        // Makes stdin the controlling terminal, which std cannot.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(key, value),
                None => on_terminal.env_remove(key),
            };
        }
        let child = on_terminal.stdin(fd()).stdout(fd()).stderr(fd()).spawn().expect("setsid");
        let keyboard = File::from(pty.master);
        let mut reader = keyboard.try_clone().expect("a descriptor");
        let (bytes, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if bytes.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard: Some(keyboard), terminal, screen, seen: Vec::new(), before }
    }

    /// Types.
    pub fn types(&mut self, keys: &str) {
        self.keyboard.as_mut().expect("not hung up").write_all(keys.as_bytes()).expect("a pty");
    }

    /// Waits until `text` has come on the screen behind what was waited for before; returns what came up to its end.
    pub fn shows(&mut self, text: &str) -> String {
        let until = Instant::now() + Duration::from_secs(PATIENCE_S);
        loop {
            let found = self.seen.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let rest = self.seen.split_off(at + text.len());
                let shown = std::mem::replace(&mut self.seen, rest);
                return String::from_utf8_lossy(&shown).into_owned();
            }
            match self.screen.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} is not on the screen: {:?}", self.screen())
                }
            }
        }
    }

    /// What is on the screen behind what was waited for.
    pub fn screen(&mut self) -> String {
        self.seen.extend(self.screen.try_iter().flatten());
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// The person's window has another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        // A program of the terminal's own job does what the terminal would: the kernel sends SIGWINCH.
        let size = format!("stty rows {rows} cols {columns}");
        let terminal = self.terminal.try_clone().expect("a descriptor");
        let status = Command::new("sh").args(["-c", &size]).stdin(terminal).status().expect("stty");
        assert!(status.success());
    }

    /// The person's window is gone.
    pub fn hang_up(&mut self) {
        self.keyboard = None;
    }

    /// True when every key goes to the program as it is.
    pub fn is_raw(&self) -> bool {
        let now = tcgetattr(&self.terminal).expect("a terminal");
        !now.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// The program.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// The program's end.
    pub fn ends(&mut self) -> ExitStatus {
        try_wait(&mut self.child)
            .unwrap_or_else(|| panic!("it does not end; on the screen: {:?}", self.screen()))
    }

    /// Fails unless the terminal is as it was before the program.
    pub fn assert_restored(&self) {
        let now = tcgetattr(self.terminal.as_fd()).expect("a terminal");
        assert_eq!(now, self.before, "the terminal is not as it was");
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a program's end.
pub fn wait(child: &mut Child) -> ExitStatus {
    try_wait(child).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("it does not end")
    })
}

fn try_wait(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + Duration::from_secs(PATIENCE_S);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("our child") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Processes that `pid` has started and that live.
pub fn children(pid: Pid) -> Vec<Pid> {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let tasks = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let pids = tasks.map(|task| read(task.path().join("children")));
    let pids = pids.collect::<Vec<_>>().join(" ");
    pids.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

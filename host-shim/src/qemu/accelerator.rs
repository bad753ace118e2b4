//! What executes the guest's instructions: KVM where it was seen to work, else emulation.
//!
//! /dev/kvm proves nothing: there are machines where it opens and then runs only specially patched kernels, so that
//! an ordinary one dies with "emulation failure". So the guest's own kernel is booted once with KVM, for a moment and
//! without anything of the VM's, and the verdict is kept for this boot of this machine, this QEMU and this kernel.
//!
//! Owns: the verdicts, files of a line each in `<cache>/accelerator`. Promises: a verdict that cannot be kept is made
//! again, nothing worse.
//! Never: takes a node's existence for a working accelerator.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sha2::{Digest, Sha256};

use super::args::{Fds, arguments};
use super::process::Process;
use crate::limits::PROBE_TIMEOUT;
use crate::vm::{Accelerator, Arch, Cid, Cmdline, Description, Draft};

/// Where KVM is offered.
const KVM_NODE: &str = "/dev/kvm";

/// What Linux prints when it leaves its own start-up for PID 1, and what it prints when there is none to start: a
/// kernel that comes this far has run in all its modes, timers and interrupts included.
const CAME_UP: [&str; 2] = ["Run /", "Kernel panic - not syncing: "];

/// Verdicts older than this are removed.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a QEMU executes a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The machine's virtualization.
    Kvm,
    /// Emulation.
    Tcg,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// An engine, and why it is not a faster one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub engine: Engine,
    /// Empty for KVM.
    pub reason: String,
}

impl Choice {
    fn tcg(reason: impl Into<String>) -> Self {
        Self { engine: Engine::Tcg, reason: reason.into() }
    }

    fn kvm() -> Self {
        Self { engine: Engine::Kvm, reason: String::new() }
    }
}

/// What can be said without a probe.
#[derive(Debug)]
pub enum Known {
    /// All that is needed.
    Choice(Choice),
    /// KVM may work: [`Question::probe`] it.
    Unknown(Question),
}

/// A verdict that is still to be made.
#[derive(Debug)]
pub struct Question {
    qemu: PathBuf,
    kernel: OwnedFd,
    /// Where the verdict is kept; `None` when it cannot be.
    verdict: Option<PathBuf>,
}

/// Chooses an engine for `kernel`, from what is asked for, what there is, and what is remembered below `cache`.
pub fn choose(
    arch: Arch,
    wanted: Accelerator,
    qemu: &Path,
    kernel: &OwnedFd,
    cache: Option<&Path>,
) -> Known {
    match wanted {
        Accelerator::Emulation => return Known::Choice(Choice::tcg("asked for")),
        Accelerator::Hardware => return Known::Choice(Choice::kvm()),
        Accelerator::Auto if arch != Arch::HOST => {
            let reason = format!("the guest is {arch}, this machine {}", Arch::HOST);
            return Known::Choice(Choice::tcg(reason));
        }
        Accelerator::Auto => {}
    }
    if let Err(error) = File::options().read(true).write(true).open(KVM_NODE) {
        return Known::Choice(Choice::tcg(format!("{KVM_NODE}: {error}")));
    }
    let Ok(kernel) = kernel.try_clone() else {
        return Known::Choice(Choice::tcg("no file descriptor left to try KVM"));
    };
    let verdict =
        cache.and_then(|cache| Some(cache.join("accelerator").join(key(qemu, &kernel).ok()?)));
    match verdict.as_deref().and_then(recall) {
        Some(choice) => Known::Choice(choice),
        None => Known::Unknown(Question { qemu: qemu.to_owned(), kernel, verdict }),
    }
}

impl Question {
    /// Boots the kernel with KVM and sees how far it comes; takes at most [`PROBE_TIMEOUT`].
    pub fn probe(self) -> Choice {
        let choice = match boot(&self.qemu, &self.kernel) {
            Ok(()) => Choice::kvm(),
            Err(reason) => Choice::tcg(format!("KVM does not run the kernel here: {reason}")),
        };
        if let Some(verdict) = &self.verdict {
            // A cache that cannot be written costs a probe per VM, nothing else.
            let _ = remember(verdict, &choice);
        }
        choice
    }
}

fn boot(qemu: &Path, kernel: &OwnedFd) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let (console, guests_end) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| text(e.into()))?;
    let (_qmp, qemus_end) = UnixStream::pair().map_err(text)?;
    let fds = Fds {
        kernel: kernel.as_raw_fd(),
        initramfs: None,
        disks: Vec::new(),
        console: guests_end.as_raw_fd(),
        qmp: qemus_end.as_raw_fd(),
        vsock: None,
        shares: Vec::new(),
    };
    let arguments = arguments(&tiny_vm(), Engine::Kvm, &fds).map_err(|error| error.to_string())?;
    let mut command = Command::new(qemu);
    command.args(arguments);
    let inherited = [kernel.as_fd(), guests_end.as_fd(), qemus_end.as_fd()];
    let mut process = Process::start("QEMU", &mut command, &inherited, || ()).map_err(text)?;
    // Only QEMU has it now: its end is the console's end.
    drop((guests_end, qemus_end));
    match watch(console, Instant::now() + PROBE_TIMEOUT).map_err(text)? {
        Saw::CameUp => Ok(()),
        Saw::End => Err(process.reap()),
        Saw::Nothing => Err(format!("nothing on its console for {} s", PROBE_TIMEOUT.as_secs())),
    }
}

enum Saw {
    CameUp,
    End,
    Nothing,
}

fn watch(console: OwnedFd, deadline: Instant) -> io::Result<Saw> {
    let mut console = File::from(console);
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(console.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(Saw::Nothing),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match console.read(&mut buffer)? {
            0 => return Ok(Saw::End),
            read => seen.extend_from_slice(&buffer[..read]),
        }
        let text = String::from_utf8_lossy(&seen);
        if CAME_UP.iter().any(|mark| text.contains(mark)) {
            return Ok(Saw::CameUp);
        }
    }
}

/// The smallest VM that shows whether the kernel runs: no initramfs, no device but a console.
fn tiny_vm() -> Description {
    let draft = Draft {
        name: "probe".parse().expect("a name"),
        arch: Arch::HOST,
        kernel: PathBuf::new(),
        initramfs: Some(PathBuf::new()),
        // Not quiet: its way to PID 1 is what we want to see.
        cmdline: Cmdline::new().word("loglevel=7").expect("a word"),
        memory: "128M".parse().expect("a size"),
        cpus: 1,
        guest_cid: Cid::default(),
        guest_dials: Default::default(),
        disks: Vec::new(),
        hotplug_slots: 0.try_into().expect("a number of slots"),
        shares: Vec::new(),
        nics: Vec::new(),
        accelerator: Accelerator::Hardware,
        options: Default::default(),
    };
    draft.try_into().expect("a description")
}

/// Names what a verdict holds for: this boot of this machine, this QEMU, this kernel.
fn key(qemu: &Path, kernel: &OwnedFd) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(fs::read("/proc/sys/kernel/random/boot_id")?);
    hash.update(identity(&fs::metadata(qemu)?));
    hash.update(identity(&File::from(kernel.try_clone()?).metadata()?));
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn identity(file: &fs::Metadata) -> Vec<u8> {
    let numbers =
        [file.dev(), file.ino(), file.size(), file.mtime() as u64, file.mtime_nsec() as u64];
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn recall(verdict: &Path) -> Option<Choice> {
    let text = fs::read_to_string(verdict).ok()?;
    match text.trim_end().split_once(' ') {
        None if text.trim_end() == "kvm" => Some(Choice::kvm()),
        Some(("tcg", reason)) => Some(Choice::tcg(reason)),
        _ => None,
    }
}

fn remember(verdict: &Path, choice: &Choice) -> io::Result<()> {
    let dir = verdict.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(dir)?;
    forget_old(dir);
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    let reason = choice.reason.replace('\n', "; ");
    writeln!(file, "{}", format!("{} {reason}", choice.engine).trim_end())?;
    file.persist(verdict)?;
    Ok(())
}

fn forget_old(dir: &Path) {
    let Some(limit) = SystemTime::now().checked_sub(KEEP) else { return };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries
        .filter(|entry| entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < limit))
    {
        // Somebody else may have removed it first.
        let _ = fs::remove_file(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_recalled_as_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let verdict = dir.path().join("accelerator/key");
        for choice in [Choice::kvm(), Choice::tcg("KVM does not run\nthe kernel")] {
            remember(&verdict, &choice).unwrap();
            let recalled = recall(&verdict).unwrap();
            assert_eq!(recalled.engine, choice.engine);
            assert_eq!(recalled.reason, choice.reason.replace('\n', "; "));
        }
        fs::write(&verdict, "garbage").unwrap();
        assert_eq!(recall(&verdict), None);
    }

    #[test]
    fn a_verdict_holds_for_one_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let key_of = |text: &str| {
            let path = dir.path().join("kernel");
            fs::write(&path, text).unwrap();
            key(Path::new("/proc/self/exe"), &File::open(&path).unwrap().into()).unwrap()
        };
        let first = key_of("one");
        assert_eq!(first.len(), 32);
        assert_ne!(first, key_of("another"));
    }

    #[test]
    fn an_engine_that_was_asked_for_is_not_probed() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        for (wanted, engine) in
            [(Accelerator::Emulation, Engine::Tcg), (Accelerator::Hardware, Engine::Kvm)]
        {
            match choose(Arch::HOST, wanted, Path::new("qemu"), &file, None) {
                Known::Choice(choice) => assert_eq!(choice.engine, engine),
                Known::Unknown(question) => panic!("{question:?}"),
            }
        }
    }

    #[test]
    fn a_guest_of_another_architecture_is_emulated_without_a_probe() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let other = Arch::ALL.into_iter().find(|arch| *arch != Arch::HOST).unwrap();
        match choose(other, Accelerator::Auto, Path::new("qemu"), &file, None) {
            Known::Choice(choice) => {
                assert_eq!(choice.engine, Engine::Tcg);
                assert!(choice.reason.contains(other.name()), "{}", choice.reason);
            }
            Known::Unknown(question) => panic!("{question:?}"),
        }
    }

    #[test]
    fn a_qemu_that_dies_at_once_is_a_verdict_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu");
        fs::write(&program, "#!/bin/sh\necho cannot >&2\nexit 1\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let verdict = dir.path().join("verdict");
        let question = Question {
            qemu: program,
            kernel: tempfile::tempfile().unwrap().into(),
            verdict: Some(verdict.clone()),
        };
        let choice = question.probe();
        assert_eq!(
            choice.reason,
            "KVM does not run the kernel here: QEMU exited with status 1: cannot"
        );
        assert_eq!(recall(&verdict), Some(choice));
    }
}

//! `vminitctl doctor`: what this host lacks for VMs, and for containerd's containers in them, and what to do about it.
//!
//! ```text
//! facts::gather (looks, changes nothing) -> Facts -> judge (pure) -> findings, a line and an advice each
//! ```
//!
//! Promises: every finding that is not "ok" says what to do; exit status 1 when something that is needed is missing.
//! Never: changes anything, starts a VM, or needs root.

mod facts;

use host_shim::vm::Arch;
use serde_json::json;

use crate::cli::DoctorArgs;
use crate::reach::{ReachError, plain, print};
use facts::Facts;

/// Oldest QEMU that emulates our guests rightly.
const OLDEST_QEMU: (u32, u32) = (8, 2);
/// Oldest containerd that was tried.
const OLDEST_CONTAINERD: (u32, u32) = (1, 6);
/// Oldest mkfs.erofs that makes an image of a tar file, which the erofs snapshotter's differ wants.
const OLDEST_EROFS: (u32, u32) = (1, 8);
/// Bytes that a VM of the default size may come to need.
const ONE_VM: u64 = 512 << 20;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grade {
    Ok,
    /// It works, but not as well as it could.
    Note,
    /// What is named does not work.
    Missing,
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    grade: Grade,
    /// What was looked at: `host`, `kernel`, `guest`, `containerd`, `snapshotter`.
    about: &'static str,
    what: String,
    /// Empty when there is nothing to do.
    advice: String,
}

/// Prints the findings; returns the exit status.
pub fn doctor(args: &DoctorArgs) -> Result<i32, ReachError> {
    let findings = judge(&facts::gather(args.arch));
    let text: String =
        findings.iter().map(|f| if args.json { f.json() } else { f.text() }).collect();
    print(&text)?;
    Ok(findings.iter().any(|finding| finding.grade == Grade::Missing).into())
}

impl Finding {
    fn text(&self) -> String {
        let mut text =
            format!("{:<7}  {:<11}  {}\n", self.grade.word(), self.about, plain(&self.what));
        if !self.advice.is_empty() {
            text += &format!("{:22}-> {}\n", "", self.advice);
        }
        text
    }

    fn json(&self) -> String {
        let Self { grade, about, what, advice } = self;
        let advice = (!advice.is_empty()).then_some(advice);
        let grade = grade.word().to_ascii_lowercase();
        format!("{}\n", json!({ "grade": grade, "about": about, "what": what, "advice": advice }))
    }
}

/// What the facts mean.
fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |grade, about, what: String, advice: &str| {
        findings.push(Finding { grade, about, what, advice: advice.to_owned() });
    };
    match &facts.kvm {
        _ if facts.arch != Arch::HOST => add(
            Grade::Note,
            "host",
            format!(
                "{} guests are emulated on this {} machine: ten times slower than on one of their own",
                facts.arch,
                Arch::HOST
            ),
            "where speed matters use images of this machine's architecture; containerd's tasks are always that",
        ),
        Ok(()) => add(
            Grade::Ok,
            "host",
            "/dev/kvm opens; whether it runs our guests is tried at the first boot".into(),
            "",
        ),
        Err(reason) => add(
            Grade::Note,
            "host",
            format!("/dev/kvm: {reason}: guests are emulated, which is ten times slower"),
            "load kvm_intel or kvm_amd, switch virtualisation on in the firmware (nested in a VM), or join the group kvm",
        ),
    }
    match facts.memory_available {
        bytes if bytes < ONE_VM => add(
            Grade::Missing,
            "host",
            format!("{} MiB of memory are available", bytes >> 20),
            "a VM of the default size may come to use 512 MiB: free some, or make VMs smaller (--memory, io.vminitd.memory)",
        ),
        bytes => add(Grade::Ok, "host", format!("{} MiB of memory are available", bytes >> 20), ""),
    }
    match (&facts.qemu, facts.qemu_version.as_deref().and_then(version)) {
        (Err(reason), _) => add(
            Grade::Missing,
            "host",
            reason.clone(),
            match facts.arch {
                Arch::X86_64 => "install qemu-system-x86, 8.2 or later",
                Arch::Arm64 => "install qemu-system-arm, 8.2 or later",
            },
        ),
        (Ok(path), Some(found)) if found < OLDEST_QEMU => add(
            Grade::Missing,
            "host",
            format!("{path} is {}.{}", found.0, found.1),
            "it emulates an instruction wrongly, which crashes guests; install 8.2 or later (Debian 12: from backports)",
        ),
        (Ok(path), found) => {
            let said =
                found.map_or("of an unknown version".to_owned(), |v| format!("{}.{}", v.0, v.1));
            add(Grade::Ok, "host", format!("QEMU {said} is {path}"), "");
        }
    }
    if facts.tun {
        add(Grade::Ok, "kernel", "/dev/net/tun is there, for networks of CNI".into(), "");
    } else {
        add(
            Grade::Note,
            "kernel",
            "/dev/net/tun is missing: containers can have user networking only, no interface of CNI's".into(),
            "modprobe tun",
        );
    }
    if !facts.memory_cgroup {
        add(
            Grade::Note,
            "kernel",
            "no memory cgroup: a VM's memory is not limited on this host".into(),
            "boot with cgroup_enable=memory",
        );
    }
    for (name, found) in &facts.programs {
        match found {
            Ok(path) => add(Grade::Ok, "guest", format!("{name} is {path}"), ""),
            Err(reason) => add(
                Grade::Missing,
                "guest",
                reason.clone(),
                match name.starts_with("guest") && facts.arch != Arch::HOST {
                    false => {
                        "install vminitd whole: bin, libexec and share of one build belong together"
                    }
                    true => {
                        "install the guest of that architecture too: `./dev guest --arch` makes share/vminitd/ARCH, of the same build as bin"
                    }
                },
            ),
        }
    }
    containerd(facts, &mut add);
    findings
}

fn containerd(facts: &Facts, add: &mut impl FnMut(Grade, &'static str, String, &str)) {
    let Some(said) = &facts.containerd_version else {
        add(
            Grade::Note,
            "containerd",
            "containerd is not on PATH: only `vminitctl run` can be used".into(),
            "install containerd 1.6 or later",
        );
        return;
    };
    match version(said) {
        Some(found) if found < OLDEST_CONTAINERD => {
            add(
                Grade::Missing,
                "containerd",
                format!("containerd is {said}"),
                "install 1.6 or later",
            );
        }
        _ => add(Grade::Ok, "containerd", format!("containerd is {said}"), ""),
    }
    if !facts.containerd_socket {
        add(
            Grade::Note,
            "containerd",
            "/run/containerd/containerd.sock is missing: no containerd runs, or it listens elsewhere".into(),
            "systemctl start containerd; for another place give ctr --address",
        );
    }
    match &facts.shim {
        Some(path) => add(Grade::Ok, "containerd", format!("containerd-shim-vminitd-v1 is {path}"), ""),
        None => add(
            Grade::Missing,
            "containerd",
            "containerd-shim-vminitd-v1 is not on PATH, where containerd looks for io.containerd.vminitd.v1".into(),
            "link it into /usr/local/bin, or give containerd its path as the runtime's name (ctr run --runtime /path/of/it)",
        ),
    }
    match (&facts.config, facts.config_names_runtime) {
        (None, _) => add(
            Grade::Note,
            "containerd",
            "/etc/containerd/config.toml is missing or unreadable: ctr and nerdctl need none, Kubernetes does".into(),
            "docs/containerd.md has the section for the version that you run",
        ),
        (Some(_), false) => add(
            Grade::Note,
            "containerd",
            "/etc/containerd/config.toml does not name io.containerd.vminitd.v1: Kubernetes cannot use it".into(),
            "docs/containerd.md has the section for the version that you run",
        ),
        (Some(config), true) => {
            add(Grade::Ok, "containerd", "/etc/containerd/config.toml names io.containerd.vminitd.v1".into(), "");
            // The names of sections changed with version 3 of the file; the old ones are not an error there, they are not read.
            if config.contains("version = 3") && config.contains("io.containerd.grpc.v1.cri") {
                add(
                    Grade::Note,
                    "containerd",
                    "config.toml is of version 3 and has sections of version 2, which are not read".into(),
                    "write 'io.containerd.cri.v1.runtime' for \"io.containerd.grpc.v1.cri\"",
                );
            }
        }
    }
    let has = |name: &str| facts.snapshotters.iter().any(|known| known == name);
    if facts.snapshotters.is_empty() {
        add(
            Grade::Note,
            "snapshotter",
            "no snapshotter has been used here yet, or its directory may not be read".into(),
            "as root this page says more",
        );
    } else if has("overlayfs") || has("native") {
        add(
            Grade::Ok,
            "snapshotter",
            format!(
                "in use: {}; overlayfs and native are shared with guests as directories",
                facts.snapshotters.join(", ")
            ),
            "",
        );
    }
    if has("erofs") {
        match facts.erofs_version.as_deref().and_then(version) {
            Some(found) if found >= OLDEST_EROFS => {
                add(Grade::Ok, "snapshotter", format!("mkfs.erofs is {}.{}", found.0, found.1), "")
            }
            found => add(
                Grade::Missing,
                "snapshotter",
                format!(
                    "the erofs snapshotter wants mkfs.erofs 1.8 or later; there is {}",
                    found.map_or("none".into(), |v| format!("{}.{}", v.0, v.1))
                ),
                "install erofs-utils 1.8 or later",
            ),
        }
    }
}

/// The first `N.N` in a text.
fn version(text: &str) -> Option<(u32, u32)> {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.');
    numbers.into_iter().find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            arch: Arch::HOST,
            kvm: Ok(()),
            memory_available: 4 << 30,
            qemu: Ok("/usr/bin/qemu-system-x86_64".into()),
            qemu_version: Some("QEMU emulator version 10.0.2 (Debian 1:10.0.2)".into()),
            tun: true,
            memory_cgroup: true,
            programs: vec![("guest kernel", Ok("/k".into()))],
            containerd_version: Some(
                "containerd github.com/containerd/containerd 1.7.24~ds1 x".into(),
            ),
            containerd_socket: true,
            shim: Some("/usr/local/bin/containerd-shim-vminitd-v1".into()),
            config: Some("version = 2\n".into()),
            config_names_runtime: true,
            snapshotters: vec!["overlayfs".into()],
            erofs_version: None,
        }
    }

    fn missing(facts: &Facts) -> Vec<String> {
        let findings = judge(facts).into_iter().filter(|finding| finding.grade == Grade::Missing);
        findings.map(|finding| finding.what).collect()
    }

    #[test]
    fn a_healthy_host_has_nothing_to_do() {
        let findings = judge(&healthy());
        assert!(
            findings.iter().all(|f| f.grade == Grade::Ok && f.advice.is_empty()),
            "{findings:#?}"
        );
    }

    #[test]
    fn each_thing_that_is_missing_is_found_and_says_what_to_do() {
        type Spoil = fn(&mut Facts);
        let spoil: [(&str, Spoil); 8] = [
            ("512 MiB", |facts| facts.memory_available = 100 << 20),
            ("8.2", |facts| facts.qemu_version = Some("QEMU emulator version 7.2.1".into())),
            ("qemu-system", |facts| facts.qemu = Err("no QEMU".into())),
            ("one build", |facts| facts.programs = vec![("guest kernel", Err("no kernel".into()))]),
            ("1.6", |facts| facts.containerd_version = Some("containerd 1.5.9".into())),
            ("/usr/local/bin", |facts| facts.shim = None),
            ("erofs-utils", |facts| facts.snapshotters.push("erofs".into())),
            ("1.8", |facts| {
                facts.snapshotters.push("erofs".into());
                facts.erofs_version = Some("mkfs.erofs 1.5".into());
            }),
        ];
        for (advice, spoil) in spoil {
            let mut facts = healthy();
            spoil(&mut facts);
            assert_eq!(missing(&facts).len(), 1, "{advice}: {:#?}", judge(&facts));
            let found = judge(&facts).into_iter().find(|f| f.grade == Grade::Missing).unwrap();
            assert!(found.advice.contains(advice), "{}", found.text());
        }
    }

    #[test]
    fn what_makes_it_slower_or_smaller_is_a_note_with_advice() {
        let spoil: [fn(&mut Facts); 6] = [
            |facts| facts.kvm = Err("no such file".into()),
            |facts| facts.tun = false,
            |facts| facts.memory_cgroup = false,
            |facts| facts.containerd_version = None,
            |facts| facts.config = None,
            |facts| {
                facts.config = Some("version = 3\n[plugins.\"io.containerd.grpc.v1.cri\"]".into())
            },
        ];
        for spoil in spoil {
            let mut facts = healthy();
            spoil(&mut facts);
            let notes = judge(&facts).into_iter().filter(|f| f.grade == Grade::Note);
            let notes: Vec<_> = notes.collect();
            assert_eq!(notes.len(), 1, "{notes:#?}");
            assert!(!notes[0].advice.is_empty());
            assert!(missing(&facts).is_empty());
        }
    }

    #[test]
    fn guests_of_another_architecture_are_emulated_and_want_files_and_a_qemu_of_their_own() {
        let other = Arch::ALL.into_iter().find(|arch| *arch != Arch::HOST).unwrap();
        let facts = Facts { arch: other, ..healthy() };
        let notes: Vec<_> = judge(&facts).into_iter().filter(|f| f.grade == Grade::Note).collect();
        assert_eq!(notes.len(), 1, "{notes:#?}");
        assert!(notes[0].what.contains(other.name()) && notes[0].what.contains("emulated"));
        // Whether /dev/kvm opens says nothing about them.
        let without_kvm = Facts { kvm: Err("no such file".into()), ..facts.clone() };
        assert_eq!(judge(&without_kvm), judge(&facts));
        let lacking = Facts {
            qemu: Err("no QEMU".into()),
            programs: vec![("guest kernel", Err("no kernel".into()))],
            ..facts
        };
        let advice: Vec<_> = judge(&lacking)
            .into_iter()
            .filter(|f| f.grade == Grade::Missing)
            .map(|f| f.advice)
            .collect();
        let package = if other == Arch::Arm64 { "qemu-system-arm" } else { "qemu-system-x86" };
        assert!(advice[0].contains(package), "{advice:?}");
        assert!(advice[1].contains("./dev guest --arch"), "{advice:?}");
    }

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2)"), Some((10, 0)));
        assert_eq!(
            version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6"),
            Some((1, 6))
        );
        assert_eq!(version("mkfs.erofs (erofs-utils) 1.8.6"), Some((1, 8)));
        assert_eq!(version("none"), None);
    }
}

//! The OCI config of a container: read, changed into what libcontainer is to see, written.
//!
//! Promises: the host's config stays as it is beside the changed one (`config.original.json`), and
//! hooks are told the real bundle; whatever cannot be honoured is an error or a warning that names
//! it. Never: looks at anything but the bundle's config.
//!
//! What is usual becomes a plan ([`super::plan`]), and the file stays as it is. Else
//! libcontainer reads `config.json` from the bundle and hands the bundle's path to hooks, so a
//! changed copy elsewhere would tell hooks of a place that they do not know. What is changed:
//!
//! | field | becomes | why |
//! |---|---|---|
//! | `root.path` | absolute; the mounted rootfs, if there are rootfs mounts | the launcher has no working directory |
//! | `linux.cgroupsPath` | `/containers/<id>` | one subtree for all; a relative one would mean systemd |
//! | `linux.resources` | gone | the agent applies them to the cgroup before, see `cgroup/apply.rs` |
//! | `process.apparmorProfile` | gone, with a warning | the kernel has no AppArmor, and create would fail |
//! | `process.capabilities`, `linux.seccomp` | gone | the launcher sees to both, see `confine` |
//! | `process.noNewPrivileges` | absent unless true | libcontainer takes a false for a true here and there |
//! | relative sources of bind mounts | files of the bundle | so hosts mean them |

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Hook, Linux, LinuxPersonalityDomain, LinuxResources, LinuxSeccomp, Mount, Process, Spec,
};

use super::bundle::ORIGINAL_CONFIG;
use super::confine::capabilities::{self, CapabilityError};
use super::foreseen::Foreseen;
use super::plan;
use crate::link::confinement::Capabilities;
use crate::link::plan::Plan;
use crate::paths::{BUNDLE_CONFIG, CGROUP_CONTAINERS_IN_SPEC};
use crate::sys::beneath;
use crate::sys::terminal::Size;

/// The annotation that lets a container make AF_VSOCK sockets, and its value.
const ALLOW_VSOCK: (&str, &str) = ("io.vminitd.vsock", "allow");

/// Why a config is no use. The host's fault, but for a full tmpfs.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It cannot be read, or the changed one cannot be written.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is not the JSON of a runtime spec.
    #[error("parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        #[source]
        source: serde_json::Error,
    },
    /// A field that a container cannot do without.
    #[error("the config has no {0}")]
    Missing(&'static str),
    /// A field that would have no effect.
    #[error("{0} are not supported")]
    Unbuilt(String),
    /// Sets that the kernel would refuse.
    #[error(transparent)]
    Capabilities(#[from] CapabilityError),
    /// A path that leads out of the bundle.
    #[error("{what} {path} leads out of the bundle")]
    Outside {
        /// Which.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
}

/// A config, changed, and what the agent itself has to do about it.
#[derive(Debug)]
pub struct Prepared {
    spec: Spec,
    /// To be applied to the cgroup.
    pub resources: Option<LinuxResources>,
    /// Whether start needs libcontainer.
    pub poststart: bool,
    /// Whether delete needs libcontainer.
    pub poststop: bool,
    /// Seconds that hooks may take during create, by their own timeouts.
    pub hook_seconds: u64,
    /// Whether the container may make AF_VSOCK sockets.
    pub allow_vsock: bool,
    /// What its processes may do.
    pub capabilities: Capabilities,
    /// The system calls that they may make; to be compiled.
    pub seccomp: Option<LinuxSeccomp>,
    /// What was dropped, for the log.
    pub warnings: Vec<String>,
}

/// Reads the bundle's config. With `rootfs_mounted`, the root is `rootfs` whatever the config says.
pub fn read(
    foreseen: &Foreseen,
    bundle: &Path,
    id: &str,
    rootfs_mounted: bool,
) -> Result<Prepared, SpecError> {
    // A create that failed may have left the changed one in a bundle that is not ours to remove.
    restore(bundle)?;
    let Config { spec, .. } = foreseen.take(bundle).map_or_else(|| parse(bundle), Ok)?;
    prepare(spec, bundle, id, rootfs_mounted)
}

/// A bundle's config as it is.
#[derive(Debug)]
pub struct Config {
    spec: Spec,
    /// Inode, size and time of change of the file.
    version: (u64, u64, i64, i64),
}

impl Config {
    /// CLONE_NEW* of net, ipc and uts: what a launcher can make before it knows the rest.
    pub fn ahead(&self) -> i32 {
        let can_be = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        plan::plan(&self.spec).map_or(0, |plan| plan.new_namespaces & can_be)
    }

    /// Whether it is still the bundle's.
    pub fn is_of(&self, bundle: &Path) -> bool {
        fs::metadata(bundle.join(BUNDLE_CONFIG)).is_ok_and(|file| version(&file) == self.version)
    }
}

fn version(file: &fs::Metadata) -> (u64, u64, i64, i64) {
    (file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

/// Reads the bundle's config. From the file and not from its bytes: that is how libcontainer
/// reads it, and each way is 100 KiB of code.
pub fn parse(bundle: &Path) -> Result<Config, SpecError> {
    let path = bundle.join(BUNDLE_CONFIG);
    let opened = fs::File::open(&path).and_then(|file| Ok((version(&file.metadata()?), file)));
    let (version, file) =
        opened.map_err(|source| SpecError::Io { verb: "read", path: path.clone(), source })?;
    let spec = serde_json::from_reader(io::BufReader::new(file))
        .map_err(|source| SpecError::Parse { path, source })?;
    Ok(Config { spec, version })
}

/// Puts the changed config in place of the original, which gets another name.
pub fn write(bundle: &Path, prepared: &Prepared) -> Result<(), SpecError> {
    let (config, original) = (bundle.join(BUNDLE_CONFIG), bundle.join(ORIGINAL_CONFIG));
    let failed = |source| SpecError::Io { verb: "write", path: config.clone(), source };
    let json = serde_json::to_vec(&prepared.spec).map_err(|error| failed(error.into()))?;
    fs::rename(&config, &original).map_err(failed)?;
    fs::write(&config, json).map_err(failed)
}

/// Puts the original config back, if it was changed.
pub fn restore(bundle: &Path) -> Result<(), SpecError> {
    let (config, original) = (bundle.join(BUNDLE_CONFIG), bundle.join(ORIGINAL_CONFIG));
    match fs::rename(&original, &config) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| SpecError::Io { verb: "restore", path: config, source }),
    }
}

fn prepare(
    mut spec: Spec,
    bundle: &Path,
    id: &str,
    rootfs_mounted: bool,
) -> Result<Prepared, SpecError> {
    let mut warnings = Vec::new();
    let root = spec.root_mut().as_mut().ok_or(SpecError::Missing("root"))?;
    let path = if rootfs_mounted {
        bundle.join("rootfs")
    } else {
        inside("root.path", bundle, root.path())?
    };
    root.set_path(path);
    let process = spec.process_mut().as_mut().ok_or(SpecError::Missing("process"))?;
    if let Some(profile) = process.apparmor_profile().clone().filter(|name| !name.is_empty()) {
        warnings.push(format!("process.apparmorProfile {profile:?}: no AppArmor in this kernel"));
    }
    process.set_apparmor_profile(None);
    if let Some(label) = process.selinux_label().clone().filter(|label| !label.is_empty()) {
        warnings.push(format!("process.selinuxLabel {label:?}: no SELinux in this kernel"));
    }
    let capabilities = capabilities::of(process.capabilities().as_ref())?;
    confine(process);
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if let Some(source) = mount.source().clone().filter(|_| is_bind(mount)) {
            mount.set_source(Some(inside("mount source", bundle, &source)?));
        }
        let mut options = mount.options().iter().flatten();
        if let Some(option) =
            options.find(|option| ["shared", "rshared"].contains(&option.as_str()))
        {
            let place = mount.destination().display();
            warnings
                .push(format!("mount {place}: {option} has no effect, its mounts stay its own"));
        }
    }
    if spec.linux().is_none() {
        spec.set_linux(Some(bare_linux()));
    }
    refuse_unbuilt(&spec)?;
    let linux = spec.linux_mut().as_mut().ok_or(SpecError::Missing("linux"))?;
    linux.set_cgroups_path(Some(Path::new(CGROUP_CONTAINERS_IN_SPEC).join(id)));
    let resources = linux.resources_mut().take();
    let seccomp = linux.seccomp_mut().take();
    let (key, value) = ALLOW_VSOCK;
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(key));
    let allow_vsock = annotation.is_some_and(|found| found == value);
    let hooks = spec.hooks().as_ref();
    #[allow(deprecated, reason = "still run at create, so their time counts")]
    let during_create = [
        hooks.and_then(|hooks| hooks.prestart().as_ref()),
        hooks.and_then(|hooks| hooks.create_runtime().as_ref()),
        hooks.and_then(|hooks| hooks.create_container().as_ref()),
    ];
    let any = |list: Option<&Vec<Hook>>| list.is_some_and(|list| !list.is_empty());
    Ok(Prepared {
        resources,
        poststart: any(hooks.and_then(|hooks| hooks.poststart().as_ref())),
        poststop: any(hooks.and_then(|hooks| hooks.poststop().as_ref())),
        hook_seconds: during_create.into_iter().flatten().map(|list| seconds(list)).sum(),
        allow_vsock,
        capabilities,
        seccomp,
        warnings,
        spec,
    })
}

impl Prepared {
    /// Makes the working directory, as runc does: many images name one that is not there.
    pub fn make_cwd(&self) -> io::Result<()> {
        let (root, process) = (self.spec.root().as_ref(), self.spec.process().as_ref());
        let (Some(root), Some(process)) = (root, process) else { return Ok(()) };
        let root = fs::File::open(root.path())?;
        beneath::make_directory_in_root(root.as_fd(), process.cwd(), true).map(drop)
    }

    /// CLONE_NEW*: the namespaces that it gets of its own.
    pub fn new_namespaces(&self) -> i32 {
        let named = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let new = named.into_iter().flatten().filter(|namespace| namespace.path().is_none());
        new.fold(0, |all, namespace| all | namespace.typ() as i32)
    }

    /// How to make the container without libcontainer, if it is nothing unusual.
    pub fn plan(&self) -> Option<Plan> {
        plan::plan(&self.spec)
    }

    /// Whether the container gets a pid namespace of its own, with which the kernel ends it.
    pub fn new_pids(&self) -> bool {
        self.new_namespaces() & libc::CLONE_NEWPID != 0
    }

    /// CLONE_NEW*: the namespaces that it names, made or joined.
    pub fn namespaces(&self) -> i32 {
        let named = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        named.into_iter().flatten().fold(0, |all, namespace| all | namespace.typ() as i32)
    }

    /// The execution domain that it names, see personality(2).
    pub fn personality(&self) -> Option<u32> {
        let personality = self.spec.linux().as_ref()?.personality().as_ref()?;
        Some(match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        })
    }

    /// Who the container's group 0 is outside, if it has a user namespace with a mapping.
    pub fn root_gid(&self) -> Option<u32> {
        let mappings = self.spec.linux().as_ref()?.gid_mappings().as_ref()?;
        let root = mappings.iter().find(|mapping| mapping.container_id() == 0)?;
        Some(root.host_id())
    }

    /// Whether there is a terminal is the request's to say.
    pub fn set_terminal(&mut self, terminal: bool) {
        if let Some(process) = self.spec.process_mut() {
            process.set_terminal(Some(terminal));
        }
    }

    /// The size that the config wants its terminal to have.
    pub fn console_size(&self) -> Option<Size> {
        console_size(self.spec.process().as_ref()?)
    }
}

/// The size that a process wants its terminal to have.
pub fn console_size(process: &Process) -> Option<Size> {
    let size = process.console_size()?;
    let (width, height) = (u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?);
    (width > 0 && height > 0).then_some(Size { width, height })
}

/// Takes out what the launcher sees to.
fn confine(process: &mut Process) {
    process.set_capabilities(None);
    process.set_no_new_privileges(process.no_new_privileges().filter(|set| *set));
}

/// What libcontainer passes over in silence.
fn refuse_unbuilt(spec: &Spec) -> Result<(), SpecError> {
    for mount in spec.mounts().iter().flatten() {
        let mapped = |maps: &Option<Vec<_>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
        if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
            let place = mount.destination().display();
            return Err(SpecError::Unbuilt(format!(
                "uidMappings and gidMappings of mount {place}"
            )));
        }
    }
    Ok(())
}

/// An absolute path stays, a relative one is below the bundle, wherever links in it lead.
fn inside(what: &'static str, bundle: &Path, path: &Path) -> Result<PathBuf, SpecError> {
    let leads_up = path.components().any(|part| part == Component::ParentDir);
    let place = bundle.join(path);
    // What is not there yet cannot be a link, and what comes later is the host's.
    let real = || Some((fs::canonicalize(&place).ok()?, fs::canonicalize(bundle).ok()?));
    let leads_out = || real().is_some_and(|(place, bundle)| !place.starts_with(bundle));
    if leads_up || path.is_relative() && leads_out() {
        return Err(SpecError::Outside { what, path: path.to_owned() });
    }
    Ok(place)
}

fn is_bind(mount: &Mount) -> bool {
    let bind = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind")
        || mount.options().as_ref().is_some_and(|options| options.iter().any(bind))
}

fn seconds(hooks: &[Hook]) -> u64 {
    hooks.iter().filter_map(|hook| u64::try_from(hook.timeout()?).ok()).sum()
}

/// Nothing set: the type's own default has namespaces, masked paths and devices of its own.
fn bare_linux() -> Linux {
    // From bytes, as an Update's are: text would be a third way.
    serde_json::from_slice(b"{}").expect("every field of the section is optional")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        dir
    }

    const PROCESS: &str = r#""process":{"cwd":"/","args":["sh"],"user":{"uid":0,"gid":0}}"#;

    fn config(rest: &str) -> String {
        format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},{PROCESS}{rest}}}"#)
    }

    fn read_back(dir: &Path) -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
    }

    #[test]
    fn paths_cgroup_and_resources_are_ours_and_the_original_stays() {
        let original = config(
            r#","linux":{"cgroupsPath":"user.slice:x:y","resources":{"pids":{"limit":7}}},
               "mounts":[{"destination":"/etc/hosts","type":"bind","source":"hosts","options":["rbind"]},
                         {"destination":"/x","type":"none","source":"/abs","options":["bind"]},
                         {"destination":"/proc","type":"proc","source":"proc"}]"#,
        );
        let dir = bundle(&original);
        let prepared = read(&Foreseen::default(), dir.path(), "c1", false).unwrap();
        write(dir.path(), &prepared).unwrap();
        assert_eq!(prepared.resources.unwrap().pids().unwrap().limit(), 7);
        let written = read_back(dir.path());
        let below = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(written["root"]["path"], below("rootfs"));
        assert_eq!(written["linux"]["cgroupsPath"], "/containers/c1");
        assert!(written["linux"]["resources"].is_null());
        assert_eq!(written["mounts"][0]["source"], below("hosts"));
        assert_eq!(written["mounts"][1]["source"], "/abs");
        assert_eq!(written["mounts"][2]["source"], "proc");
        let kept = fs::read_to_string(dir.path().join("config.original.json")).unwrap();
        assert_eq!(kept, original);

        // A second create of the same bundle starts from the original again.
        let again = read(&Foreseen::default(), dir.path(), "c2", false).unwrap();
        assert_eq!(again.resources.unwrap().pids().unwrap().limit(), 7);
        assert_eq!(fs::read_to_string(dir.path().join("config.json")).unwrap(), original);
    }

    #[test]
    fn section_that_is_missing_is_made_without_anything_in_it() {
        let dir = bundle(&config(""));
        let prepared = read(&Foreseen::default(), dir.path(), "c1", false).unwrap();
        write(dir.path(), &prepared).unwrap();
        let linux = &read_back(dir.path())["linux"];
        assert_eq!(linux.as_object().unwrap().len(), 1, "{linux}");
        assert_eq!(linux["cgroupsPath"], "/containers/c1");
    }

    #[test]
    fn mounted_rootfs_wins_over_the_path_in_the_config() {
        let dir = bundle(&config("").replace("\"rootfs\"", "\"/elsewhere\""));
        let prepared = read(&Foreseen::default(), dir.path(), "c1", true).unwrap();
        write(dir.path(), &prepared).unwrap();
        let rootfs = dir.path().join("rootfs");
        assert_eq!(read_back(dir.path())["root"]["path"], rootfs.to_str().unwrap());
    }

    #[test]
    fn paths_that_lead_out_of_the_bundle_are_refused() {
        let out = config("").replace("\"rootfs\"", "\"../other/rootfs\"");
        let mount = config(
            r#","mounts":[{"destination":"/x","type":"bind","source":"a/../../b","options":[]}]"#,
        );
        for config in [out, mount] {
            let dir = bundle(&config);
            assert!(matches!(
                read(&Foreseen::default(), dir.path(), "c1", false),
                Err(SpecError::Outside { .. })
            ));
        }
    }

    #[test]
    fn links_that_lead_out_of_the_bundle_are_refused_and_others_are_followed() {
        let elsewhere = tempfile::tempdir().unwrap();
        let mount = r#","mounts":[{"destination":"/x","type":"bind","source":"a"}]"#;
        for (link, rest) in [("rootfs", ""), ("a", mount)] {
            let dir = bundle(&config(rest));
            std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(link)).unwrap();
            let error =
                read(&Foreseen::default(), dir.path(), "c1", false).unwrap_err().to_string();
            assert!(error.contains("leads out of the bundle"), "{error}");
            fs::remove_file(dir.path().join(link)).unwrap();
            fs::create_dir(dir.path().join("real")).unwrap();
            std::os::unix::fs::symlink("real", dir.path().join(link)).unwrap();
            assert!(read(&Foreseen::default(), dir.path(), "c1", false).is_ok());
        }
    }

    #[test]
    fn apparmor_is_dropped_with_a_warning_and_hooks_are_counted() {
        let text = config(
            r#","hooks":{"createRuntime":[{"path":"/a","timeout":5},{"path":"/b"}],
                 "createContainer":[{"path":"/c","timeout":7}],
                 "startContainer":[{"path":"/d","timeout":100}],
                 "poststart":[{"path":"/e"}],"poststop":[]},
               "annotations":{"io.vminitd.vsock":"allow"}"#,
        );
        let text = text.replace(r#""args""#, r#""apparmorProfile":"docker-default","args""#);
        let dir = bundle(&text);
        let prepared = read(&Foreseen::default(), dir.path(), "c1", false).unwrap();
        assert_eq!(prepared.hook_seconds, 12);
        assert!(prepared.poststart && !prepared.poststop && prepared.allow_vsock);
        assert!(prepared.warnings[0].contains("docker-default"), "{:?}", prepared.warnings);
        write(dir.path(), &prepared).unwrap();
        assert!(read_back(dir.path())["process"]["apparmorProfile"].is_null());
    }

    #[test]
    fn confinement_is_taken_out_and_false_no_new_privileges_is_none() {
        let text = config(
            r#","linux":{"seccomp":{"defaultAction":"SCMP_ACT_LOG"}},"annotations":{"a":"b"}"#,
        );
        let text = text.replace(
            r#""args""#,
            r#""noNewPrivileges":false,"capabilities":{"bounding":["CAP_KILL"]},"args""#,
        );
        let dir = bundle(&text);
        let prepared = read(&Foreseen::default(), dir.path(), "c1", false).unwrap();
        assert_eq!(prepared.capabilities.bounding, 1 << 5);
        assert!(prepared.seccomp.is_some());
        write(dir.path(), &prepared).unwrap();
        let written = read_back(dir.path());
        assert!(written["linux"]["seccomp"].is_null());
        assert!(written["process"]["capabilities"].is_null());
        assert!(written["process"]["noNewPrivileges"].is_null());
    }

    #[test]
    fn what_is_no_config_says_where_and_why() {
        let text = |config: &str| {
            let dir = bundle(config);
            crate::chain(&read(&Foreseen::default(), dir.path(), "c1", false).unwrap_err())
        };
        assert!(text("{").contains("config.json: EOF"), "{}", text("{"));
        assert!(text("7").contains("config.json: invalid type"));
        assert!(text(r#"{"ociVersion":"1.0.2"}"#).contains("no root"));
        assert!(text(r#"{"ociVersion":"1","root":{"path":"r"}}"#).contains("no process"));
        let dir = tempfile::tempdir().unwrap();
        let error = read(&Foreseen::default(), dir.path(), "c1", false).unwrap_err();
        assert!(crate::chain(&error).contains("No such file"));
    }
}

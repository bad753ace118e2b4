//! How the container's program is found and started.
//!
//! libcontainer's own way refuses a program that only its owner may execute, insists on `PATH`
//! where the program's name is a path, and words its errors in a way that no client knows. Clients
//! (and `vminitctl`) tell "not found" from "not executable" by runc's texts.
//!
//! Runs in the container's init, after the root has been changed and privileges were dropped.
//!
//! Also takes from the process what it may not have ([`super::confined`]).
//!
//! Owns: the numbers of the launcher's descriptors that this process has inherited. A container
//! may stay in `created` for hours, and shall hold nothing of ours meanwhile.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::stat::{fstat, makedev};
use nix::unistd::{AccessFlags, access};

use super::confined;
use crate::link::confinement::Confinement;
use crate::paths;
use crate::sys::{descriptors, loopback};

/// See the module.
#[derive(Clone, Debug)]
pub struct Program {
    /// Closed as soon as the process has no more use for them.
    pub descriptors_to_close: Vec<RawFd>,
    /// What the process may do.
    pub confinement: Confinement,
    /// The process is the first in a network namespace. That is born with its loopback interface
    /// down; programs expect it up, and other runtimes see to it.
    pub new_network: bool,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if self.new_network
            && let Err(error) = loopback::up()
        {
            tracing::warn!(%error, "the loopback interface stays down");
        }
        let confined = confined::before_start(&self.confinement, spec.into());
        // As the process itself would find it, so after it has lost its capabilities.
        confined
            .map_err(|error| error.to_string())
            .and_then(|()| find(arguments(spec), environment(spec)))
            .map_err(ExecutorValidationError::ArgValidationError)?;
        descriptors::close_numbers(&self.descriptors_to_close);
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        open_null_for_writing();
        let path = find(arguments(spec), environment(spec)).map_err(ExecutorError::Other)?;
        let text = |text: &str| CString::new(text).map_err(|_| ExecutorError::InvalidArg);
        let arguments =
            arguments(spec).iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?;
        let program = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| ExecutorError::InvalidArg)?;
        confined::before_program(&self.confinement, spec.into())
            .map_err(|error| ExecutorError::Other(error.to_string()))?;
        let Err(errno) = nix::unistd::execv(&program, &arguments);
        Err(ExecutorError::Other(format!("exec {path:?}: {}", errno.desc())))
    }
}

/// libcontainer opens /dev/null anew in the container, so that nothing leads to the guest's, but for
/// reading only: who writes to a stdout that goes nowhere would get an error.
fn open_null_for_writing() {
    let Ok(null) = File::options().read(true).write(true).open(paths::NULL) else { return };
    let is_null = |number| {
        fstat(number).is_ok_and(|stat| {
            stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(1, 3)
        })
    };
    if !is_null(null.as_raw_fd()) {
        return;
    }
    for number in 0..=2 {
        if is_null(number) {
            // At worst it stays as it is.
            let _ = descriptors::install(null.as_fd(), number);
        }
    }
}

fn arguments(spec: &Spec) -> &[String] {
    let process = spec.process().as_ref();
    process.and_then(|process| process.args().as_deref()).unwrap_or_default()
}

fn environment(spec: &Spec) -> &[String] {
    let process = spec.process().as_ref();
    process.and_then(|process| process.env().as_deref()).unwrap_or_default()
}

/// The program's path, by the rules of exec in a shell: a name with a slash is a path, another is
/// looked for in the process's own `PATH`.
pub fn find(arguments: &[String], environment: &[String]) -> Result<PathBuf, String> {
    let Some(name) = arguments.first() else {
        return Err("process.args is empty".into());
    };
    if name.contains('/') {
        return match problem(Path::new(name)) {
            None => Ok(PathBuf::from(name)),
            Some(problem) => Err(format!("exec: {name:?}: {problem}")),
        };
    }
    let search =
        environment.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for directory in search.split(':') {
        // An empty entry means the working directory; a program there must be named by a path.
        if directory.is_empty() || name.is_empty() {
            continue;
        }
        let path = Path::new(directory).join(name);
        match problem(&path) {
            None => return Ok(path),
            Some(problem) => denied |= problem == "permission denied",
        }
    }
    let problem = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {name:?}: {problem}"))
}

/// Why the file cannot be executed by this process.
fn problem(path: &Path) -> Option<String> {
    match path.metadata() {
        Err(error) => {
            let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
            let cause = match errno {
                nix::errno::Errno::EACCES => return Some("permission denied".into()),
                nix::errno::Errno::ENOENT => "no such file or directory".into(),
                other => other.desc().to_lowercase(),
            };
            Some(format!("stat {}: {cause}", path.display()))
        }
        Ok(file) if file.is_dir() => Some("is a directory".into()),
        // access(2) says yes to a root with CAP_DAC_OVERRIDE if any execute bit is set, as exec
        // does; the mode is looked at for callers without /proc or with odd filesystems.
        Ok(file) if file.permissions().mode() & 0o111 == 0 => Some("permission denied".into()),
        Ok(_) => access(path, AccessFlags::X_OK).is_err().then(|| "permission denied".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(arguments: &[&str], path: Option<&str>) -> Result<PathBuf, String> {
        let environment: Vec<String> =
            path.map(|path| format!("PATH={path}")).into_iter().collect();
        let arguments: Vec<String> = arguments.iter().map(|word| word.to_string()).collect();
        find(&arguments, &environment)
    }

    fn file(directory: &tempfile::TempDir, name: &str, mode: u32) -> String {
        let path = directory.path().join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().into()
    }

    #[test]
    fn program_is_found_by_path_without_path_variable_and_by_name_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "tool", 0o700);
        let search = format!("/nowhere::{}", directory.path().display());
        assert_eq!(found(&[&path], None), Ok(PathBuf::from(&path)));
        assert_eq!(found(&["tool"], Some(&search)), Ok(PathBuf::from(&path)));
    }

    #[test]
    fn reasons_are_those_that_clients_know() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "data", 0o600);
        let folder = directory.path().to_str().unwrap();
        let denied = Err(format!("exec: {path:?}: permission denied"));
        assert_eq!(found(&[&path], None), denied);
        let denied = Err(r#"exec: "data": permission denied"#.to_string());
        assert_eq!(found(&["data"], Some(folder)), denied);
        let missing = Err(r#"exec: "nope": executable file not found in $PATH"#.to_string());
        assert_eq!(found(&["nope"], Some(folder)), missing);
        assert_eq!(found(&["nope"], None), missing);
        let missing = Err(r#"exec: "/nope": stat /nope: no such file or directory"#.to_string());
        assert_eq!(found(&["/nope"], None), missing);
        let folder = Err(r#"exec: "/": is a directory"#.to_string());
        assert_eq!(found(&["/"], None), folder);
        assert_eq!(found(&[], None), Err("process.args is empty".to_string()));
    }
}

//! `Bundle.Create`: makes `<bundles>/<id>` with `rootfs/` and the files.
//!
//! Promises: names are single path components and sizes are bounded, before anything is made; the
//! bundle appears whole, or nothing of it is left.
//! Never: reads what is in the files.

use std::collections::HashMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{RenameFlags, renameat2};

use super::UNFINISHED;
use super::remove;
use crate::agent::dirs::Dirs;
use crate::agent::errors::RpcError;
use crate::agent::id::{ContainerId, FileName};
use crate::limits::{BUNDLE_BYTES, BUNDLE_FILES};

/// A bundle as asked for, checked.
#[derive(Debug)]
pub struct Wanted {
    id: ContainerId,
    files: Vec<(FileName, Vec<u8>)>,
}

/// Which step failed. The guest's fault: its tmpfs is full.
#[derive(Debug, thiserror::Error)]
#[error("write {path} of a bundle")]
struct Failed {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Wanted {
    /// Checks a request.
    pub fn try_from(id: &str, files: HashMap<String, Vec<u8>>) -> Result<Self, RpcError> {
        let id = ContainerId::try_from(id)?;
        if files.len() > BUNDLE_FILES {
            let count = files.len();
            return Err(RpcError::Invalid(format!(
                "{count} files of a bundle are more than {BUNDLE_FILES}"
            )));
        }
        let bytes = files.values().map(Vec::len).fold(0, usize::saturating_add);
        if bytes > BUNDLE_BYTES {
            return Err(RpcError::Invalid(format!(
                "{bytes} bytes of a bundle are more than {BUNDLE_BYTES}"
            )));
        }
        let files = files
            .into_iter()
            .map(|(name, content)| Ok((FileName::try_from(&*name)?, content)))
            .collect::<Result<_, RpcError>>()?;
        Ok(Self { id, files })
    }
}

/// Makes it; returns where it is. Can block.
pub fn create(dirs: &Dirs, wanted: &Wanted) -> Result<PathBuf, RpcError> {
    let exists = || RpcError::Exists { what: "bundle", id: wanted.id.to_string() };
    let bundle = dirs.bundle(&wanted.id);
    // Made elsewhere and renamed, so that an agent that dies in between leaves nothing that looks
    // like a bundle. The prefix keeps two requests for one id apart only by who is first.
    let unfinished = dirs.bundles.join(format!("{UNFINISHED}{}", wanted.id));
    match DirBuilder::new().mode(0o700).create(&unfinished) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists()),
        done => done.map_err(|error| failed(&unfinished, error))?,
    }
    let done = fill(&unfinished, &wanted.files).and_then(|()| {
        let no_replace = RenameFlags::RENAME_NOREPLACE;
        match renameat2(None, &unfinished, None, &bundle, no_replace) {
            Err(nix::errno::Errno::EEXIST) => Err(exists()),
            done => done.map_err(|errno| failed(&bundle, errno.into())),
        }
    });
    if done.is_err() {
        let _ = remove::remove_tree(&unfinished);
    }
    done.map(|()| bundle)
}

fn fill(directory: &Path, files: &[(FileName, Vec<u8>)]) -> Result<(), RpcError> {
    let rootfs = directory.join("rootfs");
    DirBuilder::new().mode(0o755).create(&rootfs).map_err(|error| failed(&rootfs, error))?;
    for (name, content) in files {
        let path = directory.join(name.as_str());
        // Readable, since a file may be bind-mounted into a container whose user is not root; the
        // directory above keeps everybody else out.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

fn failed(path: &Path, source: io::Error) -> RpcError {
    RpcError::failed(&Failed { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn dirs(root: &tempfile::TempDir) -> Dirs {
        let root = root.path().to_owned();
        Dirs {
            bundles: root.clone(),
            containers: root.clone(),
            libcontainer: root.clone(),
            cgroups: root,
        }
    }

    fn files(list: &[(&str, &[u8])]) -> HashMap<String, Vec<u8>> {
        list.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect()
    }

    fn run(
        root: &tempfile::TempDir,
        id: &str,
        list: &[(&str, &[u8])],
    ) -> Result<PathBuf, RpcError> {
        create(&dirs(root), &Wanted::try_from(id, files(list))?)
    }

    #[test]
    fn bundle_is_private_and_has_rootfs_and_files() {
        let root = tempfile::tempdir().unwrap();
        let bundle =
            run(&root, "c1", &[("config.json", b"{}"), ("hosts", b"127.0.0.1 a\n")]).unwrap();
        assert_eq!(bundle, root.path().join("c1"));
        assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o7777, 0o700);
        assert!(bundle.join("rootfs").is_dir());
        assert_eq!(fs::read(bundle.join("hosts")).unwrap(), b"127.0.0.1 a\n");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        for (id, name) in [
            ("..", "a"),
            ("a/b", "a"),
            ("", "a"),
            ("c1", "../a"),
            ("c1", "a/b"),
            ("c1", ".."),
            ("c1", ""),
            ("c1", "rootfs"),
            ("c1", "mounts"),
            ("c1", "config.original.json"),
        ] {
            let error = run(&root, id, &[("config.json", b"{}"), (name, b"x")]).unwrap_err();
            assert!(matches!(error, RpcError::Invalid(_)), "{id:?} {name:?}: {error}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn second_bundle_of_an_id_is_refused_and_the_first_stays() {
        let root = tempfile::tempdir().unwrap();
        run(&root, "c1", &[("config.json", b"first")]).unwrap();
        let error = run(&root, "c1", &[("config.json", b"second")]).unwrap_err();
        assert_eq!(error.to_string(), "bundle c1: already exists");
        assert_eq!(fs::read(root.path().join("c1/config.json")).unwrap(), b"first");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn limits_on_count_and_size_hold() {
        let many: Vec<String> = (0..=BUNDLE_FILES).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (&**name, &b""[..])).collect();
        assert!(Wanted::try_from("c1", files(&many)).is_err());
        assert!(Wanted::try_from("c1", files(&many[1..])).is_ok());
        let large = vec![0; BUNDLE_BYTES];
        assert!(Wanted::try_from("c1", files(&[("a", &large)])).is_ok());
        assert!(Wanted::try_from("c1", files(&[("a", &large), ("b", b"x")])).is_err());
    }
}

//! The tree as an erofs image, the read-only filesystem that a VM boots from with `root=/dev/vda rootfstype=erofs ro`.
//! Promises: the bytes depend on the tree, its files' content and the version of mkfs.erofs alone: no time, owner or random id.
//! Never: holds a device: without root none can be put in, and a kernel that mounts devtmpfs by itself needs none.
//!
//! mkfs.erofs packs a directory, so the tree is laid out in a temporary one beside the image first. A writer of our own
//! could take the tree as it is; it would be a second implementation of a format for a tool that builds images.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use crate::tree::{Node, Tree};

/// The tool, of erofs-utils.
const TOOL: &str = "mkfs.erofs";

/// All that could differ between two runs: time, filesystem id, owner, extended attributes of the machine's.
const FLAGS: [&str; 5] =
    ["--quiet", "-T0", "-U00000000-0000-0000-0000-000000000000", "--all-root", "-x-1"];

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// A file of the tree, or its copy.
    #[error("cannot lay out /{}", path.display())]
    LayOut {
        /// In the image, without the leading slash.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Most likely it is not installed.
    #[error("cannot run {TOOL}; it is in the package erofs-utils")]
    Run(#[source] io::Error),
    /// It ran, and refused.
    #[error("{TOOL} failed: {said}")]
    Refused {
        /// Its last line.
        said: String,
    },
}

/// Writes the image to `output`, and for a moment a directory beside it.
///
/// # Errors
/// See [`ErofsError`]; the image is not whole then.
pub fn write(tree: &Tree, output: &Path) -> Result<(), ErofsError> {
    let mut staging = output.as_os_str().to_owned();
    staging.push(".root");
    let staging = Staging(staging.into());
    staging.fill(tree)?;
    let done = Command::new(TOOL).args(FLAGS).arg(output).arg(&staging.0).output();
    let done = done.map_err(ErofsError::Run)?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = said.lines().last().unwrap_or("it says nothing").to_owned();
        return Err(ErofsError::Refused { said });
    }
    Ok(())
}

/// The directory, gone when this is.
struct Staging(PathBuf);

impl Staging {
    fn fill(&self, tree: &Tree) -> Result<(), ErofsError> {
        let failed = |name: &[u8]| {
            let path = std::ffi::OsStr::from_bytes(name).into();
            move |source| ErofsError::LayOut { path, source }
        };
        fs::DirBuilder::new().mode(0o755).create(&self.0).map_err(failed(b""))?;
        let mut directories = vec![(self.0.clone(), 0o755)];
        for (name, node) in tree.nodes() {
            let place = self.0.join(std::ffi::OsStr::from_bytes(name));
            match node {
                // Writable until everything is in it.
                Node::Directory { mode, .. } => {
                    fs::create_dir(&place).map_err(failed(name))?;
                    directories.push((place, *mode));
                }
                Node::File { mode, source, .. } => fs::copy(source, &place)
                    .and_then(|_| fs::set_permissions(&place, Permissions::from_mode(*mode)))
                    .map_err(failed(name))?,
                Node::Symlink { target } => {
                    symlink(std::ffi::OsStr::from_bytes(target), &place).map_err(failed(name))?;
                }
                Node::CharDevice { .. } => {}
            }
        }
        for (place, mode) in directories {
            fs::set_permissions(&place, Permissions::from_mode(mode)).map_err(failed(b""))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What is left is a temporary directory that names its image.
        let _ = fs::remove_dir_all(&self.0);
    }
}

//! Extras: files of the host for the guest's own filesystem, packed into a tar archive for a disk.
//!
//! Promises: directories, symlinks and modes are kept, owners and times are not; names are absolute, those of the
//! guest; nothing but regular files, directories and symlinks is packed; the archive is what POSIX says (ustar, with
//! pax headers where a name or a size needs them), so that any guest's tar reads it.
//! Never: follows a symlink below a directory that it packs, or keeps a file in memory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// Bytes of a block of the archive.
const BLOCK: usize = 512;
/// Bytes of a size that has room in a header: eleven octal digits.
const MAX_USTAR_BYTES: u64 = 0o77_777_777_777;

/// `HOST:GUEST`: a file or directory here, and where the guest gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// On this host.
    pub source: PathBuf,
    /// In the guest; absolute, without `..`.
    pub place: PathBuf,
}

/// Why the archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExtrasError {
    /// A file of the caller's.
    #[error("extra {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Something that is no file, directory or symlink. The caller's fault.
    #[error("extra {path:?} is neither a file nor a directory nor a symlink")]
    Kind {
        /// What it is.
        path: PathBuf,
    },
    /// Somebody wrote to the file while it was packed. The caller may try again.
    #[error("extra {path:?} became shorter while it was packed")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The archive.
    #[error("write the extras' archive")]
    Write(#[source] io::Error),
}

impl FromStr for Extra {
    type Err = String;

    /// GUEST begins at the last `:/`, so that HOST may have a colon.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("{text:?} is no HOST:GUEST; give for example ./tool:/usr/bin/tool");
        let colon = text.rfind(":/").filter(|at| *at > 0).ok_or_else(refused)?;
        let place = PathBuf::from(&text[colon + 1..]);
        let up = place.components().any(|part| part == Component::ParentDir);
        if up || place.file_name().is_none() {
            return Err(refused());
        }
        Ok(Self { source: text[..colon].into(), place })
    }
}

/// Writes the archive, the extras in their order.
pub fn write(extras: &[Extra], out: &mut impl Write) -> Result<(), ExtrasError> {
    for extra in extras {
        // What is named is followed, what is found is not.
        let source =
            fs::canonicalize(&extra.source).map_err(|source| read(&extra.source, source))?;
        pack(&source, &extra.place, out)?;
    }
    out.write_all(&[0; 2 * BLOCK]).map_err(ExtrasError::Write)
}

fn read(path: &Path, source: io::Error) -> ExtrasError {
    ExtrasError::Read { path: path.to_owned(), source }
}

fn pack(source: &Path, place: &Path, out: &mut impl Write) -> Result<(), ExtrasError> {
    let failed = |error| read(source, error);
    let found = fs::symlink_metadata(source).map_err(failed)?;
    let mode = found.permissions().mode() & 0o7777;
    let name = place.as_os_str().as_bytes();
    if found.is_dir() {
        header(out, name, b'5', mode, 0, b"")?;
        let entries = fs::read_dir(source).map_err(failed)?;
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        names.sort();
        for name in names {
            pack(&source.join(&name), &place.join(&name), out)?;
        }
        Ok(())
    } else if found.is_symlink() {
        let target = fs::read_link(source).map_err(failed)?;
        header(out, name, b'2', 0o777, 0, target.as_os_str().as_bytes())
    } else if found.is_file() {
        let size = found.len();
        header(out, name, b'0', mode, size, b"")?;
        let file = File::open(source).map_err(failed)?;
        let copied = io::copy(&mut file.take(size), out).map_err(ExtrasError::Write)?;
        if copied < size {
            return Err(ExtrasError::Changed { path: source.to_owned() });
        }
        pad(out, size)
    } else {
        Err(ExtrasError::Kind { path: source.to_owned() })
    }
}

fn header(
    out: &mut impl Write,
    name: &[u8],
    kind: u8,
    mode: u32,
    size: u64,
    link: &[u8],
) -> Result<(), ExtrasError> {
    let mut records = Vec::new();
    if name.len() > 100 {
        records.extend(record("path", name));
    }
    if link.len() > 100 {
        records.extend(record("linkpath", link));
    }
    if size > MAX_USTAR_BYTES {
        records.extend(record("size", size.to_string().as_bytes()));
    }
    if !records.is_empty() {
        let length = records.len() as u64;
        out.write_all(&block(b"pax", b'x', 0o644, length, b"")).map_err(ExtrasError::Write)?;
        out.write_all(&records).map_err(ExtrasError::Write)?;
        pad(out, length)?;
    }
    out.write_all(&block(name, kind, mode, size, link)).map_err(ExtrasError::Write)
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A ustar header; what is too long for it is cut, a pax header has said the whole.
fn block(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let length = bytes.len().min(room);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, 100, name);
    put(100, 8, format!("{mode:07o}").as_bytes());
    put(108, 8, b"0000000");
    put(116, 8, b"0000000");
    put(124, 12, format!("{:011o}", size.min(MAX_USTAR_BYTES)).as_bytes());
    put(136, 12, b"00000000000");
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn pad(out: &mut impl Write, size: u64) -> Result<(), ExtrasError> {
    let rest = (size % BLOCK as u64) as usize;
    let padding = if rest == 0 { 0 } else { BLOCK - rest };
    out.write_all(&[0; BLOCK][..padding]).map_err(ExtrasError::Write)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn host_and_guest_are_read_and_an_error_shows_how() {
        let good: Extra = "a:/b:/usr/x".parse().unwrap();
        assert_eq!(good, Extra { source: "a:/b".into(), place: "/usr/x".into() });
        for text in ["", "a", "a:b", ":/b", "a:/", "a:/../b", "a:/b/.."] {
            assert!(text.parse::<Extra>().unwrap_err().contains("./tool:/usr"), "{text}");
        }
    }

    #[test]
    fn record_counts_its_own_digits() {
        assert_eq!(record("path", b"x"), b"9 path=x\n");
        assert_eq!(record("path", &[b'x'; 2]), b"11 path=xx\n");
        assert_eq!(record("path", &[b'x'; 92]).len(), 102);
    }

    #[test]
    fn the_systems_tar_reads_what_was_packed() {
        let from = tempfile::tempdir().unwrap();
        let long = "n".repeat(140);
        let tree = from.path().join("tree");
        fs::create_dir_all(tree.join(&long)).unwrap();
        fs::write(tree.join(&long).join("file"), vec![7; 1000]).unwrap();
        fs::write(tree.join("tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(format!("/{long}"), tree.join("link")).unwrap();
        let extras = ["tree:/opt/tree", "tree/tool:/usr/bin/tool"];
        let extras: Vec<Extra> = extras.iter().map(|text| text.parse().unwrap()).collect();
        let extras: Vec<Extra> = extras
            .into_iter()
            .map(|extra| Extra { source: from.path().join(extra.source), ..extra })
            .collect();
        let mut archive = Vec::new();
        write(&extras, &mut archive).unwrap();
        let to = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-xp", "--no-same-owner", "-C"]).arg(to.path()).stdin(Stdio::piped());
        let mut tar = tar.stderr(Stdio::null()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(tar.wait().unwrap().success());
        let at = |path: &str| to.path().join(path);
        assert_eq!(fs::read(at(&format!("opt/tree/{long}/file"))).unwrap(), vec![7; 1000]);
        assert_eq!(fs::read_link(at("opt/tree/link")).unwrap(), Path::new(&format!("/{long}")));
        assert_eq!(at("usr/bin/tool").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(archive.len() % BLOCK, 0);
    }

    #[test]
    fn what_is_no_file_is_named() {
        let from = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
        let extra = Extra { source: from.path().to_owned(), place: "/x".into() };
        let error = write(&[extra], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("socket\" is neither"), "{error}");
        let extra = Extra { source: from.path().join("absent"), place: "/x".into() };
        assert!(matches!(write(&[extra], &mut Vec::new()), Err(ExtrasError::Read { .. })));
    }
}

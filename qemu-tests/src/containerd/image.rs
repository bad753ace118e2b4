//! An OCI image made here: an image layout in a tar file, with one layer, the tests' root filesystem.
//!
//! Promises: the same files make the same image. Never: compresses; it goes no further than to this machine's disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rootfs::{remove_at_exit, rootfs};
use crate::sha256;

/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// The image's file, made once per test run. Its name in containerd is [`super::IMAGE`].
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let dir = tempfile::Builder::new().prefix("vminitd-image-").tempdir().expect("a directory");
        remove_at_exit(dir.path());
        let path = dir.path().join("image.tar");
        write_image(rootfs(), super::IMAGE, &path).expect("an image");
        (dir, path)
    });
    path
}

fn write_image(root: &Path, name: &str, path: &Path) -> io::Result<()> {
    let mut layer = Archive::new(Vec::new());
    layer.tree(root, Path::new(""))?;
    let layer = layer.finish()?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();

    let mut image = Archive::new(io::BufWriter::new(File::create(path)?));
    image.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    image.directory("blobs", 0o755)?;
    image.directory("blobs/sha256", 0o755)?;
    for blob in [&layer, &config, &manifest] {
        image.file(&format!("blobs/sha256/{}", sha256(blob)), 0o644, blob)?;
    }
    image.file("index.json", 0o644, index.as_bytes())?;
    image.finish()?.flush()
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    let digest = format!("sha256:{}", sha256(blob));
    json!({ "mediaType": media_type, "digest": digest, "size": blob.len() })
}

/// A tar archive (ustar) of short names, all of root's, made in 1970.
struct Archive<W> {
    out: W,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self { out }
    }

    /// Everything below `root`, by name.
    fn tree(&mut self, root: &Path, below: &Path) -> io::Result<()> {
        let mut entries = fs::read_dir(root.join(below))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = below.join(entry.file_name());
            let name = path.to_str().expect("a name of ours");
            let metadata = entry.metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                self.directory(name, mode)?;
                self.tree(root, &path)?;
            } else if metadata.is_symlink() {
                self.header(name, 0o777, 0, b'2', &fs::read_link(entry.path())?)?;
            } else {
                let mut bytes = Vec::new();
                File::open(entry.path())?.read_to_end(&mut bytes)?;
                self.file(name, mode, &bytes)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.header(&format!("{name}/"), mode, 0, b'5', Path::new(""))
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.header(name, mode, bytes.len(), b'0', Path::new(""))?;
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])
    }

    fn header(
        &mut self,
        name: &str,
        mode: u32,
        size: usize,
        kind: u8,
        link: &Path,
    ) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let link = link.as_os_str().as_bytes();
        assert!(name.len() <= 100 && link.len() <= 100, "{name}: too long for ustar");
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0        ");
        put(156, &[kind]);
        put(157, link);
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&block)
    }

    fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_image_is_what_its_digests_say_and_tar_reads_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/one"), [7; 600]).unwrap();
        symlink("one", root.path().join("bin/two")).unwrap();
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("image.tar");
        write_image(root.path(), "docker.io/test/x:latest", &path).unwrap();
        let unpack = |file: &Path| {
            let tar = Command::new("tar").arg("-xf").arg(file).arg("-C").arg(out.path()).status();
            assert!(tar.unwrap().success());
        };
        unpack(&path);
        let read = |name: &str| fs::read(out.path().join(name)).unwrap();
        let mut blobs: Vec<Value> = Vec::new();
        let mut follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let blob = read(&format!("blobs/sha256/{digest}"));
            assert_eq!(sha256(&blob), digest);
            assert_eq!(descriptor["size"], blob.len());
            blobs.push(json!(digest));
            blob
        };
        let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        follow(&manifest["layers"][0]);
        let layer = blobs[2].as_str().unwrap().to_owned();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{layer}"));
        unpack(&out.path().join("blobs/sha256").join(layer));
        assert_eq!(read("bin/two"), [7; 600]);
    }
}

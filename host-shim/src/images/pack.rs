//! Many images as partitions of one raw disk: a file of its own, of which what the images leave out is a hole.
//!
//! The images are copied by copy_file_range(2), which on filesystems that share blocks between files (btrfs, XFS) takes
//! no room and no time, and elsewhere both. Rejected: device-mapper (needs root), and a VMDK whose extents are the
//! images themselves (docs/images.md).
//!
//! Owns: the file, which is gone when [`Packed`] is. Promises: the images are not written.
//! Never: packs what is written to.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::gpt::{Layout, LayoutError};
use super::image::Image;
use crate::sys::holes::next_data;

/// A disk with images as partitions, from 1 on. Dropped, the file is gone.
#[derive(Debug)]
pub struct Packed {
    file: NamedTempFile,
}

/// Why no disk could be made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The images do not fit a disk.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file for the disk.
    #[error("make a disk of {count} images in {directory:?} (TMPDIR names another directory)")]
    Disk {
        /// How many images.
        count: usize,
        /// Where.
        directory: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An image cannot be read, or there is no room for it.
    #[error("copy {path:?} to a disk in {directory:?} (TMPDIR names another directory)")]
    Copy {
        /// The image.
        path: PathBuf,
        /// Where the disk is made.
        directory: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Packed {
    /// Packs the images, in `directory`.
    pub fn make(images: &[&Image], directory: &Path) -> Result<Self, PackError> {
        let names: Vec<String> =
            (1..=images.len()).map(|number| format!("layer{number}")).collect();
        let sizes = images.iter().map(|image| image.bytes);
        let named: Vec<_> = names.iter().map(String::as_str).zip(sizes).collect();
        let layout = Layout::pack(&named)?;
        let disk = |source| PackError::Disk {
            count: images.len(),
            directory: directory.to_owned(),
            source,
        };
        let mut file = tempfile::Builder::new()
            .prefix("vminitd-layers-")
            .tempfile_in(directory)
            .map_err(disk)?;
        frame(file.as_file_mut(), &layout).map_err(disk)?;
        for (image, offset) in images.iter().zip(layout.offsets()) {
            copy(&image.path, file.as_file_mut(), offset).map_err(|source| PackError::Copy {
                path: image.path.clone(),
                directory: directory.to_owned(),
                source,
            })?;
        }
        Ok(Self { file })
    }

    /// The disk.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

fn frame(file: &mut File, layout: &Layout) -> io::Result<()> {
    file.set_len(layout.bytes())?;
    file.write_all(&layout.head())?;
    let tail = layout.tail();
    file.seek(SeekFrom::Start(layout.bytes() - tail.len() as u64))?;
    file.write_all(&tail)
}

/// Copies what is no hole.
fn copy(from: &Path, to: &mut File, offset: u64) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut at = 0;
    while let Some((begin, end)) = next_data(&from, at)? {
        from.seek(SeekFrom::Start(begin))?;
        to.seek(SeekFrom::Start(offset + begin))?;
        let part = &mut io::Read::take(&mut from, end - begin);
        if io::copy(part, to)? != end - begin {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it became shorter meanwhile",
            ));
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::super::gpt::{SECTOR, Table};
    use super::super::kind::Kind;
    use super::*;

    #[test]
    fn a_packed_disk_has_each_image_in_its_partition_and_holes_between() {
        let directory = tempfile::tempdir().unwrap();
        let contents = [vec![7u8; 5000], vec![8; 1 << 20], vec![9; 1]];
        let mut images: Vec<Image> = Vec::new();
        for (index, content) in contents.iter().enumerate() {
            let path = directory.path().join(index.to_string());
            fs::write(&path, content).unwrap();
            let bytes = content.len() as u64;
            images.push(Image { path, kind: Kind::Erofs, read_only: true, serial: None, bytes });
        }
        // And one that is hardly there.
        let path = directory.path().join("sparse");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let sparse = Image { path, bytes: 64 << 20, ..images[0].clone() };
        images.push(sparse);
        let images: Vec<&Image> = images.iter().collect();

        let packed = Packed::make(&images, directory.path()).unwrap();
        let disk = fs::read(packed.path()).unwrap();
        let table = Table::parse(&disk, disk.len() as u64 / SECTOR).unwrap();
        assert_eq!(table.entries.len(), 4);
        for (entry, content) in table.entries.iter().zip(&contents) {
            let begin = (entry.first * SECTOR) as usize;
            assert_eq!(&disk[begin..begin + content.len()], content, "{}", entry.name);
        }
        let taken = fs::metadata(packed.path()).unwrap().blocks() * 512;
        assert!(taken < 4 << 20, "{taken} bytes of {}", disk.len());

        let path = packed.path().to_owned();
        drop(packed);
        assert!(!path.exists());
    }
}

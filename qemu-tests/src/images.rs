//! Disk images for tests, made by the programs that people make them with.
//!
//! Owns: nothing; the files go with the directory that they are made in.
//! Promises: a program that is missing or fails is a panic with what it said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use host_shim::vm::Disk;

use crate::vm::guest_share;

/// A directory `name` in `directory` with these files.
pub fn layer(directory: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let tree = directory.join(name);
    fs::create_dir(&tree).expect("a new directory");
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a file below the tree")).expect("a directory");
        fs::write(path, content).expect("a new file");
    }
    tree
}

/// An erofs image `name`.erofs of a tree.
pub fn erofs(directory: &Path, name: &str, tree: &Path) -> PathBuf {
    let image = directory.join(format!("{name}.erofs"));
    run(Command::new("mkfs.erofs").args(["--quiet", "-T0"]).arg(&image).arg(tree));
    image
}

/// An ext4 image `name`.ext4 of so many MiB, empty or with a tree.
pub fn ext4(directory: &Path, name: &str, tree: Option<&Path>, mebibytes: u32) -> PathBuf {
    let image = directory.join(format!("{name}.ext4"));
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4"]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    run(command.arg(&image).arg(format!("{mebibytes}M")));
    image
}

/// The guest's own root as an image, of what is being tested.
pub fn root_image(directory: &Path) -> PathBuf {
    let image = directory.join("root.erofs");
    let tree = initramfs::Tree::for_root(&guest_share().join("vminitd")).expect("the guest");
    initramfs::erofs::write(&tree, &image).unwrap_or_else(|error| panic!("{error}"));
    image
}

/// Such an image as a disk of a VM.
pub fn disk(serial: &str, path: &Path, read_only: bool) -> Disk {
    Disk { serial: serial.parse().expect("a serial"), path: path.to_owned(), read_only }
}

fn run(command: &mut Command) {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

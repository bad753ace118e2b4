//! Makes a filesystem with the new mount API, one option at a time.
//!
//! Owns: how each type wants its source and its options: devices, images, layers.
//! Promises: an error names the option or the step, and has what the filesystem itself says of it.
//! Never: picks a place.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::make::{MountError, mapping, propagate};
use super::options::{Image, Tree, Verity};
use super::place::{Ground, path_of};
use super::plan::{Planned, Source};
use crate::agent::block;
use crate::agent::block::kernel_log::KernelLog;
use crate::chain;
use crate::sys::fsmount::{Configuring, attach, clone_open_tree, clone_tree, map_ids};
use crate::sys::loop_device::{self, Settings};

/// Types that nothing is ever written to.
const READ_ONLY: [&str; 2] = ["erofs", "squashfs"];

/// Makes a filesystem and attaches it.
pub fn make(
    ground: Ground<'_>,
    kind: &'static str,
    source: &Source,
    mount: &Planned,
    target: BorrowedFd<'_>,
) -> Result<(), MountError> {
    Work { ground, kind, source, mount, target, held: RefCell::default() }.run()
}

/// One filesystem on its way.
struct Work<'a> {
    ground: Ground<'a>,
    kind: &'static str,
    source: &'a Source,
    mount: &'a Planned,
    target: BorrowedFd<'a>,
    /// What options and source name by descriptor; open until the filesystem is there.
    held: RefCell<Vec<OwnedFd>>,
}

type Parameter = (String, Option<String>);

impl Work<'_> {
    fn run(self) -> Result<(), MountError> {
        let options = &self.mount.options;
        let source = self.source_name()?;
        let configuring = Configuring::new(self.kind)
            .map_err(|error| self.failed("the kernel does not have it", error))?;
        let namespace = options.id_map.as_ref().map(mapping).transpose();
        let namespace = namespace.map_err(|error| self.failed("make a mapping of ids", error))?;
        // Overlay does not map ids, but takes layers that do.
        let layers = namespace.as_ref().filter(|_| self.kind == "overlay");
        let mapped = RefCell::default();
        let unstack = Unstack { path: self.ground.root().join(&self.mount.place), count: &mapped };
        self.set(&configuring, "source", Some(&source))?;
        for flag in &options.superblock {
            self.set(&configuring, flag, None)?;
        }
        for (key, value) in self.parameters(layers, &mapped)? {
            self.set(&configuring, &key, value.as_deref())?;
        }
        let log = matches!(self.source, Source::Path(_)).then(KernelLog::listen);
        let made = configuring.mount(options.attributes).map_err(|error| {
            let mut error = self.complaint("create", &configuring, error);
            let device = Path::new(&source).file_name().and_then(|name| name.to_str());
            let said = log.zip(device).map(|(log, device)| log.said_of(device));
            error.add_complaint(said.unwrap_or_default());
            error
        })?;
        drop(unstack);
        if let Some(namespace) = namespace.as_ref().filter(|_| self.kind != "overlay") {
            map_ids(made.as_fd(), namespace.as_fd(), false)
                .map_err(|error| self.failed("map its ids", error))?;
        }
        propagate(made.as_fd(), options)
            .and_then(|()| attach(made.as_fd(), self.target))
            .map_err(|error| self.failed("attach", error))
    }

    fn set(
        &self,
        configuring: &Configuring,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), MountError> {
        let done = match value {
            Some(value) => configuring.set(key, value),
            None => configuring.set_flag(key),
        };
        done.map_err(|error| {
            let option = value.map_or(key.to_owned(), |value| format!("{key}={value}"));
            self.complaint(&format!("option {option:?}"), configuring, error)
        })
    }

    fn failed(&self, step: &str, source: io::Error) -> MountError {
        let source_name = match self.source {
            Source::Word(word) => word.clone(),
            Source::Device(device) => device.to_string(),
            Source::Path(path) => path.display().to_string(),
        };
        let (kind, place) = (self.kind, self.mount.place.clone());
        let complaint = String::new();
        MountError::Filesystem {
            kind,
            source_name,
            place,
            step: step.to_owned(),
            complaint,
            source,
        }
    }

    /// With what the filesystem has to say.
    fn complaint(&self, step: &str, configuring: &Configuring, source: io::Error) -> MountError {
        let mut error = self.failed(step, source);
        error.add_complaint(configuring.complaint());
        error
    }

    /// What the filesystem is told to be made of.
    fn source_name(&self) -> Result<String, MountError> {
        let path = match self.source {
            Source::Word(word) => return Ok(word.clone()),
            Source::Device(_) => return Err(self.not_looked_for()),
            Source::Path(path) => path,
        };
        let opened = self.ground.open_inside(path).transpose();
        let opened = opened.map_err(|error| self.failed("open its source", error))?;
        let mut path = opened.as_ref().map_or_else(|| path.clone(), path_of);
        self.held.borrow_mut().extend(opened);
        let kind = std::fs::metadata(&path)
            .map_err(|error| self.failed("look at its source", error))?
            .file_type();
        let image = match self.mount.options.image {
            // erofs reads a file itself; dm-verity wants a device.
            None if kind.is_file()
                && (self.kind != "erofs" || self.mount.options.verity.is_some()) =>
            {
                Some(Image::default())
            }
            image => image,
        };
        if !kind.is_file() && !kind.is_block_device() {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(self.failed("its source is neither a block device nor a file", error));
        }
        if let Some(image) = image {
            path = self.loop_device(&path, image)?;
        }
        if let Some(verity) = &self.mount.options.verity {
            path = self.checked(&path, verity)?;
        }
        Ok(path.display().to_string())
    }

    fn loop_device(&self, file: &Path, image: Image) -> Result<PathBuf, MountError> {
        let read_only =
            READ_ONLY.contains(&self.kind) || self.mount.options.superblock.contains(&"ro");
        let Image { offset, size_limit, direct } = image;
        let settings = Settings { offset, size_limit, read_only, direct };
        let opened = File::options().read(true).write(!read_only).open(file);
        let (path, device) = opened
            .and_then(|file| loop_device::attach(file.as_fd(), settings))
            .map_err(|error| self.failed("make a loop device", error))?;
        self.held.borrow_mut().push(device);
        Ok(path)
    }

    /// The device that reads another's blocks and checks each.
    fn checked(&self, data: &Path, verity: &Verity) -> Result<PathBuf, MountError> {
        let tree = match &verity.tree {
            Tree::Offset(offset) => block::verity::Tree::Behind(*offset),
            Tree::Node(path) => block::verity::Tree::On(path),
            Tree::Device(_) => return Err(self.not_looked_for()),
        };
        let made = block::verity::protect(data, &verity.root_hash, tree);
        let (path, device) =
            made.map_err(|error| self.failed("dm-verity", io::Error::other(chain(&error))))?;
        self.held.borrow_mut().push(device);
        Ok(path)
    }

    fn not_looked_for(&self) -> MountError {
        self.failed("its device was not looked for", io::ErrorKind::NotFound.into())
    }

    fn parameters(
        &self,
        namespace: Option<&OwnedFd>,
        mapped: &RefCell<usize>,
    ) -> Result<Vec<Parameter>, MountError> {
        let data = &self.mount.options.data;
        if self.kind != "overlay" {
            return Ok(data.clone());
        }
        let mut all = Vec::new();
        for (key, value) in data {
            let failed = |error| self.failed(&format!("option {key:?}"), error);
            match (&**key, value) {
                // One parameter a layer: together they may be longer than any single one can be.
                ("lowerdir", Some(layers)) => {
                    for (key, layer) in layers_of(layers) {
                        let layer = self.layer(&layer, namespace, mapped).map_err(failed)?;
                        all.push((key.to_owned(), Some(layer)));
                    }
                }
                ("lowerdir+" | "datadir+", Some(layer)) => {
                    let layer = self.layer(layer, namespace, mapped).map_err(failed)?;
                    all.push((key.clone(), Some(layer)));
                }
                ("upperdir" | "workdir", Some(path)) => {
                    let made = self.ground.make_inside(Path::new(&unescaped(path)));
                    let made = made.transpose().map_err(failed)?;
                    let path = made.map_or_else(|| path.clone(), |made| self.hold(made));
                    all.push((key.clone(), Some(path)));
                }
                _ => all.push((key.clone(), value.clone())),
            }
        }
        Ok(all)
    }

    /// The name of a layer below, which is the layer with its ids mapped if there is a mapping.
    fn layer(
        &self,
        layer: &str,
        namespace: Option<&OwnedFd>,
        mapped: &RefCell<usize>,
    ) -> io::Result<String> {
        let opened = self.ground.open_inside(Path::new(layer)).transpose()?;
        let Some(namespace) = namespace else {
            return Ok(opened.map_or_else(|| layer.to_owned(), |opened| self.hold(opened)));
        };
        let tree = match opened {
            Some(opened) => clone_open_tree(opened.as_fd(), false),
            None => clone_tree(Path::new(layer), false),
        }?;
        map_ids(tree.as_fd(), namespace.as_fd(), false)?;
        // Overlay takes what is attached somewhere, and has a copy of its own from then on. The
        // place is ours, and free: they lie on top of each other for a moment.
        attach(tree.as_fd(), self.target)?;
        *mapped.borrow_mut() += 1;
        Ok(self.hold(tree))
    }

    fn hold(&self, file: OwnedFd) -> String {
        let path = path_of(&file).display().to_string();
        self.held.borrow_mut().push(file);
        path
    }
}

/// Takes layers away that were attached for a moment, however that ends.
struct Unstack<'a> {
    path: PathBuf,
    count: &'a RefCell<usize>,
}

impl Drop for Unstack<'_> {
    fn drop(&mut self) {
        for _ in 0..self.count.take() {
            // Lazily: overlay's question for the layer may still hold it.
            let _ = umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH);
        }
    }
}

/// Splits overlay's `a:b::data` at colons; `\:` is a colon in a name, `::` begins data-only layers.
fn layers_of(layers: &str) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    let (mut layer, mut key) = (String::new(), "lowerdir+");
    let mut characters = layers.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => layer.extend(characters.next()),
            ':' => {
                all.push((key, std::mem::take(&mut layer)));
                if characters.next_if_eq(&':').is_some() {
                    key = "datadir+";
                }
            }
            _ => layer.push(character),
        }
    }
    all.push((key, layer));
    all
}

/// `\x` is `x`: overlay reads upper and work directories so.
fn unescaped(path: &str) -> String {
    let mut characters = path.chars();
    let mut result = String::new();
    while let Some(character) = characters.next() {
        result.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    result
}

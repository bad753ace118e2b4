//! What a list of rootfs mounts comes to: kinds, places and parameters, with templates replaced and
//! all of it checked before anything is mounted.
//!
//! Promises: mount *i* goes to `<bundle>/mounts/<i>`, the last to `<bundle>/rootfs`; a directory is
//! made only below `<bundle>/mounts`; a kind, a source, a template or an option that is not served
//! is an error that names the mount, before the first one is made.
//! Never: looks at the filesystem.
//!
//! A type is `[format/][mkdir/]KIND`: `format/` says that there are templates ([`templates`]),
//! `mkdir/` that options name directories to make first ([`Directory`]). Without its prefix
//! neither is looked for.

use std::path::{Component, Path, PathBuf};

use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::templates::{self, Earlier, TemplateError};

use super::options::{self, OptionError, Options};
use crate::agent::block::source::Source as Device;
use crate::limits::{MOUNT_LIST_BYTES, MOUNT_OPTIONS, ROOTFS_MOUNTS};

/// What names a directory to be made, and how: `=PATH[:MODE[:UID[:GID]]]`.
const MKDIR: &str = "X-containerd.mkdir.path=";
/// The mode of a directory that is made, unless said otherwise; containerd's.
const MKDIR_MODE: u32 = 0o700;

/// Why a list is refused. Always what the host asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More mounts, or options of one, than the limit.
    #[error("{count} {what} are more than {limit}")]
    TooMany {
        /// Mounts or options.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many may.
        limit: usize,
    },
    /// No filesystem that this guest mounts.
    #[error("mount {index}: type {kind:?} is not supported")]
    Kind {
        /// Place in the list.
        index: usize,
        /// The type.
        kind: String,
    },
    /// The source is none for the type.
    #[error("mount {index}: {source_name:?} is not {expected}")]
    Source {
        /// Place in the list.
        index: usize,
        /// The source.
        source_name: String,
        /// What it ought to be.
        expected: &'static str,
    },
    /// A target is a place below the mount's own.
    #[error("mount {index}: target {target:?} leads out of the mount's place")]
    Target {
        /// Place in the list.
        index: usize,
        /// The target.
        target: String,
    },
    /// A template that makes no sense.
    #[error("mount {index}: {error}")]
    Template {
        /// Place in the list.
        index: usize,
        /// Why.
        error: TemplateError,
    },
    /// A directory that is not to be made, or not like this.
    #[error("mount {index}: {option:?}: {problem}")]
    Directory {
        /// Place in the list.
        index: usize,
        /// The option.
        option: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An option that is not served.
    #[error("mount {index}: {error}")]
    Option {
        /// Place in the list.
        index: usize,
        /// Which.
        error: OptionError,
    },
    /// An option that this kind of mount has no use for, and that means too much to be ignored.
    #[error("mount {index}: {option} with a mount of type {kind:?} is not supported")]
    Misplaced {
        /// Place in the list.
        index: usize,
        /// The type.
        kind: String,
        /// The option.
        option: &'static str,
    },
    /// Texts that grow without end.
    #[error("mounts come to more than {MOUNT_LIST_BYTES} bytes")]
    Long,
}

/// One mount, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is mounted.
    pub what: What,
    /// Its place below the bundle: `mounts/<i>` or `rootfs`, and its target below that.
    pub place: PathBuf,
    /// What is made before it is mounted.
    pub directories: Vec<Directory>,
    /// Its options.
    pub options: Options,
}

/// A directory to be made. One that is there stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Below the bundle; below its `mounts`.
    pub place: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A tree that is there already.
    Bind {
        /// Its root.
        source: PathBuf,
    },
    /// A filesystem.
    Filesystem {
        /// Its type, as the kernel calls it.
        kind: &'static str,
        /// Where it comes from.
        source: Source,
    },
}

/// Where a filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A word for the filesystem itself: a tag, or what shows in the list of mounts.
    Word(String),
    /// A block device, as the host names it.
    Device(Device),
    /// A block device that was found, or a file with the filesystem in it, by absolute path.
    Path(PathBuf),
}

/// Checks a list and works out what is to be done, in this order.
pub fn plan(bundle: &Path, mounts: &[Mount]) -> Result<Vec<Planned>, PlanError> {
    within("mounts of a rootfs", mounts.len(), ROOTFS_MOUNTS)?;
    let mut earlier: Vec<Earlier> = Vec::with_capacity(mounts.len());
    let mut planned = Vec::with_capacity(mounts.len());
    let mut bytes = 0usize;
    for (index, mount) in mounts.iter().enumerate() {
        within("options of a mount", mount.options.len(), MOUNT_OPTIONS)?;
        let place = if index + 1 == mounts.len() {
            PathBuf::from("rootfs")
        } else {
            Path::new("mounts").join(index.to_string())
        };
        let (kind, mount) = formatted(index, mount, &earlier)?;
        let length: usize = mount.options.iter().map(String::len).sum();
        bytes = bytes.saturating_add(length + mount.source.len() + mount.target.len());
        if bytes > MOUNT_LIST_BYTES {
            return Err(PlanError::Long);
        }
        earlier.push(Earlier {
            source: mount.source.clone(),
            target: mount.target.clone(),
            place: bundle.join(&place).display().to_string(),
        });
        planned.push(plan_one(bundle, index, &kind, mount, place)?);
    }
    Ok(planned)
}

/// A single mount, in a place that is not a bundle's: no prefixes and no templates. Its target is
/// the caller's to look at.
pub fn plan_alone(index: usize, mount: &Mount, place: PathBuf) -> Result<Planned, PlanError> {
    within("options of a mount", mount.options.len(), MOUNT_OPTIONS)?;
    let options = parse(index, &mount.options)?;
    let what = what(index, &mount.r#type, &mount.source, &options)?;
    Ok(Planned { what, place, directories: vec![], options: with_type(options, &mount.r#type) })
}

/// The type without `format/`, and the mount with its templates replaced.
fn formatted(
    index: usize,
    mount: &Mount,
    earlier: &[Earlier],
) -> Result<(String, Mount), PlanError> {
    let Some(kind) = mount.r#type.strip_prefix("format/") else {
        return Ok((mount.r#type.clone(), mount.clone()));
    };
    let expand = |text: &String| {
        templates::expand(text, earlier).map_err(|error| PlanError::Template { index, error })
    };
    let mount = Mount {
        r#type: mount.r#type.clone(),
        source: expand(&mount.source)?,
        target: expand(&mount.target)?,
        options: mount.options.iter().map(expand).collect::<Result<_, _>>()?,
    };
    Ok((kind.to_owned(), mount))
}

fn plan_one(
    bundle: &Path,
    index: usize,
    kind: &str,
    mut mount: Mount,
    place: PathBuf,
) -> Result<Planned, PlanError> {
    let mut directories = Vec::new();
    let kind = match kind.strip_prefix("mkdir/") {
        Some(kind) => {
            let made;
            (made, mount.options) = std::mem::take(&mut mount.options)
                .into_iter()
                .partition(|option| option.starts_with(MKDIR));
            let read = |option: &String| directory(bundle, index, option);
            directories = made.iter().map(read).collect::<Result<_, _>>()?;
            kind
        }
        None => kind,
    };
    let options = parse(index, &mount.options)?;
    let what = what(index, kind, &mount.source, &options)?;
    let place = below(place, &mount.target)
        .ok_or_else(|| PlanError::Target { index, target: mount.target.clone() })?;
    Ok(Planned { what, place, directories, options: with_type(options, kind) })
}

fn parse(index: usize, list: &[String]) -> Result<Options, PlanError> {
    options::parse(list).map_err(|error| PlanError::Option { index, error })
}

fn with_type(options: Options, kind: &str) -> Options {
    let recursive = options.recursive || kind == "rbind";
    Options { recursive, ..options }
}

fn what(index: usize, kind: &str, source: &str, options: &Options) -> Result<What, PlanError> {
    let wrong = |expected| PlanError::Source { index, source_name: source.to_owned(), expected };
    let word =
        |default: &str| Source::Word(if source.is_empty() { default } else { source }.to_owned());
    let what = match kind {
        _ if options.bind => bind(source, wrong)?,
        "bind" | "rbind" => bind(source, wrong)?,
        "tmpfs" => What::Filesystem { kind: "tmpfs", source: word("tmpfs") },
        "overlay" => What::Filesystem { kind: "overlay", source: word("overlay") },
        "virtiofs" if source.is_empty() => return Err(wrong("the tag of a virtiofs share")),
        "virtiofs" => What::Filesystem { kind: "virtiofs", source: word("") },
        "erofs" => disk("erofs", source, wrong)?,
        "ext4" => disk("ext4", source, wrong)?,
        "squashfs" => disk("squashfs", source, wrong)?,
        _ => return Err(PlanError::Kind { index, kind: kind.to_owned() }),
    };
    let misplaced = |option| Err(PlanError::Misplaced { index, kind: kind.to_owned(), option });
    match &what {
        What::Filesystem { source: Source::Device(_) | Source::Path(_), .. } => {}
        _ if options.image.is_some() => return misplaced("loop"),
        _ if options.verity.is_some() => return misplaced("X-vminitd.verity"),
        _ => {}
    }
    Ok(what)
}

fn bind(source: &str, wrong: impl Fn(&'static str) -> PlanError) -> Result<What, PlanError> {
    let path = PathBuf::from(source);
    if path.is_absolute() {
        Ok(What::Bind { source: path })
    } else {
        Err(wrong("an absolute path"))
    }
}

fn disk(
    kind: &'static str,
    source: &str,
    wrong: impl Fn(&'static str) -> PlanError,
) -> Result<What, PlanError> {
    let source = if let Ok(device) = Device::try_from(source) {
        Source::Device(device)
    } else if Path::new(source).is_absolute() && !source.starts_with("/dev/") {
        Source::Path(PathBuf::from(source))
    } else {
        return Err(wrong(
            "a block device of this VM (/dev/vdX, serial:ID or serial:ID:PARTITION) or an image file",
        ));
    };
    Ok(What::Filesystem { kind, source })
}

/// A path below a place; `None` when it leads out of it.
fn below(place: PathBuf, target: &str) -> Option<PathBuf> {
    Path::new(target).components().try_fold(place, |place, part| match part {
        Component::Normal(name) => Some(place.join(name)),
        Component::RootDir | Component::CurDir => Some(place),
        Component::ParentDir | Component::Prefix(_) => None,
    })
}

fn directory(bundle: &Path, index: usize, option: &str) -> Result<Directory, PlanError> {
    let failed = |problem| PlanError::Directory { index, option: option.to_owned(), problem };
    let value = &option[MKDIR.len()..];
    // A bundle's name is the host's, and may have a colon.
    let mounts = bundle.join("mounts").display().to_string();
    let outside = || failed("is not below the bundle's mounts");
    let rest = value.strip_prefix(&*mounts).ok_or_else(outside)?;
    let mut fields = rest.split(':');
    let path = fields.next().unwrap_or_default();
    let place = path.strip_prefix('/').and_then(|path| below(PathBuf::from("mounts"), path));
    let place = place.filter(|place| place.as_os_str() != "mounts").ok_or_else(outside)?;
    let number = |field: Option<&str>, radix, default| match field {
        None => Some(default),
        Some(text) if text.starts_with('+') => None,
        Some(text) => u32::from_str_radix(text, radix).ok(),
    };
    let mode = number(fields.next(), 8, MKDIR_MODE).filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or_else(|| failed("has no mode between 0 and 777"))?;
    // -1 would mean: leave it.
    let id = |field| number(field, 10, 0).filter(|id| *id != u32::MAX);
    let uid = id(fields.next()).ok_or_else(|| failed("has no user id"))?;
    let gid = id(fields.next()).ok_or_else(|| failed("has no group id"))?;
    if fields.next().is_some() {
        return Err(failed("is not PATH[:MODE[:UID[:GID]]]"));
    }
    Ok(Directory { place, mode, uid, gid })
}

fn within(what: &'static str, count: usize, limit: usize) -> Result<(), PlanError> {
    if count > limit { Err(PlanError::TooMany { what, count, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;

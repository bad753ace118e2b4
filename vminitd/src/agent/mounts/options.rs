//! Mount options as fstab, mount(8) and containerd write them, sorted by who takes them.
//!
//! Promises: what the mount takes, what the superblock takes, what we take and what the filesystem
//! takes are told apart; of options that contradict each other the last wins; an option that this
//! guest does not serve is an error that names it.
//! Never: drops an option in silence, but those that speak to mount(8) and init scripts alone.
//!
//! A list's item may hold several options, joined by commas. A comma in double quotes, or behind a
//! backslash, is part of a value; quotes around a whole value are taken off.

mod idmap;
mod words;

use std::path::PathBuf;
use std::str::FromStr;

pub use self::idmap::{IdMap, Range};
pub use self::words::words;
use crate::agent::block::source::Source;
use crate::sys::fsmount::{
    ATTR_ATIME_FIELD, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_RELATIME, ATTR_STRICTATIME,
};

/// Options, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `ATTR_*` of the mount.
    pub attributes: u64,
    /// An option said how access times are kept; else a bind keeps what its source has.
    pub atime: bool,
    /// Of the attributes, those that hold for the mounts below a bind too (`ro=recursive`).
    pub below: u64,
    /// Flags of a new superblock, such as `ro` and `sync`.
    pub superblock: Vec<&'static str>,
    /// MS_SHARED and so on, with MS_REC when it goes for the mounts below too; 0 for none.
    pub propagation: u64,
    /// `bind` was among them.
    pub bind: bool,
    /// `rbind` was among them.
    pub recursive: bool,
    /// `loop`: through a loop device.
    pub image: Option<Image>,
    /// `uidmap` and `gidmap`.
    pub id_map: Option<IdMap>,
    /// `X-vminitd.verity.*`.
    pub verity: Option<Verity>,
    /// For the filesystem: a key, and a value if there is one. Each key once.
    pub data: Vec<(String, Option<String>)>,
}

/// How an image file becomes a loop device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; 0: to the file's end.
    pub size_limit: u64,
    /// Past the page cache of the filesystem that the file is on.
    pub direct: bool,
}

/// A device whose blocks are checked by dm-verity as they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verity {
    /// The root of the tree of hashes.
    pub root_hash: Vec<u8>,
    /// Where that is.
    pub tree: Tree,
}

/// Where a tree of hashes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Behind the data, this many bytes from the device's start.
    Offset(u64),
    /// On a device of its own, as the host names it.
    Device(Source),
    /// On one that was found.
    Node(PathBuf),
}

/// Why an option is not taken. Always what the host asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// This guest does not do it.
    #[error("mount option {0:?} is not supported")]
    Unsupported(String),
    /// It makes no sense.
    #[error("mount option {option:?}: {problem}")]
    Malformed {
        /// The option.
        option: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Sorts a list; a later option wins over an earlier one that contradicts it.
pub fn parse<'a>(list: impl IntoIterator<Item = &'a String>) -> Result<Options, OptionError> {
    let mut parsing = Parsing::default();
    for item in list {
        for word in words(item)? {
            parsing.take(&word)?;
        }
    }
    parsing.finish()
}

/// What has been seen of a list.
#[derive(Default)]
struct Parsing {
    options: Options,
    /// `loop` itself was there, not only what goes with it.
    looped: bool,
    image: Image,
    uid_map: Option<Vec<Range>>,
    gid_map: Option<Vec<Range>>,
    root_hash: Option<Vec<u8>>,
    tree: Option<Tree>,
}

/// One attribute of a mount and how it is switched.
struct Attribute {
    set: &'static str,
    clear: &'static str,
    bit: u64,
}

const ATTRIBUTES: &[Attribute] = &[
    Attribute { set: "nosuid", clear: "suid", bit: ATTR_NOSUID },
    Attribute { set: "nodev", clear: "dev", bit: ATTR_NODEV },
    Attribute { set: "noexec", clear: "exec", bit: ATTR_NOEXEC },
    Attribute { set: "nodiratime", clear: "diratime", bit: ATTR_NODIRATIME },
    Attribute { set: "nosymfollow", clear: "symfollow", bit: ATTR_NOSYMFOLLOW },
];

/// Flags of a superblock beside `ro`: set, clear.
const SUPERBLOCK: &[(&str, &str)] = &[
    ("sync", "async"),
    ("dirsync", ""),
    ("lazytime", "nolazytime"),
    // Mandatory locks are gone from the kernel, which takes the flag and does nothing.
    ("mand", "nomand"),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("shared", libc::MS_SHARED),
    ("private", libc::MS_PRIVATE),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// What speaks to mount(8), `mount -a` and init scripts. They have no say here, so they change
/// nothing: `nofail` does not make a mount that fails one that does not.
const FOR_OTHERS: &[&str] = &[
    "defaults", "auto", "noauto", "nofail", "_netdev", "nouser", "nousers", "noowner", "nogroup",
    "silent", "loud",
];

/// Who may mount is no question here; but mount(8) makes these three of each.
const FOR_USERS: &[&str] = &["user", "users", "owner", "group"];

/// What mount(8) or containerd would do and this guest does not.
const REFUSED: &[&str] = &["remount", "move", "uhelper", "helper", "encryption", "idmap", "ridmap"];

impl Parsing {
    fn take(&mut self, word: &str) -> Result<(), OptionError> {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(unquoted(value))),
            None => (word, None),
        };
        let unsupported = || OptionError::Unsupported(word.to_owned());
        if self.take_flag(key, value)
            || self.take_attribute(word, key, value)?
            || self.take_image(word, key, value)?
            || self.take_ids(word, key, value)?
            || self.take_verity(word, key, value)?
        {
            return Ok(());
        }
        let speaks_to_others = key == "comment"
            || key.starts_with("x-")
            || key.starts_with("X-") && !key.starts_with("X-mount.");
        let ours = key.starts_with("X-containerd.") || key.starts_with("X-vminitd.");
        if REFUSED.contains(&key)
            || key.starts_with("X-mount.")
            || key.starts_with("verity.")
            || ours
        {
            return Err(unsupported());
        }
        if !speaks_to_others {
            self.options.take_data(key, value);
        }
        Ok(())
    }

    /// A word without a value that all know.
    fn take_flag(&mut self, key: &str, value: Option<&str>) -> bool {
        if value.is_some() {
            return false;
        }
        let options = &mut self.options;
        if let Some((set, _)) = SUPERBLOCK.iter().find(|(set, _)| *set == key) {
            options.set_superblock(set);
        } else if let Some((set, _)) = SUPERBLOCK.iter().find(|(_, clear)| *clear == key) {
            options.clear_superblock(set);
        } else if let Some((_, kind)) = PROPAGATION.iter().find(|(name, _)| *name == key) {
            options.propagation = *kind;
        } else if let Some((_, kind)) =
            PROPAGATION.iter().find(|(name, _)| key.strip_prefix('r') == Some(*name))
        {
            options.propagation = *kind | libc::MS_REC;
        } else if FOR_USERS.contains(&key) {
            options.attributes |= ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
        } else {
            match key {
                "bind" => (options.bind, options.recursive) = (true, false),
                "rbind" => (options.bind, options.recursive) = (true, true),
                _ => return FOR_OTHERS.contains(&key) || key.is_empty(),
            }
        }
        true
    }

    /// An attribute of the mount; most may say for which mounts.
    fn take_attribute(
        &mut self,
        word: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<bool, OptionError> {
        let options = &mut self.options;
        let atime = |was: u64| match key {
            "noatime" => Some(ATTR_NOATIME),
            "strictatime" => Some(ATTR_STRICTATIME),
            "relatime" => Some(ATTR_RELATIME),
            // These take back one of the others, and leave what remains to the kernel.
            "atime" if was == ATTR_NOATIME => Some(ATTR_RELATIME),
            "nostrictatime" if was == ATTR_STRICTATIME => Some(ATTR_RELATIME),
            "atime" | "nostrictatime" | "norelatime" => Some(was),
            _ => None,
        };
        let recursive = value == Some("recursive");
        if matches!(key, "ro" | "rw") {
            if !matches!(value, None | Some("recursive" | "vfs" | "fs")) {
                return Err(malformed(word, "there are recursive, vfs and fs"));
            }
            let set = key == "ro";
            if value != Some("fs") {
                options.switch(ATTR_RDONLY, set, recursive);
            }
            match value {
                None | Some("fs") if set => options.set_superblock("ro"),
                None | Some("fs") => options.clear_superblock("ro"),
                _ => {}
            }
            return Ok(true);
        }
        let attribute = ATTRIBUTES.iter().find(|it| it.set == key || it.clear == key);
        let atime = atime(options.attributes & ATTR_ATIME_FIELD);
        if (attribute.is_some() || atime.is_some()) && !matches!(value, None | Some("recursive")) {
            return Err(malformed(word, "there is recursive"));
        }
        if let Some(attribute) = attribute {
            options.switch(attribute.bit, attribute.set == key, recursive);
            return Ok(true);
        }
        let Some(atime) = atime else { return Ok(false) };
        options.atime = true;
        options.attributes = options.attributes & !ATTR_ATIME_FIELD | atime;
        if recursive {
            return Err(OptionError::Unsupported(word.to_owned()));
        }
        Ok(true)
    }

    fn take_image(
        &mut self,
        word: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<bool, OptionError> {
        let image = &mut self.image;
        match (key, value) {
            ("loop", None) => self.looped = true,
            ("loop", Some(_)) => {
                return Err(malformed(word, "which loop device it is, is the guest's choice"));
            }
            ("offset", Some(value)) => image.offset = size(word, value)?,
            ("sizelimit", Some(value)) => image.size_limit = size(word, value)?,
            ("direct-io", None) => image.direct = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_ids(
        &mut self,
        word: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<bool, OptionError> {
        let map = match key {
            "uidmap" => &mut self.uid_map,
            "gidmap" => &mut self.gid_map,
            _ => return Ok(false),
        };
        let ranges = idmap::ranges(value.unwrap_or_default());
        *map = Some(ranges.map_err(|problem| malformed(word, problem))?);
        Ok(true)
    }

    fn take_verity(
        &mut self,
        word: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<bool, OptionError> {
        let (Some(key), Some(value)) = (key.strip_prefix("X-vminitd.verity."), value) else {
            return Ok(false);
        };
        match key {
            "roothash" => {
                let hash = hexadecimal(value);
                self.root_hash =
                    Some(hash.ok_or_else(|| malformed(word, "is no hash in hexadecimal"))?);
            }
            "hashoffset" => {
                let offset = value.parse().map_err(|_| malformed(word, "is no number of bytes"))?;
                self.tree = Some(Tree::Offset(offset));
            }
            "hashdev" => {
                let device = Source::try_from(value);
                let device =
                    device.map_err(|_| malformed(word, "is no block device of this VM"))?;
                self.tree = Some(Tree::Device(device));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<Options, OptionError> {
        let mut options = self.options;
        options.image = self.looped.then_some(self.image);
        if !self.looped && self.image != Image::default() {
            return Err(malformed("offset, sizelimit or direct-io", "only with loop"));
        }
        options.id_map = match (self.uid_map, self.gid_map) {
            (Some(users), Some(groups)) => Some(IdMap { users, groups }),
            (None, None) => None,
            (Some(_), None) => return Err(malformed("uidmap", "only with gidmap")),
            (None, Some(_)) => return Err(malformed("gidmap", "only with uidmap")),
        };
        options.verity = match (self.root_hash, self.tree) {
            (Some(root_hash), Some(tree)) => Some(Verity { root_hash, tree }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(malformed(
                    "X-vminitd.verity.roothash",
                    "only with .hashoffset or .hashdev",
                ));
            }
            (None, Some(_)) => return Err(malformed("X-vminitd.verity", "only with .roothash")),
        };
        Ok(options)
    }
}

impl Options {
    fn switch(&mut self, bit: u64, set: bool, below: bool) {
        let change = |attributes: &mut u64| {
            *attributes = if set { *attributes | bit } else { *attributes & !bit };
        };
        change(&mut self.attributes);
        if below {
            change(&mut self.below);
        }
    }

    fn set_superblock(&mut self, flag: &'static str) {
        if !self.superblock.contains(&flag) {
            self.superblock.push(flag);
        }
    }

    fn clear_superblock(&mut self, flag: &str) {
        self.superblock.retain(|set| *set != flag);
    }

    /// The last value of a key counts, in the place where it stands. Keys of overlay that add to
    /// what is there end in `+`.
    fn take_data(&mut self, key: &str, value: Option<&str>) {
        if !key.ends_with('+') {
            self.data.retain(|(known, _)| known != key);
        }
        self.data.push((key.to_owned(), value.map(str::to_owned)));
    }
}

fn malformed(option: &str, problem: &'static str) -> OptionError {
    OptionError::Malformed { option: option.to_owned(), problem }
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

/// Bytes, with K, M or G (and `iB`) behind it for powers of 1024.
fn size(word: &str, value: &str) -> Result<u64, OptionError> {
    let wrong = || malformed(word, "is no size in bytes, K, M or G");
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match value[digits.len()..].trim_end_matches("iB") {
        "" if digits.len() == value.len() => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return Err(wrong()),
    };
    let count = u64::from_str(digits).map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

/// The longest hash that device-mapper knows has 64 bytes.
fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let right = text.len().is_multiple_of(2) && (1..=64).contains(&(text.len() / 2));
    if !right || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests;

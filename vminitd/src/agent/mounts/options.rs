//! Mount options as containerd and fstab write them, sorted by who takes them.
//!
//! Promises: what the mount takes, what the superblock takes and what the filesystem takes are
//! told apart; an option that would need something not built is an error that names it.
//! Never: drops an option in silence, but `defaults` and those that only undo a default.

use crate::sys::fsmount::{
    ATTR_ATIME_FIELD, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_RELATIME, ATTR_STRICTATIME,
};

/// Options, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `ATTR_*` of the mount.
    pub attributes: u64,
    /// Flags of a new superblock, such as `ro` and `sync`.
    pub superblock: Vec<&'static str>,
    /// MS_SHARED and so on, with MS_REC when it goes for the mounts below too; 0 for none.
    pub propagation: u64,
    /// `bind` was among them.
    pub bind: bool,
    /// `rbind` was among them.
    pub recursive: bool,
    /// For the filesystem: a key, and a value if there is one.
    pub data: Vec<(String, Option<String>)>,
}

/// Why an option is not taken. The host asks for what this guest does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option {0:?} is not supported")]
pub struct Unsupported(pub String);

/// Sorts a list; a later option wins over an earlier one that contradicts it.
pub fn parse<'a>(list: impl IntoIterator<Item = &'a String>) -> Result<Options, Unsupported> {
    let mut options = Options::default();
    for option in list {
        // containerd's clients join some with commas.
        for option in split_at_commas(option) {
            options.take(option)?;
        }
    }
    Ok(options)
}

/// `lowerdir=/a,b` would be torn apart: only a list of words is split.
fn split_at_commas(option: &str) -> Vec<&str> {
    if option.contains('=') { vec![option] } else { option.split(',').collect() }
}

impl Options {
    fn take(&mut self, option: &str) -> Result<(), Unsupported> {
        if self.take_flag(option) {
            return Ok(());
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        match key {
            "loop" | "remount" | "mand" | "uidmap" | "gidmap" | "idmap" | "ridmap" => {
                Err(Unsupported(option.to_owned()))
            }
            _ if key.starts_with("X-containerd.") || key.starts_with("X-vminitd.") => {
                Err(Unsupported(option.to_owned()))
            }
            "" => Ok(()),
            _ => {
                self.data.push((key.to_owned(), value.map(str::to_owned)));
                Ok(())
            }
        }
    }

    fn take_flag(&mut self, option: &str) -> bool {
        match option {
            "defaults" | "rw" | "suid" | "dev" | "exec" | "async" | "diratime" | "nomand"
            | "symfollow" => self.undo(option),
            "ro" => {
                self.attributes |= ATTR_RDONLY;
                self.set_superblock("ro");
            }
            "nosuid" => self.attributes |= ATTR_NOSUID,
            "nodev" => self.attributes |= ATTR_NODEV,
            "noexec" => self.attributes |= ATTR_NOEXEC,
            "nosymfollow" => self.attributes |= ATTR_NOSYMFOLLOW,
            "nodiratime" => self.attributes |= ATTR_NODIRATIME,
            "noatime" => self.set_atime(ATTR_NOATIME),
            "strictatime" => self.set_atime(ATTR_STRICTATIME),
            "atime" | "relatime" | "norelatime" | "nostrictatime" => {
                self.set_atime(ATTR_RELATIME);
            }
            "sync" => self.set_superblock("sync"),
            "dirsync" => self.set_superblock("dirsync"),
            "lazytime" => self.set_superblock("lazytime"),
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "shared" => self.propagation = libc::MS_SHARED,
            "rshared" => self.propagation = libc::MS_SHARED | libc::MS_REC,
            "private" => self.propagation = libc::MS_PRIVATE,
            "rprivate" => self.propagation = libc::MS_PRIVATE | libc::MS_REC,
            "slave" => self.propagation = libc::MS_SLAVE,
            "rslave" => self.propagation = libc::MS_SLAVE | libc::MS_REC,
            "unbindable" => self.propagation = libc::MS_UNBINDABLE,
            "runbindable" => self.propagation = libc::MS_UNBINDABLE | libc::MS_REC,
            _ => return false,
        }
        true
    }

    fn undo(&mut self, option: &str) {
        match option {
            "rw" => {
                self.attributes &= !ATTR_RDONLY;
                self.superblock.retain(|flag| *flag != "ro");
            }
            "suid" => self.attributes &= !ATTR_NOSUID,
            "dev" => self.attributes &= !ATTR_NODEV,
            "exec" => self.attributes &= !ATTR_NOEXEC,
            "diratime" => self.attributes &= !ATTR_NODIRATIME,
            "symfollow" => self.attributes &= !ATTR_NOSYMFOLLOW,
            "async" => self.superblock.retain(|flag| *flag != "sync"),
            // `defaults` and `nomand` say what is so anyway.
            _ => {}
        }
    }

    fn set_atime(&mut self, value: u64) {
        self.attributes = self.attributes & !ATTR_ATIME_FIELD | value;
    }

    fn set_superblock(&mut self, flag: &'static str) {
        if !self.superblock.contains(&flag) {
            self.superblock.push(flag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &[&str]) -> Result<Options, Unsupported> {
        let list: Vec<String> = list.iter().map(|option| (*option).to_owned()).collect();
        parse(&list)
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options =
            parsed(&["ro", "nosuid,nodev", "noatime", "size=64m", "index=off", "userxattr"]);
        let options = options.unwrap();
        assert_eq!(options.attributes, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOATIME);
        assert_eq!(options.superblock, ["ro"]);
        let data: Vec<_> =
            options.data.iter().map(|(key, value)| (&**key, value.as_deref())).collect();
        assert_eq!(data, [("size", Some("64m")), ("index", Some("off")), ("userxattr", None)]);
    }

    #[test]
    fn later_option_wins() {
        let options = parsed(&["ro", "noexec", "noatime", "rw", "exec", "strictatime"]).unwrap();
        assert_eq!((options.attributes, &*options.superblock), (ATTR_STRICTATIME, &[][..]));
        assert_eq!(parsed(&["defaults", "relatime"]).unwrap(), Options::default());
    }

    #[test]
    fn binds_and_propagation_are_understood() {
        let options = parsed(&["rbind", "ro", "rslave"]).unwrap();
        assert!(options.bind && options.recursive);
        assert_eq!(options.propagation, libc::MS_SLAVE | libc::MS_REC);
    }

    #[test]
    fn layers_with_commas_in_their_names_stay_whole() {
        let options = parsed(&["lowerdir=/a,b:/c"]).unwrap();
        assert_eq!(options.data, [("lowerdir".to_owned(), Some("/a,b:/c".to_owned()))]);
    }

    #[test]
    fn what_is_not_built_is_named() {
        for option in [
            "loop",
            "remount",
            "X-containerd.mkdir.path=/x",
            "X-vminitd.verity.roothash=00",
            "uidmap=0:1:2",
        ] {
            assert_eq!(parsed(&[option]), Err(Unsupported(option.to_owned())));
        }
    }
}

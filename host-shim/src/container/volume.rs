//! `--volume HOST:GUEST[:ro]` and `--tmpfs PATH[:OPTIONS]`: what a person says about a container's mounts.
//! Promises: an error names what is wrong and what would do. Never: looks at a path.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::runtime::{Mount, MountBuilder};

/// A file or directory of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeWish {
    /// On the host.
    pub host: PathBuf,
    /// In the container; absolute.
    pub guest: PathBuf,
    /// The container cannot write it.
    pub read_only: bool,
}

/// What cannot be understood. The person's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeWishError {
    /// No colon, or nothing on one side of it.
    #[error("give HOST:GUEST or HOST:GUEST:ro, as in ./data:/data:ro")]
    Form,
    /// A place in the container that is none.
    #[error("{guest:?} is no absolute path of the container")]
    Guest {
        /// As given.
        guest: PathBuf,
    },
}

impl FromStr for VolumeWish {
    type Err = VolumeWishError;

    fn from_str(text: &str) -> Result<Self, VolumeWishError> {
        let (paths, read_only) = match (text.strip_suffix(":ro"), text.strip_suffix(":rw")) {
            (Some(paths), _) => (paths, true),
            (_, Some(paths)) => (paths, false),
            _ => (text, false),
        };
        // The host's path may have colons, the container's has none.
        let (host, guest) = paths.rsplit_once(':').ok_or(VolumeWishError::Form)?;
        if host.is_empty() || guest.is_empty() {
            return Err(VolumeWishError::Form);
        }
        let guest = place(guest).ok_or_else(|| VolumeWishError::Guest { guest: guest.into() })?;
        Ok(Self { host: host.into(), guest, read_only })
    }
}

/// A tmpfs in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TmpfsWish {
    /// Where; absolute.
    pub path: PathBuf,
    /// Parameters of tmpfs(5), and mount flags.
    pub options: Vec<String>,
}

/// What cannot be understood. The person's fault; it is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TmpfsWishError {
    /// A place in the container that is none.
    #[error("{path:?} is no absolute path of the container; give PATH[:size=SIZE,mode=MODE]")]
    Path {
        /// As given.
        path: String,
    },
    /// An option that is none, or has a bad value.
    #[error(
        "{option:?} is no option of a tmpfs; give size=64M, mode=0755, uid=N, gid=N, nr_inodes=N, ro or noexec"
    )]
    Option {
        /// As given.
        option: String,
    },
}

impl FromStr for TmpfsWish {
    type Err = TmpfsWishError;

    fn from_str(text: &str) -> Result<Self, TmpfsWishError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let path = place(path).ok_or_else(|| TmpfsWishError::Path { path: path.to_owned() })?;
        let mut wish = Self { path, options: Vec::new() };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            if !is_option(option) {
                return Err(TmpfsWishError::Option { option: option.to_owned() });
            }
            wish.options.push(option.to_owned());
        }
        Ok(wish)
    }
}

impl TmpfsWish {
    /// As config.json has it.
    pub fn mount(&self) -> Mount {
        let mut options: Vec<String> = ["nosuid", "nodev"].map(str::to_owned).to_vec();
        if !self.options.iter().any(|option| option.starts_with("mode=")) {
            // As /tmp is.
            options.push("mode=1777".to_owned());
        }
        options.extend(self.options.iter().cloned());
        MountBuilder::default()
            .typ("tmpfs")
            .source("tmpfs")
            .destination(&self.path)
            .options(options)
            .build()
            .expect("every field has a value")
    }
}

fn is_option(option: &str) -> bool {
    let Some((key, value)) = option.split_once('=') else {
        return matches!(option, "ro" | "rw" | "noexec" | "exec");
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match key {
        "size" | "nr_inodes" => digits(value.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G'])),
        "mode" => u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777),
        "uid" | "gid" => digits(value),
        _ => false,
    }
}

/// A path of the container, which is not to lead out of where it seems to be.
fn place(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let leads_up = path.components().any(|part| part == std::path::Component::ParentDir);
    let is_root = path.parent().is_none();
    (path.is_absolute() && !leads_up && !is_root).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_volume_is_read_as_it_is_written(host in "[a-z/.:]{1,12}", guest in "/[a-z]{1,9}", read_only in any::<bool>()) {
            let text = format!("{host}:{guest}{}", if read_only { ":ro" } else { "" });
            let wish = VolumeWish { host: host.into(), guest: guest.into(), read_only };
            prop_assert_eq!(text.parse(), Ok(wish));
        }

        #[test]
        fn no_text_is_a_place_outside(text in "[a-z/.:]{0,16}") {
            if let Ok(wish) = text.parse::<VolumeWish>() {
                prop_assert!(wish.guest.is_absolute() && !wish.guest.to_string_lossy().contains("/../"));
            }
        }
    }

    #[test]
    fn what_is_no_volume_is_told_what_would_do() {
        for text in ["", "/data", ":/data", "/data:", "a:b", "a:/", "a:/x/../../etc", "a:/b:rx"] {
            assert!(text.parse::<VolumeWish>().is_err(), "{text:?}");
        }
        assert!("x".parse::<VolumeWish>().unwrap_err().to_string().contains("./data:/data:ro"));
    }

    #[test]
    fn a_tmpfs_has_its_options_checked_and_a_default_mode() {
        let wish: TmpfsWish = "/scratch:size=64M,noexec".parse().unwrap();
        let mount = wish.mount();
        let options = mount.options().as_deref().unwrap();
        assert_eq!(options, ["nosuid", "nodev", "mode=1777", "size=64M", "noexec"]);
        let mount = "/x:mode=0700".parse::<TmpfsWish>().unwrap().mount();
        assert_eq!(mount.options().as_deref().unwrap(), ["nosuid", "nodev", "mode=0700"]);
        for text in ["", "tmp", "/", "/x:size=", "/x:size=1T", "/x:dev", "/x:mode=9"] {
            assert!(text.parse::<TmpfsWish>().is_err(), "{text:?}");
        }
        let error = "/x:size=lots".parse::<TmpfsWish>().unwrap_err().to_string();
        assert!(error.contains("\"size=lots\"") && error.contains("size=64M"), "{error}");
    }
}

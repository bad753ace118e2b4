//! A kernel's configuration, as it is in /proc/config.gz or beside the kernel in /boot.
//! Promises: what is not a line of a configuration is passed over.

use std::collections::BTreeMap;
use std::fs;

use super::inflate;

/// How an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// In the kernel.
    Yes,
    /// To be loaded.
    Module,
    /// Neither.
    No,
}

/// The options that are set.
#[derive(Clone, Debug, Default)]
pub struct Config(BTreeMap<String, Setting>);

impl Config {
    /// The running kernel's, and where it was found; an error says where it was looked for.
    pub fn of_running_kernel() -> Result<(Self, String), String> {
        const OF_PROC: &str = "/proc/config.gz";
        let mut tried = Vec::new();
        match fs::read(OF_PROC) {
            Ok(bytes) => match inflate::gunzip(&bytes) {
                Ok(text) => {
                    return Ok((Self::parse(&String::from_utf8_lossy(&text)), OF_PROC.to_owned()));
                }
                Err(error) => tried.push(format!("{OF_PROC}: {error}")),
            },
            Err(error) => tried.push(format!("{OF_PROC}: {error}")),
        }
        let release = nix::sys::utsname::uname().map_err(|errno| format!("uname: {errno}"))?;
        let path = format!("/boot/config-{}", release.release().to_string_lossy());
        match fs::read(&path) {
            Ok(bytes) => Ok((Self::parse(&String::from_utf8_lossy(&bytes)), path)),
            Err(error) => {
                tried.push(format!("{path}: {error}"));
                Err(tried.join("; "))
            }
        }
    }

    /// Reads lines such as `CONFIG_NET=y`; what stands behind a `#` is a comment.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            let setting = match value {
                "n" => Setting::No,
                "m" => Setting::Module,
                _ => Setting::Yes,
            };
            Some((name.to_owned(), setting))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// How an option is set; one that is not named is not set.
    pub fn get(&self, option: &str) -> Setting {
        self.0.get(option).copied().unwrap_or(Setting::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_comments_are_not() {
        let config = Config::parse(
            "CONFIG_A=y\nCONFIG_B=m  # why\n# CONFIG_C is not set\nCONFIG_D=n\nCONFIG_E=\"x y\"\n#CONFIG_F=y\n\nG=y",
        );
        let got = ["A", "B", "C", "D", "E", "F", "G"].map(|option| config.get(option));
        use Setting::{Module, No, Yes};
        assert_eq!(got, [Yes, Module, No, No, Yes, No, No]);
    }
}

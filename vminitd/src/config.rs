//! Configuration: one typed struct, from the kernel command line, then from flags.
//!
//! Owns: the table of keys, with defaults, units and one line of help each.
//! Promises: what cannot be understood is reported, and its default stands; nothing here fails.
//! Never: knows what a setting is used for.

use std::num::NonZeroU32;
use std::time::Duration;

use vminitd_protocol::ports;

use crate::limits;
use crate::paths;

/// How this boot is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// vsock port of ttrpc.
    pub rpc_port: u32,
    /// vsock port of stdio streams.
    pub stream_port: u32,
    /// Most talkative level that is logged.
    pub log: LogLevel,
    /// How long a launcher may take, hooks' own timeouts not counted.
    pub launcher_timeout: Duration,
    /// How long a mount waits for a disk that is not there yet.
    pub device_timeout: Duration,
    /// Time between two pings of the agent.
    pub heartbeat: Duration,
    /// Pings in a row that the agent may leave unanswered.
    pub heartbeat_misses: u32,
    /// From a container's SIGTERM to its SIGKILL when the VM ends.
    pub stop_grace: Duration,
    /// How long each step of the VM's end may take.
    pub stop_step: Duration,
    /// After so long a filesystem that a host has frozen thaws by itself.
    pub thaw_after: Duration,
    /// Whose habits the agent has.
    pub profile: Profile,
    /// The VM's host name.
    pub hostname: String,
    /// Which disk, from 0 on, has a tar archive of files for the guest.
    pub extras_disk: Option<u16>,
    /// Extract them again for each agent.
    pub extras_force: bool,
    /// From serving to the look for an injected supervisor.
    pub supervisor_delay: Duration,
    /// What every time of the supervisor's restart rule is divided by.
    pub supervisor_haste: NonZeroU32,
    /// Words about networks, as they stand; the agent understands them.
    pub network: Vec<NetworkWord>,
    /// What could not be understood, for the log: one text per key.
    pub complaints: Vec<String>,
}

/// The VM's host name when nobody says another.
pub const DEFAULT_HOSTNAME: &str = "vm";

/// The value of a word about a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkWord {
    /// Of `ip=`.
    Ip(String),
    /// Of `vminitd.network=` or `-network`.
    Network(String),
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed and stays failed.
    Error,
    /// What failed and was coped with.
    Warn,
    /// What a person at the console would miss.
    Info,
    /// What a developer would miss; libcontainer's own lines too.
    Debug,
}

/// Which host's habits the agent follows where hosts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Our own host's.
    Native,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            rpc_port: ports::DEFAULT_RPC_PORT,
            stream_port: ports::DEFAULT_STREAM_PORT,
            log: LogLevel::Info,
            launcher_timeout: limits::LAUNCHER_DEADLINE,
            device_timeout: limits::DEVICE_PATIENCE,
            heartbeat: limits::HEARTBEAT,
            heartbeat_misses: limits::HEARTBEAT_MISSES,
            stop_grace: limits::TERM_TO_KILL,
            stop_step: limits::STOP_STEP,
            thaw_after: limits::THAW_AFTER,
            profile: Profile::Native,
            extras_disk: None,
            extras_force: false,
            hostname: DEFAULT_HOSTNAME.into(),
            supervisor_delay: limits::SUPERVISOR_DELAY,
            supervisor_haste: NonZeroU32::MIN,
            network: Vec::new(),
            complaints: Vec::new(),
        }
    }
}

/// One setting: its key, what takes its value, and what a person needs to know.
struct Setting {
    key: &'static str,
    /// The flag that other projects' hosts use for it.
    alias: Option<&'static str>,
    /// Whether the flag stands alone.
    is_switch: bool,
    help: &'static str,
    set: fn(&mut Config, &str) -> bool,
}

const SETTINGS: &[Setting] = &[
    Setting {
        key: "rpc_port",
        alias: Some("vsock-rpc-port"),
        is_switch: false,
        help: "vsock port of ttrpc (default 1024)",
        set: |config, value| parse(value, &mut config.rpc_port),
    },
    Setting {
        key: "stream_port",
        alias: Some("vsock-stream-port"),
        is_switch: false,
        help: "vsock port of stdio streams (default 1025)",
        set: |config, value| parse(value, &mut config.stream_port),
    },
    Setting {
        key: "cid",
        alias: Some("vsock-cid"),
        is_switch: false,
        help: "this VM's vsock CID; accepted and not needed, the listeners take any",
        set: |_, value| value.parse::<u32>().is_ok(),
    },
    Setting {
        key: "log",
        alias: None,
        is_switch: false,
        help: "error, warn, info or debug (default info)",
        set: |config, value| LogLevel::parse(value).map(|level| config.log = level).is_some(),
    },
    Setting {
        key: "debug",
        alias: None,
        is_switch: true,
        help: "same as log=debug",
        set: |config, value| match value {
            "" | "1" | "true" => {
                config.log = LogLevel::Debug;
                true
            }
            _ => matches!(value, "0" | "false"),
        },
    },
    Setting {
        key: "launcher_timeout_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds that create and exec may take, hooks not counted (default 60000)",
        set: |config, value| parse_millis(value, &mut config.launcher_timeout),
    },
    Setting {
        key: "device_timeout_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds that a mount waits for a disk to appear (default 5000)",
        set: |config, value| parse_millis(value, &mut config.device_timeout),
    },
    Setting {
        key: "heartbeat_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds between two pings of the agent (default 2000)",
        set: |config, value| parse_millis(value, &mut config.heartbeat),
    },
    Setting {
        key: "heartbeat_misses",
        alias: None,
        is_switch: false,
        help: "unanswered pings in a row after which the agent is restarted (default 5)",
        set: |config, value| {
            parse(value, &mut config.heartbeat_misses) && config.heartbeat_misses > 0
        },
    },
    Setting {
        key: "stop_grace_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds from SIGTERM to SIGKILL when the VM ends (default 10000)",
        set: |config, value| parse_millis(value, &mut config.stop_grace),
    },
    Setting {
        key: "stop_step_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds that each step of the VM's end may take (default 10000)",
        set: |config, value| parse_millis(value, &mut config.stop_step),
    },
    Setting {
        key: "thaw_after_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds after which frozen filesystems thaw by themselves (default 60000)",
        set: |config, value| parse_millis(value, &mut config.thaw_after),
    },
    Setting {
        key: "profile",
        alias: None,
        is_switch: false,
        help: "whose host's habits to follow: native",
        set: |config, value| {
            if value == "native" {
                config.profile = Profile::Native;
            }
            value == "native"
        },
    },
    Setting {
        key: "hostname",
        alias: None,
        is_switch: false,
        help: "the VM's host name (default vm)",
        set: |config, value| {
            let fits = (1..=limits::HOSTNAME_BYTES).contains(&value.len());
            if fits {
                config.hostname = value.into();
            }
            fits
        },
    },
    Setting {
        key: "supervisor_delay_ms",
        alias: None,
        is_switch: false,
        help: "milliseconds from serving to the look for a supervisor (default 2000)",
        set: |config, value| parse_millis(value, &mut config.supervisor_delay),
    },
    Setting {
        key: "supervisor_haste",
        alias: None,
        is_switch: false,
        help: "divides every time of the supervisor's restart rule, for tests (default 1)",
        set: |config, value| parse(value, &mut config.supervisor_haste),
    },
    Setting {
        key: "network",
        alias: None,
        is_switch: false,
        help: "a link of the VM: mac=..,addr=..,dhcp=..,gw=..,dns=..,mtu=..; may come more than once",
        set: |config, value| {
            let fits = config.network.len() < limits::NETWORKS && !value.is_empty();
            if fits {
                config.network.push(NetworkWord::Network(value.into()));
            }
            fits
        },
    },
];

/// The kernel's own key for a network, which it leaves to us.
const IP: &str = "ip=";

/// What a key on the kernel command line starts with.
const CMDLINE_PREFIX: &str = "vminitd.";

/// Disks with one letter and with two: /dev/vda to /dev/vdzz.
const DISK_NAMES: u16 = 26 + 26 * 26;

/// The same of what spinbox's host says.
const SPIN_PREFIX: &str = "spin.";

impl Config {
    /// From /proc/cmdline, then from the flags in `arguments` (`arguments[0]` is the program). A
    /// command line that cannot be read is a complaint.
    pub fn from_system(arguments: &[String]) -> Config {
        match std::fs::read_to_string(paths::CMDLINE) {
            Ok(cmdline) => Config::parse(&cmdline, arguments.get(1..).unwrap_or_default()),
            Err(error) => {
                let mut config = Config::parse("", arguments.get(1..).unwrap_or_default());
                config.complaints.push(format!("read {}: {error}", paths::CMDLINE));
                config
            }
        }
    }

    /// From a kernel command line and flags. The kernel passes what it does not know on to init,
    /// so a `vminitd.` word may come twice, and words of others may come as flags.
    pub fn parse(cmdline: &str, flags: &[String]) -> Config {
        let mut config = Config::default();
        for word in cmdline.split_ascii_whitespace().take_while(|word| *word != "--") {
            if let Some(setting) = word.strip_prefix(CMDLINE_PREFIX) {
                let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
                config.apply(word, key, value);
            } else if let Some(setting) = word.strip_prefix(SPIN_PREFIX) {
                let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
                config.apply_spin(word, key, value);
            } else if let Some(value) = word.strip_prefix(IP)
                && config.network.len() < limits::NETWORKS
            {
                config.network.push(NetworkWord::Ip(value.into()));
            }
        }
        let mut words = flags.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                if !word.starts_with(CMDLINE_PREFIX) {
                    config.complaints.push(format!("ignored: {word:?}"));
                }
                continue;
            };
            if flag.is_empty() {
                continue;
            }
            match flag.split_once('=') {
                Some((key, value)) => config.apply(word, key, value),
                None if find(flag).is_none_or(|setting| setting.is_switch) => {
                    config.apply(word, flag, "");
                }
                None => match words.next_if(|next| !next.starts_with('-')) {
                    Some(value) => config.apply(word, flag, value),
                    None => config.complaints.push(format!("ignored: {word:?} has no value")),
                },
            }
        }
        config
    }

    /// The table of settings as text, a line per key.
    pub fn help() -> String {
        let mut text = String::new();
        for Setting { key, alias, help, .. } in SETTINGS {
            let alias = alias.map(|alias| format!(" (flag also -{alias})")).unwrap_or_default();
            text.push_str(&format!("  {CMDLINE_PREFIX}{key:<20} {help}{alias}\n"));
        }
        text
    }

    /// Two keys of another host's; its others say nothing to us.
    fn apply_spin(&mut self, word: &str, key: &str, value: &str) {
        let understood = match (key, value) {
            ("extras_disk", index) => {
                let index = index.parse().ok().filter(|index| *index < DISK_NAMES);
                self.extras_disk = index.or(self.extras_disk);
                index.is_some()
            }
            ("extras_force", "" | "1") => {
                self.extras_force = true;
                true
            }
            ("extras_force", "0") => true,
            ("extras_force", _) => false,
            _ => true,
        };
        if !understood {
            self.complaints.push(format!("ignored: {word:?}"));
        }
    }

    fn apply(&mut self, word: &str, key: &str, value: &str) {
        let understood = match find(key) {
            Some(setting) => (setting.set)(self, value),
            None => false,
        };
        if !understood {
            self.complaints.push(format!("ignored: {word:?}"));
        }
    }
}

impl LogLevel {
    fn parse(name: &str) -> Option<LogLevel> {
        match name {
            "error" => Some(LogLevel::Error),
            "warn" => Some(LogLevel::Warn),
            "info" => Some(LogLevel::Info),
            "debug" => Some(LogLevel::Debug),
            _ => None,
        }
    }
}

fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key || setting.alias == Some(key))
}

fn parse<T: std::str::FromStr>(value: &str, into: &mut T) -> bool {
    value.parse().map(|parsed| *into = parsed).is_ok()
}

fn parse_millis(value: &str, into: &mut Duration) -> bool {
    match value.parse::<u32>() {
        Ok(0) | Err(_) => false,
        Ok(millis) => {
            *into = Duration::from_millis(millis.into());
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(cmdline: &str, flags: &[&str]) -> Config {
        let flags: Vec<String> = flags.iter().map(|flag| flag.to_string()).collect();
        Config::parse(cmdline, &flags)
    }

    #[test]
    fn nothing_gives_the_defaults() {
        assert_eq!(parse("console=ttyS0 quiet panic=-1", &[]), Config::default());
    }

    #[test]
    fn flags_win_over_the_command_line() {
        let config =
            parse("vminitd.rpc_port=7 vminitd.log=warn -- vminitd.rpc_port=9", &["-rpc_port=8"]);
        assert_eq!((config.rpc_port, config.log), (8, LogLevel::Warn));
        assert_eq!(config.complaints, Vec::<String>::new());
    }

    #[test]
    fn other_hosts_flags_are_understood_in_each_form() {
        let config = parse(
            "",
            &["-vsock-rpc-port=1025", "--vsock-stream-port", "1026", "-vsock-cid=3", "-debug"],
        );
        assert_eq!(
            (config.rpc_port, config.stream_port, config.log),
            (1025, 1026, LogLevel::Debug)
        );
        assert_eq!(config.complaints, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_understood_is_reported_and_leaves_the_default() {
        let config = parse(
            "vminitd.rpc_port=x vminitd.heartbeat_ms=0 vminitd.nonsense",
            &["tsi_hijack", "--", "-no-such", "mac=1", "--rpc_port"],
        );
        assert_eq!(Config { complaints: Vec::new(), ..config.clone() }, Config::default());
        assert_eq!(config.complaints.len(), 7, "{:?}", config.complaints);
    }

    #[test]
    fn extras_are_asked_for_in_another_hosts_words() {
        let config = parse("spin.extras_disk=1 spin.extras_force spin.metadata_addr=x", &[]);
        assert_eq!((config.extras_disk, config.extras_force), (Some(1), true));
        assert_eq!(config.complaints, Vec::<String>::new());
        let config = parse("spin.extras_disk=702 spin.extras_disk=-1 spin.extras_force=x", &[]);
        assert_eq!((config.extras_disk, config.extras_force), (None, false));
        assert_eq!(config.complaints.len(), 3);
    }

    #[test]
    fn words_about_networks_are_kept_in_their_order() {
        let config =
            parse("ip=dhcp vminitd.network=mac=1 ip=off", &["-network", "mac=2", "-network=x"]);
        let network = |value: &str| NetworkWord::Network(value.into());
        let ip = |value: &str| NetworkWord::Ip(value.into());
        let words = [ip("dhcp"), network("mac=1"), ip("off"), network("mac=2"), network("x")];
        assert_eq!(config.network, words);
        assert_eq!(config.complaints, Vec::<String>::new());
    }

    #[test]
    fn the_book_has_every_key() {
        let book = include_str!("../../docs/configuration.md");
        for setting in SETTINGS {
            assert!(book.contains(&format!("`{}`", setting.key)), "{} is missing", setting.key);
        }
    }

    proptest! {
        #[test]
        fn any_words_are_survived(cmdline: String, flags: Vec<String>) {
            let _ = Config::parse(&cmdline, &flags);
        }
    }
}

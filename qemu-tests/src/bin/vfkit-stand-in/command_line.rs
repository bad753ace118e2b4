//! vfkit's command line, as far as our driver has use for it, and a VM of it.
//! Promises: what vfkit does not know, or would refuse, is an error here.

use std::path::PathBuf;

use host_shim::vm::{Disk, Draft, Network, Nic, Share};

/// Who dials a port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Connect,
    Listen,
}

/// What was wished.
pub struct Wish {
    pub draft: Draft,
    pub sockets: Vec<(u32, Direction, PathBuf)>,
    pub rest: PathBuf,
}

#[derive(Default)]
struct Flags {
    cpus: Option<u32>,
    memory: Option<u64>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    rest: Option<PathBuf>,
    disks: Vec<Disk>,
    shares: Vec<Share>,
    nics: Vec<Nic>,
    sockets: Vec<(u32, Direction, PathBuf)>,
    console: bool,
}

pub fn parse(arguments: &[String]) -> Result<Wish, String> {
    let mut flags = Flags::default();
    let mut words = arguments.iter();
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("flag needs an argument: {flag}"))?;
        match flag.as_str() {
            "--cpus" => flags.cpus = Some(number(value)?),
            "--memory" => flags.memory = Some(number(value)?),
            "--kernel" => flags.kernel = Some(value.into()),
            "--initrd" => flags.initrd = Some(value.into()),
            "--kernel-cmdline" => flags.cmdline = Some(value.clone()),
            "--restful-uri" => flags.rest = Some(unix(value)?),
            "--device" => flags.device(value)?,
            other => return Err(format!("unknown flag: {other}")),
        }
    }
    flags.wish()
}

impl Flags {
    fn device(&mut self, text: &str) -> Result<(), String> {
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let options: Vec<(&str, &str)> =
            parts.map(|part| part.split_once('=').unwrap_or((part, ""))).collect();
        let known = |names: &[&str]| match options.iter().find(|(name, _)| !names.contains(name)) {
            Some((name, _)) => Err(format!("unknown option for {kind} devices: {name}")),
            None => Ok(()),
        };
        let option = |wanted: &str| options.iter().find(|(name, _)| *name == wanted).map(|o| o.1);
        let needed = |wanted: &str| option(wanted).ok_or_else(|| format!("{kind} needs {wanted}"));
        match kind {
            "virtio-rng" | "virtio-balloon" => known(&[]),
            "virtio-serial" => {
                known(&["stdio"])?;
                self.console = option("stdio").is_some();
                Ok(())
            }
            "virtio-vsock" => {
                known(&["port", "socketURL", "connect", "listen"])?;
                let direction = if option("connect").is_some() {
                    Direction::Connect
                } else {
                    Direction::Listen
                };
                let (port, path) = (number(needed("port")?)?, needed("socketURL")?.into());
                self.sockets.push((port, direction, path));
                Ok(())
            }
            "virtio-blk" => {
                known(&["path", "deviceId", "readonly", "type"])?;
                let serial = needed("deviceId")?.parse().map_err(|_| "no deviceId".to_owned())?;
                let (path, read_only) = (needed("path")?.into(), option("readonly").is_some());
                self.disks.push(Disk { serial, path, read_only });
                Ok(())
            }
            "virtio-fs" => {
                known(&["sharedDir", "mountTag"])?;
                let tag = needed("mountTag")?.parse().map_err(|_| "no mountTag".to_owned())?;
                self.shares.push(Share {
                    tag,
                    path: needed("sharedDir")?.into(),
                    read_only: false,
                });
                Ok(())
            }
            "virtio-net" => {
                known(&["nat", "mac"])?;
                let mac = needed("mac")?.parse().map_err(|_| "no mac".to_owned())?;
                self.nics.push(Nic {
                    mac,
                    network: Network::User { published: Vec::new(), removable: false },
                });
                Ok(())
            }
            other => Err(format!("unknown device type: {other}")),
        }
    }

    fn wish(self) -> Result<Wish, String> {
        let missing = |what: &str| format!("required flag(s) {what:?} not set");
        if !self.console {
            return Err("no console".to_owned());
        }
        let listening = self.sockets.iter().filter(|(_, way, _)| *way == Direction::Listen);
        let guest_dials = listening.map(|(port, _, _)| *port).collect();
        let memory = self.memory.unwrap_or(512) << 20;
        // The framework's only console is a virtio one. QEMU has a UART, which is what our driver of QEMU says.
        let cmdline = self.cmdline.ok_or_else(|| missing("kernel-cmdline"))?;
        let cmdline = cmdline
            .strip_prefix("console=hvc0 quiet panic=-1")
            .ok_or_else(|| format!("no console in {cmdline:?}"))?;
        let draft = Draft {
            name: "vfkit".parse().expect("a name"),
            arch: Default::default(),
            kernel: self.kernel.ok_or_else(|| missing("kernel"))?,
            initramfs: Some(self.initrd.ok_or_else(|| missing("initrd"))?),
            cmdline: cmdline.trim().parse().map_err(|_| "no command line".to_owned())?,
            memory: memory.try_into().map_err(|_| "no memory".to_owned())?,
            cpus: self.cpus.unwrap_or(1),
            guest_cid: Default::default(),
            guest_dials,
            disks: self.disks,
            hotplug_slots: 0.try_into().expect("a number of slots"),
            shares: self.shares,
            nics: self.nics,
            accelerator: Default::default(),
            options: Default::default(),
        };
        let rest = self.rest.ok_or_else(|| missing("restful-uri"))?;
        Ok(Wish { draft, sockets: self.sockets, rest })
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("invalid argument {text:?}"))
}

fn unix(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").ok_or_else(|| format!("invalid scheme: {text}"))?;
    Ok(path.into())
}

//! Files that tell programs of names: resolv.conf and hosts.
//!
//! Owns: both files below [`NETWORK_DIR`], and what makes them appear in /etc: a link where the root can
//! be written, else an overlay over /etc. Promises: a file that a container has bound is changed in
//! place, so that the container sees it; a file of the image's own in /etc stays as it is.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use crate::limits::NAME_SERVERS;
use crate::paths::NETWORK_DIR;

/// Who is asked for names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// Name servers, in order.
    pub servers: Vec<IpAddr>,
    /// Where names without a dot are looked for.
    pub search: Vec<String>,
}

impl Resolver {
    /// This one's, then another's; none twice, no more than are read.
    pub fn and(mut self, other: Self) -> Self {
        self.servers.extend(other.servers);
        self.search.extend(other.search);
        let mut seen = vec![];
        self.servers.retain(|server| {
            !seen.contains(server) && {
                seen.push(*server);
                true
            }
        });
        self.servers.truncate(NAME_SERVERS);
        let mut seen: Vec<String> = vec![];
        self.search.retain(|name| {
            !seen.contains(name) && {
                seen.push(name.clone());
                true
            }
        });
        self
    }

    /// resolv.conf(5).
    pub fn text(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        text
    }
}

/// hosts(5): the loopback's names, and the VM's own. Without an address of its own it is at
/// 127.0.1.1, as elsewhere.
pub fn hosts(hostname: &str, address: Option<IpAddr>) -> String {
    let own = address.map_or_else(|| "127.0.1.1".to_owned(), |ip| ip.to_string());
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n")
}

/// Puts both files in place. With `insist`, also where /etc cannot be written.
pub fn write(resolver: &Resolver, hosts: &str, insist: bool) -> io::Result<()> {
    let directory = Path::new(NETWORK_DIR);
    fs::create_dir_all(directory)?;
    for (name, text) in [("resolv.conf", resolver.text()), ("hosts", hosts.to_owned())] {
        let file = directory.join(name);
        // In place: a new file would not be the one that containers have bound.
        if fs::read(&file).ok().as_deref() != Some(text.as_bytes()) {
            let mut open =
                fs::File::options().write(true).create(true).truncate(false).open(&file)?;
            open.write_all(text.as_bytes())?;
            open.set_len(text.len() as u64)?;
        }
        match symlink(&file, Path::new("/etc").join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if insist && error.raw_os_error() == Some(libc::EROFS) => {
                cover_etc(directory)?;
                match symlink(&file, Path::new("/etc").join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            // A read-only root, or one without /etc: nobody asked for more.
            Err(_) if !insist => {}
            done => done?,
        }
    }
    Ok(())
}

/// Makes /etc of a read-only root writable, into the guest's memory.
fn cover_etc(directory: &Path) -> io::Result<()> {
    let (upper, work) = (directory.join("etc"), directory.join("etc.work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("overlay"), "/etc", Some("overlay"), flags, Some(options.as_str()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolver_has_each_server_once_and_no_more_than_are_read() {
        let of = |servers: &[&str], search: &[&str]| Resolver {
            servers: servers.iter().map(|ip| ip.parse().unwrap()).collect(),
            search: search.iter().map(|name| (*name).to_owned()).collect(),
        };
        let both = of(&["1.1.1.1", "fd00::1"], &["a.org"])
            .and(of(&["1.1.1.1", "8.8.8.8", "9.9.9.9"], &["b.org", "a.org"]));
        assert_eq!(
            both.text(),
            "nameserver 1.1.1.1\nnameserver fd00::1\nnameserver 8.8.8.8\nsearch a.org b.org\n"
        );
        assert_eq!(Resolver::default().text(), "");
    }

    #[test]
    fn hosts_has_the_vm_where_it_is() {
        assert!(hosts("web", None).ends_with("127.0.1.1\tweb\n"));
        assert!(hosts("web", Some("10.0.0.2".parse().unwrap())).ends_with("10.0.0.2\tweb\n"));
    }
}

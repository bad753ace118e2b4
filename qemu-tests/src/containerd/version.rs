//! Which containerds there are: what scripts/containerd.sh printed.

use std::path::{Path, PathBuf};

/// An unpacked containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `1.6`, `1.7` or `2`.
    pub name: String,
    /// As it says itself, for example `1.7.24`.
    pub number: String,
    /// Its `bin` directory: containerd, ctr and runc's shim.
    pub bin: PathBuf,
    /// Directory of runc.
    pub runc: PathBuf,
    /// Directory of the CNI plugins.
    pub cni: PathBuf,
    /// Directory of a mkfs.erofs that makes images of tar files, if one could be had.
    pub erofs: Option<PathBuf>,
}

/// The containerd of that name, `None` when it could not be had.
pub fn version(name: &str) -> Option<Version> {
    let list = std::env::var_os("VMINITD_CONTAINERD")
        .expect("VMINITD_CONTAINERD is not set; run containerd's tests with `./dev test`");
    let list = std::fs::read_to_string(&list).expect("the list of containerd.sh");
    parse(&list, name)
}

fn parse(list: &str, name: &str) -> Option<Version> {
    let rows = list.lines().map(|line| line.splitn(3, ' ').collect::<Vec<_>>());
    let rows: Vec<_> = rows.filter(|row| row.len() == 3).collect();
    let row = |name: &str| rows.iter().find(|row| row[0] == name);
    let (tools, found) = (Path::new(row("tools")?[2]), row(name)?);
    Some(Version {
        name: name.to_owned(),
        number: found[1].to_owned(),
        bin: Path::new(found[2]).join("usr/bin"),
        runc: tools.join("usr/sbin"),
        cni: tools.join("usr/lib/cni"),
        erofs: row("erofs").map(|row| Path::new(row[2]).join("bin")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_list_cannot_be_had() {
        let list = "tools - /c/t x\nerofs - /c/e\n1.6 1.6.20 /c/16\n";
        let found = parse(list, "1.6").unwrap();
        assert_eq!(
            (found.number.as_str(), found.bin.as_path()),
            ("1.6.20", Path::new("/c/16/usr/bin"))
        );
        assert_eq!(found.cni, Path::new("/c/t x/usr/lib/cni"));
        assert_eq!(found.erofs.as_deref(), Some(Path::new("/c/e/bin")));
        assert_eq!(parse(list, "1.7"), None);
        assert_eq!(parse("1.6 1.6.20 /c/16\n", "1.6"), None, "without runc there is no comparison");
    }
}

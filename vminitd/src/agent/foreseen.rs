//! Configs of bundles whose Create has not come yet, parsed ahead of it.
//!
//! Owns: a few of them, the latest.
//! Promises: a config that has changed since it was parsed is not given out.
//! Never: judges one; what is wrong with it is for Create to say.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::lock;
use super::spec::{self, Config};
use crate::limits::FORESEEN;

/// See the module.
#[derive(Debug, Default)]
pub struct Foreseen(Mutex<VecDeque<(PathBuf, Config)>>);

impl Foreseen {
    /// Parses a bundle's config; CLONE_NEW*: the namespaces that can be made ahead for its Create. Can block.
    pub fn look(&self, bundle: &Path) -> i32 {
        let Ok(config) = spec::parse(bundle) else { return 0 };
        let namespaces = config.ahead();
        let mut all = lock(&self.0);
        all.push_back((bundle.to_owned(), config));
        if all.len() > FORESEEN {
            all.pop_front();
        }
        namespaces
    }

    /// What was parsed of a bundle, if it still is that. Can block.
    pub fn take(&self, bundle: &Path) -> Option<Config> {
        let mut all = lock(&self.0);
        let at = all.iter().position(|(of, _)| of == bundle)?;
        let (_, config) = all.remove(at)?;
        drop(all);
        config.is_of(bundle).then_some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(args: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), args);
        dir
    }

    fn write(bundle: &Path, args: &str) {
        let text = format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"rootfs"}},"process":{{"cwd":"/","args":{args},
            "user":{{"uid":0,"gid":0}}}},"mounts":[{{"destination":"/dev","type":"tmpfs","source":"t"}}],
            "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"network"}},{{"type":"pid"}}]}}}}"#
        );
        std::fs::write(bundle.join("config.json"), text).unwrap();
    }

    #[test]
    fn config_is_given_out_once_and_only_as_long_as_it_is_the_bundles() {
        let foreseen = Foreseen::default();
        let (one, other) = (bundle(r#"["a"]"#), bundle(r#"["b"]"#));
        assert_eq!(foreseen.look(one.path()), libc::CLONE_NEWNET, "pid is the clone's");
        foreseen.look(other.path());
        assert!(foreseen.take(one.path()).is_some());
        assert!(foreseen.take(one.path()).is_none());
        write(other.path(), r#"["changed", "since"]"#);
        assert!(foreseen.take(other.path()).is_none());
        assert_eq!(foreseen.look(Path::new("/not/there")), 0);
    }

    #[test]
    fn number_of_them_is_bounded() {
        let foreseen = Foreseen::default();
        let bundles: Vec<_> = (0..FORESEEN + 1).map(|_| bundle("[]")).collect();
        for bundle in &bundles {
            foreseen.look(bundle.path());
        }
        assert!(foreseen.take(bundles[0].path()).is_none());
        assert!(foreseen.take(bundles[FORESEEN].path()).is_some());
    }
}

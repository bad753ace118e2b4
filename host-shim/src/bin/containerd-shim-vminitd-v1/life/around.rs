//! What annotations put around a container: files for the guest itself, and ports of the host that the guest dials.
//!
//! | annotation | says |
//! |---|---|
//! | `io.vminitd.extras.files` | `HOST:GUEST`, separated by commas: files and directories of the host for the guest |
//! | `io.spin.extras.files` | the same; a HOST without GUEST goes to `/run/spin-stack`, where the supervisor is looked for |
//! | `io.vminitd.guest-dials` | `PORT=SOCKET`, separated by commas: ports of context id 2, and the Unix socket that each is |
//!
//! Promises: an annotation that makes no sense is an error that shows it. Never: connects to anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use host_shim::dials::GuestDial;
use host_shim::extras::{self, Extra, ExtrasError};
use serde_json::Value;

/// Where the supervisor is looked for.
const SPIN_STACK: &str = "/run/spin-stack";

/// An annotation that makes no sense, or files that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AroundError {
    /// Whoever wrote the annotation reads it.
    #[error("{annotation}: {text}")]
    Annotation {
        /// Which.
        annotation: &'static str,
        /// What is wrong.
        text: String,
    },
    /// The archive.
    #[error("pack the extras")]
    Extras(#[from] ExtrasError),
    /// Its file.
    #[error("write {0:?}")]
    Write(PathBuf, #[source] io::Error),
}

fn words<'a>(config: &'a Value, annotation: &str) -> impl Iterator<Item = &'a str> {
    let text = config["annotations"][annotation].as_str().unwrap_or_default();
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// The ports that the guest may dial, each with its socket.
pub fn dials(config: &Value) -> Result<BTreeMap<u32, PathBuf>, AroundError> {
    const NAME: &str = "io.vminitd.guest-dials";
    let dial = |word: &str| {
        let GuestDial { port, path } =
            word.parse().map_err(|text| AroundError::Annotation { annotation: NAME, text })?;
        Ok((port, path))
    };
    words(config, NAME).map(dial).collect()
}

/// The files for the guest.
pub fn extras(config: &Value) -> Result<Vec<Extra>, AroundError> {
    const OURS: &str = "io.vminitd.extras.files";
    const SPIN: &str = "io.spin.extras.files";
    let read = |annotation, word: &str| {
        word.parse::<Extra>().map_err(|text| AroundError::Annotation { annotation, text })
    };
    let mut all =
        words(config, OURS).map(|word| read(OURS, word)).collect::<Result<Vec<_>, _>>()?;
    for word in words(config, SPIN) {
        let name = Path::new(word).file_name().filter(|_| !word.contains(":/"));
        all.push(match name {
            Some(name) => Extra { source: word.into(), place: Path::new(SPIN_STACK).join(name) },
            None => read(SPIN, word)?,
        });
    }
    Ok(all)
}

/// Packs them into `path`.
pub fn pack(extras: &[Extra], path: &Path) -> Result<(), AroundError> {
    let fail = |source| AroundError::Write(path.to_owned(), source);
    let mut archive = BufWriter::new(File::create(path).map_err(fail)?);
    extras::write(extras, &mut archive)?;
    archive.flush().map_err(fail)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_are_lists_and_what_makes_no_sense_is_shown() {
        let config = |name: &str, text: &str| json!({ "annotations": { name: text } });
        let got = dials(&config("io.vminitd.guest-dials", "1027=/a.sock, 5=/b")).unwrap();
        assert_eq!(got, BTreeMap::from([(5, "/b".into()), (1027, "/a.sock".into())]));
        let error = dials(&config("io.vminitd.guest-dials", "x")).unwrap_err().to_string();
        assert!(error.starts_with("io.vminitd.guest-dials: \"x\""), "{error}");
        let got =
            extras(&config("io.spin.extras.files", "/opt/spin-supervisor,/a:/etc/a")).unwrap();
        let places: Vec<_> = got.iter().map(|extra| extra.place.display().to_string()).collect();
        assert_eq!(places, ["/run/spin-stack/spin-supervisor", "/etc/a"]);
        assert!(extras(&config("io.vminitd.extras.files", "/opt/tool")).is_err());
        assert!(extras(&json!({})).unwrap().is_empty());
    }
}

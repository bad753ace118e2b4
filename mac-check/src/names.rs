//! The table of names: a line each, `class NAME VERSION` or `selector NAME VERSION`.
//! Promises: a line that is no such is refused with its number, and so is a name that is there twice.

use std::collections::BTreeMap;

/// A version of macOS.
pub type Version = (u32, u32);

/// What our programs are built for: what came with it needs no check.
pub const OLDEST: Version = (13, 0);

/// Since when each is there.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By name.
    pub classes: BTreeMap<String, Version>,
    /// The same.
    pub selectors: BTreeMap<String, Version>,
}

/// The table is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the table of names is none, or is there twice: {text:?}")]
pub struct NamesError {
    /// From 1.
    pub line: usize,
    /// What is in it.
    pub text: String,
}

/// Reads it.
pub fn parse(text: &str) -> Result<Names, NamesError> {
    let mut names = Names::default();
    for (index, line) in text.lines().enumerate() {
        let wrong = || NamesError { line: index + 1, text: line.to_owned() };
        let words: Vec<&str> =
            line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let (table, name, since) = match words[..] {
            [] => continue,
            ["class", name, since] => (&mut names.classes, name, since),
            ["selector", name, since] => (&mut names.selectors, name, since),
            _ => return Err(wrong()),
        };
        let since = version(since).ok_or_else(wrong)?;
        if table.insert(name.to_owned(), since).is_some() {
            return Err(wrong());
        }
    }
    Ok(names)
}

/// `14` or `14.2`.
pub fn version(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

impl Names {
    /// Selectors that the oldest macOS has not, as objc2 calls their methods.
    pub fn newer_selectors(&self) -> BTreeMap<String, Version> {
        let newer = self.selectors.iter().filter(|(_, since)| **since > OLDEST);
        newer.map(|(name, since)| (method(name), *since)).collect()
    }
}

/// `saveTo:completionHandler:` is `saveTo_completionHandler`.
fn method(selector: &str) -> String {
    selector.trim_end_matches(':').replace(':', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_what_is_none_is_refused_with_its_line() {
        let names = parse("# a\nclass VZX 11\nselector a:b: 14.2 # why\nselector c 13\n").unwrap();
        assert_eq!(names.classes["VZX"], (11, 0));
        assert_eq!(names.newer_selectors(), BTreeMap::from([("a_b".to_owned(), (14, 2))]));
        for wrong in ["class X", "selector x 1.y", "function f 12", "class A 11\nclass A 12"] {
            assert_eq!(parse(wrong).unwrap_err().line, wrong.lines().count());
        }
    }

    #[test]
    fn our_own_table_is_one() {
        let names = parse(include_str!("../names.txt")).unwrap();
        assert!(names.classes.len() > 20 && names.newer_selectors().len() > 3);
    }
}

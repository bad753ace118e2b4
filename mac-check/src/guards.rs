//! Calls of what came later than the oldest macOS, and the availability checks before them.
//!
//! A call is guarded by the nearest `available!(macos = VERSION)` above it, in the same function and at most
//! [`REACH`] lines away, of the version that it needs or a later one.
//! Never: understands Rust. A check that does not decide about the call is taken for one; reviewers see that.

use std::collections::BTreeMap;

use crate::names::{Version, version};

/// Lines between a check and what it guards.
const REACH: usize = 12;

/// A line of text for each call that is not guarded.
pub fn unguarded(source: &str, newer: &BTreeMap<String, Version>) -> Vec<String> {
    let lines: Vec<&str> = source.lines().map(code).collect();
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        for (method, needs) in newer.iter().filter(|(method, _)| calls(line, method)) {
            let above = lines[index.saturating_sub(REACH)..=index].iter().rev();
            let here = above.take_while(|line| !line.trim_start().starts_with("fn "));
            let checked = here.filter_map(|line| check(line)).next();
            if checked.is_none_or(|checked| checked < *needs) {
                findings.push(format!(
                    "line {}: {method} came with macOS {}.{}; it wants available!(macos = {}.{}) before it",
                    index + 1, needs.0, needs.1, needs.0, needs.1
                ));
            }
        }
    }
    findings
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// Whether the method's name, whole, is before a parenthesis.
fn calls(line: &str, method: &str) -> bool {
    line.match_indices(method).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let whole = before.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        whole && line[at + method.len()..].starts_with('(')
    })
}

fn check(line: &str) -> Option<Version> {
    let (_, after) = line.split_once("available!(")?;
    let (inside, _) = after.split_once(')')?;
    version(
        inside
            .split(',')
            .find_map(|part| part.trim().strip_prefix("macos"))?
            .trim()
            .strip_prefix('=')?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer() -> BTreeMap<String, Version> {
        BTreeMap::from([("saveTo_handler".to_owned(), (14, 0))])
    }

    #[test]
    fn a_call_is_guarded_by_a_check_of_its_version_or_a_later_one() {
        for guard in ["if available!(macos = 14.0) {", "if a && available!(macos = 15) {"] {
            let source = format!("fn a() {{\n  {guard}\n    vm.saveTo_handler(&x);\n  }}\n}}");
            assert!(unguarded(&source, &newer()).is_empty(), "{guard}");
        }
        for guard in ["if available!(macos = 13.5) {", "// available!(macos = 14.0)", "if true {"] {
            let source = format!("fn a() {{\n  {guard}\n    vm.saveTo_handler(&x);\n  }}\n}}");
            let findings = unguarded(&source, &newer());
            assert_eq!(findings.len(), 1, "{guard}");
            assert!(findings[0].starts_with("line 3: saveTo_handler"), "{findings:?}");
        }
    }

    #[test]
    fn a_check_of_another_function_or_far_above_is_none() {
        let other = "fn a() { available!(macos = 14.0) }\nfn b() {\n  vm.saveTo_handler(&x);\n}";
        assert_eq!(unguarded(other, &newer()).len(), 1);
        let far = format!("if available!(macos = 14.0) {{{}vm.saveTo_handler()", "\n".repeat(20));
        assert_eq!(unguarded(&far, &newer()).len(), 1);
        assert!(unguarded("vm.restoreTo_handler(); x.no_saveTo_handler()", &newer()).is_empty());
    }
}

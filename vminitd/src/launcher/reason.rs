//! Errors as one line, `a: b: c`, for the host.
//!
//! libcontainer sends the errors of its own children to the launcher as texts without their
//! causes. The causes are in the lines that it logs on the way, the deepest first.

use std::error::Error;

use crate::log;

/// The error with all its causes.
pub fn of(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        append(&mut text, &error.to_string());
        cause = error.source();
    }
    with_causes(&text)
}

/// The text, and what the libraries said about it first.
pub fn with_causes(text: &str) -> String {
    combine(text, &log::library_errors())
}

fn combine(text: &str, logged: &str) -> String {
    // An exec's error comes through a pipe in pieces of three bytes, of which the last is padded.
    let mut text = text.replace('\0', "");
    if let Some(first) = logged.lines().next() {
        append(&mut text, first);
    }
    text
}

/// Adds a cause, unless its effect has said it already.
fn append(text: &mut String, cause: &str) {
    let cause = cause.trim();
    if !cause.is_empty() && !text.contains(cause) {
        text.push_str(": ");
        text.push_str(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer: inner")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner(#[source] std::fmt::Error);

    #[test]
    fn each_cause_is_told_once() {
        let cause = std::fmt::Error.to_string();
        assert_eq!(of(&Outer(Inner(std::fmt::Error))), format!("outer: inner: {cause}"));
    }

    #[test]
    fn what_a_child_logged_first_is_the_cause() {
        assert_eq!(combine("no root\0\0", "EPERM\nno root err=EPERM\n"), "no root: EPERM");
        assert_eq!(combine("no root", ""), "no root");
    }
}

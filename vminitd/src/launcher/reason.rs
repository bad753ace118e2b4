//! Errors as one line, `a: b: c`, for the host.
//!
//! libcontainer sends the errors of its own children to the launcher as texts without their
//! causes. The causes are in the lines that it logs on the way, the deepest first.

use std::error::Error;

use nix::errno::Errno;

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
    let mut text = text.replace('\0', "").replace(NOISE, "");
    if let Some(first) = logged.lines().next() {
        // What it says last is what it adds; the words before may be others for the same thing.
        let news = first.rsplit(": ").next().unwrap_or(first);
        if !text.contains(news) {
            append(&mut text, first);
        }
    }
    // The system's own reason may have been lost on the way but for a debug print.
    if !text.contains("os error")
        && errno_in(&text).is_none()
        && let Some(errno) = logged.lines().find_map(errno_in)
        && !text.contains(errno.desc())
    {
        append(&mut text, &format!("{errno}"));
    }
    text
}

/// How libcontainer announces each error of the container's init.
const NOISE: &str = "exec process failed with error error in executing process : ";

/// The first error number that the text has by name.
fn errno_in(text: &str) -> Option<Errno> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_part(character))
        .filter(|word| word.len() >= 3 && word.starts_with('E'))
        .find_map(|word| {
            let all = (1..=LAST_ERRNO).map(Errno::from_raw);
            all.into_iter().find(|errno| format!("{errno:?}") == word)
        })
}

/// EHWPOISON, the last in asm-generic/errno.h.
const LAST_ERRNO: i32 = 133;

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
        assert_eq!(combine("create: x failed", "cannot create: x failed"), "create: x failed");
    }

    #[test]
    fn error_number_is_found_in_a_debug_print() {
        let logged = "mount Y { name: \"EXEC\" }: syscall\nno root err=Mount(Nix(ENODEV))\n";
        let told = r#"no root: mount Y { name: "EXEC" }: syscall: ENODEV: No such device"#;
        assert_eq!(combine("no root", logged), told);
    }
}

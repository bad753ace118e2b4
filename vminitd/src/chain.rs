//! An error's text with those of its causes, as hosts, logs and the console get it.

/// An error and its causes as one line, `a: b: c`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("mount /x")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("device is gone"));
        assert_eq!(chain(&error), "mount /x: device is gone");
    }
}

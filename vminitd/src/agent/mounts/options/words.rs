//! A list's item, taken apart into options as mount(8) does.
//!
//! Promises: nothing of a text is lost but commas between options; joined by commas the words are
//! read as the same words again.
//! Never: knows an option.

use super::OptionError;

/// The options of an item. `uidmap=` and `gidmap=` hold commas of their own.
pub fn words(item: &str) -> Result<Vec<String>, OptionError> {
    if holds_ranges(item) {
        return Ok(vec![item.to_owned()]);
    }
    let mut words = Vec::new();
    let (mut word, mut quoted, mut escaped) = (String::new(), false, false);
    for character in item.chars() {
        match character {
            ',' if !quoted && !escaped => {
                words.push(std::mem::take(&mut word));
                continue;
            }
            '"' => quoted = !quoted,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
        word.push(character);
    }
    words.push(word);
    if quoted {
        return Err(wrong(item, "a quotation mark is not closed"));
    }
    words.retain(|word| !word.is_empty());
    if let Some(nameless) = words.iter().find(|word| word.starts_with('=')) {
        return Err(wrong(nameless, "has no name"));
    }
    Ok(words)
}

fn holds_ranges(item: &str) -> bool {
    let ranges = item.strip_prefix("uidmap=").or_else(|| item.strip_prefix("gidmap="));
    ranges.is_some_and(|ranges| {
        ranges.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b','))
    })
}

fn wrong(option: &str, problem: &'static str) -> OptionError {
    OptionError::Malformed { option: option.to_owned(), problem }
}

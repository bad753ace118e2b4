//! The templates in mounts whose type begins with `format/`: what names an earlier mount of the
//! same list, and what it is replaced with.
//!
//! | template | is |
//! |---|---|
//! | `{{ source N }}` | the source of mount *N*, its own templates replaced |
//! | `{{ target N }}` | its target, likewise |
//! | `{{ mount N }}` | where it is mounted |
//! | `{{ overlay A B }}` | where mounts *A* to *B* are mounted, joined by `:`; descending when A > B |
//!
//! Promises: a mount sees those before it and no other; what a text comes to is bounded, whatever
//! is in it.
//! Never: knows what a path means.
//!
//! Hosts write these for Go's text/template, of which this is the part that they have functions
//! for. So blanks around and between the words are free, and `}}` alone is text.

use std::ops::RangeInclusive;

/// Bytes that a text may come to.
pub const MOUNT_TEXT_BYTES: usize = 64 * 1024;

/// An earlier mount, as later ones see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// Its source.
    pub source: String,
    /// Its target: a directory below its place, usually none.
    pub target: String,
    /// Its place.
    pub place: String,
}

/// Why a text cannot be used. Always what the host wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{{` without its end.
    #[error("{0:?} has `{{{{` without `}}}}`")]
    Open(String),
    /// None of the four, or not with one number (`overlay`: two).
    #[error("{0:?} is no template; there are source N, target N, mount N and overlay A B")]
    Unknown(String),
    /// A mount that does not come before this one.
    #[error("{template:?} refers to mount {wanted}, and {before} come before this one")]
    Range {
        /// The template.
        template: String,
        /// The number in it.
        wanted: usize,
        /// How many mounts there are that it may name.
        before: usize,
    },
    /// It comes to more bytes than the limit.
    #[error("a text with templates comes to more than {MOUNT_TEXT_BYTES} bytes")]
    Long,
}

/// Replaces every template of `text`. `earlier` are the mounts before the one that the text is of.
pub fn expand(text: &str, earlier: &[Earlier]) -> Result<String, TemplateError> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        push(&mut result, before)?;
        let (words, after) =
            after.split_once("}}").ok_or_else(|| TemplateError::Open(text.to_owned()))?;
        replace(words, earlier, &mut result)?;
        rest = after;
    }
    push(&mut result, rest)?;
    Ok(result)
}

fn replace(words: &str, earlier: &[Earlier], result: &mut String) -> Result<(), TemplateError> {
    let template = || format!("{{{{{words}}}}}");
    let unknown = || TemplateError::Unknown(template());
    let mut split = words.split_ascii_whitespace();
    let name = split.next().unwrap_or_default();
    let numbers: Option<Vec<usize>> = split.map(number).collect();
    let numbers = numbers.ok_or_else(unknown)?;
    let at = |wanted: usize| {
        earlier.get(wanted).ok_or_else(|| TemplateError::Range {
            template: template(),
            wanted,
            before: earlier.len(),
        })
    };
    match (name, &*numbers) {
        ("source", &[n]) => push(result, &at(n)?.source),
        ("target", &[n]) => push(result, &at(n)?.target),
        ("mount", &[n]) => push(result, &at(n)?.place),
        ("overlay", &[first, last]) => {
            // Both ends before the first byte: the larger one is in the error.
            at(first.max(last))?;
            for (count, n) in between(first, last).enumerate() {
                if count > 0 {
                    push(result, ":")?;
                }
                push(result, &at(n)?.place)?;
            }
            Ok(())
        }
        _ => Err(unknown()),
    }
}

/// From `first` to `last`, both included, upwards or downwards.
fn between(first: usize, last: usize) -> impl Iterator<Item = usize> {
    let ascending: RangeInclusive<usize> = first..=last;
    let descending = (last..=first).rev();
    // Of the two, one is empty, unless there is a single number.
    ascending.chain(descending.filter(move |_| first != last))
}

/// Digits and nothing else; what is too large for a `usize` is no mount either.
fn number(word: &str) -> Option<usize> {
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok()).flatten()
}

fn push(result: &mut String, text: &str) -> Result<(), TemplateError> {
    if result.len().saturating_add(text.len()) > MOUNT_TEXT_BYTES {
        return Err(TemplateError::Long);
    }
    result.push_str(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn three() -> Vec<Earlier> {
        let earlier = |n: usize| Earlier {
            source: format!("/dev/vd{n}"),
            target: format!("t{n}"),
            place: format!("/b/mounts/{n}"),
        };
        (0..3).map(earlier).collect()
    }

    #[test]
    fn each_template_is_what_the_table_says() {
        let earlier = three();
        for (text, wanted) in [
            ("plain }} text", "plain }} text"),
            ("{{ source 1 }}", "/dev/vd1"),
            ("{{target 2}}", "t2"),
            ("upperdir={{\tmount  0\n}}/upper", "upperdir=/b/mounts/0/upper"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/b/mounts/0:/b/mounts/1:/b/mounts/2"),
            ("lowerdir={{ overlay 2 0 }}", "lowerdir=/b/mounts/2:/b/mounts/1:/b/mounts/0"),
            ("{{ overlay 1 1 }}", "/b/mounts/1"),
            ("{{ mount 0 }}{{ mount 1 }}", "/b/mounts/0/b/mounts/1"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &earlier).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_template_is_an_error_that_shows_it() {
        let earlier = three();
        for text in [
            "{{}}",
            "{{ mount }}",
            "{{ mount 0 1 }}",
            "{{ overlay 0 }}",
            "{{ mount -1 }}",
            "{{ mount +1 }}",
            "{{ mount 0x1 }}",
            "{{ mount a }}",
            "{{ Mount 0 }}",
            "{{ printf 0 }}",
            "{{ mount 99999999999999999999999 }}",
            "{{ {{ mount 0 }} }}",
        ] {
            let error = expand(text, &earlier).unwrap_err();
            assert!(matches!(error, TemplateError::Unknown(_)), "{text}: {error}");
        }
        assert!(matches!(expand("a{{ mount 0 }", &earlier), Err(TemplateError::Open(_))));
        assert_eq!(
            expand("{{ mount 3 }}", &earlier).unwrap_err().to_string(),
            "\"{{ mount 3 }}\" refers to mount 3, and 3 come before this one"
        );
        for text in ["{{ overlay 0 3 }}", "{{ overlay 3 0 }}", "{{ source 3 }}"] {
            let error = expand(text, &earlier).unwrap_err();
            assert!(matches!(error, TemplateError::Range { wanted: 3, before: 3, .. }), "{error}");
        }
    }

    #[test]
    fn text_may_come_to_the_limit_and_no_further() {
        let long = |length| vec![Earlier { source: "x".repeat(length), ..Earlier::default() }];
        let text = "{{ source 0 }}";
        assert_eq!(expand(text, &long(MOUNT_TEXT_BYTES)).unwrap().len(), MOUNT_TEXT_BYTES);
        assert_eq!(expand(text, &long(MOUNT_TEXT_BYTES + 1)), Err(TemplateError::Long));
        // Refused as soon as it is too long, not when it has been put together.
        let many = text.repeat(100_000);
        assert_eq!(expand(&many, &long(MOUNT_TEXT_BYTES)), Err(TemplateError::Long));
    }

    /// A text in pieces, and what each piece comes to.
    #[derive(Clone, Debug)]
    enum Piece {
        Text(String),
        Source(usize),
        Target(usize),
        Mount(usize),
        Overlay(usize, usize),
    }

    fn piece(count: usize) -> impl Strategy<Value = Piece> {
        let index = 0..count;
        prop_oneof![
            "[a-z{}/= ]{0,8}"
                .prop_filter("no start of a template", |text| !text.contains("{{")
                    && !text.ends_with('{'))
                .prop_map(Piece::Text),
            index.clone().prop_map(Piece::Source),
            index.clone().prop_map(Piece::Target),
            index.clone().prop_map(Piece::Mount),
            (index.clone(), index).prop_map(|(a, b)| Piece::Overlay(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn any_mix_of_texts_and_templates_comes_to_what_its_pieces_do(
            count in 1..6usize,
            pieces in proptest::collection::vec(piece(6), 0..8),
            blank in "[ \t\n]{0,2}",
        ) {
            let earlier: Vec<Earlier> = (0..count)
                .map(|n| Earlier { source: format!("s{n}"), target: format!("t{n}"), place: format!("/p{n}") })
                .collect();
            let (mut text, mut wanted, mut beyond) = (String::new(), String::new(), false);
            for piece in &pieces {
                let (words, result, highest) = match piece {
                    Piece::Text(plain) => {
                        text.push_str(plain);
                        wanted.push_str(plain);
                        continue;
                    }
                    Piece::Source(n) => (format!("source {n}"), format!("s{n}"), *n),
                    Piece::Target(n) => (format!("target {n}"), format!("t{n}"), *n),
                    Piece::Mount(n) => (format!("mount {n}"), format!("/p{n}"), *n),
                    Piece::Overlay(a, b) => {
                        let mut all: Vec<usize> = (*a.min(b)..=*a.max(b)).collect();
                        if a > b {
                            all.reverse();
                        }
                        let all: Vec<String> = all.iter().map(|n| format!("/p{n}")).collect();
                        (format!("overlay {a} {b}"), all.join(":"), *a.max(b))
                    }
                };
                text.push_str(&format!("{{{{{blank}{words}{blank}}}}}"));
                wanted.push_str(&result);
                beyond |= highest >= count;
            }
            match expand(&text, &earlier) {
                Ok(result) => prop_assert!(!beyond && result == wanted, "{text:?}: {result:?}"),
                Err(error) => prop_assert!(beyond, "{text:?}: {error}"),
            }
        }

        #[test]
        fn no_text_panics_and_none_without_braces_changes(text in "\\PC{0,40}", braces in "[{} a-z0-9]{0,40}") {
            let earlier = three();
            let _ = expand(&format!("{text}{braces}"), &earlier);
            if !text.contains("{{") {
                prop_assert_eq!(expand(&text, &earlier), Ok(text));
            }
        }
    }
}

//! `uidmap=` and `gidmap=`: whose files a mount's are, as containerd writes it.

use crate::limits::ID_RANGES;

/// Who a filesystem's users and groups are outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub users: Vec<Range>,
    /// Groups.
    pub groups: Vec<Range>,
}

/// A run of ids: as they are on the filesystem, as they appear, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first as it is stored.
    pub inside: u32,
    /// The first as it appears.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMap {
    /// Ranges as /proc/PID/uid_map and gid_map take them, see user_namespaces(7).
    pub fn lines(ranges: &[Range]) -> String {
        let line = |range: &Range| format!("{} {} {}\n", range.inside, range.outside, range.count);
        ranges.iter().map(line).collect()
    }
}

/// Reads `inside:outside:count`, several joined by commas.
pub fn ranges(text: &str) -> Result<Vec<Range>, &'static str> {
    let ranges: Option<Vec<Range>> = text.split(',').map(range).collect();
    let ranges = ranges.ok_or("is not INSIDE:OUTSIDE:COUNT")?;
    if ranges.len() > ID_RANGES {
        return Err("has more ranges than the kernel takes");
    }
    let runs_over = |range: &Range| {
        range.count == 0
            || range.inside.checked_add(range.count).is_none()
            || range.outside.checked_add(range.count).is_none()
    };
    if ranges.iter().any(runs_over) {
        return Err("has a range that is empty or ends past the last id");
    }
    Ok(ranges)
}

fn range(text: &str) -> Option<Range> {
    let mut numbers = text.split(':').map(|number| {
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok()).flatten()
    });
    let mut next = || numbers.next().flatten();
    let range = Range { inside: next()?, outside: next()?, count: next()? };
    numbers.next().is_none().then_some(range)
}

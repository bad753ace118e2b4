//! Reads a partition table that anybody may have written.

use super::crc::crc32;
use super::{ENTRY_BYTES, Guid, HEADER_BYTES, MAX_ENTRIES, SECTOR, SIGNATURE};

/// What a disk's table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The disk's own id.
    pub guid: Guid,
    /// The partitions that there are, in the table's order.
    pub entries: Vec<Entry>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, as in /dev/vda7: its place in the table, from 1 on.
    pub number: u32,
    /// What it holds.
    pub kind: Guid,
    /// Its own id.
    pub guid: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector, which is its own.
    pub last: u64,
    /// Its name; what is no UTF-16 is replaced.
    pub name: String,
}

/// What is wrong with a table. Whoever made the disk is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Sectors that should be there are not.
    #[error("the disk ends before its {what}")]
    Short {
        /// `header`, `entries`.
        what: &'static str,
    },
    /// No table at all.
    #[error("no GPT: the header has no signature")]
    Signature,
    /// Bytes were changed.
    #[error("the checksum of the {what} is {is:08x}, not {said:08x}")]
    Checksum {
        /// `header`, `entries`.
        what: &'static str,
        /// What it is.
        is: u32,
        /// What the header says.
        said: u32,
    },
    /// A number that no header can have.
    #[error("{what} is {value}")]
    Number {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A partition that is not within the disk, or ends before it begins.
    #[error("partition {number} has the sectors {first} to {last}, not within {from} to {to}")]
    Outside {
        /// Its number.
        number: u32,
        /// Its first sector.
        first: u64,
        /// Its last sector.
        last: u64,
        /// First sector that partitions may have.
        from: u64,
        /// Last sector that they may have.
        to: u64,
    },
    /// Two partitions share sectors.
    #[error("partitions {one} and {other} overlap")]
    Overlap {
        /// A number.
        one: u32,
        /// Another.
        other: u32,
    },
}

impl Table {
    /// The table whose header is in sector 1 of `disk`: a whole disk, or as much of its beginning as has the table.
    /// `sectors` is the size of the whole.
    pub fn parse(disk: &[u8], sectors: u64) -> Result<Self, ParseError> {
        Self::at(disk, 0, 1, sectors)
    }

    /// The table at the disk's end; `tail` is as much of its end as has the table.
    pub fn parse_backup(tail: &[u8], sectors: u64) -> Result<Self, ParseError> {
        let begin = sectors.checked_sub(tail.len() as u64 / SECTOR);
        let begin =
            begin.ok_or(ParseError::Number { what: "the size in sectors", value: sectors })?;
        Self::at(tail, begin, sectors.saturating_sub(1), sectors)
    }

    /// `bytes` begin with the sector `begin`.
    fn at(bytes: &[u8], begin: u64, own: u64, sectors: u64) -> Result<Self, ParseError> {
        let get = |sector: u64, length: usize| {
            let from = usize::try_from(sector.checked_sub(begin)?.checked_mul(SECTOR)?).ok()?;
            bytes.get(from..from.checked_add(length)?)
        };
        let header = get(own, SECTOR as usize).ok_or(ParseError::Short { what: "header" })?;
        if !header.starts_with(SIGNATURE) {
            return Err(ParseError::Signature);
        }
        let number = |what, value| Err(ParseError::Number { what, value });
        let size = u32_at(header, 12) as usize;
        if !(HEADER_BYTES..=header.len()).contains(&size) {
            return number("the header's size", size as u64);
        }
        let mut blank = header[..size].to_vec();
        blank[16..20].fill(0);
        check("header", crc32(&blank), u32_at(header, 16))?;
        match u64_at(header, 24) {
            place if place != own => return number("the header's own sector", place),
            _ => {}
        }
        let (count, entry_bytes) = (u32_at(header, 80), u32_at(header, 84) as usize);
        if count > MAX_ENTRIES {
            return number("the number of entries", count.into());
        }
        if !(ENTRY_BYTES..=4096).contains(&entry_bytes) || !entry_bytes.is_power_of_two() {
            return number("the size of an entry", entry_bytes as u64);
        }
        // 4 MiB at most.
        let entries = get(u64_at(header, 72), count as usize * entry_bytes)
            .ok_or(ParseError::Short { what: "entries" })?;
        check("entries", crc32(entries), u32_at(header, 88))?;

        let usable = (u64_at(header, 40), u64_at(header, 48));
        if usable.1 >= sectors {
            return number("the last usable sector", usable.1);
        }
        let entries = entries.chunks_exact(entry_bytes).zip(1..);
        let entries = entries
            .filter(|(entry, _)| entry[..16] != Guid::UNUSED.0)
            .map(|(entry, number)| Entry::read(entry, number, usable))
            .collect::<Result<Vec<_>, _>>()?;
        apart(&entries)?;
        Ok(Self { guid: guid_at(header, 56), entries })
    }
}

impl Entry {
    fn read(bytes: &[u8], number: u32, (from, to): (u64, u64)) -> Result<Self, ParseError> {
        let (first, last) = (u64_at(bytes, 32), u64_at(bytes, 40));
        if first < from || last > to || last < first {
            return Err(ParseError::Outside { number, first, last, from, to });
        }
        let units = bytes[56..ENTRY_BYTES]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        Ok(Self {
            number,
            kind: guid_at(bytes, 0),
            guid: guid_at(bytes, 16),
            first,
            last,
            name: String::from_utf16_lossy(&units),
        })
    }
}

fn apart(entries: &[Entry]) -> Result<(), ParseError> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|entry| entry.first);
    match sorted.windows(2).find(|pair| pair[0].last >= pair[1].first) {
        Some(pair) => Err(ParseError::Overlap { one: pair[0].number, other: pair[1].number }),
        None => Ok(()),
    }
}

fn check(what: &'static str, is: u32, said: u32) -> Result<(), ParseError> {
    if is == said { Ok(()) } else { Err(ParseError::Checksum { what, is, said }) }
}

/// The caller has checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The caller has checked the length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// The caller has checked the length.
fn guid_at(bytes: &[u8], at: usize) -> Guid {
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[at..at + 16]);
    Guid(guid)
}

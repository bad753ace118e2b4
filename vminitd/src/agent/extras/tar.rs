//! A tar archive's headers, as POSIX (ustar, pax) and GNU write them: blocks in, entries out.
//!
//! ```text
//! block -> header() -> Entry: its data follows, `size` bytes and padding to a whole block
//!                   -> Meta:  so many bytes follow that belong to meta(); then the next header
//!                   -> Zero:  a second one in a row is the end
//! ```
//!
//! Why not a crate: it would bring what we refuse (devices, owners, sparse files) and a reader of its
//! own, for what is three records of fixed length.
//!
//! Promises: nothing that an archive says makes it panic, recurse, or keep more than a name and a
//! link's target; what it cannot tell apart from nonsense is an error, after which nothing of the
//! archive can be trusted.
//! Never: does I/O, or judges a name ([`place`](super::place) does).

use crate::limits::TAR_META_BYTES;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Something of the archive's. Its data comes next.
    Entry(Entry),
    /// So many bytes come next that say more about the next entry: to be given to [`Tar::meta`].
    Meta(u64),
    /// A block of zeros.
    Zero,
}

/// One thing in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, any bytes but NUL.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Bytes of data that follow, padding not counted.
    pub size: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// Another name for this one.
    HardLink(Vec<u8>),
    /// Not to be extracted: why.
    Refused(&'static str),
}

/// Why an archive cannot be read any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// No header, or a damaged one.
    #[error("a header's check sum is wrong")]
    Checksum,
    /// A field that should be a number.
    #[error("a header's {0} is no number")]
    Number(&'static str),
    /// A pax record that is none.
    #[error("an extended header is malformed")]
    Pax,
}

/// The reader. Each [`Step::Meta`] is to be followed by a call of [`Tar::meta`].
#[derive(Debug, Default)]
pub struct Tar {
    /// What kind of bytes [`Tar::meta`] gets.
    expects: Option<Meta>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    /// The next entry's headers are longer than is good.
    too_long: bool,
}

#[derive(Clone, Copy, Debug)]
enum Meta {
    Pax,
    /// For the whole archive: nothing of it concerns us.
    Global,
    GnuName,
    GnuLink,
}

impl Tar {
    /// The next header.
    pub fn header(&mut self, block: &[u8; BLOCK]) -> Result<Step, TarError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Step::Zero);
        }
        if number(&block[148..156]) != Some(checksum(block)) {
            return Err(TarError::Checksum);
        }
        let size = number(&block[124..136]).ok_or(TarError::Number("size"))?;
        let mode = number(&block[100..108]).ok_or(TarError::Number("mode"))?;
        let meta = match block[156] {
            b'x' => Some(Meta::Pax),
            b'g' => Some(Meta::Global),
            b'L' => Some(Meta::GnuName),
            b'K' => Some(Meta::GnuLink),
            _ => None,
        };
        if let Some(meta) = meta {
            self.expects = Some(meta);
            return Ok(Step::Meta(size));
        }
        let Tar { name, link, size: long_size, too_long, .. } = std::mem::take(self);
        let name = name.unwrap_or_else(|| full_name(block));
        let link = link.unwrap_or_else(|| text(&block[157..257]).to_vec());
        let kind = match block[156] {
            _ if too_long => Kind::Refused("its name is too long"),
            _ if name.contains(&0) || link.contains(&0) => Kind::Refused("its name has a NUL"),
            // Before POSIX, a directory was a file whose name ends so.
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' | b'4' => Kind::Refused("a device"),
            b'5' => Kind::Directory,
            b'6' => Kind::Refused("a named pipe"),
            b'S' => Kind::Refused("a sparse file"),
            _ => Kind::Refused("of an unknown type"),
        };
        // A size in the header of what has no data means nothing, whoever wrote it.
        let size = match kind {
            Kind::Symlink(_) | Kind::HardLink(_) | Kind::Directory => 0,
            Kind::File | Kind::Refused(_) => long_size.unwrap_or(size),
        };
        Ok(Step::Entry(Entry { name, kind, mode: (mode & 0o7777) as u32, size }))
    }

    /// The bytes that a [`Step::Meta`] has announced; None when there were more than
    /// [`TAR_META_BYTES`], and they were passed over.
    pub fn meta(&mut self, bytes: Option<&[u8]>) -> Result<(), TarError> {
        let meta = self.expects.take();
        let Some(bytes) = bytes else {
            self.too_long |= !matches!(meta, Some(Meta::Global) | None);
            return Ok(());
        };
        match meta {
            Some(Meta::Pax) => self.pax(bytes),
            Some(Meta::GnuName) => {
                self.name = Some(text(bytes).to_vec());
                Ok(())
            }
            Some(Meta::GnuLink) => {
                self.link = Some(text(bytes).to_vec());
                Ok(())
            }
            Some(Meta::Global) | None => Ok(()),
        }
    }

    /// Records `LENGTH KEY=VALUE\n`, the length that of the whole record.
    fn pax(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let length = decimal(&bytes[..digits]).and_then(|length| usize::try_from(length).ok());
            let record = length.and_then(|length| bytes.split_at_checked(length));
            let (record, rest) = record.ok_or(TarError::Pax)?;
            let body = record.get(digits..).and_then(|body| body.strip_prefix(b" "));
            let body = body.and_then(|body| body.strip_suffix(b"\n")).ok_or(TarError::Pax)?;
            let equals = body.iter().position(|byte| *byte == b'=').ok_or(TarError::Pax)?;
            let (key, value) = (&body[..equals], &body[equals + 1..]);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value).ok_or(TarError::Number("size"))?),
                _ => {}
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Bytes from the end of `size` bytes of data to the next header.
pub fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Whether so many bytes of names are kept.
pub fn is_kept(size: u64) -> bool {
    size <= TAR_META_BYTES
}

/// The sum of all bytes, those of the sum itself taken for blanks.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let all: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
    all - own + 8 * u64::from(b' ')
}

fn full_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = if &block[257..263] == b"ustar\0" { text(&block[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// What is before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Octal digits among blanks and NULs, or (GNU) a binary number behind a byte 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let (first, rest) = field.split_first()?;
        return rest.iter().try_fold(u64::from(first & 0x7f), |sum, byte| {
            // A negative one has its first bits set, and does not fit.
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let mut digits = digits.take_while(|byte| !matches!(**byte, b' ' | 0));
    digits.try_fold(0u64, |sum, byte| {
        let digit = char::from(*byte).to_digit(8)?;
        sum.checked_mul(8)?.checked_add(digit.into())
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        sum.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests;

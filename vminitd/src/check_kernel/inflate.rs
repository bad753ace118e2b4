//! gzip (RFC 1952) around deflate (RFC 1951), decompression only.
//!
//! Of our own, because /proc/config.gz is all that the guest ever unpacks, and a crate for it costs ten times the
//! code: 30 KiB of a binary that each VM loads. Nothing here is fast.
//!
//! Promises: any bytes end in the content or an error, never in a panic, and in no more than [`MOST`] bytes. The
//! checksum is checked.

/// Bytes of content: a kernel's configuration has 300 KiB at most.
const MOST: usize = 4 << 20;

/// Why there is no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// Other bytes.
    #[error("no gzip data")]
    NoGzip,
    /// The bytes end too early.
    #[error("gzip data that end too early")]
    Short,
    /// Bytes that mean nothing.
    #[error("broken gzip data")]
    Broken,
    /// More than [`MOST`].
    #[error("gzip data of more than {MOST} bytes")]
    TooLong,
    /// The checksum or the length at the end.
    #[error("gzip data with a wrong checksum")]
    Checksum,
}

use InflateError::{Broken, Checksum, NoGzip, Short, TooLong};

/// Unpacks gzip data of one member.
pub fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, InflateError> {
    const MAGIC: [u8; 3] = [0x1F, 0x8B, 8];
    const HEADER: usize = 10;
    if !bytes.starts_with(&MAGIC) {
        return Err(NoGzip);
    }
    let flags = *bytes.get(3).ok_or(Short)?;
    let mut at = HEADER;
    let byte = |at: usize| bytes.get(at).copied().ok_or(Short);
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
    }
    // A file name and a comment, each up to a NUL.
    for flag in [8, 16] {
        if flags & flag != 0 {
            while byte(at)? != 0 {
                at += 1;
            }
            at += 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    let mut bits = Bits { bytes: bytes.get(at..).ok_or(Short)?, at: 0 };
    let content = inflate(&mut bits)?;
    let trailer = bits.rest().get(..8).ok_or(Short)?;
    let word = |at: usize| {
        u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]])
    };
    if word(0) != crc32(&content) || word(4) != content.len() as u32 {
        return Err(Checksum);
    }
    Ok(content)
}

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    /// The next bit.
    at: usize,
}

impl<'a> Bits<'a> {
    fn bit(&mut self) -> Result<u32, InflateError> {
        let byte = self.bytes.get(self.at / 8).ok_or(Short)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Ok(bit.into())
    }

    fn number(&mut self, bits: u32) -> Result<u32, InflateError> {
        (0..bits).try_fold(0, |number, place| Ok(number | self.bit()? << place))
    }

    /// What begins with the next whole byte.
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at.div_ceil(8)..).unwrap_or_default()
    }
}

/// A canonical Huffman code: how many codes there are of each length, and their symbols in order.
struct Code {
    counts: [u16; 16],
    symbols: Vec<u16>,
}

impl Code {
    fn new(lengths: &[u8]) -> Result<Self, InflateError> {
        let mut counts = [0u16; 16];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        // More codes than bits can tell apart.
        let mut left = 1i32;
        for count in &counts[1..] {
            left = 2 * left - i32::from(*count);
            if left < 0 {
                return Err(Broken);
            }
        }
        let of_length = |wanted: u8| {
            let all = lengths.iter().enumerate();
            all.filter(move |(_, length)| **length == wanted).map(|(symbol, _)| symbol as u16)
        };
        Ok(Self { counts, symbols: (1..16).flat_map(of_length).collect() })
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Result<usize, InflateError> {
        // Code and first code of the length at hand, and how many symbols have shorter ones.
        let (mut code, mut first, mut before) = (0i32, 0i32, 0i32);
        for count in &self.counts[1..] {
            code |= bits.bit()? as i32;
            let count = i32::from(*count);
            if code - first < count {
                let place = usize::try_from(before + code - first).map_err(|_| Broken)?;
                return self.symbols.get(place).map(|symbol| usize::from(*symbol)).ok_or(Broken);
            }
            before += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(Broken)
    }
}

fn inflate(bits: &mut Bits<'_>) -> Result<Vec<u8>, InflateError> {
    let mut out = Vec::new();
    loop {
        let last = bits.bit()? == 1;
        match bits.number(2)? {
            0 => stored(bits, &mut out)?,
            1 => {
                let length = |symbol: u16| match symbol {
                    144..=255 => 9,
                    256..=279 => 7,
                    _ => 8,
                };
                let lengths: Vec<u8> = (0..288).map(length).collect();
                compressed(bits, &mut out, &Code::new(&lengths)?, &Code::new(&[5; 30])?)?;
            }
            2 => {
                let (literals, distances) = dynamic(bits)?;
                compressed(bits, &mut out, &literals, &distances)?;
            }
            _ => return Err(Broken),
        }
        if last {
            return Ok(out);
        }
    }
}

fn stored(bits: &mut Bits<'_>, out: &mut Vec<u8>) -> Result<(), InflateError> {
    let rest = bits.rest();
    let header = rest.get(..4).ok_or(Short)?;
    let length = u16::from_le_bytes([header[0], header[1]]);
    if length != !u16::from_le_bytes([header[2], header[3]]) {
        return Err(Broken);
    }
    let length = usize::from(length);
    out.extend(rest.get(4..4 + length).ok_or(Short)?);
    bits.at = bits.at.div_ceil(8) * 8 + (4 + length) * 8;
    if out.len() > MOST { Err(TooLong) } else { Ok(()) }
}

fn dynamic(bits: &mut Bits<'_>) -> Result<(Code, Code), InflateError> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let literals = bits.number(5)? as usize + 257;
    let distances = bits.number(5)? as usize + 1;
    let mut lengths = [0u8; 19];
    for place in &ORDER[..bits.number(4)? as usize + 4] {
        lengths[*place] = bits.number(3)? as u8;
    }
    let code = Code::new(&lengths)?;
    let mut lengths: Vec<u8> = Vec::with_capacity(literals + distances);
    while lengths.len() < literals + distances {
        let (length, times) = match code.symbol(bits)? {
            16 => (*lengths.last().ok_or(Broken)?, 3 + bits.number(2)?),
            17 => (0, 3 + bits.number(3)?),
            18 => (0, 11 + bits.number(7)?),
            length => (length as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times as usize));
    }
    if lengths.len() > literals + distances {
        return Err(Broken);
    }
    Ok((Code::new(&lengths[..literals])?, Code::new(&lengths[literals..])?))
}

fn compressed(
    bits: &mut Bits<'_>,
    out: &mut Vec<u8>,
    literals: &Code,
    distances: &Code,
) -> Result<(), InflateError> {
    loop {
        let symbol = literals.symbol(bits)?;
        let length = match symbol {
            0..=255 => {
                out.push(symbol as u8);
                0
            }
            256 => return Ok(()),
            285 => 258,
            257..=264 => symbol - 254,
            265..=284 => {
                let extra = (symbol as u32 - 261) / 4;
                ((4 + (symbol - 265) % 4) << extra) + 3 + bits.number(extra)? as usize
            }
            _ => return Err(Broken),
        };
        if length > 0 {
            let symbol = distances.symbol(bits)?;
            let distance = match symbol {
                0..=3 => symbol + 1,
                4..=29 => {
                    let extra = symbol as u32 / 2 - 1;
                    ((2 + symbol % 2) << extra) + 1 + bits.number(extra)? as usize
                }
                _ => return Err(Broken),
            };
            let from = out.len().checked_sub(distance).ok_or(Broken)?;
            // What is copied may be what has just been written.
            for at in from..from + length {
                out.push(out[at]);
            }
        }
        if out.len() > MOST {
            return Err(TooLong);
        }
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 }
        })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn gzip(content: &[u8], level: u8) -> Vec<u8> {
        let mut child = Command::new("gzip")
            .arg(format!("-{level}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("gzip");
        let mut stdin = child.stdin.take().unwrap();
        let content = content.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&content));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        output.stdout
    }

    #[test]
    fn what_gzip_packs_comes_out_again() {
        let text: String = (0..9000).map(|n| format!("CONFIG_{}=y\n", n * n % 977)).collect();
        let mut noise = vec![0u8; 70_000];
        let mut state = 7u32;
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        for content in [&b""[..], b"a", b"abcabcabcabcabc", text.as_bytes(), &noise, &[0; 100_000]]
        {
            for level in [1, 9] {
                assert!(
                    gunzip(&gzip(content, level)).as_deref() == Ok(content),
                    "{}",
                    content.len()
                );
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_changed_is_an_error() {
        let whole = gzip(b"CONFIG_NET=y\nCONFIG_UNIX=y\n", 9);
        for length in 0..whole.len() {
            assert!(gunzip(&whole[..length]).is_err(), "{length}");
        }
        let mut changed = whole.clone();
        let last = changed.len() - 6;
        changed[last] ^= 1;
        assert_eq!(gunzip(&changed), Err(Checksum));
        assert_eq!(gunzip(b"PK"), Err(NoGzip));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pieces_of_text_come_out_again(pieces in proptest::collection::vec("[ab]{1,40}|[a-z]{300}", 0..40)) {
            let content = pieces.concat().into_bytes();
            prop_assert_eq!(gunzip(&gzip(&content, 6)), Ok(content));
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut data = vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3];
            data.extend(bytes);
            let _ = gunzip(&data);
        }
    }
}

//! Compression in the forms that the kernel's decompressors take.
//! Promises: the same bytes and level give the same output: no time, no file name, one thread.
//! Never: decides what is packed.

use std::{
    fmt,
    io::{self, Write},
    ops::RangeInclusive,
};

use flate2::GzBuilder;
use zstd::stream::raw::CParameter;

/// The first four bytes of a "legacy" lz4 frame, the only one that the kernel knows; they are stored little-endian.
const LZ4_LEGACY_MAGIC: u32 = 0x184C_2102;
/// A legacy block unpacks to this many bytes, the last to fewer.
const LZ4_BLOCK: usize = 8 << 20;
/// The kernel allocates the window in the guest's memory before it unpacks: 2^23 bytes (8 MiB) at most, less when the archive is
/// smaller. It would take far more.
const ZSTD_WINDOW_LOG: u32 = 23;
/// "Unknown" in gzip's header, so that the machine which packs does not show.
const GZIP_SYSTEM_UNKNOWN: u8 = 255;

/// How an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the largest file, the least work at boot.
    None,
    /// What every kernel takes.
    Gzip,
    /// The smallest.
    Zstd,
    /// The quickest to unpack.
    Lz4,
}

impl Compression {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::None, Self::Gzip, Self::Zstd, Self::Lz4];

    /// As a user writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    /// The level when none is asked for: an image is packed once and unpacked at each boot, and unpacking costs the same.
    fn default_level(self) -> u32 {
        match self {
            Self::None | Self::Lz4 => 0,
            Self::Gzip => 9,
            Self::Zstd => 19,
        }
    }

    /// Levels to choose from; none where there is only one way.
    fn levels(self) -> Option<RangeInclusive<u32>> {
        match self {
            Self::None | Self::Lz4 => None,
            Self::Gzip => Some(0..=9),
            Self::Zstd => Some(1..=22),
        }
    }
}

/// A level that the compression does not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// There is nothing to choose.
    #[error("{compression} has no levels; leave the level out")]
    NoLevels {
        /// Which.
        compression: Compression,
    },
    /// Too low or too high.
    #[error("level {level} is out of range; {compression} has {lowest} to {highest}")]
    OutOfRange {
        /// Which.
        compression: Compression,
        /// What was asked for.
        level: u32,
        /// The quickest.
        lowest: u32,
        /// The smallest.
        highest: u32,
    },
}

/// A compression with a level that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    compression: Compression,
    level: u32,
}

impl Method {
    /// `None` for the level is the default one: 9 of gzip, 19 of zstd.
    ///
    /// # Errors
    /// When there is no such level.
    pub fn new(compression: Compression, level: Option<u32>) -> Result<Self, LevelError> {
        let level = match (level, compression.levels()) {
            (None, _) => compression.default_level(),
            (Some(_), None) => return Err(LevelError::NoLevels { compression }),
            (Some(level), Some(levels)) if levels.contains(&level) => level,
            (Some(level), Some(levels)) => {
                return Err(LevelError::OutOfRange {
                    compression,
                    level,
                    lowest: *levels.start(),
                    highest: *levels.end(),
                });
            }
        };
        Ok(Self { compression, level })
    }

    /// A writer that compresses into `out`. `length` is how many bytes will come, which zstd stores: the kernel then
    /// allocates no more than that. [`Compressor::finish`] must be called, since dropping it can tell no error.
    ///
    /// # Errors
    /// When `out` takes no header, or there is no memory.
    pub fn writer<W: Write>(self, mut out: W, length: u64) -> io::Result<Compressor<W>> {
        Ok(match self.compression {
            Compression::None => Compressor::None(out),
            Compression::Gzip => {
                let header = GzBuilder::new().mtime(0).operating_system(GZIP_SYSTEM_UNKNOWN);
                Compressor::Gzip(header.write(out, flate2::Compression::new(self.level)))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, self.level as i32)?;
                encoder.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_LOG))?;
                encoder.set_pledged_src_size(Some(length))?;
                encoder.include_contentsize(true)?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(Box::new(encoder))
            }
            Compression::Lz4 => {
                out.write_all(&LZ4_LEGACY_MAGIC.to_le_bytes())?;
                let block = Vec::with_capacity(LZ4_BLOCK);
                Compressor::Lz4(LegacyLz4 { out, block })
            }
        })
    }
}

/// Compresses what is written to it. See [`Method::writer`].
pub enum Compressor<W: Write> {
    /// Passes on.
    None(W),
    /// RFC 1952.
    Gzip(flate2::write::GzEncoder<W>),
    /// RFC 8878, one frame.
    Zstd(Box<zstd::Encoder<'static, W>>),
    /// The frame of lz4's first days.
    Lz4(LegacyLz4<W>),
}

impl<W: Write> Compressor<W> {
    /// Ends the stream and returns the output, not flushed.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Lz4(mut frame) => {
                frame.end_block()?;
                Ok(frame.out)
            }
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Lz4(frame) => frame.write(bytes),
        }
    }

    /// Passes on what was compressed; never cuts a block short, which would change the output.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(out) => out.flush(),
            Self::Gzip(encoder) => encoder.get_mut().flush(),
            Self::Zstd(encoder) => encoder.get_mut().flush(),
            Self::Lz4(frame) => frame.out.flush(),
        }
    }
}

/// Legacy lz4: the magic, then blocks of [`LZ4_BLOCK`] bytes, each after its compressed length (u32, little-endian). Neither
/// checksum nor end mark: it ends with the file.
pub struct LegacyLz4<W> {
    out: W,
    /// Filled up to [`LZ4_BLOCK`] bytes, then compressed at once.
    block: Vec<u8>,
}

impl<W: Write> LegacyLz4<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == LZ4_BLOCK {
            self.end_block()?;
        }
        let taken = bytes.len().min(LZ4_BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let packed = lz4_flex::block::compress(&self.block);
        // Of 8 MiB, at most 8 MiB and 33 KiB come out.
        self.out.write_all(&(packed.len() as u32).to_le_bytes())?;
        self.out.write_all(&packed)?;
        self.block.clear();
        Ok(())
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

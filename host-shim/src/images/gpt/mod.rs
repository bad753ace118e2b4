//! GUID partition tables (UEFI specification 2.10, section 5): many images as partitions of one disk.
//!
//! [`Layout::pack`] decides where each image lies; its [`Layout::head`] and [`Layout::tail`] are the disk's first and
//! last sectors, between which the images go. [`Table::parse`] reads what anybody wrote, for checking.
//!
//! Promises: the same images give the same bytes; every partition begins at a multiple of [`ALIGN_SECTORS`]; what is
//! written, the parser takes, and sfdisk(8) too. The parser takes any bytes without a panic, and allocates no more
//! than [`MAX_ENTRIES`] entries ask for.
//! Never: reads or writes a file.

mod crc;
mod guid;
mod layout;
mod parse;

pub use guid::Guid;
pub use layout::{Layout, LayoutError};
pub use parse::{Entry, ParseError, Table};

/// Bytes of a sector: virtio-blk's, and the only size that we make disks with.
pub const SECTOR: u64 = 512;

/// Sectors to a multiple of which a partition begins: 1 MiB, a multiple of every block size in use.
pub const ALIGN_SECTORS: u64 = (1 << 20) / SECTOR;

/// Partitions of a disk: Linux looks at no more (DISK_MAX_PARTS, less the disk itself).
pub const MAX_PARTITIONS: usize = 255;

/// Entries of a table that is read: more than anybody needs, and 128 KiB of a hostile disk at most.
pub const MAX_ENTRIES: u32 = 1024;

/// UTF-16 code units of a partition's name.
pub const MAX_NAME_UNITS: usize = 36;

/// Entries that a table has at least (the specification's 16,384 bytes).
const LEAST_ENTRIES: usize = 128;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 128;

/// Bytes of a header that mean something.
const HEADER_BYTES: usize = 92;

/// A header's first bytes.
const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Version 1.0 of the header.
const REVISION: u32 = 0x0001_0000;

#[cfg(test)]
mod tests;

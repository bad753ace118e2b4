//! Where each image lies on a disk, and the bytes around them.

use super::crc::crc32;
use super::{
    ALIGN_SECTORS, ENTRY_BYTES, Guid, HEADER_BYTES, LEAST_ENTRIES, MAX_NAME_UNITS, MAX_PARTITIONS,
    REVISION, SECTOR, SIGNATURE,
};

/// Images that cannot be put on a disk. The caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Nothing to put there.
    #[error("a disk without partitions")]
    Empty,
    /// More than the guest looks at.
    #[error("{given} partitions are more than {MAX_PARTITIONS}")]
    TooMany {
        /// How many were given.
        given: usize,
    },
    /// A name that does not fit an entry.
    #[error("partition name {name:?} has {units} UTF-16 units; at most {MAX_NAME_UNITS} fit")]
    Name {
        /// The name.
        name: String,
        /// Its length.
        units: usize,
    },
    /// An image without a byte.
    #[error("partition {name:?} would be empty")]
    NoBytes {
        /// The image's name.
        name: String,
    },
    /// More than 2^63 bytes.
    #[error("the disk would have more than 2^63 bytes")]
    TooLarge,
}

/// A disk's partitions, in order, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    guid: Guid,
    parts: Vec<Part>,
    /// Of the whole disk.
    sectors: u64,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    guid: Guid,
    name: String,
    /// First sector.
    first: u64,
    /// Last sector, which is its own.
    last: u64,
}

impl Layout {
    /// Places images of these names and sizes in bytes one behind the other. What an image lacks of a whole sector is
    /// to be zero.
    pub fn pack(images: &[(&str, u64)]) -> Result<Self, LayoutError> {
        match images.len() {
            0 => return Err(LayoutError::Empty),
            given if given > MAX_PARTITIONS => return Err(LayoutError::TooMany { given }),
            _ => {}
        }
        let mut seed = String::from("vminitd disk");
        let mut parts = Vec::with_capacity(images.len());
        let mut next = 2 + table_sectors(images.len());
        for (index, (name, bytes)) in images.iter().enumerate() {
            let units = name.encode_utf16().count();
            if units > MAX_NAME_UNITS {
                return Err(LayoutError::Name { name: (*name).to_owned(), units });
            }
            if *bytes == 0 {
                return Err(LayoutError::NoBytes { name: (*name).to_owned() });
            }
            // 2^63 bytes are 2^54 sectors: nothing here overflows once that is kept.
            let first = next.next_multiple_of(ALIGN_SECTORS);
            let last = first + bytes.div_ceil(SECTOR) - 1;
            if last >= 1 << 53 {
                return Err(LayoutError::TooLarge);
            }
            seed.push_str(&format!("\0{index}\0{name}\0{bytes}"));
            parts.push(Part { guid: Guid::of(&seed), name: (*name).to_owned(), first, last });
            next = last + 1;
        }
        // Whole MiB, as other tools' disks have.
        let sectors = (next + table_sectors(images.len()) + 1).next_multiple_of(ALIGN_SECTORS);
        Ok(Self { guid: Guid::of(&seed), parts, sectors })
    }

    /// Bytes of the whole disk.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR
    }

    /// Where each image begins, in bytes.
    pub fn offsets(&self) -> impl ExactSizeIterator<Item = u64> {
        self.parts.iter().map(|part| part.first * SECTOR)
    }

    /// What the disk begins with: protective MBR, header, entries.
    pub fn head(&self) -> Vec<u8> {
        let entries = self.entries();
        let mut head = self.protective_mbr();
        head.extend(self.header(&entries, Place::Primary));
        head.extend(entries);
        head
    }

    /// What the disk ends with: the entries again, and the other header.
    pub fn tail(&self) -> Vec<u8> {
        let mut tail = self.entries();
        let header = self.header(&tail, Place::Backup);
        tail.extend(header);
        tail
    }

    fn entries(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        for part in &self.parts {
            let begin = entries.len();
            entries.extend(Guid::LINUX_FILESYSTEM.0);
            entries.extend(part.guid.0);
            entries.extend(part.first.to_le_bytes());
            entries.extend(part.last.to_le_bytes());
            // No attributes: they are for firmware.
            entries.extend(0u64.to_le_bytes());
            entries.extend(part.name.encode_utf16().flat_map(u16::to_le_bytes));
            entries.resize(begin + ENTRY_BYTES, 0);
        }
        entries.resize(table_sectors(self.parts.len()) as usize * SECTOR as usize, 0);
        entries
    }

    /// Tells tools that know no GPT that the disk is full.
    fn protective_mbr(&self) -> Vec<u8> {
        let mut sector = vec![0; SECTOR as usize];
        let covered = u32::try_from(self.sectors - 1).unwrap_or(u32::MAX);
        sector[446..454].copy_from_slice(&[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF]);
        sector[454..458].copy_from_slice(&1u32.to_le_bytes());
        sector[458..462].copy_from_slice(&covered.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xAA]);
        sector
    }

    fn header(&self, entries: &[u8], place: Place) -> Vec<u8> {
        let last = self.sectors - 1;
        let table = table_sectors(self.parts.len());
        let (own, other, entries_at) = match place {
            Place::Primary => (1, last, 2),
            Place::Backup => (last, 1, last - table),
        };
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(SIGNATURE);
        header.extend(REVISION.to_le_bytes());
        header.extend((HEADER_BYTES as u32).to_le_bytes());
        // The header's checksum, once the rest is there; then what is reserved.
        header.extend([0; 8]);
        for sector in [own, other, 2 + table, last - table - 1] {
            header.extend(sector.to_le_bytes());
        }
        header.extend(self.guid.0);
        header.extend(entries_at.to_le_bytes());
        for number in [entries.len() / ENTRY_BYTES, ENTRY_BYTES] {
            header.extend((number as u32).to_le_bytes());
        }
        header.extend(crc32(entries).to_le_bytes());
        let checksum = crc32(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }
}

enum Place {
    Primary,
    Backup,
}

/// Sectors of the entries of so many partitions.
fn table_sectors(partitions: usize) -> u64 {
    (partitions.max(LEAST_ENTRIES) as u64 * ENTRY_BYTES as u64).div_ceil(SECTOR)
}

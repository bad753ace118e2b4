//! The superblock of a dm-verity tree, format 1 of veritysetup: what the tree is made of.
//!
//! Promises: takes any bytes; what passes is within the limits of the kernel's dm-verity, and no sum of its numbers
//! overflows.
//! Never: reads a device, or believes the superblock: nothing in it is secret or signed, the root hash alone decides.

/// Bytes of a superblock.
pub const BYTES: usize = 512;
const SIGNATURE: &[u8] = b"verity\0\0";
/// Bytes of the largest salt.
const SALT: usize = 256;
/// Block sizes that the kernel takes: from a sector to a page.
const BLOCK: std::ops::RangeInclusive<u32> = 512..=4096;
/// The hash that our kernel has, and bytes of its result.
const ALGORITHM: (&str, usize) = ("sha256", 32);

/// A superblock that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes of a block of data.
    pub data_block: u32,
    /// Bytes of a block of hashes.
    pub hash_block: u32,
    /// How many blocks of data there are.
    pub data_blocks: u64,
    /// What is hashed before each block.
    pub salt: Vec<u8>,
}

/// Why bytes are no superblock, or none that is served. Whoever made the image, or the offset is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// There is something else.
    #[error("there is no verity superblock")]
    Signature,
    /// Another version or kind of hash tree (0 is Chrome OS's).
    #[error("verity superblock of version {version} and hash type {hash_type}; 1 and 1 are served")]
    Version {
        /// The superblock's version.
        version: u32,
        /// The kind of tree.
        hash_type: u32,
    },
    /// Another hash than the kernel has.
    #[error("verity hash {0:?} is not served; sha256 is")]
    Algorithm(String),
    /// A number that cannot be.
    #[error("verity superblock has {value} for {what}")]
    Field {
        /// Which.
        what: &'static str,
        /// What it has.
        value: u64,
    },
    /// A root hash of another length than the hash has.
    #[error("a root hash of {0} bytes is none of sha256, which has 32")]
    RootHash(usize),
}

impl Superblock {
    /// Reads one.
    pub fn parse(bytes: &[u8; BYTES]) -> Result<Self, SuperblockError> {
        if !bytes.starts_with(SIGNATURE) {
            return Err(SuperblockError::Signature);
        }
        let (version, hash_type) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if (version, hash_type) != (1, 1) {
            return Err(SuperblockError::Version { version, hash_type });
        }
        let algorithm = bytes[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
        if algorithm != ALGORITHM.0.as_bytes() {
            let name = String::from_utf8_lossy(algorithm).into_owned();
            return Err(SuperblockError::Algorithm(name));
        }
        let block = |what, at| {
            let size = u32_at(bytes, at);
            let field = SuperblockError::Field { what, value: size.into() };
            if BLOCK.contains(&size) && size.is_power_of_two() { Ok(size) } else { Err(field) }
        };
        let data_block = block("the size of a data block", 64)?;
        let hash_block = block("the size of a hash block", 68)?;
        let data_blocks = u64::from(u32_at(bytes, 72)) | u64::from(u32_at(bytes, 76)) << 32;
        // The kernel counts bytes of a device in an i64.
        let fits = data_blocks.checked_mul(data_block.into()).is_some_and(|n| n < 1 << 62);
        if data_blocks == 0 || !fits {
            let what = "the number of data blocks";
            return Err(SuperblockError::Field { what, value: data_blocks });
        }
        let salt = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        if salt > SALT {
            let what = "the size of the salt";
            return Err(SuperblockError::Field { what, value: salt as u64 });
        }
        Ok(Self { data_block, hash_block, data_blocks, salt: bytes[88..88 + salt].to_vec() })
    }

    /// Bytes of the data.
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks * u64::from(self.data_block)
    }

    /// The first block of the tree whose superblock is so many bytes from the start of its device.
    pub fn first_hash_block(&self, offset: u64) -> Option<u64> {
        offset.checked_add(BYTES as u64).map(|end| end.div_ceil(self.hash_block.into()))
    }

    /// What the kernel's target is told: data and tree are devices as `major:minor`.
    pub fn table(
        &self,
        data: &str,
        tree: &str,
        first_hash_block: u64,
        root_hash: &[u8],
    ) -> Result<String, SuperblockError> {
        if root_hash.len() != ALGORITHM.1 {
            return Err(SuperblockError::RootHash(root_hash.len()));
        }
        let Self { data_block, hash_block, data_blocks, salt } = self;
        let salt = if salt.is_empty() { "-".to_owned() } else { hex(salt) };
        let (name, root) = (ALGORITHM.0, hex(root_hash));
        Ok(format!(
            "1 {data} {tree} {data_block} {hash_block} {data_blocks} {first_hash_block} {name} {root} {salt}"
        ))
    }
}

/// Bytes as digits, as veritysetup prints them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn u32_at(bytes: &[u8; BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(superblock: &Superblock) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(0, SIGNATURE);
        put(8, &1u32.to_le_bytes());
        put(12, &1u32.to_le_bytes());
        put(16, &[7; 16]);
        put(32, b"sha256");
        put(64, &superblock.data_block.to_le_bytes());
        put(68, &superblock.hash_block.to_le_bytes());
        put(72, &superblock.data_blocks.to_le_bytes());
        put(80, &u16::try_from(superblock.salt.len()).unwrap().to_le_bytes());
        put(88, &superblock.salt);
        bytes
    }

    fn usual() -> Superblock {
        Superblock { data_block: 4096, hash_block: 4096, data_blocks: 16, salt: vec![0xab; 32] }
    }

    #[test]
    fn the_kernel_is_told_what_the_superblock_says() {
        let table = usual().table("254:0", "254:16", 17, &[0x0f; 32]).unwrap();
        let (root, salt) = ("0f".repeat(32), "ab".repeat(32));
        assert_eq!(table, format!("1 254:0 254:16 4096 4096 16 17 sha256 {root} {salt}"));
        let plain = Superblock { salt: vec![], ..usual() };
        assert!(plain.table("a", "b", 1, &[0; 32]).unwrap().ends_with(" -"));
        let error = usual().table("a", "b", 1, &[0; 20]).unwrap_err();
        assert_eq!(error, SuperblockError::RootHash(20));
    }

    #[test]
    fn the_tree_begins_behind_the_superblock() {
        assert_eq!(usual().first_hash_block(0), Some(1));
        assert_eq!(usual().first_hash_block(65536), Some(17));
        assert_eq!(usual().first_hash_block(u64::MAX), None);
        let small = Superblock { hash_block: 512, ..usual() };
        assert_eq!(small.first_hash_block(1024), Some(3));
    }

    #[test]
    fn what_is_not_served_is_named() {
        let parse = |at: usize, what: &[u8]| {
            let mut bytes = bytes(&usual());
            bytes[at..at + what.len()].copy_from_slice(what);
            Superblock::parse(&bytes).unwrap_err().to_string()
        };
        assert_eq!(parse(0, b"LUKS"), "there is no verity superblock");
        assert!(parse(12, &[0]).contains("hash type 0"));
        assert!(parse(32, b"sha1\0\0").contains("\"sha1\""));
        assert!(parse(64, &3000u32.to_le_bytes()).contains("3000 for the size of a data block"));
        assert!(parse(68, &8192u32.to_le_bytes()).contains("8192 for the size of a hash block"));
        assert!(parse(72, &[0; 8]).contains("0 for the number of data blocks"));
        assert!(parse(72, &[0xff; 8]).contains("for the number of data blocks"));
        assert!(parse(80, &257u16.to_le_bytes()).contains("257 for the size of the salt"));
    }

    proptest! {
        /// The model is what the bytes were made from.
        #[test]
        fn what_was_written_is_read(data in 9u32..13, hash in 9u32..13, data_blocks in 1u64..1 << 49, salt in proptest::collection::vec(any::<u8>(), 0..=SALT)) {
            let superblock = Superblock { data_block: 1 << data, hash_block: 1 << hash, data_blocks, salt };
            prop_assert_eq!(Superblock::parse(&bytes(&superblock)), Ok(superblock.clone()));
            prop_assert_eq!(superblock.data_bytes(), data_blocks << data);
        }

        #[test]
        fn any_bytes_are_a_superblock_within_limits_or_refused(at in 0usize..BYTES, noise in proptest::collection::vec(any::<u8>(), 0..64), offset: u64) {
            let mut bytes = bytes(&usual());
            for (index, byte) in noise.iter().enumerate().take(BYTES - at) {
                bytes[at + index] = *byte;
            }
            if let Ok(superblock) = Superblock::parse(&bytes) {
                prop_assert!(superblock.salt.len() <= SALT && superblock.data_bytes() < 1 << 62);
                let _ = superblock.first_hash_block(offset);
            }
        }
    }
}

//! Whether a program is static: an image without its loader panics the kernel, with a message that names neither.
//! Promises: a file that is no 64-bit little-endian ELF, or a broken one, is nothing to warn of.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// First bytes: the magic, 64 bit, little-endian.
const IDENTITY: &[u8] = b"\x7fELF\x02\x01";
/// The header that names the loader.
const PT_INTERP: u32 = 3;
/// Longer paths the kernel does not take (PATH_MAX).
const MAX_PATH: u64 = 4096;

/// The loader that the program asks for; none if it is static, or no such program.
pub fn loader(program: &Path) -> Option<PathBuf> {
    let mut file = File::open(program).ok()?;
    let header = read::<64>(&mut file, 0)?;
    if !header.starts_with(IDENTITY) {
        return None;
    }
    let table = u64::from_le_bytes(header[32..40].try_into().ok()?);
    let size = u64::from(u16::from_le_bytes(header[54..56].try_into().ok()?));
    let count = u64::from(u16::from_le_bytes(header[56..58].try_into().ok()?));
    let mut entries =
        (0..count).map_while(|index| read::<56>(&mut file, table.checked_add(index * size)?));
    let entry = entries.find(|entry| entry[..4] == PT_INTERP.to_le_bytes())?;
    let offset = u64::from_le_bytes(entry[8..16].try_into().ok()?);
    let length = u64::from_le_bytes(entry[32..40].try_into().ok()?);
    let mut path = Vec::new();
    file.seek(SeekFrom::Start(offset)).ok()?;
    file.take(length.min(MAX_PATH)).read_to_end(&mut path).ok()?;
    path.pop_if(|last| *last == 0);
    Some(OsString::from_vec(path).into())
}

fn read<const N: usize>(file: &mut File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

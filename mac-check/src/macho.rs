//! A 64-bit Mach-O program, as far as we ask: `<mach-o/loader.h>`, `<mach-o/nlist.h>`.
//! Promises: any bytes are read or refused, none make it panic. Never: more than reads.

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Install names, in the file's order.
    pub libraries: Vec<String>,
    /// The oldest macOS that it says it runs on.
    pub oldest: (u32, u32),
    /// Classes of others that it refers to.
    pub classes: Vec<String>,
    /// Selectors that it sends or answers.
    pub selectors: Vec<String>,
}

/// It is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachoError {
    /// Another kind of file.
    #[error("it is no 64-bit Mach-O file")]
    Magic,
    /// It ends before what it says it has.
    #[error("it is cut off, or says nonsense")]
    Short,
}

const MAGIC: u32 = 0xfeed_facf;
const HEADER_BYTES: usize = 32;
const SYMTAB: u32 = 0x2;
const LOAD_DYLIB: [u32; 3] = [0xc, 0x8000_0018, 0x8000_001f]; // plain, weak, re-exported
const SEGMENT_64: u32 = 0x19;
const BUILD_VERSION: u32 = 0x32;
const SEGMENT_BYTES: usize = 72;
const SECTION_BYTES: usize = 80;
const NLIST_BYTES: usize = 16;
/// n_type: defined elsewhere (N_UNDF), and seen from outside (N_EXT).
const UNDEFINED: u8 = 0x01;
const N_STAB: u8 = 0xe0;
const N_TYPE_AND_EXT: u8 = 0x0f;
const CLASS: &str = "_OBJC_CLASS_$_";

impl Program {
    /// Reads it.
    pub fn parse(bytes: &[u8]) -> Result<Self, MachoError> {
        if u32_at(bytes, 0) != Ok(MAGIC) {
            return Err(MachoError::Magic);
        }
        let mut program = Self::default();
        let mut at = HEADER_BYTES;
        for _ in 0..u32_at(bytes, 16)? {
            let (kind, size) = (u32_at(bytes, at)?, u32_at(bytes, at + 4)? as usize);
            let command = piece(bytes, at, size)?;
            match kind {
                SYMTAB => program.symbols(bytes, command)?,
                SEGMENT_64 => program.segment(bytes, command)?,
                BUILD_VERSION => {
                    let version = u32_at(command, 12)?;
                    program.oldest = (version >> 16, version >> 8 & 0xff);
                }
                kind if LOAD_DYLIB.contains(&kind) => {
                    program.libraries.push(text(command, u32_at(command, 8)? as usize)?);
                }
                _ => {}
            }
            // A command is its kind and size at least.
            at += size.max(8);
        }
        Ok(program)
    }

    fn segment(&mut self, bytes: &[u8], command: &[u8]) -> Result<(), MachoError> {
        for index in 0..u32_at(command, 64)? as usize {
            let section = piece(command, SEGMENT_BYTES + index * SECTION_BYTES, SECTION_BYTES)?;
            if text(&section[..16], 0).is_ok_and(|name| name == "__objc_methname") {
                let size = u64_at(section, 40)?;
                let size = usize::try_from(size).map_err(|_| MachoError::Short)?;
                let names = piece(bytes, u32_at(section, 48)? as usize, size)?;
                let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                self.selectors.extend(names.map(|name| String::from_utf8_lossy(name).into_owned()));
            }
        }
        Ok(())
    }

    fn symbols(&mut self, bytes: &[u8], command: &[u8]) -> Result<(), MachoError> {
        let (symbols, count) = (u32_at(command, 8)? as usize, u32_at(command, 12)? as usize);
        let strings = piece(bytes, u32_at(command, 16)? as usize, u32_at(command, 20)? as usize)?;
        let bytes_of_all = count.checked_mul(NLIST_BYTES).ok_or(MachoError::Short)?;
        for symbol in piece(bytes, symbols, bytes_of_all)?.chunks_exact(NLIST_BYTES) {
            let kind = symbol[4];
            if kind & N_STAB == 0 && kind & N_TYPE_AND_EXT == UNDEFINED {
                let name = text(strings, u32_at(symbol, 0)? as usize)?;
                self.classes.extend(name.strip_prefix(CLASS).map(str::to_owned));
            }
        }
        Ok(())
    }
}

fn piece(bytes: &[u8], at: usize, size: usize) -> Result<&[u8], MachoError> {
    at.checked_add(size).and_then(|end| bytes.get(at..end)).ok_or(MachoError::Short)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, MachoError> {
    let piece = piece(bytes, at, 4)?;
    Ok(u32::from_le_bytes(piece.try_into().map_err(|_| MachoError::Short)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, MachoError> {
    let piece = piece(bytes, at, 8)?;
    Ok(u64::from_le_bytes(piece.try_into().map_err(|_| MachoError::Short)?))
}

/// Up to a NUL, or the end.
fn text(bytes: &[u8], at: usize) -> Result<String, MachoError> {
    let rest = bytes.get(at..).ok_or(MachoError::Short)?;
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = (8 + body.len()).next_multiple_of(8);
        let mut bytes = [kind.to_le_bytes(), (size as u32).to_le_bytes()].concat();
        bytes.extend(body);
        bytes.resize(size, 0);
        bytes
    }

    fn numbers(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// A program with a library, a section of selectors, and the symbol of a class.
    fn program() -> Vec<u8> {
        let library = [numbers(&[24, 0, 0, 0]), b"/usr/lib/libx.dylib\0".to_vec()].concat();
        let names = b"init\0setX:y:\0";
        let strings = b"\0_OBJC_CLASS_$_VZThing\0_other\0";
        let data = 400_u32;
        let mut section = [0; SECTION_BYTES];
        section[..15].copy_from_slice(b"__objc_methname");
        section[40..48].copy_from_slice(&(names.len() as u64).to_le_bytes());
        section[48..52].copy_from_slice(&data.to_le_bytes());
        let mut segment = vec![0; SEGMENT_BYTES - 8];
        segment[56..60].copy_from_slice(&1_u32.to_le_bytes());
        segment.extend(section);
        let symbols = data + names.len() as u32;
        let symtab = numbers(&[symbols, 2, symbols + 32, strings.len() as u32]);
        let commands = [
            command(0xc, &library),
            command(BUILD_VERSION, &numbers(&[1, 13 << 16, 13 << 16, 0])),
            command(SEGMENT_64, &segment),
            command(SYMTAB, &symtab),
        ];
        let mut bytes = numbers(&[MAGIC, 0, 0, 2, commands.len() as u32, 0, 0, 0]);
        bytes.extend(commands.concat());
        bytes.resize(data as usize, 0);
        bytes.extend(names);
        for name in [1_u32, 23] {
            bytes.extend(numbers(&[name, u32::from(UNDEFINED), 0, 0]));
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn what_a_program_needs_is_read_from_it() {
        let read = Program::parse(&program()).unwrap();
        assert_eq!(read.libraries, ["/usr/lib/libx.dylib"]);
        assert_eq!(read.oldest, (13, 0));
        assert_eq!(read.selectors, ["init", "setX:y:"]);
        assert_eq!(read.classes, ["VZThing"]);
        assert_eq!(Program::parse(b"\x7fELF"), Err(MachoError::Magic));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..500, byte: u8, cut in 0_usize..600, noise: Vec<u8>) {
            let mut bytes = program();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(cut);
            let _ = Program::parse(&bytes);
            let _ = Program::parse(&[&MAGIC.to_le_bytes(), &noise[..]].concat());
        }
    }
}

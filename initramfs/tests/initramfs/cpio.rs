//! A newc reader for tests: it takes nothing that cpio or the kernel would have to forgive.

/// One entry as the archive tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub inode: u32,
    /// With the type bits.
    pub mode: u32,
    pub links: u32,
    pub device: (u32, u32),
    pub content: Vec<u8>,
}

/// All entries but the trailer. Panics when anything is off.
pub fn read(archive: &[u8]) -> Vec<Entry> {
    assert_eq!(archive.len() % 512, 0, "the length is no multiple of 512");
    let mut rest = Reader { archive, at: 0 };
    let mut entries = vec![];
    loop {
        assert_eq!(rest.at % 4, 0);
        assert_eq!(rest.take(6), b"070701");
        let [
            inode,
            mode,
            uid,
            gid,
            links,
            time,
            size,
            major,
            minor,
            rmajor,
            rminor,
            name_size,
            checksum,
        ] = std::array::from_fn(|_| rest.number());
        assert_eq!([uid, gid, time, major, minor, checksum], [0; 6]);
        let (nul, name) = rest.take(name_size as usize).split_last().unwrap();
        assert_eq!(*nul, 0);
        assert!(!name.contains(&0) && !name.starts_with(b"/") && name_size <= 4096);
        let name = name.to_vec();
        rest.pad(4);
        let content = rest.take(size as usize).to_vec();
        rest.pad(4);
        if name == b"TRAILER!!!" {
            assert_eq!((inode, mode, size), (0, 0, 0));
            rest.pad(512);
            assert_eq!(rest.at, archive.len(), "something follows the trailer");
            return entries;
        }
        let device = (rmajor, rminor);
        entries.push(Entry { name, inode, mode, links, device, content });
    }
}

struct Reader<'a> {
    archive: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let bytes = &self.archive[self.at..self.at + length];
        self.at += length;
        bytes
    }

    fn number(&mut self) -> u32 {
        let digits = std::str::from_utf8(self.take(8)).unwrap();
        assert!(digits.bytes().all(|digit| digit.is_ascii_digit() || digit.is_ascii_uppercase()));
        u32::from_str_radix(digits, 16).unwrap()
    }

    fn pad(&mut self, to: usize) {
        let missing = self.at.next_multiple_of(to) - self.at;
        assert!(self.take(missing).iter().all(|byte| *byte == 0));
    }
}

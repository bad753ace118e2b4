//! Device-mapper: block devices made of others, see the kernel's include/uapi/linux/dm-ioctl.h.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// Where devices are made.
const CONTROL: &str = "/dev/mapper/control";
const MAGIC: u8 = 0xfd;
/// Version 4.27 (Linux 3.14) has all that is used here.
const VERSION: [u32; 3] = [4, 27, 0];

/// Bytes of struct dm_ioctl, and of struct dm_target_spec behind it.
const HEAD: usize = 312;
const TARGET: usize = 40;
/// Bytes of a name and of a target's type, each with its NUL.
const NAME: usize = 128;
const KIND: usize = 16;

/// Where the fields of struct dm_ioctl are.
const AT_SIZE: usize = 12;
const AT_START: usize = 16;
const AT_TARGETS: usize = 20;
const AT_FLAGS: usize = 28;
const AT_DEVICE: usize = 40;
const AT_NAME: usize = 48;

/// Flags of struct dm_ioctl.
const READ_ONLY: u32 = 1 << 0;
const DEFERRED_REMOVE: u32 = 1 << 17;

/// Commands that need the device's name only.
#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Load = 9,
}

/// The way to device-mapper.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens it; NotFound when the kernel has no device-mapper.
    pub fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open(CONTROL).map(Self)
    }

    /// Makes a device without content, and returns its number N of /dev/dm-N; the node appears with its table. EBUSY
    /// when there is one of that name. DM_DEV_CREATE.
    pub fn create(&self, name: &str) -> io::Result<u64> {
        let mut request = Request::new(name, &[])?;
        request.perform(self, Command::Create)?;
        Ok(nix::sys::stat::minor(request.u64_at(AT_DEVICE)))
    }

    /// Gives it its content: one target of so many sectors of 512 bytes, that nobody may write to. DM_TABLE_LOAD.
    pub fn load(&self, name: &str, sectors: u64, kind: &str, table: &str) -> io::Result<()> {
        if kind.len() >= KIND {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let mut target = vec![0; TARGET];
        target[8..16].copy_from_slice(&sectors.to_ne_bytes());
        target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
        target.extend(table.as_bytes());
        // Ended by a NUL, and a whole number of words.
        target.resize((target.len() + 1).next_multiple_of(8), 0);
        let mut request = Request::new(name, &target)?;
        request.put_u32(AT_TARGETS, 1);
        request.put_u32(AT_FLAGS, READ_ONLY);
        request.perform(self, Command::Load)
    }

    /// Puts the content into use. DM_DEV_SUSPEND without its flag.
    pub fn resume(&self, name: &str) -> io::Result<()> {
        Request::new(name, &[])?.perform(self, Command::Suspend)
    }

    /// Removes it: now when nobody has it open, else as soon as that is so, by the kernel itself. DM_DEV_REMOVE with
    /// DM_DEFERRED_REMOVE.
    pub fn remove_when_closed(&self, name: &str) -> io::Result<()> {
        let mut request = Request::new(name, &[])?;
        request.put_u32(AT_FLAGS, DEFERRED_REMOVE);
        request.perform(self, Command::Remove)
    }
}

/// struct dm_ioctl and what follows, in words, since the kernel reads it as such.
struct Request(Vec<u64>);

impl Request {
    fn new(name: &str, rest: &[u8]) -> io::Result<Self> {
        if name.is_empty() || name.len() >= NAME || name.contains(['\0', '/']) {
            return Err(Errno::EINVAL.into());
        }
        let size = HEAD + rest.len();
        let mut request = Self(vec![0; size.div_ceil(8)]);
        for (index, word) in VERSION.into_iter().enumerate() {
            request.put_u32(index * 4, word);
        }
        request.put_u32(AT_SIZE, u32::try_from(size).map_err(io::Error::other)?);
        request.put_u32(AT_START, HEAD as u32);
        request.put(AT_NAME, name.as_bytes());
        request.put(HEAD, rest);
        Ok(request)
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_ne_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            let at = at + index;
            let mut word = self.0[at / 8].to_ne_bytes();
            word[at % 8] = *byte;
            self.0[at / 8] = u64::from_ne_bytes(word);
        }
    }

    fn u64_at(&self, at: usize) -> u64 {
        self.0[at / 8]
    }

    fn perform(&mut self, control: &Control, command: Command) -> io::Result<()> {
        let request = nix::request_code_readwrite!(MAGIC, command as u8, HEAD);
        // SAFETY: a struct dm_ioctl that says its own size, with what follows it; the kernel writes no more than that,
        // and the vector outlives the call.
        let result =
            unsafe { libc::ioctl(control.0.as_raw_fd(), request as _, self.0.as_mut_ptr()) };
        Errno::result(result)?;
        Ok(())
    }
}

//! Capabilities of this process, see capabilities(7), capset(2), PR_CAP* in prctl(2).

use std::io;

/// Takes every capability that is not among `kept` out of the bounding set. Needs CAP_SETPCAP.
pub fn keep_in_bounding_set(kept: u64) -> io::Result<()> {
    for capability in (0..u64::BITS).filter(|bit| kept & (1 << bit) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // The kernel has no more of them.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Makes every capability that this thread may have count: a change of the user ids has made them
/// not count. capget(2), capset(2).
pub fn raise() -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut halves = [Half::default(), Half::default()];
    // SAFETY: fills in data of the layout that version 3 of the call has.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    for half in &mut halves {
        half.effective = half.permitted;
    }
    write(&header, &halves)
}

/// Sets the three sets of this thread. capset(2).
pub fn set(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| {
        let part = |set: u64| (set >> shift) as u32;
        Half {
            effective: part(effective),
            permitted: part(permitted),
            inheritable: part(inheritable),
        }
    };
    write(&header, &[half(0), half(32)])
}

fn write(header: &Header, halves: &[Half; 2]) -> io::Result<()> {
    let header: *const Header = header;
    // SAFETY: both point to data of the layout that version 3 of the call has, which it only reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, header, halves.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the ambient set exactly this. PR_CAP_AMBIENT (4.3).
pub fn set_ambient(set: u64) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u32, 0)?;
    for capability in (0..u64::BITS).filter(|bit| set & (1 << bit) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u32, capability)?;
    }
    Ok(())
}

/// _LINUX_CAPABILITY_VERSION_3 in linux/capability.h.
const VERSION_3: u32 = 0x2008_0522;

/// struct __user_cap_header_struct.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// struct __user_cap_data_struct.
#[repr(C)]
#[derive(Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn prctl(option: libc::c_int, second: u32, third: u32) -> io::Result<()> {
    let unused: libc::c_ulong = 0;
    // SAFETY: the options above take integers, and zeros behind them.
    let result = unsafe {
        libc::prctl(option, libc::c_ulong::from(second), libc::c_ulong::from(third), unused, unused)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

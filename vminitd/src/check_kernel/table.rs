//! Which option of the kernel serves which feature of ours: the one table.

use super::probe::Probe::{self, Controller, Filesystem, NoPath, Path};

/// An option, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Its name, without CONFIG_.
    pub option: &'static str,
    /// How it should be.
    pub want: Want,
    /// What does not work otherwise.
    pub feature: &'static str,
    /// Where it matters.
    pub arch: Arch,
    /// How to find out without a configuration.
    pub probe: Probe,
}

/// How an option should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// In the kernel.
    On,
    /// Absent.
    Off,
}

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// All of them.
    Any,
    /// x86_64.
    X86_64,
    /// arm64.
    Arm64,
}

impl Arch {
    /// What we run on.
    pub const HERE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::X86_64 };

    /// True when what is `for_whom` concerns this one.
    pub fn is_meant_by(self, for_whom: Self) -> bool {
        for_whom == Self::Any || for_whom == self
    }
}

const fn on(option: &'static str, feature: &'static str, probe: Probe) -> Need {
    Need { option, want: Want::On, feature, arch: Arch::Any, probe }
}

const fn off(option: &'static str, feature: &'static str, probe: Probe) -> Need {
    Need { option, want: Want::Off, feature, arch: Arch::Any, probe }
}

const fn x86(option: &'static str, feature: &'static str, probe: Probe) -> Need {
    Need { option, want: Want::On, feature, arch: Arch::X86_64, probe }
}

const fn arm(option: &'static str, feature: &'static str, probe: Probe) -> Need {
    Need { option, want: Want::On, feature, arch: Arch::Arm64, probe }
}

const BOOT: &str = "booting: init and agent";
const LAYERS: &str = "root filesystems of layers";
const IMAGES: &str = "images on disks";
const SHARES: &str = "--rootfs and --volume (virtiofs)";
const PLUG: &str = "disks added to a running VM";
const VERITY: &str = "dm-verity";
const VSOCK: &str = "reaching the guest (vsock)";
const LIMITS: &str = "limits and figures of containers";
const SPACES: &str = "namespaces of containers";
const DEVICES: &str = "device rules of containers";
const FILTER: &str = "seccomp filters, which also keep containers off vsock";
const NET: &str = "networks";
const BUTTON: &str = "power-off by the host's button";
const PROGRAMS: &str = "what programs in containers expect";

/// All of them, by feature.
#[rustfmt::skip]
pub const NEEDS: &[Need] = &[
    on("PROC_FS", BOOT, Filesystem("proc")),
    on("SYSFS", BOOT, Filesystem("sysfs")),
    on("DEVTMPFS", BOOT, Filesystem("devtmpfs")),
    on("TMPFS", BOOT, Filesystem("tmpfs")),
    on("SHMEM", BOOT, Probe::None),
    on("MULTIUSER", BOOT, Probe::None),
    on("UNIX", BOOT, Path("/proc/net/unix")),
    on("FUTEX", BOOT, Probe::None),
    on("EPOLL", BOOT, Path("/proc/sys/fs/epoll")),
    on("SIGNALFD", BOOT, Probe::None),
    on("TIMERFD", BOOT, Probe::None),
    on("EVENTFD", BOOT, Probe::None),
    on("INOTIFY_USER", BOOT, Path("/proc/sys/fs/inotify")),
    on("MEMFD_CREATE", BOOT, Probe::None),
    on("POSIX_TIMERS", BOOT, Probe::None),
    on("BINFMT_ELF", BOOT, Probe::None),
    on("PRINTK", BOOT, Path("/dev/kmsg")),
    on("BLK_DEV_INITRD", "booting from an initramfs", Probe::None),
    on("RD_ZSTD", "booting from the initramfs that is shipped", Probe::None),
    on("PROC_SYSCTL", "sysctls of containers", Path("/proc/sys")),
    x86("PVH", "booting an uncompressed kernel under QEMU", Probe::None),
    x86("SERIAL_8250_CONSOLE", "the console under QEMU", Probe::None),
    arm("SERIAL_AMBA_PL011_CONSOLE", "the console under QEMU", Probe::None),
    on("VIRTIO_CONSOLE", "the console under Virtualization.framework", Probe::None),
    on("VIRTIO_PCI", "every device of the VM", Probe::None),
    on("PCI", "every device of the VM", Path("/sys/bus/pci")),
    x86("ACPI", "devices and power-off under QEMU", Probe::None),
    on("HW_RANDOM_VIRTIO", "random numbers at once", Probe::None),
    on("RTC_HCTOSYS", "the right time from the start", Probe::None),
    on("VSOCKETS", VSOCK, Path("/dev/vsock")),
    on("VIRTIO_VSOCKETS", VSOCK, Probe::None),
    off("VSOCKETS_LOOPBACK", "containers must not reach the agent by vsock", NoPath("/sys/module/vsock_loopback")),

    on("BLOCK", IMAGES, Path("/sys/block")),
    on("VIRTIO_BLK", IMAGES, Probe::None),
    on("EXT4_FS", "ext4 images", Filesystem("ext4")),
    on("EXT4_FS_POSIX_ACL", "ACLs in ext4 images", Probe::None),
    on("EXT4_FS_SECURITY", "file capabilities in ext4 images", Probe::None),
    on("EROFS_FS", "erofs images, and a guest that boots from one", Filesystem("erofs")),
    on("EROFS_FS_XATTR", "extended attributes in erofs images", Probe::None),
    on("EROFS_FS_POSIX_ACL", "ACLs in erofs images", Probe::None),
    on("EROFS_FS_SECURITY", "file capabilities in erofs images", Probe::None),
    on("EROFS_FS_ZIP", "compressed erofs images", Probe::None),
    on("EROFS_FS_ZIP_LZMA", "erofs images compressed with lzma", Probe::None),
    on("EROFS_FS_ZIP_DEFLATE", "erofs images compressed with deflate", Probe::None),
    on("EROFS_FS_ZIP_ZSTD", "erofs images compressed with zstd", Probe::None),
    on("EROFS_FS_BACKED_BY_FILE", "erofs images in files of the guest", Probe::None),
    on("SQUASHFS", "squashfs images", Filesystem("squashfs")),
    on("SQUASHFS_XATTR", "file capabilities in squashfs images", Probe::None),
    on("SQUASHFS_ZLIB", "squashfs images as mksquashfs makes them", Probe::None),
    on("SQUASHFS_LZ4", "squashfs images compressed with lz4", Probe::None),
    on("SQUASHFS_XZ", "squashfs images compressed with xz", Probe::None),
    on("SQUASHFS_ZSTD", "squashfs images compressed with zstd", Probe::None),
    on("BLK_DEV_LOOP", "images in files of the guest", Path("/dev/loop-control")),
    on("EFI_PARTITION", "more layers than disk slots (partitions)", Probe::None),
    on("OVERLAY_FS", LAYERS, Filesystem("overlay")),
    on("TMPFS_XATTR", LAYERS, Probe::None),
    on("TMPFS_POSIX_ACL", "ACLs in root filesystems of layers", Probe::None),
    on("FUSE_FS", SHARES, Filesystem("fuse")),
    on("VIRTIO_FS", SHARES, Filesystem("virtiofs")),
    on("HOTPLUG_PCI", PLUG, Path("/sys/bus/pci/slots")),
    on("HOTPLUG_PCI_PCIE", PLUG, Probe::None),
    on("PCIEPORTBUS", PLUG, Probe::None),
    x86("HOTPLUG_PCI_ACPI", PLUG, Probe::None),
    on("BLK_DEV_DM", VERITY, Path("/dev/mapper/control")),
    on("DM_VERITY", VERITY, Probe::None),
    on("CRYPTO_SHA256", VERITY, Probe::None),

    on("CGROUPS", LIMITS, Filesystem("cgroup2")),
    on("MEMCG", "memory limits of containers", Controller("memory")),
    on("CGROUP_PIDS", "pids limits of containers", Controller("pids")),
    on("CPUSETS", "CPUs of containers", Controller("cpuset")),
    on("CGROUP_SCHED", "CPU shares of containers", Controller("cpu")),
    on("FAIR_GROUP_SCHED", "CPU shares of containers", Probe::None),
    on("CFS_BANDWIDTH", "CPU limits of containers", Probe::None),
    on("BLK_CGROUP", "io limits of containers", Controller("io")),
    on("BLK_DEV_THROTTLING", "io limits of containers", Probe::None),
    on("BLK_CGROUP_IOCOST", "io weights of containers", Probe::None),
    on("CGROUP_HUGETLB", "limits of huge pages", Controller("hugetlb")),
    on("CGROUP_FREEZER", "tools that look for it in /proc/cgroups", Probe::None),
    on("PSI", "pressure figures", Path("/proc/pressure")),
    off("RT_GROUP_SCHED", "the cpu controller cannot be enabled with it", Probe::None),
    on("BPF_SYSCALL", DEVICES, Path("/proc/sys/kernel/unprivileged_bpf_disabled")),
    on("CGROUP_BPF", DEVICES, Probe::None),
    on("NAMESPACES", SPACES, Path("/proc/self/ns")),
    on("UTS_NS", SPACES, Path("/proc/self/ns/uts")),
    on("IPC_NS", SPACES, Path("/proc/self/ns/ipc")),
    on("PID_NS", SPACES, Path("/proc/self/ns/pid")),
    on("NET_NS", SPACES, Path("/proc/self/ns/net")),
    on("USER_NS", "user namespaces of containers", Path("/proc/self/ns/user")),
    on("TIME_NS", "time namespaces of containers", Path("/proc/self/ns/time")),
    on("SECCOMP", FILTER, Path("/proc/sys/kernel/seccomp")),
    on("SECCOMP_FILTER", FILTER, Path("/proc/sys/kernel/seccomp/actions_avail")),
    on("KEYS", "a keyring of its own for each container", Path("/proc/keys")),
    on("STATIC_USERMODEHELPER", "a container's core_pattern must start no program of the guest", Probe::None),
    on("BPF_UNPRIV_DEFAULT_OFF", "containers must load no programs into the kernel", Probe::None),

    on("TTY", "terminals", Path("/dev/tty")),
    on("UNIX98_PTYS", "terminals", Path("/dev/ptmx")),
    on("POSIX_MQUEUE", "/dev/mqueue in containers", Filesystem("mqueue")),
    on("SYSVIPC", PROGRAMS, Path("/proc/sysvipc")),
    on("BINFMT_SCRIPT", PROGRAMS, Probe::None),
    on("FILE_LOCKING", PROGRAMS, Path("/proc/locks")),
    on("AIO", PROGRAMS, Path("/proc/sys/fs/aio-nr")),
    on("FHANDLE", PROGRAMS, Probe::None),
    on("INPUT_EVDEV", BUTTON, Probe::None),
    x86("ACPI_BUTTON", BUTTON, Probe::None),
    arm("KEYBOARD_GPIO", BUTTON, Probe::None),
    on("INET", NET, Path("/proc/net/tcp")),
    on("IPV6", NET, Path("/proc/net/if_inet6")),
    on("VIRTIO_NET", NET, Probe::None),
    on("PACKET", "addresses by DHCP", Path("/proc/net/packet")),
    on("BRIDGE", "networks of several containers", Probe::None),
    on("VETH", "networks of several containers", Probe::None),
    on("IKCONFIG_PROC", "this check, in the guest", Path("/proc/config.gz")),
];

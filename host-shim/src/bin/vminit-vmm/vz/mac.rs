//! What this Mac allows, read from the framework.

use objc2::{MainThreadMarker, available};
use objc2_foundation::NSProcessInfo;
use objc2_virtualization::{
    VZGenericPlatformConfiguration, VZLinuxRosettaAvailability, VZLinuxRosettaDirectoryShare,
    VZVirtualMachineConfiguration,
};

use host_shim::vm::Arch;
use host_shim::vz::plan::{Mac, Rosetta};

/// Reads it.
pub fn limits(_main: MainThreadMarker) -> Mac {
    let version = NSProcessInfo::processInfo().operatingSystemVersion();
    let part = |number: isize| u32::try_from(number).unwrap_or_default();
    let cpus = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    // SAFETY: class properties without conditions, here and below.
    let (cpus, memory) = unsafe {
        (
            cpus(VZVirtualMachineConfiguration::minimumAllowedCPUCount())
                ..=cpus(VZVirtualMachineConfiguration::maximumAllowedCPUCount()),
            VZVirtualMachineConfiguration::minimumAllowedMemorySize()
                ..=VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
        )
    };
    Mac {
        macos: (part(version.majorVersion), part(version.minorVersion)),
        arch: Arch::HOST,
        cpus,
        memory,
        rosetta: rosetta(),
        // SAFETY: as above, and it exists from this version on.
        nested: available!(macos = 15.0)
            && unsafe { VZGenericPlatformConfiguration::isNestedVirtualizationSupported() },
    }
}

fn rosetta() -> Rosetta {
    // The class is there on Macs with Apple's CPUs only.
    if Arch::HOST != Arch::Arm64 {
        return Rosetta::NotSupported;
    }
    // SAFETY: a class property without conditions.
    match unsafe { VZLinuxRosettaDirectoryShare::availability() } {
        VZLinuxRosettaAvailability::Installed => Rosetta::Installed,
        VZLinuxRosettaAvailability::NotInstalled => Rosetta::NotInstalled,
        _ => Rosetta::NotSupported,
    }
}

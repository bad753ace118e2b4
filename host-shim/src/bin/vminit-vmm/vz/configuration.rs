//! A plan, as the framework's own objects.
//! Promises: nothing that is not in the plan; what the framework says against it is the error.

use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use objc2::rc::Retained;
use objc2::{AnyThread, MainThreadMarker, available};
use objc2_foundation::{NSArray, NSFileHandle, NSString, NSURL};
use objc2_virtualization::*;

use super::text::{failure_of, url};
use host_shim::sys::frames;
use host_shim::sys::inherited::is_readable;
use host_shim::vm::{Disk, MacAddress, Share};
use host_shim::vmm::server::Files;
use host_shim::vz::failure::Failure;
use host_shim::vz::plan::{Attachment, Plan};

/// Why a plan cannot be applied: the framework's own word mostly.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A path cannot be said to the framework.
    #[error("{0:?} is no path for a URL")]
    Path(PathBuf),
    /// A disk.
    #[error("disk {serial:?} ({path:?}): {failure}")]
    Disk {
        /// Its serial.
        serial: String,
        /// Its image.
        path: PathBuf,
        /// The framework's word.
        failure: Box<Failure>,
    },
    /// Rosetta.
    #[error("share Rosetta: {0}")]
    Rosetta(Box<Failure>),
    /// An interface has an address that the framework does not take.
    #[error("{0} is no address to the framework")]
    Address(MacAddress),
    /// The socket of frames.
    #[error("connect to the socket of frames {path:?}")]
    Frames {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is no such interface on this Mac, or it cannot be bridged to.
    #[error("no interface {wished:?} to bridge to; there are: {had}")]
    Interface {
        /// What was wished.
        wished: String,
        /// What there is.
        had: String,
    },
    /// A descriptor.
    #[error("pass a descriptor on")]
    Descriptor(#[source] io::Error),
    /// All of it together.
    #[error("the framework refuses the configuration: {0}")]
    Invalid(Box<Failure>),
}

/// Makes the configuration, valid.
pub fn apply(
    plan: &Plan,
    files: &Files,
    _main: MainThreadMarker,
) -> Result<Retained<VZVirtualMachineConfiguration>, ApplyError> {
    let disks = plan.disks.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
    let mut shares = plan.shares.iter().map(share).collect::<Result<Vec<_>, _>>()?;
    if let Some(tag) = plan.rosetta {
        shares.push(rosetta(tag)?);
    }
    let nics = plan.nics.iter().map(nic).collect::<Result<Vec<_>, _>>()?;
    let loader = boot_loader(plan)?;
    // SAFETY: objects of one thread that nobody else has yet, set up before a machine is made of them; each setter
    // takes what its type says. The nested switch is touched only where it exists.
    unsafe {
        let configuration = VZVirtualMachineConfiguration::new();
        configuration.setBootLoader(Some(&loader));
        configuration.setCPUCount(plan.cpus as usize);
        configuration.setMemorySize(plan.memory);
        let platform = VZGenericPlatformConfiguration::new();
        if plan.nested && available!(macos = 15.0) {
            platform.setNestedVirtualizationEnabled(true);
        }
        configuration.setPlatform(&platform);
        configuration.setStorageDevices(&array(disks));
        configuration.setDirectorySharingDevices(&array(shares));
        configuration.setNetworkDevices(&array(nics));
        configuration.setSerialPorts(&array(vec![console(&files.console)?]));
        let vsock = VZVirtioSocketDeviceConfiguration::new();
        configuration.setSocketDevices(&array(vec![vsock.into_super()]));
        let entropy = VZVirtioEntropyDeviceConfiguration::new();
        configuration.setEntropyDevices(&array(vec![entropy.into_super()]));
        let balloon = VZVirtioTraditionalMemoryBalloonDeviceConfiguration::new();
        configuration.setMemoryBalloonDevices(&array(vec![balloon.into_super()]));
        configuration
            .validateWithError()
            .map_err(|error| ApplyError::Invalid(failure_of(&error).into()))?;
        if plan.save_and_restore && available!(macos = 14.0) {
            configuration
                .validateSaveRestoreSupportWithError()
                .map_err(|error| ApplyError::Invalid(failure_of(&error).into()))?;
        }
        Ok(configuration)
    }
}

fn array<T: objc2::Message>(items: Vec<Retained<T>>) -> Retained<NSArray<T>> {
    NSArray::from_retained_slice(&items)
}

fn file_url(path: &Path) -> Result<Retained<NSURL>, ApplyError> {
    url(path).ok_or_else(|| ApplyError::Path(path.to_owned()))
}

fn boot_loader(plan: &Plan) -> Result<Retained<VZLinuxBootLoader>, ApplyError> {
    let kernel = file_url(&plan.kernel)?;
    let initramfs = plan.initramfs.as_deref().map(file_url).transpose()?;
    // SAFETY: an object of ours alone.
    unsafe {
        let loader = VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &kernel);
        loader.setInitialRamdiskURL(initramfs.as_deref());
        loader.setCommandLine(&NSString::from_str(&plan.cmdline));
        Ok(loader)
    }
}

fn disk(disk: &Disk) -> Result<Retained<VZStorageDeviceConfiguration>, ApplyError> {
    let error = |failure| ApplyError::Disk {
        serial: disk.serial.to_string(),
        path: disk.path.clone(),
        failure,
    };
    let url = file_url(&disk.path)?;
    // SAFETY: objects of ours alone.
    unsafe {
        // What the guest flushes is on the disk, and not much slower than when it is not (macOS 12).
        let attachment = VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_cachingMode_synchronizationMode_error(
            VZDiskImageStorageDeviceAttachment::alloc(),
            &url,
            disk.read_only,
            VZDiskImageCachingMode::Automatic,
            VZDiskImageSynchronizationMode::Fsync,
        )
        .map_err(|refused| error(failure_of(&refused).into()))?;
        let device = VZVirtioBlockDeviceConfiguration::initWithAttachment(
            VZVirtioBlockDeviceConfiguration::alloc(),
            &attachment,
        );
        let serial = NSString::from_str(disk.serial.as_str());
        VZVirtioBlockDeviceConfiguration::validateBlockDeviceIdentifier_error(&serial)
            .map_err(|refused| error(failure_of(&refused).into()))?;
        device.setBlockDeviceIdentifier(&serial);
        Ok(device.into_super())
    }
}

fn share(share: &Share) -> Result<Retained<VZDirectorySharingDeviceConfiguration>, ApplyError> {
    let url = file_url(&share.path)?;
    // SAFETY: objects of ours alone.
    unsafe {
        let directory = VZSharedDirectory::initWithURL_readOnly(
            VZSharedDirectory::alloc(),
            &url,
            share.read_only,
        );
        let single =
            VZSingleDirectoryShare::initWithDirectory(VZSingleDirectoryShare::alloc(), &directory);
        Ok(shared(share.tag.as_str(), &single))
    }
}

fn rosetta(tag: &str) -> Result<Retained<VZDirectorySharingDeviceConfiguration>, ApplyError> {
    // SAFETY: an object of ours alone; the plan has it only where Rosetta is installed.
    let share = unsafe {
        VZLinuxRosettaDirectoryShare::initWithError(VZLinuxRosettaDirectoryShare::alloc())
    };
    let share = share.map_err(|error| ApplyError::Rosetta(failure_of(&error).into()))?;
    Ok(shared(tag, &share))
}

fn shared(tag: &str, share: &VZDirectoryShare) -> Retained<VZDirectorySharingDeviceConfiguration> {
    // SAFETY: objects of ours alone; a tag of ours is short and plain.
    unsafe {
        let device = VZVirtioFileSystemDeviceConfiguration::initWithTag(
            VZVirtioFileSystemDeviceConfiguration::alloc(),
            &NSString::from_str(tag),
        );
        device.setShare(Some(share));
        device.into_super()
    }
}

fn nic(
    (mac, attachment): &(MacAddress, Attachment),
) -> Result<Retained<VZNetworkDeviceConfiguration>, ApplyError> {
    let address = NSString::from_str(&mac.to_string());
    // SAFETY: objects of ours alone.
    unsafe {
        let address = VZMACAddress::initWithString(VZMACAddress::alloc(), &address)
            .ok_or(ApplyError::Address(*mac))?;
        let device = VZVirtioNetworkDeviceConfiguration::new();
        device.setMACAddress(&address);
        let attachment: Retained<VZNetworkDeviceAttachment> = match attachment {
            Attachment::Nat => VZNATNetworkDeviceAttachment::new().into_super(),
            Attachment::Frames(path) => {
                let socket = frames::connect(path)
                    .map_err(|source| ApplyError::Frames { path: path.clone(), source })?;
                VZFileHandleNetworkDeviceAttachment::initWithFileHandle(
                    VZFileHandleNetworkDeviceAttachment::alloc(),
                    &handle(socket),
                )
                .into_super()
            }
            Attachment::Bridged(name) => {
                let interface = interface(name)?;
                VZBridgedNetworkDeviceAttachment::initWithInterface(
                    VZBridgedNetworkDeviceAttachment::alloc(),
                    &interface,
                )
                .into_super()
            }
        };
        device.setAttachment(Some(&attachment));
        Ok(device.into_super())
    }
}

fn interface(name: &str) -> Result<Retained<VZBridgedNetworkInterface>, ApplyError> {
    // SAFETY: a class property without conditions.
    let all = unsafe { VZBridgedNetworkInterface::networkInterfaces() }.to_vec();
    // SAFETY: a property of an object that lives.
    let named =
        |interface: &VZBridgedNetworkInterface| unsafe { interface.identifier() }.to_string();
    let had: Vec<String> = all.iter().map(|interface| named(interface)).collect();
    all.into_iter()
        .find(|interface| named(interface) == name)
        .ok_or_else(|| ApplyError::Interface { wished: name.to_owned(), had: had.join(", ") })
}

/// The guest's console: written to the descriptor, and read from it where it can be read, which makes it interactive.
fn console(console: &OwnedFd) -> Result<Retained<VZSerialPortConfiguration>, ApplyError> {
    let copy = || console.try_clone().map_err(ApplyError::Descriptor);
    let reading = is_readable(console.as_fd()).then(copy).transpose()?.map(handle);
    let writing = handle(copy()?);
    // SAFETY: objects of ours alone; the handles own their descriptors.
    unsafe {
        let attachment =
            VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
                VZFileHandleSerialPortAttachment::alloc(),
                reading.as_deref(),
                Some(&writing),
            );
        let port = VZVirtioConsoleDeviceSerialPortConfiguration::new();
        port.setAttachment(Some(&attachment));
        Ok(port.into_super())
    }
}

/// A handle that closes the descriptor with itself.
fn handle(fd: OwnedFd) -> Retained<NSFileHandle> {
    NSFileHandle::initWithFileDescriptor_closeOnDealloc(
        NSFileHandle::alloc(),
        fd.into_raw_fd(),
        true,
    )
}

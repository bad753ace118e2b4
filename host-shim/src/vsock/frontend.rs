//! What the VMM asks of the device over vhost-user: features, the VM's memory, where the rings are.
//! Owns: the mapped memory, the rings and their eventfds.
//! Promises: the rings are given out only while both are set up, enabled and lie within memory; every address and size
//! that the VMM passes on from the guest is checked on each request, so that using a ring cannot fail for its place.
//! Never: supports migration, in-flight tracking or a back channel; none of them is offered.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::ring::{Position, Ring};
use super::scatter::Memory;

/// Rings that the VMM may set up: rx, tx, and the event queue, which QEMU serves itself and which is left alone.
const RINGS: usize = 3;
/// The ring of the guest's receive buffers.
pub const RX: usize = 0;
/// The ring of the guest's packets.
pub const TX: usize = 1;

/// Regions of guest memory at once; what the kernel's vhost takes.
const MAX_REGIONS: usize = 509;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What the VMM has told us.
pub struct Frontend {
    guest_cid: u64,
    features: u64,
    /// Replaced as a whole when regions come or go.
    memory: Memory,
    regions: Vec<Region>,
    rings: [Vring; RINGS],
    /// Kick descriptors that are used no more: to be taken from the event loop before they are closed.
    retired: Vec<File>,
    /// The guest has broken a ring; holds until the VMM stops one.
    broken: bool,
}

/// A ring with its signals.
struct Vring {
    ring: Ring,
    enabled: bool,
    /// Signalled by the guest. Not read: it is watched edge-triggered, and its counter cannot overflow.
    kick: Option<File>,
    /// Set when `kick` is not watched yet.
    kick_is_new: bool,
    /// Signalled by us, to interrupt the guest.
    call: Option<File>,
}

/// Where a region of guest memory lies in the VMM's address space, in which it names the rings' places.
struct Region {
    vmm: u64,
    guest: u64,
    bytes: u64,
}

/// The rings, while they may be used.
pub struct Running<'a> {
    /// The VM's memory.
    pub memory: &'a Memory,
    /// Buffers for packets to the guest.
    pub rx: &'a mut Ring,
    /// Packets of the guest.
    pub tx: &'a mut Ring,
    rx_call: Option<&'a File>,
    tx_call: Option<&'a File>,
}

impl Running<'_> {
    /// Interrupts the guest if it has something to look at and wants to know. A ring that is broken tells on its next use.
    pub fn signal(self) {
        for (ring, call) in [(self.rx, self.rx_call), (self.tx, self.tx_call)] {
            if matches!(ring.wants_signal(self.memory), Ok(true))
                && let Some(call) = call
            {
                // It fails only when the counter is full, and then the interrupt is pending already.
                let _ = io::Write::write(&mut &*call, &1u64.to_ne_bytes());
            }
        }
    }
}

impl Frontend {
    pub fn new(guest_cid: u64) -> Frontend {
        let vring = || Vring {
            ring: Ring::new(),
            enabled: false,
            kick: None,
            kick_is_new: false,
            call: None,
        };
        Frontend {
            guest_cid,
            features: 0,
            memory: Memory::new(),
            regions: Vec::new(),
            rings: [vring(), vring(), vring()],
            retired: Vec::new(),
            broken: false,
        }
    }

    /// The rings, if the guest's driver is up and the VM is not paused.
    pub fn running(&mut self) -> Option<Running<'_>> {
        if self.broken
            || !self.rings[..=TX]
                .iter()
                .all(|vring| vring.enabled && vring.ring.is_usable(&self.memory))
        {
            return None;
        }
        let [rx, tx, _] = &mut self.rings;
        Some(Running {
            memory: &self.memory,
            rx: &mut rx.ring,
            tx: &mut tx.ring,
            rx_call: rx.call.as_ref(),
            tx_call: tx.call.as_ref(),
        })
    }

    /// Where the rings stand, while they run: the same after a pause, others after a reset.
    pub fn positions(&mut self) -> Option<[Position; 2]> {
        self.running().map(|running| [running.rx.position(), running.tx.position()])
    }

    /// Leaves the rings alone until the VMM sets them up anew.
    pub fn set_broken(&mut self) {
        self.broken = true;
    }

    /// Kick descriptors to watch no more, and those to watch from now on with their ring's number.
    pub fn take_kicks(&mut self) -> (Vec<File>, Vec<(usize, &File)>) {
        let retired = std::mem::take(&mut self.retired);
        let fresh = self.rings[..=TX].iter_mut().enumerate().filter_map(|(number, vring)| {
            std::mem::take(&mut vring.kick_is_new).then_some(())?;
            vring.kick.as_ref().map(|kick| (number, kick))
        });
        (retired, fresh.collect())
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<()> {
        let vring = self.vring(index)?;
        vring.kick_is_new = kick.is_some();
        let old = std::mem::replace(&mut vring.kick, kick);
        self.retired.extend(old);
        Ok(())
    }

    fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap<()>> {
        GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(region.guest_phys_addr))
            .ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, vmm: u64) -> Result<u64> {
        let inside = self.regions.iter().find_map(|region| {
            let offset = vmm.checked_sub(region.vmm)?;
            (offset < region.bytes).then(|| region.guest.checked_add(offset))?
        });
        inside.ok_or(Error::InvalidParam)
    }
}

impl Region {
    fn new(region: &VhostUserMemoryRegion) -> Region {
        Region { vmm: region.user_addr, guest: region.guest_phys_addr, bytes: region.memory_size }
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

fn memory_error(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // Out of use for years; older VMMs mean by it that the rings are disabled.
        for vring in &mut self.rings {
            vring.enabled = false;
        }
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        unsupported("reset device: not offered")
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        for vring in &mut self.rings {
            vring.ring.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                vring.enabled = true;
            }
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(RINGS as u64)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let config = self.guest_cid.to_le_bytes();
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)?;
        config.get(offset as usize..end as usize).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        unsupported("the configuration of a vsock device is read-only")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mapped = regions.iter().zip(files).map(|(region, file)| Frontend::map(region, file));
        self.memory = Memory::from_regions(mapped.collect::<Result<_>>()?).map_err(memory_error)?;
        self.regions = regions.iter().map(Region::new).collect();
        Ok(None)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(Error::InvalidParam);
        }
        let mapped = Frontend::map(region, file)?;
        self.memory = self.memory.insert_region(mapped.into()).map_err(memory_error)?;
        self.regions.push(Region::new(region));
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let address = GuestAddress(region.guest_phys_addr);
        (self.memory, _) =
            self.memory.remove_region(address, region.memory_size).map_err(memory_error)?;
        self.regions.retain(|known| known.guest != region.guest_phys_addr);
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, entries: u32) -> Result<()> {
        if self.vring(index)?.ring.set_size(entries) { Ok(()) } else { Err(Error::InvalidParam) }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let table = self.guest_address(table)?;
        let available = self.guest_address(available)?;
        let used = self.guest_address(used)?;
        let vring = self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)?;
        if vring.ring.set_addresses(&self.memory, table, available, used) {
            Ok(())
        } else {
            Err(Error::InvalidParam)
        }
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.vring(index)?.ring.set_base(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.broken = false;
        let vring = self.vring(index)?;
        vring.ring.set_ready(false);
        vring.call = None;
        let base = u32::from(vring.ring.base());
        self.set_kick(index, None)?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        self.set_kick(u32::from(index), kick)?;
        self.vring(u32::from(index))?.ring.set_ready(true);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?.call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _error: Option<File>) -> Result<()> {
        // Nothing is ever signalled there.
        self.vring(u32::from(index)).map(|_| ())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {}

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        unsupported("no gpu here")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("shared objects: not offered")
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        unsupported("in-flight tracking: not offered")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported("in-flight tracking: not offered")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported("migration: not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("migration: not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("shared memory: not offered")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported("migration: not offered")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_ends_after_eight_bytes() {
        let mut frontend = Frontend::new(3);
        let mut read =
            |offset, size| frontend.get_config(offset, size, VhostUserConfigFlags::empty());
        assert_eq!(read(0, 8).unwrap(), [3, 0, 0, 0, 0, 0, 0, 0]);
        assert!(read(8, 0).unwrap().is_empty());
        for (offset, size) in [(0, 9), (8, 1), (u32::MAX, 1), (1, u32::MAX), (9, 0)] {
            assert!(read(offset, size).is_err(), "{size} bytes at {offset}");
        }
    }

    #[test]
    fn places_outside_of_what_was_shared_are_refused() {
        let mut frontend = Frontend::new(3);
        frontend.regions = vec![Region { vmm: 0x1000, guest: u64::MAX - 0xff, bytes: 0x1000 }];
        assert_eq!(frontend.guest_address(0x1010).unwrap(), u64::MAX - 0xef);
        for address in [0, 0xfff, 0x1100, 0x2000, u64::MAX] {
            assert!(frontend.guest_address(address).is_err(), "{address:x}");
        }
        assert!(
            frontend
                .set_vring_addr(3, VhostUserVringAddrFlags::empty(), 0x1000, 0x1000, 0x1000, 0)
                .is_err()
        );
    }

    #[test]
    fn ring_sizes_are_those_of_a_split_ring() {
        let mut frontend = Frontend::new(3);
        for entries in [1, 128, 1024] {
            frontend.set_vring_num(0, entries).unwrap();
        }
        for entries in [0, 3, 2048, 65_536 + 128] {
            assert!(frontend.set_vring_num(0, entries).is_err(), "{entries}");
        }
        assert!(frontend.set_vring_base(0, 65_536).is_err());
    }
}

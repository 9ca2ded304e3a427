//! Devices.

use lbxdp_common::{Device, limits::NEAR_DEVICES};

use crate::lookup::maps;

/// The device with this interface index, if the agent follows it. A torn read of a device that is
/// being changed costs one packet.
#[inline(always)]
pub fn get(ifindex: u32) -> Option<Device> {
    if ifindex >= NEAR_DEVICES as u32 {
        // SAFETY: copied at once.
        return unsafe { maps::devices.get(&ifindex) }.copied();
    }
    let from = maps::near_devices.get_ptr(ifindex)?.cast::<u64>();
    // SAFETY: the pointer is to the two words of a device in an array, which lives as long as the
    // program. Each is read once and whole, because the agent changes them; any bits are a device.
    let device: Device =
        unsafe { core::mem::transmute([from.read_volatile(), from.add(1).read_volatile()]) };
    (device != Device::default()).then_some(device)
}

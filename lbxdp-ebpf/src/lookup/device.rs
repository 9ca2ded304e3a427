//! Devices.

use lbxdp_common::Device;

use crate::lookup::maps;

/// The device with this interface index, if the agent follows it.
#[inline(always)]
pub fn get(ifindex: u32) -> Option<Device> {
    // SAFETY: copied at once; a torn read of a device that is being changed costs one packet.
    unsafe { maps::devices.get(&ifindex) }.copied()
}

//! Ports of SCTP. Its checksum covers the whole SCTP packet and no address, so that a packet whose
//! ports stay is only given other addresses.

use lbxdp_common::Flow;

use super::{Rewriter, crc32c};
use crate::{packet::read, parse::Segment};

/// Offset of the checksum in the common header; unlike everything else it is little-endian.
const CHECKSUM: usize = 8;

/// Gives the packet the ports of `flow` and the checksum that is right with them; `false` where
/// its length is unknown (a packet larger than its header can say).
#[inline(always)]
pub fn transport<A, P: Rewriter>(packet: &P, segment: &Segment<A>, flow: &Flow<A>) -> bool {
    let (old, new) =
        (ports(segment.key.src_port, segment.key.dst_port), ports(flow.src_port, flow.dst_port));
    if old == new {
        return true;
    }
    let l4 = segment.l4();
    let Some(checksum) = read::<[u8; 4], _>(packet, l4 + CHECKSUM) else { return false };
    let Some(length) = (segment.l3() + segment.len).checked_sub(l4) else { return false };
    if segment.len == 0 {
        return false;
    }
    // What the device is to compute, nobody has to keep right.
    if !P::MAY_BE_UNFINISHED || checksum != [0; 4] {
        let difference = (u32::from_ne_bytes(old) ^ u32::from_ne_bytes(new)).to_ne_bytes();
        let checksum = u32::from_le_bytes(checksum) ^ crc32c::change(difference, length as u16);
        if !packet.put(l4 + CHECKSUM, &checksum.to_le_bytes()) {
            return false;
        }
    }
    packet.put(l4, &new)
}

/// Ports as they stand in the header.
#[inline(always)]
fn ports(src: u16, dst: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (src.to_be_bytes(), dst.to_be_bytes());
    [a, b, c, d]
}

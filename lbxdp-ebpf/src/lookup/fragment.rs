//! Fragments: the first one has the ports, which the later ones have from here.

use aya_ebpf::bindings::BPF_ANY;
use lbxdp_common::{FragmentKey, FragmentPorts, IPPROTO_SCTP};

use crate::{
    family::Family,
    parse::{Kind, Segment},
    work::Work,
};

/// Gives a later fragment the ports of its datagram; `false` if the first one has not passed here.
#[inline(always)]
pub fn complete<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let Work { segment, fragment, .. } = work;
    if segment.kind != Kind::Later {
        return true;
    }
    identify(segment, fragment);
    let Some(ports) = F::fragment_map().get_ptr(&*fragment) else { return false };
    // SAFETY: the pointer is to an element of a preallocated map. Should it be another datagram's
    // by now, the packet ends up in the wrong flow, as with any identification used twice.
    let ports = unsafe { *ports };
    segment.key.src_port = ports.src_port;
    segment.key.dst_port = ports.dst_port;
    true
}

/// Lets later fragments follow a first one that is translated.
#[inline(always)]
pub fn remember<F: Family>(work: &mut Work<F::Addr>) {
    let Work { segment, fragment, .. } = work;
    if segment.kind != Kind::First {
        return;
    }
    identify(segment, fragment);
    let ports = FragmentPorts { src_port: segment.key.src_port, dst_port: segment.key.dst_port };
    // Where the map takes nothing the later ones are counted as they come.
    let _without = F::fragment_map().insert(&*fragment, &ports, BPF_ANY.into());
}

/// Whether a packet is the first fragment of an SCTP packet whose ports would change: its checksum
/// changes by how many bytes there are behind the ports, which only the last fragment tells.
#[inline(always)]
pub fn is_unchangeable<F: Family>(work: &Work<F::Addr>) -> bool {
    let Work { segment, flow, .. } = work;
    let key = &segment.key;
    let keeps_ports = key.src_port == flow.src_port && key.dst_port == flow.dst_port;
    key.protocol == IPPROTO_SCTP && segment.kind == Kind::First && !keeps_ports
}

#[inline(always)]
fn identify<A: Copy>(segment: &Segment<A>, key: &mut FragmentKey<A>) {
    key.src = segment.key.src;
    key.dst = segment.key.dst;
    key.id = segment.fragment_id;
    key.protocol = segment.key.protocol;
    key._pad = [0; 3];
}

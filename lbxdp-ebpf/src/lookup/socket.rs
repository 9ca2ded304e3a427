//! Sockets of clients on this node: what they asked for, and what they got.

use aya_ebpf::bindings::BPF_ANY;
use lbxdp_common::{SocketKey, SocketPeer};

use crate::family::Family;

/// What is known about a socket and one of its peers.
#[inline(always)]
pub fn get<F: Family>(key: &SocketKey<F::Addr>) -> Option<SocketPeer<F::Addr>> {
    // SAFETY: the value is copied at once. Only the socket itself and the agent change it. Should
    // the element be handed out again meanwhile, one call goes astray.
    unsafe { F::socket_map().get(key) }.copied()
}

/// Enters what a socket got; `false` if the map took no entry.
#[inline(always)]
pub fn put<F: Family>(key: &SocketKey<F::Addr>, peer: &SocketPeer<F::Addr>) -> bool {
    F::socket_map().insert(key, peer, BPF_ANY.into()).is_ok()
}

/// Forgets an entry.
#[inline(always)]
pub fn remove<F: Family>(key: &SocketKey<F::Addr>) {
    // Most sockets have none.
    let _not_ours = F::socket_map().remove(key);
}

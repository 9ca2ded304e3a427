//! The maps of sockets: what the sweep reads and changes.

use std::io;
use std::net::SocketAddr;

use lbxdp_common::{IPPROTO_UDP, SocketKey, SocketPeer};

use super::MapError;
use super::pinned::{Addr, Hash, io_error, map_error, or_missing};
use crate::pins::Pins;
use crate::sockets::{Entry, Role, SocketOp};
use crate::sys::Access;

/// `sockets_v4` and `sockets_v6`.
pub struct SocketMaps {
    v4: Hash<SocketKey<[u8; 4]>, SocketPeer<[u8; 4]>>,
    v6: Hash<SocketKey<[u8; 16]>, SocketPeer<[u8; 16]>>,
}

impl SocketMaps {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, MapError> {
        Ok(Self {
            v4: Hash::open(pins, <[u8; 4]>::SOCKETS, access)?,
            v6: Hash::open(pins, <[u8; 16]>::SOCKETS, access)?,
        })
    }

    /// Every entry about a UDP socket.
    pub fn udp(&self) -> Result<Vec<Entry>, MapError> {
        let v4 = self.v4.read()?;
        let v6 = self.v6.read()?;
        let v4 = v4.iter().filter_map(|(key, peer)| entry(key, peer));
        Ok(v4.chain(v6.iter().filter_map(|(key, peer)| entry(key, peer))).collect())
    }

    /// Entries of both maps, of all protocols.
    pub fn count(&self) -> Result<usize, MapError> {
        Ok(self.v4.read()?.len() + self.v6.read()?.len())
    }

    /// Carries out one change.
    pub fn apply(&mut self, op: &SocketOp) -> Result<(), MapError> {
        let (SocketOp::Forget(entry) | SocketOp::SetStale(entry, _)) = op;
        match (entry.frontend, entry.backend) {
            (SocketAddr::V4(frontend), SocketAddr::V4(backend)) => {
                let frontend = (frontend.ip().octets(), frontend.port());
                carry_out(&mut self.v4, op, frontend, (backend.ip().octets(), backend.port()))
            }
            (SocketAddr::V6(frontend), SocketAddr::V6(backend)) => {
                let frontend = (frontend.ip().octets(), frontend.port());
                carry_out(&mut self.v6, op, frontend, (backend.ip().octets(), backend.port()))
            }
            // `udp` makes none of two families.
            _ => Ok(()),
        }
    }
}

fn entry<A: Addr>(key: &SocketKey<A>, peer: &SocketPeer<A>) -> Option<Entry> {
    if key.protocol != IPPROTO_UDP {
        return None;
    }
    let keyed = SocketAddr::new(key.addr.ip(), key.port);
    let valued = SocketAddr::new(peer.addr.ip(), peer.port);
    let (frontend, backend, role) = if key.way == SocketKey::<A>::TO_BACKEND {
        (keyed, valued, Role::Uses)
    } else if key.way != SocketKey::<A>::TO_FRONTEND {
        return None;
    } else if peer.has(SocketPeer::<A>::CONNECTED) {
        let is_stale = peer.has(SocketPeer::<A>::STALE);
        (valued, keyed, Role::Connected { is_stale })
    } else {
        (valued, keyed, Role::Shows)
    };
    Some(Entry { cookie: key.cookie(), frontend, backend, role })
}

fn carry_out<A: Addr>(
    map: &mut Hash<SocketKey<A>, SocketPeer<A>>,
    op: &SocketOp,
    frontend: (A, u16),
    backend: (A, u16),
) -> Result<(), MapError> {
    let (SocketOp::Forget(entry) | SocketOp::SetStale(entry, _)) = op;
    let (way, (addr, port)) = match entry.role {
        Role::Uses => (SocketKey::<A>::TO_BACKEND, frontend),
        Role::Shows | Role::Connected { .. } => (SocketKey::<A>::TO_FRONTEND, backend),
    };
    let key = SocketKey::new(entry.cookie, addr, port, IPPROTO_UDP, way);
    let done = match op {
        SocketOp::Forget(_) => or_missing(map.map.remove(&key)),
        SocketOp::SetStale(_, is_stale) => set_stale(map, key, *is_stale),
    };
    done.map_err(map_error(A::SOCKETS, format!("socket {} {}", entry.cookie, entry.backend)))
}

fn set_stale<A: Addr>(
    map: &mut Hash<SocketKey<A>, SocketPeer<A>>,
    key: SocketKey<A>,
    is_stale: bool,
) -> io::Result<()> {
    /// `BPF_EXIST`: a socket that was closed meanwhile stays forgotten.
    const EXIST: u64 = 2;
    // As it is by now: the socket may have connected again.
    let mut peer = match map.map.get(&key, 0).map_err(io_error) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        peer => peer?,
    };
    if is_stale {
        peer.flags |= SocketPeer::<A>::STALE;
    } else {
        peer.flags &= !SocketPeer::<A>::STALE;
    }
    or_missing(map.map.insert(key, peer, EXIST))
}

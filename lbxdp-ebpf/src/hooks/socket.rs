//! Clients on this node: their sockets are translated when they connect or send, and no packet of
//! theirs afterwards.
//!
//! These programs run in the context of the process, which another one may interrupt on the same
//! CPU. So they keep everything on the stack, and a counter may miss one event in a million.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lbxdp_common::{
    AddressFlags, AffinityKey, Counter, Descriptor, FrontendKey, IPPROTO_TCP, IPPROTO_UDP,
    Octets as _, SocketKey, SocketPeer,
};

use crate::{
    family::{Family, V4, V6},
    ingress,
    lookup::{
        address,
        backend::{self, Choice, NoChoice, Side},
        count, mode, range, socket,
    },
    packet::{Pair, read, sent::SentPacket},
    parse::Segment,
    sock_addr::{Call, Form, Inet, Inet6, Known, Mapped, Sock},
};

/// `ECONNREFUSED` of `asm-generic/errno.h`: what a port without a listener answers.
const REFUSED: i32 = 111;
/// `EHOSTUNREACH`: where a packet would be dropped in silence. An error at once is better than a
/// timeout, and left alone the call would go wherever the default route leads.
const UNREACHABLE: i32 = 113;
/// `ENOMEM`: the map took no entry.
const NO_MEMORY: i32 = 12;

/// What becomes of a system call.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// It goes on, as it came or about another address.
    Proceed,
    /// It ends with this errno.
    Fail(i32),
}

/// What a frontend makes of a call.
enum Decision<A: 'static> {
    /// Not ours.
    Leave,
    /// It ends with this errno.
    Fail(i32),
    /// It goes to this backend of the frontend with this id.
    To(u32, Choice<A>),
}

/// `connect4`.
#[inline(always)]
pub fn connect4(call: &Call) -> Outcome {
    connect::<Inet>(call, call.v4())
}

/// `connect6`.
#[inline(always)]
pub fn connect6(call: &Call) -> Outcome {
    match call.v6() {
        Known::V4(addr) => connect::<Mapped>(call, addr),
        Known::V6(addr) => connect::<Inet6>(call, addr),
    }
}

/// `sendmsg4`: datagrams of sockets that are not connected, or with an address of their own.
#[inline(always)]
pub fn send4(call: &Call) -> Outcome {
    send::<Inet>(call, call.v4())
}

/// `sendmsg6`. The kernel starts `sendmsg4` for most IPv4-mapped addresses.
#[inline(always)]
pub fn send6(call: &Call) -> Outcome {
    match call.v6() {
        Known::V4(addr) => send::<Mapped>(call, addr),
        Known::V6(addr) => send::<Inet6>(call, addr),
    }
}

/// `recvmsg4` and `getpeername4`: a backend is shown as its frontend.
#[inline(always)]
pub fn show4(call: &Call) {
    show::<Inet>(call, call.v4());
}

/// `recvmsg6` and `getpeername6`.
#[inline(always)]
pub fn show6(call: &Call) {
    match call.v6() {
        Known::V4(addr) => show::<Mapped>(call, addr),
        Known::V6(addr) => show::<Inet6>(call, addr),
    }
}

/// Whether calls of this protocol are translated. SCTP is left to the packets' path: its
/// associations have many addresses.
#[inline(always)]
fn is_served(protocol: u8) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_UDP
}

#[inline(always)]
fn connect<S: Form>(call: &Call, addr: <S::Family as Family>::Addr) -> Outcome {
    let protocol = call.protocol();
    if !is_served(protocol) {
        return Outcome::Proceed;
    }
    let Asked(asked) = &Asked(FrontendKey::new(addr, call.port(), protocol));
    let decision = match service::<S::Family>(&asked.addr) {
        Destination::Service(flags) => decide::<S>(call, asked, flags),
        Destination::Unassigned if mode::leaves(true) => Decision::Leave,
        Destination::Unassigned => Decision::Fail(UNREACHABLE),
        Destination::Other => Decision::Leave,
    };
    if let Decision::Fail(errno) = decision {
        count::event(Counter::SocketRefused);
        return Outcome::Fail(errno);
    }
    if protocol == IPPROTO_UDP {
        // A UDP socket may connect again and again, and a port that its process bound stays what
        // it is: an entry for the former peer would show a stranger as the frontend.
        forget_peer(&call.sock(), call.cookie(), protocol);
    }
    let Decision::To(frontend, Choice { backend, .. }) = decision else { return Outcome::Proceed };
    let key = to_frontend(call.cookie(), backend.addr, backend.port, protocol);
    let peer = SocketPeer {
        addr: asked.addr,
        port: asked.port,
        flags: SocketPeer::<<S::Family as Family>::Addr>::CONNECTED,
        frontend,
    };
    // A TCP socket needs the entry for nothing but its peer's name.
    if !socket::put::<S::Family>(&key, &peer) && protocol == IPPROTO_UDP {
        return Outcome::Fail(NO_MEMORY);
    }
    call.rewrite::<S>(&backend.addr, backend.port);
    count::event(Counter::SocketConnected);
    Outcome::Proceed
}

#[inline(always)]
fn send<S: Form>(call: &Call, addr: <S::Family as Family>::Addr) -> Outcome {
    let protocol = call.protocol();
    if protocol != IPPROTO_UDP {
        return Outcome::Proceed;
    }
    let Asked(asked) = &Asked(FrontendKey::new(addr, call.port(), protocol));
    let flags = match service::<S::Family>(&asked.addr) {
        Destination::Service(flags) => flags,
        Destination::Unassigned if mode::leaves(true) => return Outcome::Proceed,
        Destination::Unassigned => return refused(UNREACHABLE),
        Destination::Other => return Outcome::Proceed,
    };
    let cookie = call.cookie();
    let way = SocketKey::<<S::Family as Family>::Addr>::TO_BACKEND;
    let key = SocketKey::new(cookie, asked.addr, asked.port, protocol, way);
    let known = socket::get::<S::Family>(&key);
    let (backend_addr, backend_port, frontend) = match known {
        Some(SocketPeer { addr, port, frontend, .. }) => {
            let descriptor = backend::descriptor::<S::Family>(frontend);
            match descriptor.map(|descriptor| may_translate::<S>(call, &descriptor)) {
                Some(Permission::Granted) => (addr, port, frontend),
                Some(Permission::None) => return Outcome::Proceed,
                Some(Permission::Denied) | None => return refused(UNREACHABLE),
            }
        }
        None => match decide::<S>(call, asked, flags) {
            Decision::To(frontend, Choice { backend, .. }) => {
                (backend.addr, backend.port, frontend)
            }
            Decision::Leave => return Outcome::Proceed,
            Decision::Fail(errno) => return refused(errno),
        },
    };
    // Neither entry is there for long without the other, but two frontends may have led this
    // socket to one backend: what it sent to last is what it waits for.
    let back = to_frontend(cookie, backend_addr, backend_port, protocol);
    if !is_shown_as::<S::Family>(&back, asked) {
        let peer = SocketPeer { addr: asked.addr, port: asked.port, flags: 0, frontend };
        if !socket::put::<S::Family>(&back, &peer) {
            return refused(NO_MEMORY);
        }
    }
    if known.is_none() {
        let peer = SocketPeer { addr: backend_addr, port: backend_port, flags: 0, frontend };
        let asked = SocketPeer { addr: asked.addr, port: asked.port, flags: 0, frontend };
        if !socket::put::<S::Family>(&key, &peer)
            || !socket::put::<S::Family>(&last::<S::Family>(cookie), &asked)
        {
            return refused(NO_MEMORY);
        }
    }
    call.rewrite::<S>(&backend_addr, backend_port);
    count::event(Counter::SocketSent);
    Outcome::Proceed
}

#[inline(always)]
fn refused(errno: i32) -> Outcome {
    count::event(Counter::SocketRefused);
    Outcome::Fail(errno)
}

#[inline(always)]
fn show<S: Form>(call: &Call, addr: <S::Family as Family>::Addr) {
    let protocol = call.protocol();
    if !is_served(protocol) {
        return;
    }
    let key = to_frontend(call.cookie(), addr, call.port(), protocol);
    if let Some(peer) = socket::get::<S::Family>(&key) {
        call.rewrite::<S>(&peer.addr, peer.port);
    }
}

/// `sock_release`: a socket that is closed needs its entries no more.
#[inline(always)]
pub fn release(sock: &Sock) {
    let protocol = sock.protocol();
    if !is_served(protocol) {
        return;
    }
    let cookie = sock.cookie();
    forget_peer(sock, cookie, protocol);
    if protocol == IPPROTO_UDP {
        forget_last::<V4>(cookie);
        if sock.is_inet6() {
            forget_last::<V6>(cookie);
        }
    }
}

/// Whether what a stale socket sends ends here: the `sendmsg` hook does not see what connected
/// sockets send, and their backend serves no more.
#[inline(always)]
pub fn is_stale(packet: &SentPacket) -> bool {
    let is_stale = match packet.protocol() {
        V4::ETHER_TYPE => sends_to_stale::<V4>(packet),
        V6::ETHER_TYPE => sends_to_stale::<V6>(packet),
        _ => None,
    };
    is_stale == Some(true)
}

#[inline(always)]
fn sends_to_stale<F: Family>(packet: &SentPacket) -> Option<bool> {
    let addresses: Pair<F::Addr> = read(packet, F::SRC_OFFSET)?;
    let mut segment = Segment::new();
    F::parse(packet, &mut segment).ok()?;
    if segment.key.protocol != IPPROTO_UDP {
        return None;
    }
    let key = to_frontend(packet.cookie(), addresses.dst, segment.key.dst_port, IPPROTO_UDP);
    let stale = socket::get::<F>(&key)?.has(SocketPeer::<F::Addr>::STALE);
    if stale {
        count::event(Counter::SocketStale);
    }
    Some(stale)
}

/// Whether a call may be translated at all.
enum Permission {
    /// It may.
    Granted,
    /// It is left as it is: its packets are judged one by one.
    None,
    /// It may not, and nothing else will serve it.
    Denied,
}

/// Asks the rules that a frontend has about its clients. A socket that is not bound has no address
/// yet that could be looked up in the ranges: that of the node is one of a few, that of a pod is
/// found in its packets.
#[inline(always)]
fn may_translate<S: Form>(call: &Call, descriptor: &Descriptor) -> Permission {
    if !descriptor.has(Descriptor::SOURCE_RANGES) {
        return Permission::Granted;
    }
    let bound = S::bound(&call.sock());
    let is_admitted = if bound != <S::Family as Family>::Addr::UNSPECIFIED {
        range::admits::<S::Family>(descriptor, &bound)
    } else if call.is_of_node() {
        descriptor.has(Descriptor::NODE_IN_RANGE)
    } else {
        return Permission::None;
    };
    if is_admitted { Permission::Granted } else { Permission::Denied }
}

/// What a call asks for. Aligned, because the compiler reads an address in words of 8 bytes where it
/// can, and the verifier wants those of the stack aligned.
#[repr(C, align(8))]
struct Asked<A>(FrontendKey<A>);

/// What an address is to a client.
enum Destination {
    /// A Service's.
    Service(AddressFlags),
    /// Of a Service range, but no Service's.
    Unassigned,
    /// Something else, or nobody's.
    Other,
}

#[inline(always)]
fn service<F: Family>(addr: &F::Addr) -> Destination {
    match address::what::<F>(addr) {
        Some(flags) if flags.has(AddressFlags::SERVICE) => Destination::Service(flags),
        Some(flags) if flags.has(AddressFlags::NODE) => Destination::Other,
        _ if address::is_unassigned::<F>(addr) => Destination::Unassigned,
        _ => Destination::Other,
    }
}

/// What becomes of a call about a service address.
#[inline(always)]
fn decide<S: Form>(
    call: &Call,
    asked: &FrontendKey<<S::Family as Family>::Addr>,
    address: AddressFlags,
) -> Decision<<S::Family as Family>::Addr> {
    if mode::leaves(true) {
        return Decision::Leave;
    }
    let Some(frontend) = address::listener::<S::Family>(asked) else {
        return if address.has(AddressFlags::NODE) {
            Decision::Leave
        } else if address.has(AddressFlags::CLUSTER_IP) {
            Decision::Fail(REFUSED)
        } else {
            Decision::Fail(UNREACHABLE)
        };
    };
    let Some(descriptor) = backend::descriptor::<S::Family>(frontend) else {
        return Decision::Fail(UNREACHABLE);
    };
    match may_translate::<S>(call, &descriptor) {
        Permission::Granted => {}
        Permission::None => return Decision::Leave,
        Permission::Denied => return Decision::Fail(UNREACHABLE),
    }
    match choose::<S>(call, &descriptor) {
        Ok(choice) => Decision::To(frontend, choice),
        Err(NoChoice::Reject) => Decision::Fail(REFUSED),
        Err(NoChoice::Drop | NoChoice::Missing) => Decision::Fail(UNREACHABLE),
    }
}

/// Chooses a backend. By chance: the source port, which would be in the hash, is not chosen yet.
/// Affinity is to the address that the socket is bound to, else to all clients of its namespace.
#[inline(always)]
fn choose<S: Form>(
    call: &Call,
    descriptor: &Descriptor,
) -> Result<Choice<<S::Family as Family>::Addr>, NoChoice> {
    // SAFETY: no arguments, no memory.
    let chance = unsafe { bpf_get_prandom_u32() };
    let (client, now) = if descriptor.affinity == 0 {
        // Nobody looks at it.
        (AffinityKey::of_namespace::<<S::Family as Family>::Addr>(0, 0), 0)
    } else {
        let bound = S::bound(&call.sock());
        let client = if bound == <S::Family as Family>::Addr::UNSPECIFIED {
            let cookie = call.netns_cookie();
            AffinityKey::of_namespace::<<S::Family as Family>::Addr>(descriptor.service, cookie)
        } else {
            AffinityKey::of_address(descriptor.service, &bound)
        };
        (client, ingress::now())
    };
    backend::choose::<S::Family>(descriptor, Side::Internal, chance, &client, now)
}

#[inline(always)]
fn to_frontend<A>(cookie: u64, addr: A, port: u16, protocol: u8) -> SocketKey<A> {
    SocketKey::new(cookie, addr, port, protocol, SocketKey::<A>::TO_FRONTEND)
}

#[inline(always)]
fn last<F: Family>(cookie: u64) -> SocketKey<F::Addr> {
    let way = SocketKey::<F::Addr>::LAST;
    SocketKey::new(cookie, F::Addr::UNSPECIFIED, 0, IPPROTO_UDP, way)
}

/// Whether the socket sees this backend as the frontend that it asked for, or is connected to it:
/// then the connection's frontend is what it sees.
#[inline(always)]
fn is_shown_as<F: Family>(back: &SocketKey<F::Addr>, asked: &FrontendKey<F::Addr>) -> bool {
    socket::get::<F>(back).is_some_and(|peer| {
        peer.has(SocketPeer::<F::Addr>::CONNECTED)
            || peer.port == asked.port && peer.addr == asked.addr
    })
}

#[inline(always)]
fn forget_peer(sock: &Sock, cookie: u64, protocol: u8) {
    match sock.peer() {
        Some((Known::V4(addr), port)) => {
            socket::remove::<V4>(&to_frontend(cookie, addr, port, protocol));
        }
        Some((Known::V6(addr), port)) => {
            socket::remove::<V6>(&to_frontend(cookie, addr, port, protocol));
        }
        None => {}
    }
}

/// Forgets the frontend that a socket sent to last, and the backend it has for it.
#[inline(always)]
fn forget_last<F: Family>(cookie: u64) {
    let last = last::<F>(cookie);
    let Some(SocketPeer { addr, port, .. }) = socket::get::<F>(&last) else { return };
    socket::remove::<F>(&last);
    let way = SocketKey::<F::Addr>::TO_BACKEND;
    let to_backend = SocketKey::new(cookie, addr, port, IPPROTO_UDP, way);
    if let Some(SocketPeer { addr, port, .. }) = socket::get::<F>(&to_backend) {
        socket::remove::<F>(&to_backend);
        socket::remove::<F>(&to_frontend(cookie, addr, port, IPPROTO_UDP));
    }
}

//! Sockets: frames go out by `AF_PACKET`, others' announcements come in, and groups are joined by which IPv6
//! neighbours ask.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::frames::{ADVERTISEMENT, ANSWER};

/// Sends frames. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

impl FrameSocket {
    /// One that receives nothing.
    pub fn open() -> io::Result<Self> {
        raw_socket(libc::AF_PACKET, 0).map(Self)
    }

    /// Sends a frame with its link-layer header by a device.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: integers and bytes, of which zeroes are a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        if let Some(kind) = frame.get(12..14) {
            // What follows, for those who look at frames on their way out.
            to.sll_protocol = u16::from_ne_bytes([kind[0], kind[1]]);
        }
        // SAFETY: both point to memory of the sizes that are given, and outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn raw_socket(family: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers only.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hears, on every device, frames of ARP whose sender asks or tells about its own address, and answers. Needs
/// `CAP_NET_RAW`.
pub fn hear_arp() -> io::Result<OwnedFd> {
    // Of the frame: the operation, sender's and target's address.
    const OPERATION: u32 = 20;
    const SENDER: u32 = 28;
    const TARGET: u32 = 38;
    let load_half = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let is = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let keep = (libc::BPF_MISC | libc::BPF_TAX) as u16;
    let is_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    // Networks ask all day; the thread that announces is not woken for that.
    let mut filter = [
        step(load_half, OPERATION, 0, 0),
        step(is, ANSWER.into(), 4, 0),
        step(load, SENDER, 0, 0),
        step(keep, 0, 0, 0),
        step(load, TARGET, 0, 0),
        step(is_equal, 0, 0, 1),
        step(answer, 64, 0, 0),
        step(answer, 0, 0, 0),
    ];
    // Nothing is heard before the filter is there.
    let socket = raw_socket(libc::AF_PACKET, 0)?;
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    // SAFETY: integers and bytes, of which zeroes are a value.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = libc::AF_PACKET as u16;
    at.sll_protocol = (libc::ETH_P_ARP as u16).to_be();
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address has the size that is given, and outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), size) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Hears, on every device, advertisements of neighbours that come to this node. Needs `CAP_NET_RAW`.
pub fn hear_advertisements() -> io::Result<OwnedFd> {
    const TYPE: usize = ADVERTISEMENT as usize;
    const ICMP6_FILTER: i32 = 1;
    let socket = raw_socket(libc::AF_INET6, libc::IPPROTO_ICMPV6)?;
    // A bit for each type that is not handed on (RFC 3542, 3.2).
    let mut blocked = [u32::MAX; 8];
    blocked[TYPE / 32] &= !(1 << (TYPE % 32));
    set_option(&socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &blocked)?;
    Ok(socket)
}

fn set_option<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value has the size that is given, and outlives the call, as does what it points to.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A group on a device.
pub type Group = (u32, Ipv6Addr);

/// Memberships.
#[derive(Debug, Default)]
pub struct Groups {
    joined: BTreeMap<Group, usize>,
    /// A socket has room for some tens of them.
    sockets: Vec<OwnedFd>,
}

impl Groups {
    /// The groups that are joined.
    pub fn joined(&self) -> impl Iterator<Item = &Group> {
        self.joined.keys()
    }

    /// Joins a group; once more is no mistake.
    pub fn join(&mut self, group: Group) -> io::Result<()> {
        if self.joined.contains_key(&group) {
            return Ok(());
        }
        let last = self.sockets.len().checked_sub(1);
        if let Some(last) = last
            && membership(&self.sockets[last], libc::IPV6_ADD_MEMBERSHIP, group).is_ok()
        {
            self.joined.insert(group, last);
            return Ok(());
        }
        // SAFETY: integers only.
        let fd = unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        membership(&socket, libc::IPV6_ADD_MEMBERSHIP, group)?;
        self.joined.insert(group, self.sockets.len());
        self.sockets.push(socket);
        Ok(())
    }

    /// Leaves a group. That its device is gone, and the membership with it, is no mistake.
    pub fn leave(&mut self, group: Group) {
        if let Some(socket) = self.joined.remove(&group) {
            let _ = membership(&self.sockets[socket], libc::IPV6_DROP_MEMBERSHIP, group);
        }
        if self.joined.is_empty() {
            self.sockets.clear();
        }
    }
}

fn membership(socket: &OwnedFd, option: i32, (ifindex, group): Group) -> io::Result<()> {
    let request = libc::ipv6_mreq {
        ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
        ipv6mr_interface: ifindex,
    };
    set_option(socket, libc::IPPROTO_IPV6, option, &request)
}

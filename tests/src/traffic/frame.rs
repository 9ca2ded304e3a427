//! Whole frames: what no socket of the kernel would send, and what arrives before any of them
//! has a say.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A packet socket on one device. Opened in a namespace, used from any thread.
#[derive(Debug)]
pub struct Wire {
    fd: OwnedFd,
}

impl Wire {
    /// Opens it on a device of the calling thread's namespace. From here on it collects every
    /// frame that the device receives or sends, up to the size of the socket's buffer.
    pub fn open(device: &str) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        let index = if_nametoindex(device)?;
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).expect("small"),
            sll_protocol: u16::try_from(libc::ETH_P_ALL).expect("small").to_be(),
            sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
        // SAFETY: the pointer is to a whole `sockaddr_ll`, its family says so, and the length is
        // its size.
        let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
        bind(fd.as_raw_fd(), &address.ok_or(io::ErrorKind::InvalidInput)?)?;
        setsockopt(&fd, sockopt::RcvBuf, &(4 << 20))?;
        Ok(Self { fd })
    }

    /// Sends a frame, Ethernet header included.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next frame for which `wanted` holds, if one comes before `timeout`.
    pub fn receive(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
            setsockopt(&self.fd, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))?;
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) if wanted(&buffer[..count]) => return Ok(Some(buffer[..count].to_vec())),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Every frame for which `wanted` holds, until `time` is over.
    pub fn collect(
        &self,
        time: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + time;
        let mut frames = Vec::new();
        while let Some(frame) =
            self.receive(deadline.saturating_duration_since(Instant::now()), &mut wanted)?
        {
            frames.push(frame);
        }
        Ok(frames)
    }
}

/// Six bytes from the usual notation.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// What a hand-made segment is.
#[derive(Clone, Copy, Debug)]
pub enum Segment<'a> {
    /// TCP with these flags (0x02 SYN, 0x10 ACK, 0x04 RST), sequence and acknowledgement numbers
    /// and payload.
    Tcp {
        /// Flags.
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Payload.
        payload: &'a [u8],
    },
    /// UDP with this payload.
    Udp(&'a [u8]),
}

/// A frame with right checksums, whoever it claims to be from. Both addresses are of one family.
///
/// # Panics
///
/// If the families differ or the payload is too long.
pub fn build(
    dst_mac: [u8; 6],
    src_mac: [u8; 6],
    src: SocketAddr,
    dst: SocketAddr,
    segment: Segment<'_>,
) -> Vec<u8> {
    let ports = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    let (protocol, checksum_at, mut bytes) = match segment {
        Segment::Tcp { flags, seq, ack, payload } => {
            let mut bytes = ports;
            bytes.extend_from_slice(&seq.to_be_bytes());
            bytes.extend_from_slice(&ack.to_be_bytes());
            bytes.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            bytes.extend_from_slice(payload);
            (6_u8, 16, bytes)
        }
        Segment::Udp(payload) => {
            let mut bytes = ports;
            let length = u16::try_from(8 + payload.len()).expect("a short payload");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(payload);
            (17, 6, bytes)
        }
    };
    let length = u16::try_from(bytes.len()).expect("a short payload");
    let (ethertype, header, pseudo) = match (src, dst) {
        (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
            let total = (20 + length).to_be_bytes();
            let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
            header.extend_from_slice(&src.ip().octets());
            header.extend_from_slice(&dst.ip().octets());
            let sum = checksum(&[&header]).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            (0x0800_u16, header, [&src.ip().octets()[..], &dst.ip().octets()].concat())
        }
        (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
            let payload = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, payload[0], payload[1], protocol, 64];
            header.extend_from_slice(&src.ip().octets());
            header.extend_from_slice(&dst.ip().octets());
            (0x86dd, header, [&src.ip().octets()[..], &dst.ip().octets()].concat())
        }
        _ => panic!("{src} and {dst} are of two families"),
    };
    let sum = checksum(&[&pseudo, &[0, protocol], &length.to_be_bytes(), &bytes]);
    // UDP writes a sum of zero as all ones.
    let sum = if protocol == 17 && sum == 0 { 0xffff } else { sum };
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    [&dst_mac[..], &src_mac, &ethertype.to_be_bytes(), &header, &bytes].concat()
}

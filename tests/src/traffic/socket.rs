//! Sockets with what std's cannot have: a source address and port, and timeouts from the start.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Where a client sends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Address; the kernel's choice if none.
    pub addr: Option<IpAddr>,
    /// Port; the kernel's choice if 0.
    pub port: u16,
}

impl Source {
    /// The kernel's choice.
    pub const ANY: Self = Self { addr: None, port: 0 };

    /// This port, from the usual address.
    pub const fn port(port: u16) -> Self {
        Self { addr: None, port }
    }

    /// This address and port.
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Self { addr: Some(addr), port }
    }

    fn address_for(self, target: SocketAddr) -> SocketAddr {
        let any = match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        SocketAddr::new(self.addr.unwrap_or(any), self.port)
    }
}

fn open(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    Ok(fd)
}

fn connected(
    target: SocketAddr,
    source: Source,
    timeout: Duration,
    kind: SockType,
) -> io::Result<OwnedFd> {
    let fd = open(target, kind)?;
    let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    let timeout = TimeVal::milliseconds(millis.max(1));
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)?;
    if source != Source::ANY {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(source.address_for(target)))?;
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(target)).map_err(|error| match error {
        // How a send timeout shows in connect(2).
        nix::Error::EINPROGRESS => io::Error::new(io::ErrorKind::TimedOut, "connect timed out"),
        error => error.into(),
    })?;
    Ok(fd)
}

/// A TCP connection; `timeout` holds for connecting and for every read and write after it.
pub fn tcp(target: SocketAddr, source: Source, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::from(connected(target, source, timeout, SockType::Stream)?);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connected UDP socket; `timeout` holds for every receive.
pub fn udp(target: SocketAddr, source: Source, timeout: Duration) -> io::Result<UdpSocket> {
    Ok(connected(target, source, timeout, SockType::Datagram)?.into())
}

/// A listener with a long queue; `[::]` takes IPv4 too.
pub fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = open(address, SockType::Stream)?;
    dual_stack(&fd, address)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(4096)?)?;
    Ok(fd.into())
}

/// A bound UDP socket; `[::]` takes IPv4 too.
pub fn udp_listener(address: SocketAddr) -> io::Result<UdpSocket> {
    let fd = open(address, SockType::Datagram)?;
    dual_stack(&fd, address)?;
    make_room(&fd);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

/// What comes while the process waits for its turn is kept for it. Only where root says so: pods cannot.
pub fn make_room(socket: &impl AsFd) {
    const BYTES: usize = 8 << 20;
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BYTES);
}

fn dual_stack(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        setsockopt(fd, sockopt::Ipv6V6Only, &false)?;
    }
    Ok(())
}

/// Closes a connection with a reset, so that its port is free at once.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

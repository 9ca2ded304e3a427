//! A process that does with sockets what it is told: `lbxdp-testd puppet`. Cgroups hold processes,
//! not threads, so what depends on one needs a process in it.
//!
//! A command is a line, and so is its answer: `ok VALUE` or `error NUMBER` (an errno).

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    getpeername, getsockname, getsockopt, recv, recvfrom, send, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::process::workspace_binary;

/// For one call.
const PATIENCE: i64 = 3;

/// A socket's family and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `SOCK_STREAM`.
    Tcp,
    /// `SOCK_DGRAM`.
    Udp,
    /// A ping socket.
    Ping,
}

/// What a call came to: the value, or an errno.
pub type Outcome<T> = Result<T, Errno>;

/// The handle of such a process. Dropping it ends the process.
#[derive(Debug)]
pub struct Puppet {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Puppet {
    /// A process in a cgroup and in a network namespace.
    #[track_caller]
    pub fn start(cgroup: &Cgroup, netns: &Netns) -> Self {
        let mut command = cgroup.command("nsenter");
        command.arg(format!("--net={}", netns.path().display()));
        command.arg(workspace_binary("lbxdp-testd")).arg("puppet");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start lbxdp-testd");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    /// One command and its answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> Outcome<String> {
        let mut answer = String::new();
        let asked = writeln!(self.input, "{command}")
            .and_then(|()| self.input.flush())
            .and_then(|()| self.output.read_line(&mut answer));
        assert!(asked.is_ok_and(|bytes| bytes > 0), "{command}: the puppet is gone");
        match answer.trim_end_matches('\n').split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            Some(("error", number)) => Err(Errno::from_raw(number.parse().expect("an errno"))),
            _ => panic!("{command}: {answer:?}"),
        }
    }

    /// Opens a socket under a number.
    #[track_caller]
    pub fn open(&mut self, id: u32, kind: Kind, v6: bool) {
        let kind = match kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::Ping => "ping",
        };
        let family = if v6 { "6" } else { "4" };
        self.ask(&format!("open {id} {kind}{family}")).expect("a socket");
    }

    /// `bind(2)`.
    #[track_caller]
    pub fn bind(&mut self, id: u32, to: SocketAddr) {
        self.ask(&format!("bind {id} {to}")).expect("bound");
    }

    /// `connect(2)`.
    #[track_caller]
    pub fn connect(&mut self, id: u32, to: SocketAddr) -> Outcome<()> {
        self.ask(&format!("connect {id} {to}")).map(drop)
    }

    /// `connect(2)` without waiting, then waits.
    #[track_caller]
    pub fn connect_nonblocking(&mut self, id: u32, to: SocketAddr) -> Outcome<()> {
        self.ask(&format!("nonblocking {id} {to}")).map(drop)
    }

    /// `getpeername(2)`.
    #[track_caller]
    pub fn peer(&mut self, id: u32) -> SocketAddr {
        self.ask(&format!("peer {id}")).expect("a peer").parse().expect("an address")
    }

    /// `getsockname(2)`.
    #[track_caller]
    pub fn local(&mut self, id: u32) -> SocketAddr {
        self.ask(&format!("local {id}")).expect("a name").parse().expect("an address")
    }

    /// `send(2)`.
    #[track_caller]
    pub fn send(&mut self, id: u32, text: &str) -> Outcome<()> {
        self.ask(&format!("send {id} {text}")).map(drop)
    }

    /// `sendto(2)`.
    #[track_caller]
    pub fn send_to(&mut self, id: u32, to: SocketAddr, text: &str) -> Outcome<()> {
        self.ask(&format!("sendto {id} {to} {text}")).map(drop)
    }

    /// `recv(2)`, its first line.
    #[track_caller]
    pub fn recv(&mut self, id: u32) -> Outcome<String> {
        self.ask(&format!("recv {id}"))
    }

    /// `recvfrom(2)`: who sent, and what.
    #[track_caller]
    pub fn recv_from(&mut self, id: u32) -> Outcome<(SocketAddr, String)> {
        self.ask(&format!("recvfrom {id}")).map(|answer| {
            let (from, text) = answer.split_once(' ').unwrap_or((&answer, ""));
            (from.parse().expect("an address"), text.to_owned())
        })
    }

    /// `close(2)`.
    #[track_caller]
    pub fn close(&mut self, id: u32) {
        self.ask(&format!("close {id}")).expect("closed");
    }

    /// Connects and closes TCP sockets in a row for so long: how many, how many of them failed,
    /// and nanoseconds for each.
    #[track_caller]
    pub fn connect_for(&mut self, to: SocketAddr, time: Duration) -> (u64, u64, u64) {
        let answer = self.ask(&format!("churn {to} {}", time.as_millis())).expect("a report");
        let numbers: Vec<u64> =
            answer.split(' ').map(|number| number.parse().expect("a number")).collect();
        (numbers[0], numbers[1], numbers[2])
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does what `input` says until it ends.
pub fn serve(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut sockets = BTreeMap::new();
    for line in input.lines() {
        match carry_out(&mut sockets, &line?) {
            Ok(value) => writeln!(output, "ok {value}")?,
            Err(errno) => writeln!(output, "error {}", errno as i32)?,
        }
        output.flush()?;
    }
    Ok(())
}

fn carry_out(sockets: &mut BTreeMap<u32, OwnedFd>, line: &str) -> Outcome<String> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().unwrap_or("");
    let (command, first) = (word(), word());
    if command == "churn" {
        return churn(addr(first)?, word());
    }
    let id: u32 = first.parse().map_err(|_| Errno::EINVAL)?;
    if command == "open" {
        sockets.insert(id, open(word())?);
        return Ok(String::new());
    }
    if command == "close" {
        sockets.remove(&id).ok_or(Errno::EBADF)?;
        return Ok(String::new());
    }
    let socket = sockets.get(&id).ok_or(Errno::EBADF)?;
    let fd = socket.as_raw_fd();
    let mut buffer = [0; 2048];
    match command {
        "bind" => bind(fd, &to(word())?)?,
        "connect" => connect(fd, &to(word())?)?,
        "nonblocking" => connect_nonblocking(socket, word())?,
        "peer" => return shown(&getpeername(fd)?),
        "local" => return shown(&getsockname(fd)?),
        "send" => {
            // A text of several words is in two parts.
            let text = [word(), word()].join(" ");
            send(fd, text.trim_end().as_bytes(), MsgFlags::empty())?;
        }
        "sendto" => {
            let to = to(word())?;
            sendto(fd, word().as_bytes(), &to, MsgFlags::empty())?;
        }
        "recv" => {
            let count = recv(fd, &mut buffer, MsgFlags::empty())?;
            return Ok(first_line(&buffer[..count]));
        }
        "recvfrom" => {
            let (count, from) = recvfrom::<SockaddrStorage>(fd, &mut buffer)?;
            let from = shown(&from.ok_or(Errno::ENOTCONN)?)?;
            return Ok(format!("{from} {}", first_line(&buffer[..count])));
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(String::new())
}

fn open(kind: &str) -> Outcome<OwnedFd> {
    let family = if kind.ends_with('6') { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let (kind, protocol) = match &kind[..kind.len().saturating_sub(1)] {
        "tcp" => (SockType::Stream, None),
        "udp" => (SockType::Datagram, None),
        "ping" if family == AddressFamily::Inet6 => {
            (SockType::Datagram, Some(SockProtocol::IcmpV6))
        }
        "ping" => (SockType::Datagram, Some(SockProtocol::Icmp)),
        _ => return Err(Errno::EINVAL),
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    let patience = TimeVal::seconds(PATIENCE);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    Ok(fd)
}

fn connect_nonblocking(socket: &OwnedFd, target: &str) -> Outcome<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    fcntl(socket.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match connect(socket.as_raw_fd(), &to(target)?) {
        Err(Errno::EINPROGRESS) => {}
        result => return result,
    }
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(PATIENCE * 1000).map_err(|_| Errno::EINVAL)?;
    if poll(&mut fds, timeout)? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    match getsockopt(socket, sockopt::SocketError)? {
        0 => fcntl(socket.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).map(drop),
        errno => Err(Errno::from_raw(errno)),
    }
}

fn churn(target: SocketAddr, millis: &str) -> Outcome<String> {
    let time = Duration::from_millis(millis.parse().map_err(|_| Errno::EINVAL)?);
    let (mut count, mut failed) = (0_u64, 0_u64);
    let start = Instant::now();
    while start.elapsed() < time {
        let tried = open(if target.is_ipv4() { "tcp4" } else { "tcp6" }).and_then(|fd| {
            // Closed with a reset, or the ports would run out.
            setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(target))
        });
        count += 1;
        failed += u64::from(tried.is_err());
    }
    let each = start.elapsed().as_nanos() / u128::from(count.max(1));
    Ok(format!("{count} {failed} {each}"))
}

fn addr(text: &str) -> Outcome<SocketAddr> {
    text.parse().map_err(|_| Errno::EINVAL)
}

fn to(text: &str) -> Outcome<SockaddrStorage> {
    addr(text).map(SockaddrStorage::from)
}

fn shown(addr: &SockaddrStorage) -> Outcome<String> {
    let v4 = addr.as_sockaddr_in().map(|addr| SocketAddr::V4(SocketAddrV4::from(*addr)));
    let v6 = addr.as_sockaddr_in6().map(|addr| SocketAddr::V6(SocketAddrV6::from(*addr)));
    v4.or(v6).map(|addr| addr.to_string()).ok_or(Errno::EAFNOSUPPORT)
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().to_owned()
}

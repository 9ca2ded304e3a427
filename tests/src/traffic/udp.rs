//! A UDP server that answers each datagram with its answer line and the payload.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::socket::{Source, udp};
use super::{Answer, answer_line};

/// Serves until the socket fails.
pub fn serve(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut requests = 0;
    loop {
        let (count, peer) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // An ICMP error about an earlier answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        requests += 1;
        let mut answer = answer_line(name, peer, requests).into_bytes();
        answer.push(b' ');
        answer.extend_from_slice(&buffer[..count]);
        // The client may be gone.
        let _ = socket.send_to(&answer, peer);
    }
}

/// Sends one datagram and waits for the answer to it.
pub fn ask(
    target: SocketAddr,
    source: Source,
    payload: &str,
    timeout: Duration,
) -> io::Result<Answer> {
    ask_on(&udp(target, source, timeout)?, payload)
}

/// The same, of somebody who counts on the answer: where it is missing, the error says whether it came
/// later.
pub fn expect(
    target: SocketAddr,
    source: Source,
    payload: &str,
    timeout: Duration,
) -> io::Result<Answer> {
    let socket = udp(target, source, timeout)?;
    match ask_on(&socket, payload) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(lost(&socket)),
        answer => answer,
    }
}

/// [`ask`] on a socket that is connected already (see [`udp`]).
pub fn ask_on(socket: &UdpSocket, payload: &str) -> io::Result<Answer> {
    socket.send(payload.as_bytes())?;
    let mut buffer = vec![0; 1 << 16];
    let count = socket.recv(&mut buffer)?;
    let answer = Answer::parse(&String::from_utf8_lossy(&buffer[..count]))?;
    if answer.rest == payload {
        return Ok(answer);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("sent {payload:?}, got {:?}", answer.rest),
    ))
}

/// How long a late answer is waited for: only to say that it was late and not lost.
const LATE: Duration = Duration::from_secs(5);

/// What became of the answer that was not there in time.
fn lost(socket: &UdpSocket) -> io::Error {
    let timeout = socket.read_timeout().ok().flatten().unwrap_or_default();
    let port = socket.local_addr().map_or(0, |address| address.port());
    let start = Instant::now();
    let is_late =
        socket.set_read_timeout(Some(LATE)).and_then(|()| socket.recv(&mut [0; 1])).is_ok();
    let said = if is_late { "it came" } else { "nor" };
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!(
            "from port {port}: no answer within {timeout:?}, {said} {:?} later",
            start.elapsed()
        ),
    )
}

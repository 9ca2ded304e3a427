//! A client that sends when it is time, whatever became of what it sent before: who waits for answers
//! sends less while somebody is slow, and does not see how slow.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lbxdp_tests::traffic::socket::make_room;

/// How long the last answers are waited for.
const LATE: Duration = Duration::from_millis(500);
/// Datagrams under way at a time, to find out how many are answered at most.
const WINDOW: u32 = 64;

/// What became of the datagrams.
pub struct Answers {
    /// From the time at which each was to be sent to its answer; in order of size.
    pub took: Vec<Duration>,
    /// How many were not answered.
    pub lost: u32,
}

impl Answers {
    /// Within this time, so many of a thousand were answered. Nobody knows it of what was lost.
    pub fn within(&self, thousandths: usize) -> Option<Duration> {
        let all = self.took.len() + self.lost as usize;
        self.took.get((all * thousandths / 1_000).min(all.saturating_sub(1))).copied()
    }
}

/// A socket whose datagrams are answered with their payload at the end.
struct Socket {
    socket: UdpSocket,
    buffer: [u8; 256],
}

impl Socket {
    fn new(to: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a socket")?;
        socket.connect(to).with_context(|| format!("to {to}"))?;
        socket.set_nonblocking(true)?;
        make_room(&socket);
        Ok(Self { socket, buffer: [0; 256] })
    }

    /// Whether it could be sent.
    fn send(&self, number: u32) -> Result<bool> {
        match self.socket.send(number.to_string().as_bytes()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("a datagram"),
        }
    }

    /// The number of a datagram that was answered.
    fn receive(&mut self) -> Result<Option<u32>> {
        let count = match self.socket.recv(&mut self.buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("an answer"),
        };
        let answer = std::str::from_utf8(&self.buffer[..count])?;
        let number = answer.rsplit(' ').next().and_then(|number| number.parse().ok());
        Ok(Some(number.with_context(|| format!("an answer without a number: {answer}"))?))
    }
}

/// How many datagrams a second are answered, if there is always one to answer.
pub fn at_most(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut socket = Socket::new(to)?;
    let (mut sent, mut answered) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < time {
        while sent - answered < WINDOW && socket.send(sent)? {
            sent += 1;
        }
        while socket.receive()?.is_some() {
            answered += 1;
        }
    }
    ensure!(answered > WINDOW, "{answered} of {sent} datagrams to {to} were answered");
    Ok(f64::from(answered) / begin.elapsed().as_secs_f64())
}

/// Sends so many datagrams a second.
pub fn at_rate(to: SocketAddr, rate: f64, time: Duration) -> Result<Answers> {
    let mut socket = Socket::new(to)?;
    let every = Duration::from_secs_f64(1.0 / rate);
    let count = (time.as_secs_f64() * rate) as u32;
    let mut took = Vec::with_capacity(count as usize);
    let mut sent = 0;
    let begin = Instant::now();
    while took.len() < count as usize && begin.elapsed() < time + LATE {
        while sent < count && begin.elapsed() >= every * sent && socket.send(sent)? {
            sent += 1;
        }
        while let Some(number) = socket.receive()? {
            took.push(begin.elapsed().saturating_sub(every * number));
        }
    }
    took.sort_unstable();
    let lost = count - u32::try_from(took.len())?;
    Ok(Answers { took, lost })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_slower_than_all_others() {
        let took = (1..=900).map(Duration::from_micros).collect();
        let answers = Answers { took, lost: 100 };
        assert_eq!(answers.within(500), Some(Duration::from_micros(501)));
        assert_eq!(answers.within(899), Some(Duration::from_micros(900)));
        assert_eq!(answers.within(900), None);
        assert_eq!(Answers { took: Vec::new(), lost: 0 }.within(500), None);
    }
}

//! What other nodes say they have, unasked or asked: gratuitous ARP, answers of ARP, and neighbour
//! advertisements that come in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::frames::{ADVERTISEMENT, ANSWER, TARGET_MAC};
use super::wire;

/// An address, and the link-layer address that it is said to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub address: IpAddr,
    pub mac: [u8; 6],
}

/// A frame of ARP in which somebody speaks of an address that is its own.
fn arp(frame: &[u8]) -> Option<Claim> {
    // Behind Ethernet's header of 14 bytes: the operation at 6, the sender's addresses at 8, the target's at 18.
    let arp = frame.get(14..42)?;
    let sender: [u8; 4] = arp[14..18].try_into().ok()?;
    let mac = arp[8..14].try_into().ok()?;
    let is_one = arp[24..28] == sender || arp[6..8] == ANSWER.to_be_bytes();
    is_one.then_some(Claim { address: Ipv4Addr::from(sender).into(), mac })
}

/// A message of ICMPv6 that advertises a neighbour.
fn advertisement(message: &[u8]) -> Option<Claim> {
    let message = message.get(..32)?;
    let target: [u8; 16] = message[8..24].try_into().ok()?;
    let is_one = message[0] == ADVERTISEMENT && message[24..26] == TARGET_MAC;
    let mac = message[26..32].try_into().ok()?;
    is_one.then_some(Claim { address: Ipv6Addr::from(target).into(), mac })
}

/// Hears it. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub(super) struct Ears {
    arp: AsyncFd<OwnedFd>,
    icmp: AsyncFd<OwnedFd>,
}

impl Ears {
    /// Within a runtime.
    pub(super) fn open() -> io::Result<Self> {
        let [arp, icmp] = [wire::hear_arp()?, wire::hear_advertisements()?].map(watch);
        Ok(Self { arp: arp?, icmp: icmp? })
    }

    /// Waits for a claim.
    pub(super) async fn next(&self) -> io::Result<Claim> {
        loop {
            let claim = tokio::select! {
                message = receive(&self.arp) => arp(message?.bytes()),
                message = receive(&self.icmp) => advertisement(message?.bytes()),
            };
            if let Some(claim) = claim {
                return Ok(claim);
            }
        }
    }
}

/// Has the runtime wait for a socket.
fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same, and stays open until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// The beginning of a message, which is all that counts.
struct Message {
    bytes: [u8; 64],
    length: usize,
}

impl Message {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.min(self.bytes.len())]
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Message> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let mut bytes = [0; 64];
            let fd = socket.get_ref().as_raw_fd();
            // SAFETY: the buffer has the size that is given, and outlives the call.
            let length = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
            Ok(Message { bytes, length })
        });
        match received {
            // A device that went down says so once; the socket hears the others.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Ok(received) => return received,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Announced, announcements};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn what_is_announced_is_heard_in_each_form() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let frames = announcements(&Announced { address, mac: MAC });
        let heard: Vec<_> = frames.iter().map(|frame| arp(frame)).collect();
        assert_eq!(heard, [Some(Claim { address, mac: MAC }); 2]);

        let address = "2001:db8::1".parse().unwrap();
        let frames = announcements(&Announced { address, mac: MAC });
        // The kernel hands on what is behind Ethernet's header and that of IPv6.
        let heard: Vec<_> = frames.iter().map(|frame| advertisement(&frame[54..])).collect();
        assert_eq!(heard, [Some(Claim { address, mac: MAC })]);
    }

    #[test]
    fn a_question_is_no_claim_and_nothing_too_short_is() {
        let mut frames = announcements(&Announced { address: [192, 0, 2, 1].into(), mac: MAC });
        frames[0][41] = 9;
        assert_eq!(arp(&frames[0]), None);
        // Its answer is.
        frames[0][21] = 2;
        assert_eq!(arp(&frames[0]), Some(Claim { address: [192, 0, 2, 1].into(), mac: MAC }));
        let whole = frames.remove(1);
        assert!((0..42).all(|length| arp(&whole[..length]).is_none()));
        assert!((0..32).all(|length| advertisement(&vec![136; length]).is_none()));
        assert_eq!(advertisement(&[0; 40]), None);
    }
}

//! Servers that say who they are and whom they see, and clients that count the answers.
//!
//! Everything is std only, one thread per connection, and works in any thread inside a
//! namespace (`netns.run(|| http::get(…))`); `lbxdp-testd` wraps the same functions as a program.
//!
//! An answer is one line of `key=value` words: `name=pod-a-1 peer=198.51.100.100 port=40000
//! request=1`. nginx can say the same with its own variables.

pub mod churn;
pub mod echo;
pub mod ending;
pub mod frame;
pub mod hold;
pub mod http;
pub mod load;
pub mod neighbour;
pub mod pattern;
pub mod puppet;
pub mod resolve;
pub mod socket;
pub mod spread;
pub mod transfer;
pub mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long clients wait for what is to come. Where several tests run on few processors, the threads of
/// the kernel that move packets wait for seconds; what is lost does not come later either.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What a server said about itself and about its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client's address, as the server saw it.
    pub peer: SocketAddr,
    /// How many requests this connection had carried, this one included; 0 if not said.
    pub request: u64,
    /// The rest of the words, such as an echoed payload.
    pub rest: String,
}

impl Answer {
    /// Reads an answer line.
    pub fn parse(line: &str) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("no answer: {line:?}"));
        let (mut name, mut peer, mut port, mut request) = (None, None, None, 0);
        let mut rest = Vec::new();
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some(("name", value)) => name = Some(value.to_owned()),
                Some(("peer", value)) => peer = value.parse::<IpAddr>().ok(),
                Some(("port", value)) => port = value.parse::<u16>().ok(),
                Some(("request", value)) => request = value.parse().map_err(|_| bad())?,
                _ => rest.push(word),
            }
        }
        let peer = SocketAddr::new(peer.ok_or_else(bad)?, port.ok_or_else(bad)?);
        Ok(Self { name: name.ok_or_else(bad)?, peer, request, rest: rest.join(" ") })
    }
}

/// An answer line about a client.
pub fn answer_line(name: &str, peer: SocketAddr, request: u64) -> String {
    format!("name={name} peer={} port={} request={request}", peer.ip().to_canonical(), peer.port())
}

//! Connections that stay open while something happens around them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::echo;
use super::socket::Source;

/// Open connections to `tcp-echo` servers.
#[derive(Debug)]
pub struct Held {
    connections: Vec<Option<echo::Client>>,
    pings: u64,
    broken: Vec<Broken>,
}

/// A connection that broke.
#[derive(Clone, Debug, Serialize)]
pub struct Broken {
    /// Its number.
    pub connection: usize,
    /// Whose it was.
    pub backend: String,
    /// How.
    pub error: String,
}

/// What became of all of them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Connections that are open, for each backend.
    pub open: BTreeMap<String, u32>,
    /// Lines that came back.
    pub pings: u64,
    /// Connections that broke.
    pub broken: Vec<Broken>,
}

impl Held {
    /// Opens `count` connections in the calling thread's namespace, from `first_port` upwards if
    /// it is not 0. They may be pinged from any thread.
    pub fn open(
        target: SocketAddr,
        count: u16,
        first_port: u16,
        timeout: Duration,
    ) -> io::Result<Self> {
        let connections = (0..count)
            .map(|n| {
                let port = if first_port == 0 { 0 } else { first_port + n };
                echo::Client::connect(target, Source::port(port), timeout).map(Some)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { connections, pings: 0, broken: Vec::new() })
    }

    /// Sends a line over each and expects it back. Returns how many broke just now.
    pub fn ping_all(&mut self) -> usize {
        let before = self.broken.len();
        for (connection, slot) in self.connections.iter_mut().enumerate() {
            let Some(client) = slot else { continue };
            match client.ping(&format!("ping {connection} {}", self.pings)) {
                Ok(()) => self.pings += 1,
                Err(error) => {
                    let backend = client.answer().name.clone();
                    self.broken.push(Broken { connection, backend, error: error.to_string() });
                    *slot = None;
                }
            }
        }
        self.broken.len() - before
    }

    /// Where things stand.
    pub fn report(&self) -> Report {
        let mut open = BTreeMap::new();
        for client in self.connections.iter().flatten() {
            *open.entry(client.answer().name.clone()).or_default() += 1;
        }
        Report { open, pings: self.pings, broken: self.broken.clone() }
    }
}

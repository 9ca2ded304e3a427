//! Many flows from many ports: how they spread over the backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::socket::{Source, reset};
use super::{PATIENCE, echo, http, udp};

/// Errors that an outcome keeps.
const ERRORS: usize = 5;

/// What a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// One HTTP request; nginx will do.
    Http,
    /// The first line of `tcp-echo`, then a reset: the cheapest, for tens of thousands.
    Echo,
    /// One datagram.
    Udp,
}

/// The flows to open.
#[derive(Clone, Debug)]
pub struct Spread {
    /// To whom.
    pub target: SocketAddr,
    /// What each is.
    pub probe: Probe,
    /// How many.
    pub count: u32,
    /// From these addresses in turn; the usual one if empty.
    pub sources: Vec<IpAddr>,
    /// From this port upwards, each address the same ports; the kernel's choice if 0.
    pub first_port: u16,
    /// For each step of each flow.
    pub timeout: Duration,
}

impl Spread {
    /// `count` flows from ports that the kernel chooses.
    pub fn new(target: SocketAddr, probe: Probe, count: u32) -> Self {
        Self { target, probe, count, sources: Vec::new(), first_port: 0, timeout: PATIENCE }
    }

    /// Ports from here upwards instead.
    #[must_use]
    pub fn from_port(mut self, first_port: u16) -> Self {
        self.first_port = first_port;
        self
    }

    fn source(&self, n: u32) -> Source {
        let addresses = u32::try_from(self.sources.len()).unwrap_or(1).max(1);
        let addr = self.sources.get((n % addresses) as usize).copied();
        let port = match self.first_port {
            0 => 0,
            first => u16::try_from(u32::from(first) + n / addresses)
                .expect("more flows than ports: give it more addresses"),
        };
        Source { addr, port }
    }

    /// Opens them one after the other, in the calling thread's namespace.
    pub fn run(&self) -> Outcome {
        let mut outcome = Outcome::default();
        for n in 0..self.count {
            let source = self.source(n);
            let answer = match self.probe {
                Probe::Http => http::who(self.target, source, self.timeout),
                Probe::Echo => {
                    echo::Client::connect(self.target, source, self.timeout).and_then(|client| {
                        let answer = client.answer().clone();
                        reset(client.into_stream())?;
                        Ok(answer)
                    })
                }
                Probe::Udp => udp::expect(self.target, source, &format!("flow-{n}"), self.timeout),
            };
            match answer {
                Ok(answer) => {
                    *outcome.backends.entry(answer.name.clone()).or_default() += 1;
                    outcome.peers.entry(answer.name).or_default().insert(answer.peer.ip());
                }
                Err(error) => {
                    outcome.failed += 1;
                    if outcome.errors.len() < ERRORS {
                        let Self { target, probe, .. } = self;
                        outcome.errors.push(format!(
                            "{} {probe:?} {n} to {target} from {source:?}: {error}",
                            now()
                        ));
                    }
                }
            }
        }
        outcome
    }
}

/// The time of day (UTC), as logs of agents have it.
fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

/// What came of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Flows that each backend answered.
    pub backends: BTreeMap<String, u32>,
    /// The client's addresses that each backend saw.
    pub peers: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Flows without an answer.
    pub failed: u32,
    /// The first few reasons.
    pub errors: Vec<String>,
}

impl Outcome {
    /// Adds another's flows.
    pub fn add(&mut self, other: Self) {
        let Self { backends, peers, failed, errors } = other;
        for (name, count) in backends {
            *self.backends.entry(name).or_default() += count;
        }
        for (name, seen) in peers {
            self.peers.entry(name).or_default().extend(seen);
        }
        self.failed += failed;
        self.errors.extend(errors);
        self.errors.truncate(ERRORS);
    }

    /// Flows that were answered.
    pub fn answered(&self) -> u32 {
        self.backends.values().sum()
    }

    /// The client's addresses that any backend saw.
    pub fn all_peers(&self) -> BTreeSet<IpAddr> {
        self.peers.values().flatten().copied().collect()
    }

    /// The largest distance of a backend from an even share among `backends` of them, as a
    /// fraction of that share.
    pub fn unevenness(&self, backends: usize) -> f64 {
        let even = f64::from(self.answered()) / backends as f64;
        let silent = backends > self.backends.len();
        let far = self.backends.values().map(|n| (f64::from(*n) - even).abs() / even);
        far.fold(if silent { 1.0 } else { 0.0 }, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_take_turns_and_each_counts_its_ports() {
        let mut spread =
            Spread::new(([203, 0, 113, 1], 80).into(), Probe::Echo, 4).from_port(10_000);
        spread.sources = vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let ports: Vec<_> = (0..4).map(|n| spread.source(n)).collect();
        assert_eq!(ports[1], Source::new([192, 0, 2, 2].into(), 10_000));
        assert_eq!(ports[2], Source::new([192, 0, 2, 1].into(), 10_001));
    }

    #[test]
    fn a_silent_backend_is_as_uneven_as_can_be() {
        let mut outcome = Outcome::default();
        outcome.backends.insert("a".into(), 100);
        outcome.backends.insert("b".into(), 100);
        assert!(outcome.unevenness(2) < 0.001);
        assert!(outcome.unevenness(3) >= 0.5);
    }
}

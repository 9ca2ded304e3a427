//! How many packets a second a node forwards from one network to another, for clients outside: lbxdp,
//! kube-proxy's rules, and the way to the node alone.
//!
//! The kernel makes live frames of what the generator writes, and all that follows happens on the same
//! processor before it goes on: a receiver takes what was sent, works on it, and hands it over. So the
//! time of a run is the time of everything, and nothing is lost, which is checked.

mod generator;
pub mod hosts;
mod kube_proxy;
mod road;
pub mod services;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Barrier;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use lbxdp_bench_ebpf::{Choice, Config, Flow, Place, TEMPLATE, Traffic};
use lbxdp_tests::sweep;
use serde::Serialize;

use self::generator::Generator;
use self::road::Road;
use self::services::Services;
use super::packets::{Packet, Transport};
use super::processors::processors;
use super::stats::Quartiles;
use crate::build_ebpf;
use crate::util::step;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dataplane {
    /// Nobody: the node's device drops everything. What all others take on top of is their own.
    Floor,
    /// This.
    Lbxdp,
    /// kube-proxy's rules for nftables.
    Nftables,
    /// kube-proxy's rules for iptables.
    Iptables,
}

impl Dataplane {
    /// As tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Lbxdp => "lbxdp",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// Flows of [`Flows::Many`].
const MANY: u32 = 40_960;

/// Which flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Flows {
    /// All to one, that is known.
    One,
    /// To each of [`MANY`] in turn, that are known.
    Many,
    /// Each to a flow that begins with it, over all Services.
    New,
}

impl Flows {
    const ALL: [Self; 3] = [Self::One, Self::Many, Self::New];

    const fn name(self) -> &'static str {
        match self {
            Self::One => "1 flow",
            Self::Many => "41k flows",
            Self::New => "new flows",
        }
    }

    /// Packets of a sample, which processors share.
    const fn packets(self) -> u32 {
        match self {
            Self::One | Self::Many => MANY,
            // Connection tracking keeps each for a while, and its table is not without end.
            Self::New => 8_192,
        }
    }

    const fn choice(self) -> Choice {
        match self {
            Self::One => Choice::One,
            Self::Many | Self::New => Choice::Sequential,
        }
    }

    /// The client of the first one, of those that are the `part`th share of all.
    fn client(self, part: usize, share: u32) -> Ipv4Addr {
        let part = part as u32;
        let (base, offset) = match self {
            Self::One => (Ipv4Addr::new(172, 16, 0, 1), part),
            Self::Many => (Ipv4Addr::new(172, 17, 0, 0), part * share / Flow::PORTS),
            Self::New => (Ipv4Addr::new(100, 64, 0, 0), part << 20),
        };
        Ipv4Addr::from_bits(base.to_bits() + offset)
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    cases: Vec<Line>,
}

/// One case.
#[derive(Debug, Serialize)]
struct Line {
    dataplane: Dataplane,
    services: u32,
    flows: Flows,
    /// Nanoseconds for each packet, the generator's included.
    ns: Quartiles,
    /// Packets a second as a multiple of lbxdp's with as many Services, round by round.
    lbxdp: Option<Quartiles>,
    /// Packets a second of two processors as a multiple of one's, round by round.
    two: Option<Quartiles>,
    rounds: usize,
}

/// A road and what was measured on it.
struct Case {
    dataplane: Dataplane,
    services: Services,
    road: Road,
    /// Of each kind of flows: nanoseconds for each packet, one value for each round.
    ns: [Vec<f64>; 3],
    /// The same on two processors.
    two: [Vec<f64>; 3],
    /// The next of the new flows, for each processor.
    next: [u64; 2],
}

/// Measures with each of these numbers of Services.
pub fn run(rounds: u32, services: &[u32]) -> Result<Report> {
    let object = build_ebpf::run_bench()?;
    let processors = processors()?;
    let senders = processors.iter().take(2).map(|processor| Generator::new(&object, *processor));
    let mut senders: Vec<_> = senders.collect::<Result<_>>()?;
    let mut cases = Vec::new();
    let mut add = |dataplane: Dataplane, count: u32| -> Result<()> {
        sweep::wait_if_stopping();
        step(&format!("{} with {count} Services", dataplane.name()));
        let services = Services::new(count);
        let road = Road::new(dataplane, &services, &object, processors.len())
            .with_context(|| format!("{} with {count} Services", dataplane.name()))?;
        let (ns, two) = Default::default();
        cases.push(Case { dataplane, services, road, ns, two, next: [0; 2] });
        Ok(())
    };
    add(Dataplane::Floor, 1)?;
    for count in services {
        for dataplane in [Dataplane::Lbxdp, Dataplane::Nftables, Dataplane::Iptables] {
            add(dataplane, *count)?;
        }
    }
    step("measuring");
    for round in 0..=rounds {
        for case in &mut cases {
            sweep::wait_if_stopping();
            for (place, flows) in Flows::ALL.into_iter().enumerate() {
                let name = format!("{} {}", case.dataplane.name(), flows.name());
                let one = case.sample(flows, &mut senders[..1]).context(name.clone())?;
                let two = match senders.get_mut(..2) {
                    Some(two) => Some(case.sample(flows, two).context(name)?),
                    None => None,
                };
                // The first round makes the flows.
                if round > 0 {
                    case.ns[place].push(one);
                    case.two[place].extend(two);
                }
            }
        }
    }
    Ok(Report::new(&cases))
}

impl Case {
    /// Sends from several processors at once, from each its share. Nanoseconds for each packet.
    fn sample(&mut self, flows: Flows, senders: &mut [Generator]) -> Result<f64> {
        let count = senders.len();
        let share = flows.packets() / u32::try_from(count)?;
        let before = self.road.arrived()?;
        let barrier = Barrier::new(count);
        let results = thread::scope(|scope| {
            let senders = senders.iter_mut().enumerate().map(|(number, sender)| {
                let next = if flows == Flows::New { self.next[number] } else { 0 };
                let config = self.config(flows, number, share);
                let traffic = Traffic {
                    first_service: Services::FIRST.to_bits(),
                    services: self.services.count(),
                    ifindex: self.road.ifindex,
                };
                let (barrier, client) = (&barrier, &self.road.client);
                scope.spawn(move || {
                    let ready = sender.stay();
                    // Everybody comes here, whatever became of that.
                    barrier.wait();
                    ready?;
                    sender.send(client, &config?, &traffic, next)
                })
            });
            let senders: Vec<_> = senders.collect();
            let join = |sender: thread::ScopedJoinHandle<'_, _>| {
                sender.join().unwrap_or_else(|_| Err(anyhow!("the sender panicked")))
            };
            senders.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let sent = u64::from(share) * count as u64;
        self.road.expect(before, sent)?;
        let mut each_ns = 0.0;
        for (number, (took, next)) in results.into_iter().enumerate() {
            if flows == Flows::New {
                self.next[number] = next;
            }
            each_ns += f64::from(share) / took.as_nanos() as f64;
        }
        Ok(1.0 / each_ns)
    }

    fn config(&self, flows: Flows, part: usize, share: u32) -> Result<Config> {
        let client = flows.client(part, share);
        let packet = Packet {
            from: self.road.client_mac,
            to: self.road.node_mac,
            src: SocketAddr::new(client.into(), 0),
            dst: SocketAddr::new(Services::FIRST.into(), Services::PORT),
            ttl: 64,
            transport: Transport::Datagram,
        };
        let mut bytes = packet.bytes()?;
        // No checksum, which for IPv4 is allowed: ports and addresses are still to change.
        const CHECKSUM: usize = 14 + 20 + 6;
        bytes[CHECKSUM..CHECKSUM + 2].fill(0);
        Ok(Config {
            template: Packet::words(bytes),
            repeat: share,
            length: u32::try_from(TEMPLATE)?,
            pushed: 0,
            choice: flows.choice() as u32,
            flows: if flows == Flows::New { u32::MAX } else { share },
            place: Place::SourceV4 as u32,
            address: client.to_bits(),
            first_listed: 0,
        })
    }
}

impl Report {
    fn new(cases: &[Case]) -> Self {
        let mut lines = Vec::new();
        for (place, flows) in Flows::ALL.into_iter().enumerate() {
            for case in cases {
                let count = case.services.count();
                let own = cases.iter().find(|other| {
                    other.dataplane == Dataplane::Lbxdp && other.services.count() == count
                });
                let ratio = |of: &[f64], by: &[f64]| {
                    Quartiles::of(&of.iter().zip(by).map(|(of, by)| of / by).collect::<Vec<_>>())
                };
                let (ns, two) = (&case.ns[place], &case.two[place]);
                let is_other = !matches!(case.dataplane, Dataplane::Floor | Dataplane::Lbxdp);
                lines.push(Line {
                    dataplane: case.dataplane,
                    services: count,
                    flows,
                    ns: Quartiles::of(ns),
                    lbxdp: own.filter(|_| is_other).map(|own| ratio(ns, &own.ns[place])),
                    two: (!two.is_empty()).then(|| ratio(ns, two)),
                    rounds: ns.len(),
                });
            }
        }
        Self { cases: lines }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| flows | forwarded by | Services | ns | lbxdp × | two processors × |")?;
        writeln!(f, "|---|---|--:|--:|--:|--:|")?;
        for Line { dataplane, services, flows, ns, lbxdp, two, rounds: _ } in &self.cases {
            let ratio = |of: &Option<Quartiles>| of.map_or(String::new(), |of| format!("{of:.2}"));
            let (flows, name, two) = (flows.name(), dataplane.name(), ratio(two));
            writeln!(f, "| {flows} | {name} | {services} | {ns:.0} | {} | {two} |", ratio(lbxdp))?;
        }
        let rounds = self.cases.first().map_or(0, |line| line.rounds);
        write!(f, "\n{rounds} rounds, median (first to third quartile)")
    }
}

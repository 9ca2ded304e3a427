//! One case: a packet, the flows it takes turns with, the program it goes through, and everything that
//! must be so for its time to mean something.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramFd;
use lbxdp_bench_ebpf::{Choice, Config, Flow, Place as FlowPlace, TEMPLATE};

use super::packet::Packet;
use super::runner::{Place, Runner};
use super::world::{Moved, World};

/// Packets of one sample.
pub const PACKETS: u32 = 8_000;
/// How long it may take until every flow is in the table.
const FILLED_WITHIN: Duration = Duration::from_secs(30);

/// Counters of which a sample must move so many.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Their names; their sum counts.
    pub counters: &'static [&'static str],
    /// At least this share of the packets.
    pub least: f64,
    /// At most this.
    pub most: f64,
}

impl Share {
    /// Each packet counts one of these.
    pub const fn all(counters: &'static [&'static str]) -> Self {
        Self { counters, least: 1.0, most: 1.0 }
    }

    /// Nearly each packet counts one of these.
    pub const fn nearly_all(counters: &'static [&'static str]) -> Self {
        Self { counters, least: 0.99, most: 1.0 }
    }

    /// Hardly any packet does.
    pub const fn hardly_any(counters: &'static [&'static str]) -> Self {
        Self { counters, least: 0.0, most: 0.01 }
    }

    fn check(&self, moved: &Moved, packets: u32) -> Result<()> {
        let count: u64 = self.counters.iter().filter_map(|name| moved.get(name)).sum();
        let share = count as f64 / f64::from(packets);
        ensure!(
            (self.least..=self.most).contains(&share),
            "{} of {packets} packets counted {:?}, not {} to {} of each; moved: {moved:?}",
            count,
            self.counters,
            self.least,
            self.most,
        );
        Ok(())
    }
}

/// What the program leaves of flow 0's packet.
#[derive(Clone, Debug)]
pub enum Output {
    /// The same bytes.
    Same,
    /// This packet. A port of zero stands for any, and so does the last octet of its receiver's
    /// address where `any_backend`: the program chooses both.
    Packet {
        /// What is expected.
        packet: Packet,
        /// Whether any of the backends may be the receiver.
        any_backend: bool,
    },
    /// Something else: not looked at.
    Other,
}

impl Output {
    fn check(&self, input: &[u8; TEMPLATE], output: &[u8]) -> Result<()> {
        match self {
            Self::Other => {}
            Self::Same => ensure!(output == input, "the packet was changed: {output:02x?}"),
            Self::Packet { packet, any_backend } => {
                let seen = Packet::parse(output)?;
                let mut expected = packet.clone();
                if expected.src.port() == 0 {
                    expected.src.set_port(seen.src.port());
                }
                if *any_backend && is_neighbour(expected.dst.ip(), seen.dst.ip()) {
                    expected.dst.set_ip(seen.dst.ip());
                }
                ensure!(seen == expected, "the packet became {seen:?}, not {expected:?}");
                // Checksums, and whatever else there is.
                ensure!(output == expected.bytes()?, "{expected:?} has wrong checksums");
            }
        }
        Ok(())
    }
}

/// Whether two addresses differ in their last octet at most.
fn is_neighbour(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..15] == b.octets()[..15],
        _ => false,
    }
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// lbxdp's, on the node with this number.
    Lbxdp(usize),
    /// One of the benchmark's own, by its name.
    Own(&'static str),
}

/// What has to happen before the first sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Each flow's packet has to meet its flow.
    Established,
    /// So many flows have to have been created, of this case's own kind of packet.
    Created(u64),
}

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, `path/family/protocol/flows`.
    pub name: String,
    /// Through which program.
    pub subject: Subject,
    /// Flow 0's packet.
    pub packet: Packet,
    /// How flows are chosen.
    pub choice: Choice,
    /// Of how many.
    pub flows: u32,
    /// Bytes that the program puts in front of a packet.
    pub pushed: u32,
    /// Packets of a sample.
    pub packets: u32,
    /// What comes first.
    pub before: Before,
    /// Verdicts that are right.
    pub verdicts: &'static [u32],
    /// What lbxdp counts.
    pub shares: Vec<Share>,
    /// What flow 0's packet becomes.
    pub output: Output,
    /// The case to compare with, beside the control.
    pub reference: Option<&'static str>,
    /// The next flow in turn, where they take turns.
    pub next: u64,
    /// Where the flows begin in the list, where they are listed.
    pub first_listed: u32,
}

impl Case {
    /// A case of one flow that changes nothing.
    pub fn new(name: impl Into<String>, subject: Subject, packet: Packet) -> Self {
        Self {
            name: name.into(),
            subject,
            packet,
            choice: Choice::One,
            flows: 1,
            pushed: 0,
            packets: PACKETS,
            before: Before::Nothing,
            verdicts: &[],
            shares: Vec::new(),
            output: Output::Other,
            reference: None,
            next: 0,
            first_listed: 0,
        }
    }

    /// What the wrapper is told.
    pub fn config(&self, choice: Choice, repeat: u32) -> Result<Config> {
        let bytes = self.packet.bytes()?;
        let mut template = [0; TEMPLATE / 8];
        for (word, bytes) in template.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let is_v6 = self.packet.src.is_ipv6();
        let place = match (self.choice == Choice::Listed, is_v6) {
            (false, false) => FlowPlace::SourceV4,
            (false, true) => FlowPlace::SourceV6,
            (true, false) => FlowPlace::ReplyV4,
            (true, true) => FlowPlace::ReplyV6,
        };
        Ok(Config {
            template,
            repeat,
            length: u32::try_from(TEMPLATE)?,
            pushed: self.pushed,
            choice: choice as u32,
            flows: self.flows,
            place: place as u32,
            address: last_word(self.packet.src.ip()),
            first_listed: self.first_listed,
        })
    }

    /// Runs flow 0's packet once and looks at what becomes of it.
    pub fn check(&self, runner: &mut Runner, program: &ProgramFd, place: &Place) -> Result<()> {
        let run = runner.run(program, place, &self.config(Choice::One, 1)?, 0)?;
        self.check_verdict(run.verdict)?;
        self.output.check(&self.packet.bytes()?, &run.bytes)
    }

    /// Brings about what has to be so before the first sample.
    pub fn prepare(&mut self, runner: &mut Runner, world: &mut World) -> Result<()> {
        let (turns, wanted, counter) = match self.before {
            Before::Nothing => return Ok(()),
            Before::Established => (self.flows, u64::from(self.flows), "flow_hit"),
            Before::Created(flows) => (100_000, flows, "flow_new"),
        };
        let deadline = Instant::now() + FILLED_WITHIN;
        let mut created = 0;
        loop {
            world.moved()?;
            let config = self.config(Choice::Sequential, turns)?;
            let run = runner.run(&world.program, &world.place, &config, self.next)?;
            self.next = run.next;
            let moved = world.moved()?;
            let count = moved.get(counter).copied().unwrap_or_default();
            created += count;
            let is_done = match self.before {
                Before::Established => count == wanted,
                _ => created >= wanted,
            };
            if is_done {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{wanted} flows are not in the table after {FILLED_WITHIN:?}; the last {turns} packets \
                 moved {moved:?}"
            );
        }
    }

    /// What a sample has to have brought about.
    pub fn check_sample(&self, verdict: u32, moved: Option<&Moved>) -> Result<()> {
        self.check_verdict(verdict)?;
        if let Some(moved) = moved {
            self.shares.iter().try_for_each(|share| share.check(moved, self.packets))?;
            let known = |name: &&&str| self.shares.iter().any(|share| share.counters.contains(name));
            if let Some(stranger) = moved.keys().find(|name| !known(name)) {
                bail!("{stranger} moved, of {moved:?}");
            }
        }
        Ok(())
    }

    fn check_verdict(&self, verdict: u32) -> Result<()> {
        ensure!(self.verdicts.contains(&verdict), "verdict {verdict}, not {:?}", self.verdicts);
        Ok(())
    }
}

/// The last four bytes of an address, host order.
pub fn last_word(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => u128::from(address) as u32,
    }
}

/// Flow 0's client: its address has room for four billion others.
pub fn client(v6: bool) -> Result<SocketAddr> {
    let address: IpAddr = if v6 { "2001:db8:c::6440:0" } else { "100.64.0.0" }.parse()?;
    let port = Flow::of(0, 0).port;
    Ok((address, u16::try_from(port).context("a port")?).into())
}

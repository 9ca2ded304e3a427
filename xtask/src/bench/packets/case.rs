//! One case: a packet, the flows it takes turns with, the program it goes through, and everything that
//! must be so for its time to mean something.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lbxdp_bench_ebpf::{Choice, Config, Flow, Place as FlowPlace, TEMPLATE};

use super::cases::Node;
use super::packet::{Packet, Transport};
use super::runner::{Place, Runner};
use super::world::{Moved, World};

/// Packets of one sample.
pub const PACKETS: u32 = 8_000;
/// Packets of ever new flows that fill the benchmark's own tables.
const FILL: u32 = 300_000;
/// What is said of all, where a full table makes exceptions.
const NEARLY_ALL: f64 = 0.95;
/// How many of the flows that are established have to be in the table: a few may find no place in one
/// that is more than half full.
const THERE: f64 = 0.999;
/// How long it may take until they are.
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
        Self { counters, least: NEARLY_ALL, most: 1.0 }
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
    /// This packet. A port of zero stands for any, and so do the last two octets of its receiver's
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

/// Whether two addresses differ in their last two octets at most.
fn is_neighbour(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..2] == b.octets()[..2],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..14] == b.octets()[..14],
        _ => false,
    }
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// lbxdp's, on this node.
    Lbxdp(Node),
    /// One of the benchmark's own, by its name.
    Own(&'static str),
}

/// What has to happen before the first sample.
#[derive(Clone, Debug)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Every flow has passed, and all the maps' entries are there. For the benchmark's own programs.
    Passed,
    /// Each flow's packet but a few has to meet its flow, and the backend has to have answered.
    Established,
    /// So many flows have to have been created.
    Created(u64),
    /// No further flow can be created.
    Exhausted,
    /// The flows of this case have to be established, and the packets are replies to them.
    Replying(Box<Case>),
    /// The flows have to be established, and in front of each sample come packets of this case, which
    /// has to be prepared first.
    Beside(Box<Case>),
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
    /// What the packets carry that come first, if not the same.
    pub filler: Transport,
    /// Samples at most, where each leaves something behind.
    pub limit: usize,
    /// Verdicts that are right.
    pub verdicts: &'static [u32],
    /// What lbxdp counts.
    pub shares: Vec<Share>,
    /// Whether it may count something else beside: a table that is full does.
    pub may_count_others: bool,
    /// What flow 0's packet becomes.
    pub output: Output,
    /// The case to compare with, beside the control.
    pub reference: Option<String>,
    /// The next flow in turn, where they take turns.
    pub next: u64,
    /// Where the flows begin in the list, where they are listed.
    pub first_listed: u32,
}

impl Case {
    /// A case of one flow that changes nothing.
    pub fn new(subject: Subject, packet: Packet) -> Self {
        Self {
            name: String::new(),
            subject,
            choice: Choice::One,
            flows: 1,
            pushed: 0,
            packets: PACKETS,
            before: Before::Nothing,
            filler: packet.transport,
            limit: usize::MAX,
            verdicts: &[],
            shares: Vec::new(),
            may_count_others: false,
            output: Output::Other,
            reference: None,
            next: 0,
            first_listed: 0,
            packet,
        }
    }

    /// What the wrapper is told.
    pub fn config(&self, choice: Choice, repeat: u32) -> Result<Config> {
        let template = Packet::words(self.packet.bytes()?);
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

    /// Brings about what has to be so before the first sample, with lbxdp as the program.
    pub fn prepare(&mut self, runner: &mut Runner, world: &mut World) -> Result<()> {
        match self.before.clone() {
            Before::Nothing | Before::Passed => Ok(()),
            Before::Replying(mut request) => {
                request.prepare(runner, world)?;
                self.reply(&request, runner, world)
            }
            Before::Beside(mut other) => {
                other.prepare(runner, world)?;
                self.before = Before::Beside(other);
                self.fill(runner, world)
            }
            Before::Established | Before::Created(_) | Before::Exhausted => {
                self.fill(runner, world)
            }
        }
    }

    /// Creates flows by their own packets, until they are there.
    fn fill(&mut self, runner: &mut Runner, world: &mut World) -> Result<()> {
        /// Enough to find that nothing can be created.
        const ATTEMPTS: u32 = 20_000;
        let deadline = Instant::now() + FILLED_WITHIN;
        let packet = Packet { transport: self.filler, ..self.packet.clone() };
        let filler = Self { packet, ..self.clone() };
        let mut created = 0;
        loop {
            let left = match self.before {
                Before::Created(wanted) => u32::try_from(wanted - created)?.min(100_000),
                Before::Exhausted => ATTEMPTS,
                _ => self.flows,
            };
            if matches!(self.before, Before::Established | Before::Beside(_)) {
                // Else the flows would make room for each other.
                world.answer(self.packet.src.is_ipv6())?;
            }
            world.moved()?;
            let config = filler.config(Choice::Sequential, left)?;
            let run = runner.run(&world.program, &world.place, &config, self.next)?;
            self.next = run.next;
            let moved = world.moved()?;
            let count = |name| moved.get(name).copied().unwrap_or_default();
            created += count("flow_new");
            let is_done = match self.before {
                Before::Created(wanted) => created >= wanted,
                Before::Exhausted => count("flow_new") == 0,
                _ => count("flow_hit") as f64 >= f64::from(left) * THERE,
            };
            if is_done {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not {:?} after {FILLED_WITHIN:?}: the last {left} packets moved {moved:?}",
                self.before,
            );
        }
    }

    /// Makes this case's packets replies to what becomes of those of `request`.
    fn reply(&mut self, request: &Self, runner: &mut Runner, world: &World) -> Result<()> {
        let config = request.config(Choice::Sequential, 1)?;
        let mut flows = Vec::new();
        for number in 0..self.flows {
            let run = runner.run(&world.program, &world.place, &config, number.into())?;
            let request = Packet::parse(&run.bytes)?;
            if number == 0 {
                self.packet.src = request.dst;
                self.packet.dst = request.src;
            }
            let address = last_word(request.dst.ip());
            flows.push(Flow { address, port: request.src.port().into() });
        }
        runner.list(self.first_listed, &flows)
    }

    /// Lets every flow pass twice: the first time it is entered.
    pub fn pass(&mut self, runner: &mut Runner, program: &ProgramFd, place: &Place) -> Result<()> {
        if matches!(self.before, Before::Passed) {
            let turns = self.flows.min(FILL);
            for _ in 0..2 {
                let config = self.config(Choice::Sequential, turns)?;
                self.next = runner.run(program, place, &config, self.next)?.next;
            }
        }
        Ok(())
    }

    /// What a sample has to have brought about.
    pub fn check_sample(&self, verdict: u32, moved: &Moved) -> Result<()> {
        self.check_verdict(verdict)?;
        self.shares.iter().try_for_each(|share| share.check(moved, self.packets))?;
        let is_known = |name| self.shares.iter().any(|share| share.counters.contains(name));
        let stranger = moved.keys().find(|name| !is_known(name));
        ensure!(self.may_count_others || stranger.is_none(), "{stranger:?} moved, of {moved:?}");
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

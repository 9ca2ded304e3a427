//! Virtual members, and a network between them that loses what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::members::Says;
use crate::members::seal::Seal;
use crate::members::swim::{Seen, Swim, Word};

/// One way, at least and at most.
const DELAY: (u64, u64) = (100, 900);

/// Of every member's first life.
pub(super) const EPOCH: u64 = 1_000;

/// A cluster.
pub(super) struct Cluster {
    pub now: Instant,
    start: Instant,
    rng: StdRng,
    nodes: Vec<Node>,
    /// What flies: when it arrives, in which order, from whom, to whom.
    flying: BTreeMap<(Instant, u64), (usize, usize, Vec<u8>)>,
    /// When each member has something to do.
    due: BTreeSet<(Instant, usize)>,
    sent: u64,
    /// Who sleeps until when.
    asleep: Option<(usize, Instant)>,
    /// Packets that are lost, of a thousand.
    pub lost: u32,
    /// Pairs from whom to whom nothing comes.
    pub cut: Box<dyn Fn(usize, usize) -> bool>,
    /// Whoever was called down: when, by whom, of whom.
    pub downs: Vec<(Duration, usize, String)>,
}

struct Node {
    swim: Option<Swim>,
    seal: Seal,
    session: u64,
    due: Option<Instant>,
    sent: u64,
    /// Has arrived while it slept.
    queue: Vec<(usize, Vec<u8>)>,
}

pub(super) fn name(node: usize) -> String {
    format!("worker-{node}.example.com")
}

fn at(node: usize) -> SocketAddr {
    let [high, low] = u16::try_from(node + 1).unwrap().to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 10_470))
}

fn number(at: SocketAddr) -> usize {
    let SocketAddr::V4(at) = at else { panic!("{at}") };
    let [_, _, high, low] = at.ip().octets();
    usize::from(u16::from_be_bytes([high, low])) - 1
}

impl Cluster {
    /// Of so many members that know each other.
    pub(super) fn acquainted(count: usize, seed: u64) -> Self {
        let mut cluster = Self::new(count, seed);
        let now = cluster.now;
        let all: Vec<_> = (0..count).map(|node| (name(node), at(node), EPOCH)).collect();
        for node in 0..count {
            let others: Vec<_> = all.iter().filter(|it| it.0 != name(node)).cloned().collect();
            cluster.swim(node).acquaint(&others, now);
            for other in 0..count {
                let session = cluster.nodes[other].session;
                cluster.nodes[node].seal.meet(at(other), session);
            }
            cluster.after(node);
        }
        cluster.pass(Duration::from_millis(100));
        cluster
    }

    /// Of so many members that find each other by their addresses.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        let start = Instant::now();
        let mut cluster = Self {
            now: start,
            start,
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            flying: BTreeMap::new(),
            due: BTreeSet::new(),
            sent: 0,
            asleep: None,
            lost: 0,
            cut: Box::new(|_, _| false),
            downs: Vec::new(),
        };
        for node in 0..count {
            cluster.nodes.push(Node {
                swim: None,
                seal: Seal::new(b"a key of the cluster", node as u64 + 1),
                session: 0,
                due: None,
                sent: 0,
                queue: Vec::new(),
            });
        }
        for node in 0..count {
            cluster.start(node, EPOCH);
        }
        cluster
    }

    /// Starts an agent, with what it knows from Kubernetes only.
    pub(super) fn start(&mut self, node: usize, epoch: u64) {
        let mut swim = Swim::new(&name(node), at(node), epoch, self.rng.random());
        let peers = (0..self.nodes.len()).map(at).collect();
        swim.set_peers(peers, self.now + Duration::from_micros(self.rng.random_range(0..100_000)));
        let session = self.rng.random_range(1..u64::MAX);
        let it = &mut self.nodes[node];
        it.swim = Some(swim);
        it.seal = Seal::new(b"a key of the cluster", session);
        it.session = session;
        self.after(node);
    }

    /// Ends it without a word.
    pub(super) fn crash(&mut self, node: usize) {
        self.nodes[node].swim = None;
        self.set_due(node, None);
    }

    /// Ends it with one.
    pub(super) fn leave(&mut self, node: usize) {
        let now = self.now;
        self.swim(node).leave(now);
        self.after(node);
        self.crash(node);
    }

    /// It says this of itself from now on.
    pub(super) fn say(&mut self, node: usize, says: Says) {
        let now = self.now;
        self.swim(node).say(now, says);
        self.after(node);
    }

    /// What a member knows of another one.
    pub(super) fn seen(&self, node: usize, other: usize) -> Option<Seen> {
        let swim = self.nodes[node].swim.as_ref().expect("it runs");
        swim.seen().get(name(other).as_str()).copied()
    }

    pub(super) fn swim(&mut self, node: usize) -> &mut Swim {
        self.nodes[node].swim.as_mut().expect("it runs")
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].swim.is_some()).collect()
    }

    /// Whom it calls alive.
    pub(super) fn alive(&self, node: usize) -> BTreeSet<usize> {
        let seen = self.nodes[node].swim.as_ref().expect("it runs").seen();
        let alive = seen.values().filter(|seen| seen.word != Word::Down);
        alive.map(|seen| number(seen.at)).collect()
    }

    /// Whether everybody who runs knows everybody who runs, and nobody else.
    pub(super) fn is_whole(&self) -> bool {
        let running: BTreeSet<usize> = self.running().into_iter().collect();
        running.iter().all(|node| {
            // The roster is compared only if the number is right: it costs.
            let swim = self.nodes[*node].swim.as_ref().expect("it runs");
            swim.others() == running.len() - 1 && {
                let mut alive = self.alive(*node);
                alive.insert(*node);
                alive == running
            }
        })
    }

    /// Lets time pass until this is so.
    #[track_caller]
    pub(super) fn until(
        &mut self,
        what: &str,
        within: Duration,
        mut is_so: impl FnMut(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !is_so(self) {
            assert!(self.now - start < within, "not within {within:?}: {what}");
            self.pass(Duration::from_millis(10));
        }
        self.now - start
    }

    /// Lets so much time pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.flying.first_key_value().map(|((due, _), _)| *due);
            let timer = self.due.first().map(|(due, _)| *due);
            let Some(next) = arrival.into_iter().chain(timer).min().filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            if arrival.is_some_and(|due| due <= next) {
                let (_, (from, to, packet)) = self.flying.pop_first().expect("it is there");
                self.arrive(from, to, &packet);
            } else if let Some((_, node)) = self.due.first().copied() {
                let now = self.now;
                if let Some((_, until)) = self.asleep.filter(|(it, _)| *it == node) {
                    // After what has arrived by then.
                    self.set_due(node, Some(until + Duration::from_micros(1)));
                    continue;
                }
                self.swim(node).tick(now);
                self.after(node);
            }
        }
        self.now = end;
    }

    /// Packets that each member sent in this time, per second: on average, and the one that sent most.
    pub(super) fn rate(&mut self, over: Duration) -> (f64, f64) {
        let sent: Vec<u64> =
            self.nodes.iter_mut().map(|node| std::mem::take(&mut node.sent)).collect();
        let per_second = |count: f64| count / over.as_secs_f64();
        let most = sent.iter().max().copied().unwrap_or(0);
        let mean = sent.iter().sum::<u64>() as f64 / sent.len() as f64;
        (per_second(mean), per_second(most as f64))
    }

    /// A member gets no processor for so long: what arrives waits.
    pub(super) fn sleep(&mut self, node: usize, time: Duration) {
        self.asleep = Some((node, self.now + time));
        self.pass(time);
        self.asleep = None;
        // What has arrived comes first.
        for (from, packet) in std::mem::take(&mut self.nodes[node].queue) {
            self.arrive(from, node, &packet);
        }
    }

    fn arrive(&mut self, from: usize, to: usize, packet: &[u8]) {
        let now = self.now;
        if self.asleep.is_some_and(|(node, until)| node == to && now < until) {
            self.nodes[to].queue.push((from, packet.to_owned()));
            return;
        }
        let node = &mut self.nodes[to];
        let Some(swim) = &mut node.swim else { return };
        let opened = node.seal.open(at(from), packet);
        if let Ok(Some(payload)) = opened.payload {
            // A payload that foca does not like is not a matter of this network.
            swim.receive(now, &payload).expect("it is understood");
        }
        for (_, answer) in opened.answers {
            self.send(to, from, answer);
        }
        self.after(to);
    }

    fn after(&mut self, node: usize) {
        let now = self.now;
        let Node { swim: Some(swim), seal, .. } = &mut self.nodes[node] else { return };
        let packets = swim.packets();
        let mut sealed = Vec::new();
        for (to, payload) in packets {
            sealed.extend(seal.seal(to, &payload));
        }
        let due = swim.due();
        if let Some(news) = swim.news() {
            let time = now - self.start;
            self.downs.extend(news.down.iter().map(|other| (time, node, other.to_string())));
        }
        for (to, packet) in sealed {
            self.send(node, number(to), packet);
        }
        self.set_due(node, due);
    }

    fn set_due(&mut self, node: usize, due: Option<Instant>) {
        let old = std::mem::replace(&mut self.nodes[node].due, due);
        if let Some(old) = old {
            self.due.remove(&(old, node));
        }
        if let Some(due) = due {
            self.due.insert((due, node));
        }
    }

    fn send(&mut self, from: usize, to: usize, packet: Vec<u8>) {
        self.sent += 1;
        self.nodes[from].sent += 1;
        if (self.cut)(from, to) || self.rng.random_range(0..1_000) < self.lost {
            return;
        }
        let delay = Duration::from_micros(self.rng.random_range(DELAY.0..DELAY.1));
        self.flying.insert((self.now + delay, self.sent), (from, to, packet));
    }
}

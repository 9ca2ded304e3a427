//! The protocol at work: a socket, the clock, and the leases that somebody else reads and writes.
//!
//! On a thread of its own: a probe that waits for a processor behind the agent's other work would be a
//! loss that is none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::ask;
use super::lost::Lost;
use super::report::{NodeReport, Report, Tally};
use super::says::Says;
use super::seal::{LONGEST, Seal};
use super::swim::{Swim, Word};
use super::witness::{self, Api, Leases, Record};
use super::{Ask, LeaseLink, Members, Options, Told};
use crate::publish::publish;

/// A socket that could not be opened is tried again after this time.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// What has arrived is taken up to so many packets before anything else is done.
const AT_ONCE: usize = 512;
/// Without a word from the API for so many renewals, it is silent.
const SILENT_AFTER: u32 = 2;
/// Who has no member to talk to renews its lease this often, to learn whether it is alone.
const RENEW_ALONE: Duration = Duration::from_secs(1);
/// How long the others are waited for after the first of them was heard.
const SETTLE: Duration = Duration::from_secs(1);
/// And not longer than this after the start, if nobody is heard.
const JOIN: Duration = Duration::from_secs(3);
/// What follows from the mere passing of time is looked at this often.
const JUDGE_EVERY: Duration = Duration::from_millis(500);
/// The file is written no more often than this.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Somebody who is greeted only now hears of the end so late.
const GOODBYE: Duration = Duration::from_millis(100);
/// The API has so long to take the lease back.
const GIVE_BACK: Duration = Duration::from_millis(500);

/// The task's ends of the channels.
pub(super) struct Channels {
    pub members: watch::Sender<Members>,
    pub addresses: watch::Receiver<BTreeSet<IpAddr>>,
    pub says: watch::Receiver<Says>,
    pub leases: Option<LeaseLink>,
    pub stop: watch::Receiver<bool>,
    pub tally: Arc<Tally>,
}

struct Task {
    options: Options,
    members: watch::Sender<Members>,
    tally: Arc<Tally>,
    link: Option<Ends>,
    net: Option<Net>,
    /// Of the next life.
    epoch: u64,
    leases: Leases,
    /// When the members called whom down.
    downs: BTreeMap<String, Instant>,
    /// Those that may be dead, if that is of interest.
    lost: Option<Lost>,
    /// What this node says of itself.
    says: Says,
    /// What an earlier agent on this node knew, until the API says how it is; `None` if there was none.
    stored: Option<Report>,
    api_heard: Option<Instant>,
    /// Until when the others may still be on their way; `None` until the first is heard.
    settled: Option<Instant>,
    started: Instant,
    judge_due: Instant,
    report: Report,
    written: Option<Report>,
    write_due: Instant,
}

/// To who speaks with the API.
struct Ends {
    ask: watch::Sender<Ask>,
}

/// The protocol, while this node's address is known.
struct Net {
    at: SocketAddr,
    socket: UdpSocket,
    swim: Swim,
    seal: Seal,
}

/// Does it until the agent ends.
pub(super) async fn run(options: Options, channels: Channels) {
    let Channels { members, mut addresses, mut says, leases, mut stop, tally } = channels;
    let (link, mut told) = match leases {
        Some(LeaseLink { ask, told }) => (Some(Ends { ask }), Some(told)),
        None => (None, None),
    };
    let stored = Report::read(&options.state_dir);
    let mut lost = (!options.without_dead).then(Lost::default);
    if let (Some(lost), Some(stored)) = (&mut lost, &stored) {
        lost.remember(stored.nodes.iter(), Instant::now());
    }
    // Without an API the flags say where the others are.
    let stored = stored.filter(|_| link.is_some());
    let (answer, mut answers) = mpsc::unbounded_channel::<(String, bool)>();
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut task = Task {
        options,
        members,
        tally,
        link,
        net: None,
        epoch: u64::try_from(epoch).unwrap_or(1).max(1),
        leases: Leases::default(),
        downs: BTreeMap::new(),
        lost,
        says: Says::default(),
        stored,
        api_heard: None,
        settled: None,
        started: Instant::now(),
        judge_due: Instant::now(),
        report: Report::default(),
        written: None,
        write_due: Instant::now(),
    };
    let mut buffer = [0; LONGEST + 1];
    let mut open_due = Some(Instant::now());
    task.judge(Instant::now());
    loop {
        if open_due.is_some_and(|due| due <= Instant::now()) {
            let own = addresses.borrow_and_update().clone();
            open_due = task.open(&own).await.then(|| Instant::now() + OPEN_AGAIN);
        }
        let due = task.due().into_iter().chain(open_due).min();
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            ready = readable(task.net.as_ref()) => {
                if let Err(error) = ready {
                    tracing::warn!(%error, "the socket of the membership protocol");
                    task.net = None;
                    open_due = Some(Instant::now() + OPEN_AGAIN);
                }
                task.take_packets(&mut buffer);
            }
            Some(word) = hear(told.as_mut()) => task.hear(word),
            Some((node, is_there)) = answers.recv() => task.told(&node, is_there),
            Ok(()) = says.changed() => {
                let said = *says.borrow_and_update();
                task.say(said);
            }
            changed = addresses.changed() => {
                if changed.is_err() {
                    break;
                }
                open_due = Some(Instant::now());
            }
            () = sleep_until(due) => {}
        }
        let now = Instant::now();
        // What has arrived may be the answer that a timer is about to miss.
        task.take_packets(&mut buffer);
        if let Some(net) = &mut task.net {
            net.swim.tick(now);
        }
        task.flush();
        task.judge(now);
        for (node, at) in task.lost.as_mut().map(|lost| lost.ask(now)).unwrap_or_default() {
            let answer = answer.clone();
            tokio::spawn(async move {
                // Nobody listens when the agent ends.
                let _ = answer.send((node, ask::is_there(at).await));
            });
        }
    }
    task.leave(&mut buffer, told.as_mut()).await;
}

async fn readable(net: Option<&Net>) -> std::io::Result<()> {
    match net {
        Some(net) => net.socket.readable().await,
        None => std::future::pending().await,
    }
}

async fn hear(told: Option<&mut mpsc::Receiver<Told>>) -> Option<Told> {
    match told {
        Some(told) => told.recv().await,
        None => std::future::pending().await,
    }
}

impl Task {
    /// Begins to talk, or to talk from another address. Whether it has to be tried again.
    async fn open(&mut self, own: &BTreeSet<IpAddr>) -> bool {
        let Some(key) = &self.options.key else { return false };
        let at = match own.first() {
            Some(_) if self.net.as_ref().is_some_and(|net| own.contains(&net.at.ip())) => {
                return false;
            }
            Some(ip) => Some(preferred(own, &self.expected()).unwrap_or(*ip)),
            None if self.net.is_some() => return false,
            None => toward(&self.expected()).await,
        };
        let Some(ip) = at else { return self.net.is_none() && !self.options.peers.is_empty() };
        let at = SocketAddr::new(ip, self.options.port);
        let socket = match UdpSocket::bind(at).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%at, %error, "no membership protocol yet");
                return true;
            }
        };
        let old = self.net.take();
        self.epoch = old.map_or(self.epoch, |net| net.swim.epoch().max(self.epoch) + 1);
        let [session, seed] = std::array::from_fn(|_| random().max(1));
        tracing::info!(%at, "talking to the agents of the other nodes");
        let mut swim = Swim::new(&self.options.node, at, self.epoch, seed);
        swim.say(Instant::now(), self.says);
        self.net = Some(Net { at, socket, swim, seal: Seal::new(key.bytes(), session) });
        self.find();
        false
    }

    /// Where others should be.
    fn expected(&self) -> BTreeSet<SocketAddr> {
        let leased = self.leases.nodes().filter_map(|(_, at)| at);
        let stored = self.stored_nodes().filter_map(|(_, node)| node.address);
        self.options.peers.iter().copied().chain(stored).chain(leased).collect()
    }

    fn stored_nodes(&self) -> impl Iterator<Item = (&String, &NodeReport)> {
        self.stored.iter().flat_map(|report| &report.nodes)
    }

    fn find(&mut self) {
        let expected = self.expected();
        if let Some(net) = &mut self.net {
            net.swim.set_peers(expected, Instant::now());
        }
    }

    fn take_packets(&mut self, buffer: &mut [u8]) {
        let Some(net) = &mut self.net else { return };
        for _ in 0..AT_ONCE {
            // What is wrong with one packet, or with an answer to an earlier one, is not wrong with the
            // next.
            let (length, from) = match net.socket.try_recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => continue,
            };
            self.tally.receive();
            let opened = net.seal.open(from, &buffer[..length]);
            for (to, packet) in opened.answers {
                self.tally.send(net.socket.try_send_to(&packet, to).is_ok());
            }
            let taken = match opened.payload {
                Ok(Some(payload)) => net.swim.receive(Instant::now(), &payload),
                Ok(None) => Ok(()),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = taken {
                self.tally.refuse(reason);
            }
        }
    }

    fn flush(&mut self) {
        let Some(net) = &mut self.net else { return };
        for (to, payload) in net.swim.packets() {
            for (to, packet) in net.seal.seal(to, &payload) {
                self.tally.send(net.socket.try_send_to(&packet, to).is_ok());
            }
        }
    }

    fn hear(&mut self, told: Told) {
        let now = Instant::now();
        self.judge_due = now;
        match told {
            Told::Renewed => self.api_heard = Some(now),
            Told::Looked(node, record) => {
                self.api_heard = Some(now);
                self.leases.saw(&node, record, now);
                // It may say by now where the agent hears.
                self.find();
            }
            Told::All(records) => {
                self.api_heard = Some(now);
                let own = |record: &Record| record.node == self.options.node;
                let records = records.into_iter().filter(|record| !own(record)).collect();
                self.leases.saw_all(records, now);
                self.stored = Some(Report::default());
                self.find();
            }
            Told::GivenBack => {}
        }
    }

    /// A node that was asked itself is there, or not.
    fn told(&mut self, node: &str, is_there: bool) {
        let now = Instant::now();
        let Some(lost) = &mut self.lost else { return };
        if lost.told(node, is_there, now) {
            tracing::info!(node, is_there, "the agent of this node is missed");
            self.judge_due = now;
        }
    }

    /// Says this of this node from now on.
    fn say(&mut self, says: Says) {
        self.says = says;
        if let Some(net) = &mut self.net {
            net.swim.say(Instant::now(), says);
        }
    }

    /// When there is something to do.
    fn due(&self) -> Option<Instant> {
        let net = self.net.as_ref().and_then(|net| net.swim.due());
        let lost = self.lost.as_ref().and_then(Lost::due);
        net.into_iter().chain(lost).chain([self.judge_due]).min()
    }

    /// How long the API may say nothing.
    fn patience(&self) -> Duration {
        self.renew_every() * SILENT_AFTER
    }

    fn renew_every(&self) -> Duration {
        witness::renew_every(self.report.nodes.len() + 1)
    }

    /// Says who is alive.
    fn judge(&mut self, now: Instant) {
        if let Some(news) = self.net.as_mut().and_then(|net| net.swim.news()) {
            for node in news.up {
                tracing::info!(%node, "a member");
            }
            for node in news.down {
                tracing::warn!(%node, "no longer a member");
            }
            self.judge_due = now;
        }
        if now < self.judge_due {
            // This is called for every packet.
            return;
        }
        self.judge_due = now + JUDGE_EVERY;
        let seen = self.net.as_ref().map(|net| net.swim.seen()).unwrap_or_default();
        let mut nodes = BTreeMap::new();
        let quiet = Says::default();
        let leased = self.leases.nodes().map(|(node, at)| (node.to_owned(), (None, at, quiet)));
        let met = seen.iter().map(|(node, it)| {
            // A suspicion is nothing yet, and comes and goes.
            let word = if it.word == Word::Suspect { Word::Alive } else { it.word };
            (node.to_string(), (Some(word), Some(it.at), it.says))
        });
        let stored = self.stored_nodes();
        let stored = stored.map(|(node, it)| (node.clone(), (None, it.address, quiet)));
        let every: BTreeMap<String, _> = stored.chain(leased).chain(met).collect();
        for (node, (word, address, says)) in every {
            if word == Some(Word::Down) {
                self.downs.entry(node.clone()).or_insert(now);
            } else {
                self.downs.remove(&node);
            }
            let lease = self.leases.says(&node, self.downs.get(&node).copied());
            let alive = witness::is_alive(word, lease);
            // Who is there without being heard has begun another life since.
            let says = if alive && word == Some(Word::Down) { Says::default() } else { says };
            nodes.insert(node, NodeReport { alive, word, address, says, dead: false });
        }
        let answers = |node: &NodeReport| node.word == Some(Word::Alive);
        let answering = nodes.values().filter(|node| answers(node)).count();
        let expected = self.expected();
        let own = self.net.as_ref().map(|net| net.at);
        let known: BTreeSet<_> = nodes.values().filter_map(|node| node.address).collect();
        let unknown = expected.iter().filter(|at| Some(**at) != own && !known.contains(at));
        let others = nodes.len() + unknown.count();
        if answering > 0 || others == 0 {
            let settled = self.settled.get_or_insert(now + SETTLE);
            if others == answering {
                *settled = now;
            }
        }
        let api = match (&self.link, self.api_heard) {
            (None, _) => Api::Absent,
            (Some(_), Some(heard)) if now <= heard + self.patience() => Api::Heard,
            (Some(_), _) => Api::Silent,
        };
        // Before the first answers this node knows nothing, which must not look as if nobody were there.
        let settled = self.settled.unwrap_or(self.started + JOIN);
        let is_new = api != Api::Heard && now < settled;
        // Nor does it if nobody has ever told it of anybody.
        let is_ignorant = others == 0 && self.link.is_some() && self.stored.is_none();
        let isolated =
            witness::is_isolated(others, answering, api) || (is_new && others > 0) || is_ignorant;
        let dead = self.dead(&mut nodes, isolated, now);
        let left_out = self.tally.left_out();
        let report = Report { protocol: self.net.is_some(), isolated, left_out, nodes };
        let own = self.options.node.clone();
        // Also what those said last that are gone: some are believed to be there a moment longer.
        let says = report.nodes.iter().filter(|(_, node)| node.says != Says::default());
        let says = says.map(|(name, node)| (name.clone(), node.says)).collect();
        let alive = report.nodes.iter().filter(|(_, node)| node.alive);
        let alive = alive.map(|(name, _)| name.clone()).chain([own]).collect();
        let members = Members { alive, dead, says, isolated };
        if self.members.borrow().isolated != isolated {
            tracing::warn!(isolated, "whether this node sees anybody has changed");
        }
        publish(&self.members, members);
        if let Some(link) = &self.link {
            let renew = if others > 0 && answering == 0 && self.net.is_some() {
                RENEW_ALONE
            } else {
                witness::renew_every(report.nodes.len() + 1)
            };
            let doubtful = report.nodes.iter().filter(|(_, node)| !answers(node));
            let look = doubtful
                .map(|(name, _)| (name.clone(), self.leases.look(name).unwrap_or(now)))
                .collect();
            let ask = Ask {
                at: own_address(self.net.as_ref()),
                renew_every: renew,
                lasts: witness::lasts(witness::renew_every(report.nodes.len() + 1)),
                look,
                give_back: false,
            };
            publish(&link.ask, ask);
        }
        self.report = report;
        self.tally.show(self.report.clone());
        if !is_new && !is_ignorant {
            self.write(now);
        }
    }

    /// Nodes that are dead, by now. Who is cut off itself knows of none.
    fn dead(
        &mut self,
        nodes: &mut BTreeMap<String, NodeReport>,
        isolated: bool,
        now: Instant,
    ) -> BTreeSet<String> {
        let Some(lost) = &mut self.lost else { return BTreeSet::new() };
        lost.see(nodes, now);
        if isolated {
            return BTreeSet::new();
        }
        let dead = lost.dead(nodes.values().filter(|node| node.alive).count());
        for (node, at) in &dead {
            // Nobody else speaks of one that an earlier agent has left behind.
            let report = nodes.entry(node.clone()).or_default();
            report.dead = true;
            report.address.get_or_insert(*at);
        }
        dead.into_keys().collect()
    }

    fn write(&mut self, now: Instant) {
        if self.written.as_ref() == Some(&self.report) {
            return;
        }
        if now < self.write_due {
            self.judge_due = self.judge_due.min(self.write_due);
            return;
        }
        self.write_due = now + WRITE_EVERY;
        let (report, dir) = (self.report.clone(), self.options.state_dir.clone());
        // Disks may be slow, and the protocol waits for nobody.
        std::thread::spawn(move || {
            if let Err(error) = report.write(&dir) {
                tracing::debug!("{}: {error:#}", dir.display());
            }
        });
        self.written = Some(self.report.clone());
    }

    /// Says goodbye, to the members and at the API.
    async fn leave(&mut self, buffer: &mut [u8], told: Option<&mut mpsc::Receiver<Told>>) {
        if let Some(link) = &self.link {
            link.ask.send_modify(|ask| ask.give_back = true);
        }
        if let Some(net) = &mut self.net {
            net.swim.leave(Instant::now());
        }
        self.flush();
        let end = Instant::now() + GOODBYE;
        while let Some(net) = &self.net
            && tokio::time::timeout_at(end, net.socket.readable()).await.is_ok()
        {
            self.take_packets(buffer);
            self.flush();
        }
        if let Some(told) = told {
            let given_back =
                async { while !matches!(told.recv().await, Some(Told::GivenBack) | None) {} };
            // A lease that is not given back runs out.
            let _ = tokio::time::timeout(GIVE_BACK, given_back).await;
        }
    }
}

fn own_address(net: Option<&Net>) -> Option<SocketAddr> {
    net.map(|net| net.at)
}

/// Of the family in which the others are.
fn preferred(own: &BTreeSet<IpAddr>, others: &BTreeSet<SocketAddr>) -> Option<IpAddr> {
    let other = others.first()?;
    own.iter().find(|own| own.is_ipv4() == other.is_ipv4()).copied()
}

/// The address from which the kernel sends to the first of these that it has a route to.
async fn toward(others: &BTreeSet<SocketAddr>) -> Option<IpAddr> {
    for other in others {
        let any: IpAddr = match other {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a UDP socket sends nothing.
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        if socket.connect(other).await.is_ok()
            && let Ok(own) = socket.local_addr()
        {
            return Some(own.ip());
        }
    }
    None
}

/// From the kernel.
fn random() -> u64 {
    use rand::{SeedableRng as _, TryRng as _};
    let mut bytes = [0; 8];
    match rand::rngs::SysRng.try_fill_bytes(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => {
            // It has none before its pool is filled, early at boot.
            let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed as u64);
            rand::RngExt::random(&mut rng)
        }
    }
}

/// Starts the thread.
pub(super) fn spawn(
    options: Options,
    channels: Channels,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime of the membership protocol")?;
    std::thread::Builder::new()
        .name("members".to_owned())
        .spawn(move || runtime.block_on(run(options, channels)))
        .context("starting the thread of the membership protocol")
}

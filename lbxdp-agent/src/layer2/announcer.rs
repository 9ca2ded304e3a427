//! The thread that announces: it has programs answer for what this node owns, tells the network so, and
//! says every moment that it is still there.
//!
//! It has a thread of its own, because a change of the maps that takes its time must not keep it from
//! that. But an agent whose main loop hangs, or that is stopped or killed, stops answering: programs look
//! at the gate.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::bursts::Bursts;
use super::claims::{Claim, Ears};
use super::fading::Fading;
use super::frames::{self, Announced as Frames, solicited_node};
use super::handover::{Handover, TAKING_OVER};
use super::resources::Resources;
use super::seen::Seen;
use super::share::{self, Balancers, Here};
use super::wire::{FrameSocket, Group, Groups};
use super::{GATE, Progress};
use crate::apply::announced::{Announced, Entry, Gate, Way as Written};
use crate::health::Health;
use crate::members::{Devices as Said, Members, Says};
use crate::netlink::Network;
use crate::pins::Pins;
use crate::publish::publish;
use crate::sys::Access;

/// The gate is pushed on so many times before it would close.
const PUSHES: u32 = 4;
/// What could not be written to a map, or joined, is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is to be announced is decided by these.
#[derive(Debug)]
pub struct Inputs {
    /// This node.
    pub node: String,
    /// Services with addresses that are served here. Nothing is decided before there is something.
    pub balancers: watch::Receiver<Option<Arc<Balancers>>>,
    /// From where what is announced. Nothing is decided before that is known.
    pub resources: watch::Receiver<Option<Arc<Resources>>>,
    /// Who is alive.
    pub members: watch::Receiver<Members>,
    /// Where to tell the others what they cannot see of this node.
    pub says: watch::Sender<Says>,
    /// Devices.
    pub network: watch::Receiver<Arc<Network>>,
    /// Interface indices of the devices that face outwards and have programs.
    pub served: watch::Receiver<BTreeSet<u32>>,
    /// Whether the agent does its work.
    pub health: Arc<Health>,
    /// Whether anything is to be announced at all.
    pub is_on: bool,
    /// Where it is told what was decided by, and what came of it.
    pub seen: watch::Sender<Arc<Seen>>,
}

/// How it is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Announce,
    /// Until others have taken everything over.
    HandOver,
    Stop,
}

/// A running announcer; withdraws everything when it is dropped.
#[derive(Debug)]
pub struct Announcer {
    course: watch::Sender<Course>,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    /// Starts. What an earlier agent answered for is answered for no more until this one has decided.
    pub fn start(pins: &Pins, inputs: Inputs) -> anyhow::Result<Self> {
        let maps = Announced::open(pins, Access::ReadWrite)?;
        let written = maps.read()?;
        let gate = Gate::open(pins)?;
        let progress = Arc::clone(&inputs.health.layer2);
        let worker = Worker {
            devices: Devices::new(),
            maps,
            written,
            previous: BTreeMap::new(),
            owners: BTreeMap::new(),
            gate,
            fading: Fading::default(),
            handover: Handover::default(),
            ears: None,
            is_leaving: false,
            bursts: Bursts::default(),
            socket: None,
            groups: Groups::default(),
            failures: BTreeMap::new(),
            progress,
            start: Instant::now(),
        };
        let (course, set) = watch::channel(Course::Announce);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("layer2".to_owned())
            .spawn(move || runtime.block_on(worker.run(inputs, set)))?;
        Ok(Self { course, thread: Some(thread) })
    }

    /// Leaves every address to another node, if there is one, and ends. Takes as long as others need to
    /// announce what was announced here, and not much longer than [`super::handover::PATIENCE`].
    pub async fn hand_over(mut self) {
        self.course.send_replace(Course::HandOver);
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked answers for nothing any more.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.course.send_replace(Course::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// By which device an address is announced, and by which link-layer address.
type Way = (IpAddr, u32, [u8; 6]);

/// Interface index and link-layer address of each device that addresses may be announced by.
type Devices = BTreeMap<String, (u32, [u8; 6])>;

struct Worker {
    /// Of the last decision.
    devices: Devices,
    maps: Announced,
    /// What is in the maps.
    written: BTreeMap<Entry, Written>,
    /// The names of the nodes that owned addresses before this one did.
    previous: BTreeMap<IpAddr, String>,
    /// And of those that own addresses, by the last decision.
    owners: BTreeMap<IpAddr, String>,
    gate: Gate,
    fading: Fading,
    handover: Handover,
    /// Open while something is announced: others may speak before this node knows why.
    ears: Option<Ears>,
    /// The agent ends.
    is_leaving: bool,
    bursts: Bursts<Way>,
    socket: Option<FrameSocket>,
    groups: Groups,
    /// What failed, by what was done, to say it once.
    failures: BTreeMap<&'static str, String>,
    progress: Arc<Progress>,
    start: Instant,
}

impl Worker {
    async fn run(mut self, mut inputs: Inputs, mut course: watch::Receiver<Course>) {
        self.fall_silent();
        let mut decide_due = Some(Instant::now());
        let mut push_due = None;
        loop {
            let now = Instant::now();
            if decide_due.is_some_and(|due| due <= now) {
                // What becomes due meanwhile is looked at once more.
                let passed = self.start.elapsed();
                let is_done = self.decide(&mut inputs);
                let retry_due = (!is_done).then(|| Instant::now() + RETRY_AFTER);
                let due = [self.fading.next(), self.handover.next(passed)].into_iter().flatten();
                let due = due.map(|due| self.start + due);
                decide_due = due.chain(retry_due).min();
                if self.is_leaving && !self.handover.is_going() {
                    break;
                }
                // What is answered for from now on is answered for at once.
                push_due = self.answers().next().is_some().then_some(now);
            }
            if self.say(&inputs) {
                decide_due = Some(now);
                continue;
            }
            if push_due.is_some_and(|due| due <= now) {
                self.push(&inputs);
                push_due = Some(now + GATE / PUSHES);
            }
            self.announce();
            self.ask();
            let frame_due = [self.bursts.next(), self.handover.next_question()];
            let frame_due = frame_due.into_iter().flatten().min().map(|due| self.start + due);
            // Nobody calls when the agent's own work gets stuck, or goes on.
            let wake = [decide_due, push_due, frame_due].into_iter().flatten();
            let wake = wake.fold(now + GATE, Instant::min);
            tokio::select! {
                biased;
                changed = course.changed() => match *course.borrow_and_update() {
                    Course::HandOver if changed.is_ok() => {
                        self.is_leaving = true;
                        decide_due = Some(Instant::now());
                    }
                    _ => break,
                },
                claim = hear(self.ears.as_ref()) => {
                    if self.is_claimed(claim) {
                        decide_due = Some(Instant::now());
                    }
                }
                () = inputs.changed(&self.devices) => decide_due = Some(Instant::now()),
                () = sleep_until(wake) => {}
            }
        }
        self.shut();
        self.withdraw(&BTreeSet::new());
    }

    /// Tells the others whether this node can announce anything. Whether that is another word than before.
    fn say(&mut self, inputs: &Inputs) -> bool {
        let says = Says {
            lacks_programs: !inputs.health.is_live(),
            devices: Said::of(self.devices.keys().map(String::as_str)),
            is_leaving: self.is_leaving,
        };
        let is_other = publish(&inputs.says, says);
        if is_other {
            tracing::info!(?says, "what the other nodes are told");
        }
        is_other
    }

    /// Has programs answer for what this node owns now, and for nothing else. Whether nothing is left to
    /// do.
    fn decide(&mut self, inputs: &mut Inputs) -> bool {
        let mut members = inputs.members.borrow_and_update().clone();
        members.alive = self.fading.see(members.alive, self.start.elapsed());
        self.devices = inputs.devices();
        let devices = &self.devices;
        let resources = inputs.resources.borrow_and_update().clone();
        let balancers = inputs.balancers.borrow_and_update().clone();
        let here = Here {
            name: inputs.node.clone(),
            is_healthy: inputs.health.is_live(),
            is_leaving: self.is_leaving,
            devices: devices.keys().cloned().collect(),
        };
        let mut ways = BTreeSet::new();
        let mut of_others = BTreeSet::new();
        match (&resources, &balancers) {
            (Some(resources), Some(balancers)) if inputs.is_on && !members.isolated => {
                let nodes = share::nodes(resources, &members, &here);
                let decisions = share::decide(balancers, resources, &nodes);
                let owners = share::owners(&decisions);
                for (addr, names) in share::mine(&owners, &here.name) {
                    let by = names.iter().filter_map(|name| devices.get(name));
                    ways.extend(by.map(|(ifindex, mac)| (addr, *ifindex, *mac)));
                }
                if here.is_healthy {
                    of_others = share::of_others(&owners, &here.name);
                }
                let owners =
                    owners.iter().filter_map(|(addr, choice)| Some((*addr, choice.owner()?)));
                self.note_owners(
                    owners.map(|(addr, name)| (addr, name.to_owned())).collect(),
                    &here.name,
                );
            }
            _ => {}
        }
        // What is handed back stays so until it is known whose the address is.
        let is_waiting = resources.is_none() || balancers.is_none();
        let is_waiting = is_waiting && self.answers().next().is_none();
        // Whoever sees nobody may be wrong.
        let known = resources.iter().flat_map(|it| &it.written.nodes).map(|node| &node.name);
        let are_others = members.alive.iter().chain(known).any(|name| *name != inputs.node);
        let is_done = is_waiting || self.follow(&ways, &of_others, are_others, &members.dead);
        let answered = self.answers().map(|(addr, dev)| (addr, self.name(dev))).collect();
        let failures = self.failures.clone();
        let is_off = !inputs.is_on;
        let seen = Seen { is_off, here, resources, balancers, members, answered, failures };
        inputs.seen.send_replace(Arc::new(seen));
        is_done
    }

    /// The name of a device, or the index of one that is gone.
    fn name(&self, ifindex: u32) -> String {
        let mut devices = self.devices.iter();
        let device = devices.find(|(_, (index, _))| *index == ifindex);
        device.map_or_else(|| ifindex.to_string(), |(name, _)| name.clone())
    }

    /// Makes everything follow what is to be announced from here, and what is from elsewhere; whether that
    /// worked.
    fn follow(
        &mut self,
        ways: &BTreeSet<Way>,
        of_others: &BTreeSet<IpAddr>,
        are_others: bool,
        dead: &BTreeSet<String>,
    ) -> bool {
        let now = self.start.elapsed();
        let known: BTreeSet<Entry> = self.answers().collect();
        let wanted: BTreeSet<Entry> = ways.iter().map(|(addr, dev, _)| (*addr, *dev)).collect();
        let devices: BTreeSet<u32> = self.devices.values().map(|(ifindex, _)| *ifindex).collect();
        let can_stay = |(addr, dev): &&Entry| of_others.contains(addr) && devices.contains(dev);
        let going = known.difference(&wanted).filter(can_stay).copied().collect();
        let (mut stay, gone) = self.handover.keep(going, now);
        self.progress.count_gone(gone.announced, gone.waited);
        if gone.waited > 0 {
            let count = gone.waited;
            tracing::warn!(count, "no other node has announced what this one leaves to them");
        }
        stay.extend(&wanted);
        let mut is_done = self.withdraw(&stay);
        let coming = wanted.difference(&known).copied().collect();
        let taken = self.handover.take(coming, are_others, now);
        for (entry, holder) in self.handover.holders() {
            is_done &= self.write(entry, Written { before: holder, ..Written::default() });
        }
        for (entry, holder) in &taken.entries {
            let before =
                holder.or_else(|| Some(self.written.get(entry)?.before)).unwrap_or_default();
            let is_written = self.write(*entry, Written { before, is_answered: 1, unused: 0 });
            if is_written {
                tracing::info!(address = %entry.0, ifindex = entry.1, "announcing");
            }
            is_done &= is_written;
        }
        self.forget(dead);
        let group = |(addr, ifindex): Entry| Some((ifindex, solicited_node(addr)?));
        let groups: BTreeSet<Group> = self.answers().filter_map(group).collect();
        let left = self.groups.joined().filter(|group| !groups.contains(group)).copied();
        for group in left.collect::<Vec<_>>() {
            self.groups.leave(group);
        }
        for group in groups {
            let joined = self.groups.join(group);
            is_done &= self.note("joining groups of neighbours", joined);
        }
        self.listen();
        // What is about to be answered for is announced first; what cannot be is not.
        let answers: BTreeSet<Entry> = self.answers().collect();
        let is_announced = |(addr, dev, _): &&Way| {
            let entry = (*addr, *dev);
            answers.contains(&entry) || is_done && self.handover.is_announced(&entry, now)
        };
        self.bursts.set(now, &ways.iter().filter(is_announced).copied().collect());
        self.bursts.again(now, |(addr, dev, _)| taken.anew.contains(&(*addr, *dev)));
        let held = self.handover.held(now).map_or(Ok(()), |(addr, mac)| {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            Err(io::Error::other(format!("{addr} is answered for by {mac}")))
        });
        self.note(TAKING_OVER, held);
        self.progress.set_announced(answers.into_iter().map(|(addr, _)| addr).collect());
        is_done
    }

    /// What programs answer for.
    fn answers(&self) -> impl Iterator<Item = Entry> + use<'_> {
        let answered = self.written.iter().filter(|(_, written)| written.is_answered != 0);
        answered.map(|(entry, _)| *entry)
    }

    /// Has them do this; whether that worked.
    fn write(&mut self, entry: Entry, written: Written) -> bool {
        if self.written.get(&entry) == Some(&written) {
            return true;
        }
        let inserted = self.maps.insert(entry, written).map_err(io::Error::other);
        let is_done = self.note("answering for addresses", inserted);
        if is_done {
            self.written.insert(entry, written);
        }
        is_done
    }

    /// What an earlier agent answered for is answered for no more: others may have it by now. But what it
    /// handed back still is.
    fn fall_silent(&mut self) {
        for (entry, written) in self.written.clone() {
            if written.before != [0; 6] {
                self.write(entry, Written { is_answered: 0, ..written });
            }
        }
        let silent = self.written.iter().filter(|(_, written)| written.is_answered == 0);
        self.withdraw(&silent.map(|(entry, _)| *entry).collect());
    }

    /// These own the addresses from now on.
    fn note_owners(&mut self, owners: BTreeMap<IpAddr, String>, this: &str) {
        for (addr, _) in owners.iter().filter(|(_, name)| *name == this) {
            if let Some(previous) = self.owners.get(addr).filter(|name| *name != this) {
                self.previous.insert(*addr, previous.clone());
            }
        }
        self.previous.retain(|addr, _| owners.get(addr).is_some_and(|name| name == this));
        self.owners = owners;
    }

    /// Nothing is handed back to a node that is lost.
    fn forget(&mut self, dead: &BTreeSet<String>) {
        for (entry, written) in self.written.clone() {
            let is_lost = self.previous.get(&entry.0).is_some_and(|name| dead.contains(name));
            if is_lost && written.before != [0; 6] {
                self.write(entry, Written { before: [0; 6], ..written });
            }
        }
    }

    /// Hears others as long as something is answered for, or about to be.
    fn listen(&mut self) {
        if self.answers().next().is_none() && !self.handover.is_coming() {
            self.ears = None;
        } else if self.ears.is_none() {
            let opened = Ears::open();
            let outcome = opened.map(|ears| self.ears = Some(ears));
            self.note("hearing announcements of other nodes", outcome);
        }
    }

    /// Somebody has announced an address. Whether it is one that waits for that.
    fn is_claimed(&mut self, claim: io::Result<Claim>) -> bool {
        let Claim { address, mac } = match claim {
            Ok(claim) => claim,
            Err(error) => {
                self.note("hearing announcements of other nodes", Err(error));
                self.ears = None;
                return false;
            }
        };
        let is_own = self.devices.values().any(|(_, own)| *own == mac);
        let is_known = self.answers().any(|(addr, _)| addr == address);
        if is_own || !(is_known || self.handover.concerns(address)) {
            return false;
        }
        self.handover.hear(address, mac, self.start.elapsed())
    }

    /// Has programs answer for nothing but these; whether that worked.
    fn withdraw(&mut self, but: &BTreeSet<Entry>) -> bool {
        let mut is_done = true;
        let gone = self.written.keys().filter(|entry| !but.contains(entry));
        let gone: Vec<Entry> = gone.copied().collect();
        for entry in gone {
            let removed = self.maps.remove(entry);
            if self.note("withdrawing addresses", removed.map_err(io::Error::other)) {
                tracing::info!(address = %entry.0, ifindex = entry.1, "withdrawn");
                self.written.remove(&entry);
            } else {
                is_done = false;
            }
        }
        is_done
    }

    /// Says that somebody looks after what is announced, if somebody does.
    fn push(&mut self, inputs: &Inputs) {
        if !inputs.health.is_live() || inputs.members.borrow().isolated {
            return self.shut();
        }
        let pushed = self.gate.keep_open(GATE);
        self.progress.opened(GATE);
        self.note("keeping the gate open", pushed);
    }

    /// Has programs answer for nothing from now on, whatever is in the maps.
    fn shut(&mut self) {
        let shut = self.gate.keep_open(Duration::ZERO);
        self.progress.opened(Duration::ZERO);
        self.note("closing the gate", shut);
    }

    /// Sends what is due.
    fn announce(&mut self) {
        let due = self.bursts.due(self.start.elapsed());
        let frames = due.into_iter().flat_map(|(address, ifindex, mac)| {
            let frames = frames::announcements(&Frames { address, mac });
            frames.into_iter().map(move |frame| (ifindex, frame))
        });
        let sent = self.send("sending announcements", frames.collect());
        self.progress.count_frames(sent);
    }

    /// Asks who has what is about to be answered for.
    fn ask(&mut self) {
        let due = self.handover.ask(self.start.elapsed());
        let frames = due.into_iter().filter_map(|(address, dev)| {
            let (_, mac) = self.devices.values().find(|(ifindex, _)| *ifindex == dev)?;
            Some((dev, frames::question(&Frames { address, mac: *mac })?))
        });
        self.send("asking who has addresses", frames.collect());
    }

    /// Sends frames, each by a device; how many of them.
    fn send(&mut self, doing: &'static str, frames: Vec<(u32, Vec<u8>)>) -> u64 {
        if frames.is_empty() {
            return 0;
        }
        if self.socket.is_none() {
            match FrameSocket::open() {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => drop(self.note("opening a socket for frames", Err(error))),
            }
        }
        let Some(socket) = &self.socket else { return 0 };
        let (mut sent, mut outcome) = (0, Ok(()));
        for (ifindex, frame) in frames {
            match socket.send(ifindex, &frame) {
                Ok(()) => sent += 1,
                Err(error) => outcome = Err(error),
            }
        }
        self.note(doing, outcome);
        sent
    }

    /// Logs a failure once while it lasts; whether there is none.
    fn note(&mut self, doing: &'static str, outcome: io::Result<()>) -> bool {
        let Err(error) = outcome else {
            self.failures.remove(doing);
            return true;
        };
        self.progress.count_failure();
        let text = error.to_string();
        if self.failures.get(doing) != Some(&text) {
            tracing::error!(%error, "{doing}");
            self.failures.insert(doing, text);
        }
        false
    }
}

impl Inputs {
    /// The devices that face outwards, have programs and carry frames.
    fn devices(&mut self) -> Devices {
        let network = self.network.borrow_and_update();
        let served = self.served.borrow_and_update();
        let links = network.links.values();
        let links = links.filter(|it| served.contains(&it.ifindex) && it.up && it.carrier);
        links.filter_map(|link| Some((link.name.clone(), (link.ifindex, link.mac?)))).collect()
    }

    /// Waits until something may be decided differently than with these devices: those of pods come and
    /// go. Whoever has ended changes nothing any more.
    async fn changed(&mut self, devices: &Devices) {
        async fn of<T>(receiver: &mut watch::Receiver<T>) {
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        loop {
            let Self { balancers, resources, members, network, served, .. } = &mut *self;
            tokio::select! {
                () = of(balancers) => return,
                () = of(resources) => return,
                () = of(members) => return,
                () = of(network) => {}
                () = of(served) => {}
            }
            if self.devices() != *devices {
                return;
            }
        }
    }
}

async fn hear(ears: Option<&Ears>) -> io::Result<Claim> {
    match ears {
        Some(ears) => ears.next().await,
        None => std::future::pending().await,
    }
}

//! Follows the network on a thread of its own and publishes what it knows.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::sync::watch;

use super::genl::XdpFeatures;
use super::model::{Network, State};
use super::request::{Requests, messages};
use crate::hops::Hops;
use crate::publish::publish;
use crate::sys;

/// Links, addresses, routes and rules of both families, neighbours, settings of devices of both
/// families (`RTNLGRP_*`).
const GROUPS: [u32; 10] = [1, 5, 9, 7, 11, 8, 19, 3, 24, 25];
/// `RTM_NEWNETCONF`: a setting of a device changed. The parser does not know it.
const NEW_SETTING: u16 = 80;
/// How often XDP features are read, apart from those of new devices: those of a veth follow its
/// peer, and nothing on this side says so.
const FEATURES_EVERY: Duration = Duration::from_secs(1);
/// How often links and addresses are listed anew: a program that is attached through a link is
/// not announced.
const RESYNC_EVERY: Duration = Duration::from_secs(10);
/// Pause after an error, so that a broken socket does not keep a CPU busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RECEIVE_BUFFER: u32 = 1 << 20;

/// A running follower; stops when dropped.
#[derive(Debug)]
pub struct Monitor {
    network: watch::Receiver<Arc<Network>>,
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Reads the network namespace of the calling thread once, then follows it.
    pub fn start() -> io::Result<Self> {
        Self::run(Follower::open(RECEIVE_BUFFER)?)
    }

    /// The same, and has these next hops follow.
    pub fn start_with(hops: Arc<Hops>) -> io::Result<Self> {
        Self::run(Follower { hops: Some(hops), ..Follower::open(RECEIVE_BUFFER)? })
    }

    /// The same as [`Self::start`] with a receive buffer of this many bytes. When events overflow it,
    /// everything is listed anew.
    pub fn with_receive_buffer(bytes: u32) -> io::Result<Self> {
        Self::run(Follower::open(bytes)?)
    }

    fn run(mut follower: Follower) -> io::Result<Self> {
        follower.resync()?;
        follower.follow_hops();
        let (sender, network) = watch::channel(Arc::new(follower.state.network()));
        let (stopped, stop) = io::pipe()?;
        // The thread inherits the network namespace, but needs none: its sockets are open.
        let thread = std::thread::Builder::new()
            .name("netlink".to_owned())
            .spawn(move || follower.run(&stopped, &sender))?;
        Ok(Self { network, stop: Some(stop), thread: Some(thread) })
    }

    /// Reads the network namespace of the calling thread once.
    pub fn snapshot() -> io::Result<Network> {
        let mut follower = Follower::open(RECEIVE_BUFFER)?;
        follower.resync()?;
        Ok(follower.state.network())
    }

    /// What is known; wakes when it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Network>> {
        self.network.clone()
    }

    /// What is known now.
    pub fn network(&self) -> Arc<Network> {
        Arc::clone(&self.network.borrow())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(mut stop) = self.stop.take() {
            let _ = stop.write_all(&[0]);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Follower {
    events: Socket,
    requests: Requests,
    features: Option<XdpFeatures>,
    state: State,
    hops: Option<Arc<Hops>>,
    features_due: Instant,
    resync_due: Instant,
}

impl Follower {
    fn open(receive_buffer: u32) -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, 0))?;
        events.set_rx_buf_sz(receive_buffer)?;
        events.set_non_blocking(true)?;
        for group in GROUPS {
            events.add_membership(group)?;
        }
        Ok(Self {
            events,
            requests: Requests::route()?,
            features: XdpFeatures::open()?,
            state: State::default(),
            hops: None,
            features_due: Instant::now(),
            resync_due: Instant::now(),
        })
    }

    fn run(mut self, stop: &io::PipeReader, sender: &watch::Sender<Arc<Network>>) {
        loop {
            let due = self.features_due.min(self.resync_due);
            let wait = due.saturating_duration_since(Instant::now()).as_millis() as i32 + 1;
            match self.wait(stop, wait) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.failed("waiting for events", &error),
            }
            if let Err(error) = self.step() {
                self.failed("following the network", &error);
            }
            publish(sender, Arc::new(self.state.network()));
        }
    }

    fn failed(&mut self, doing: &str, error: &io::Error) {
        tracing::warn!(%error, "{doing}");
        std::thread::sleep(RETRY_AFTER);
        self.resync_due = Instant::now();
    }

    /// Waits for an event; whether to stop.
    fn wait(&self, stop: &io::PipeReader, timeout_ms: i32) -> io::Result<bool> {
        let ready = sys::poll_readable(&[stop.as_raw_fd(), self.events.as_raw_fd()], timeout_ms)?;
        Ok(ready[0])
    }

    fn step(&mut self) -> io::Result<()> {
        if !self.drain()? {
            tracing::debug!("events were lost, listing everything anew");
            self.state.lost();
            self.resync_due = Instant::now();
        }
        // At once: listing something takes its time.
        self.follow_hops();
        if Instant::now() >= self.resync_due {
            self.resync()?;
        }
        if self.state.links_stale {
            self.state.set_links(&self.requests.links()?);
        }
        if self.state.rules_stale {
            self.state.set_rules(&self.requests.rules()?);
        }
        if self.state.routes_stale {
            let routes = self.requests.main_routes()?;
            self.state.set_routes(&routes);
        }
        if Instant::now() >= self.features_due || self.state.lacks_features() {
            self.features_due = Instant::now() + FEATURES_EVERY;
            self.read_features()?;
        }
        self.follow_hops();
        Ok(())
    }

    /// Has the next hops follow what is known.
    fn follow_hops(&mut self) {
        let Some(hops) = &self.hops else { return };
        for (ifindex, addr) in hops.follow(self.state.surroundings()) {
            if let Err(error) = self.requests.use_neighbour(ifindex, addr) {
                tracing::debug!(%error, ifindex, %addr, "asking for a neighbour");
            }
        }
    }

    /// Takes in the events that are waiting; false if some were lost.
    fn drain(&mut self) -> io::Result<bool> {
        loop {
            let datagram = match self.events.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(false),
                Err(error) => return Err(error),
            };
            for (header, message) in messages::<RouteNetlinkMessage>(&datagram) {
                self.state.links_stale |= header.message_type == NEW_SETTING;
                if let Some(NetlinkPayload::InnerMessage(message)) = message {
                    self.state.event(&message);
                }
            }
        }
    }

    fn resync(&mut self) -> io::Result<()> {
        self.state.set_links(&self.requests.links()?);
        self.state.set_addresses(&self.requests.addresses()?);
        self.state.set_neighbours(&self.requests.neighbours()?);
        self.state.set_rules(&self.requests.rules()?);
        if self.state.routes_stale {
            self.state.set_routes(&self.requests.main_routes()?);
        }
        self.read_features()?;
        self.resync_due = Instant::now() + RESYNC_EVERY;
        Ok(())
    }

    fn read_features(&mut self) -> io::Result<()> {
        if let Some(features) = &mut self.features {
            let features = features.read()?;
            self.state.set_features(Some(features));
        }
        Ok(())
    }
}

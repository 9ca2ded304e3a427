//! A client, a node and a server: requests to a Service go through the node and are answered.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::manifests::Manifests;
use lbxdp_tests::process::{wait_until, workspace_binary};
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::{Agent, AgentOptions, Process, Scratch, nginx};

use super::open_loop::{Answers, at_most, at_rate};
use crate::bench::forwarding::Dataplane;
use crate::bench::forwarding::hosts::{BACK, CLIENT, FAR, Hosts, NODE};
use crate::bench::forwarding::services::Services;
use crate::bench::processors::{processors, stay_on};
use crate::bench::sockets::connections;

/// Source ports towards a backend: one sample opens more connections than the default leaves to three
/// backends, and their ports are kept for ten seconds.
const SNAT_PORTS: (u16, u16) = (33_000, 59_999);
/// The three, and who forwards.
pub struct Place {
    services: Services,
    /// Changes of Services a second, while requests are made.
    changes: u32,
    /// How many there were, and in how many microseconds.
    changed: (AtomicU32, AtomicU64),
    /// Whom the client asks.
    to: SocketAddr,
    /// Where client and server run.
    on: [usize; 2],
    // Ended before the hosts go.
    agent: Option<(Agent, Manifests)>,
    _servers: [Process; 2],
    _files: Scratch,
    hosts: Hosts,
}

impl Place {
    /// Builds it. Without a dataplane, the client asks a pod itself and the node is a router.
    pub fn new(
        dataplane: Option<Dataplane>,
        services: Services,
        changes: u32,
        agent_program: &Path,
    ) -> Result<Self> {
        let processors = processors()?;
        let on = [processors[0], processors[processors.len() - 1]];
        let hosts = Hosts::new(dataplane.map_or("direct", Dataplane::name), processors.len());
        let Hosts { client, node, end } = &hosts;
        for host in [client, end] {
            // XDP forwards what comes with a checksum, to devices that have NAPI.
            host.tx_checksum_off(UPLINK);
            host.gro_on(UPLINK);
            host.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
        }
        client.add_address(UPLINK, &format!("{CLIENT}/24"));
        client.route(&format!("default via {NODE}"));
        end.add_address(UPLINK, &format!("{FAR}/24"));
        end.route(&format!("default via {BACK}"));
        end.ip("link set lo up");
        end.ip(&format!("route add local {} dev lo", Services::FAR_PODS));

        let pod = Services::far_pods().next().context("a pod")?;
        let files = Scratch::new("requests");
        let servers = end.run(|| -> Result<_> {
            stay_on(on[1])?;
            let at = SocketAddr::new(pod.into(), Services::PORT);
            let ready = || http::who(at, Source::ANY, Duration::from_secs(1)).is_ok();
            let block = nginx::answering("nginx", Services::PORT);
            let nginx = nginx::start(end.command("nginx"), &files, &block, ready);
            let mut command = end.command(workspace_binary("lbxdp-testd"));
            command.args(["udp", "--name", "udp"]);
            // A socket of all addresses would answer from the host's own.
            for pod in Services::far_pods() {
                command.args(["--listen", &format!("{pod}:{}", Services::PORT)]);
            }
            let mut udp = Process::spawn(&mut command, &files.join("udp.log"));
            udp.wait_line("ready", Duration::from_secs(5));
            Ok([nginx, udp])
        })?;

        let mut agent = None;
        match dataplane {
            None => {}
            Some(Dataplane::Lbxdp) => {
                node.netns.sysctl("net.ipv4.ip_local_port_range", "60000 65535");
                let options = AgentOptions {
                    snat_ports: Some(SNAT_PORTS),
                    binary: Some(agent_program.to_owned()),
                    ..AgentOptions::default()
                };
                agent = Some(hosts.agent(&services, options));
            }
            Some(rules) => {
                node.netns.gro_on(UPLINK);
                // As long as lbxdp keeps the port of a connection that has ended.
                node.netns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "10");
                hosts.rules(rules, &services)?;
            }
        }
        // Rules of iptables are gone through one after the other: the one in the middle is the average.
        let service = Services::cluster_ip(services.count() / 2);
        let address = if dataplane.is_some() { service } else { pod };
        let to = SocketAddr::new(address.into(), Services::PORT);
        let changed = (AtomicU32::new(0), AtomicU64::new(0));
        let (_servers, _files) = (servers, files);
        let place = Self { services, changes, changed, to, on, agent, _servers, _files, hosts };
        wait_until("requests are answered", Duration::from_secs(10), || {
            let client = &place.hosts.client;
            client.run(|| http::who(to, Source::ANY, Duration::from_secs(1))).is_ok()
        });
        Ok(place)
    }

    /// Connections a second, each for one request.
    pub fn connections(&self) -> Result<f64> {
        self.ask(|| connections(self.hosts.client.command("wrk"), self.to))
    }

    /// Datagrams a second that are answered at most.
    pub fn at_most(&self, time: Duration) -> Result<f64> {
        self.ask(|| at_most(self.to, time))
    }

    /// What becomes of so many datagrams a second.
    pub fn at_rate(&self, rate: f64, time: Duration) -> Result<Answers> {
        self.ask(|| at_rate(self.to, rate, time))
    }

    fn ask<T: Send>(&self, question: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let ask = || stay_on(self.on[0]).and_then(|()| question());
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.change(&is_over));
            let answer = self.hosts.client.run(ask);
            is_over.store(true, Ordering::Relaxed);
            answer.with_context(|| format!("to {}", self.to))
        })
    }

    /// Takes from one Service after the other an endpoint, and another one the next time.
    fn change(&self, is_over: &AtomicBool) {
        let Some((_, manifests)) = self.agent.as_ref().filter(|_| self.changes > 0) else { return };
        let every = Duration::from_secs(1) / self.changes;
        let (changed, micros) = &self.changed;
        let (begin, first) = (Instant::now(), changed.load(Ordering::Relaxed));
        while !is_over.load(Ordering::Relaxed) {
            let turn = changed.fetch_add(1, Ordering::Relaxed);
            let (number, round) = (turn % self.services.count(), turn / self.services.count());
            let without = Some(round % self.services.backends());
            let objects = self.services.objects(number, without);
            manifests.write(&Services::file(number), &objects);
            thread::sleep((every * (turn - first)).saturating_sub(begin.elapsed()));
        }
        micros.fetch_add(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Packets that lbxdp dropped so far, for whatever reason.
    pub fn dropped(&self) -> Option<u64> {
        self.agent.as_ref().map(|(agent, _)| agent.status().all_drops())
    }

    /// How many changes a second there were.
    pub fn changes_each_second(&self) -> u32 {
        let (changed, micros) = &self.changed;
        let seconds = micros.load(Ordering::Relaxed) as f64 / 1e6;
        if seconds > 0.0 {
            (f64::from(changed.load(Ordering::Relaxed)) / seconds) as u32
        } else {
            0
        }
    }
}

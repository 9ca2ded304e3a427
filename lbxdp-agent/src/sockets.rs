//! UDP sockets of clients on this node whose backend serves no more: which entries of `sockets_v4`
//! and `sockets_v6` to change. TCP connections are left alone; they end by themselves.
//!
//! Decided from what the maps hold and what is desired, without a memory of changes: an agent that
//! was not there when a backend went finds the same.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::model::{Desired, FrontendAddr, Protocol};

/// What an entry about a UDP socket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The socket, not being connected, keeps using `backend` for `frontend`.
    Uses,
    /// The socket, not being connected, is shown `frontend` for `backend`.
    Shows,
    /// The socket is connected to `backend`.
    Connected {
        /// What it sends fails.
        is_stale: bool,
    },
}

/// An entry about a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Cookie of the socket.
    pub cookie: u64,
    /// What the client asked for.
    pub frontend: SocketAddr,
    /// What it got.
    pub backend: SocketAddr,
    /// What the entry says.
    pub role: Role,
}

/// A change to an entry. Carried out on one that is gone, it changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketOp {
    /// Forgets it: the next datagram chooses anew.
    Forget(Entry),
    /// Makes a connected socket's sends fail, or not any more.
    SetStale(Entry, bool),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Changes.
    pub ops: Vec<SocketOp>,
    /// Connected sockets whose backend does not serve.
    pub stale: usize,
}

/// Compares entries with what is desired.
pub fn sweep(entries: &[Entry], desired: &Desired) -> Sweep {
    let used: BTreeSet<_> = entries
        .iter()
        .filter(|entry| entry.role == Role::Uses)
        .map(|entry| (entry.cookie, entry.backend))
        .collect();
    let mut sweep = Sweep::default();
    for entry in entries {
        let is_served = serves(desired, entry);
        match entry.role {
            Role::Uses if !is_served => sweep.ops.push(SocketOp::Forget(*entry)),
            // As long as the socket uses the backend, an answer under way is shown as what was
            // asked.
            Role::Shows if !is_served && !used.contains(&(entry.cookie, entry.backend)) => {
                sweep.ops.push(SocketOp::Forget(*entry));
            }
            Role::Uses | Role::Shows => {}
            Role::Connected { is_stale } => {
                sweep.stale += usize::from(!is_served);
                if is_stale == is_served {
                    sweep.ops.push(SocketOp::SetStale(*entry, !is_served));
                }
            }
        }
    }
    sweep
}

/// How many sockets these entries are about.
pub fn count(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.cookie).collect::<BTreeSet<_>>().len()
}

fn serves(desired: &Desired, entry: &Entry) -> bool {
    let Entry { frontend, backend, .. } = entry;
    let addr = FrontendAddr { addr: frontend.ip(), port: frontend.port(), protocol: Protocol::Udp };
    desired.frontends.get(&addr).is_some_and(|frontend| frontend.serving.contains(backend))
}

#[cfg(test)]
mod tests {
    use lbxdp_common::FrontendKind;

    use super::*;
    use crate::model::{EndpointSet, Endpoints, Frontend, ServicePortName};

    const VIP: &str = "10.96.0.10:53";
    const OLD: &str = "10.244.1.11:5353";
    const NEW: &str = "10.244.1.12:5353";

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn entry(cookie: u64, backend: &str, role: Role) -> Entry {
        Entry { cookie, frontend: socket(VIP), backend: socket(backend), role }
    }

    #[test]
    fn a_socket_with_several_entries_counts_once() {
        let connected = Role::Connected { is_stale: false };
        let entries = [
            entry(1, OLD, Role::Uses),
            entry(1, OLD, Role::Shows),
            entry(1, NEW, Role::Shows),
            entry(2, OLD, connected),
        ];
        assert_eq!(count(&entries), 2);
        assert_eq!(count(&[]), 0);
    }

    fn desired(protocol: Protocol, backends: &[&str]) -> Desired {
        let serving: EndpointSet = backends.iter().map(|text| socket(text)).collect();
        let name = ServicePortName {
            namespace: "kube-system".into(),
            service: "kube-dns".into(),
            port: "dns".into(),
        };
        let mut frontend = Frontend::new(
            FrontendKind::ClusterIp,
            name,
            Endpoints::Reject,
            // What is chosen from is no matter: it may be fewer, by policy or by hints.
            Endpoints::Drop,
        );
        frontend.serving = serving;
        let addr = FrontendAddr { addr: socket(VIP).ip(), port: socket(VIP).port(), protocol };
        Desired { frontends: [(addr, frontend)].into(), ..Desired::default() }
    }

    const ALL: [Role; 4] = [
        Role::Uses,
        Role::Shows,
        Role::Connected { is_stale: false },
        Role::Connected { is_stale: true },
    ];

    #[test]
    fn what_serves_is_left_alone_and_a_socket_that_was_stale_may_send_again() {
        let entries = ALL.map(|role| entry(1, OLD, role));
        let sweep = sweep(&entries, &desired(Protocol::Udp, &[OLD, NEW]));
        assert_eq!(sweep.ops, [SocketOp::SetStale(entries[3], false)]);
        assert_eq!(sweep.stale, 0);
    }

    #[test]
    fn an_unconnected_socket_chooses_anew_and_a_connected_one_fails() {
        let entries = ALL.map(|role| entry(1, OLD, role));
        let gone = [
            desired(Protocol::Udp, &[NEW]),
            desired(Protocol::Udp, &[]),
            // Another protocol's frontend of the same address and port is no reason to stay.
            desired(Protocol::Tcp, &[OLD]),
            Desired::default(),
        ];
        for desired in gone {
            let sweep = sweep(&entries, &desired);
            let expected = [SocketOp::Forget(entries[0]), SocketOp::SetStale(entries[2], true)];
            assert_eq!(sweep.ops, expected);
            assert_eq!(sweep.stale, 2);
        }
    }

    #[test]
    fn what_a_backend_is_shown_as_goes_once_nobody_uses_it() {
        let shows = entry(1, OLD, Role::Shows);
        let others = [entry(1, NEW, Role::Uses), entry(2, OLD, Role::Uses), shows];
        let desired = desired(Protocol::Udp, &[NEW]);
        let sweep = sweep(&others, &desired);
        assert_eq!(sweep.ops, [SocketOp::Forget(others[1]), SocketOp::Forget(shows)]);
    }

    #[test]
    fn a_second_sweep_after_the_first_finds_nothing_to_do() {
        let desired = desired(Protocol::Udp, &[NEW]);
        let mut entries: Vec<_> = (0..4)
            .flat_map(|cookie| [OLD, NEW].map(|backend| (cookie, backend)))
            .flat_map(|(cookie, backend)| ALL[..3].iter().map(move |role| (cookie, backend, *role)))
            .map(|(cookie, backend, role)| entry(cookie, backend, role))
            .collect();
        for round in 0..3 {
            let Sweep { ops, stale } = sweep(&entries, &desired);
            assert_eq!(stale, 4);
            assert_eq!(ops.is_empty(), round == 2, "round {round}: {ops:?}");
            for op in ops {
                match op {
                    SocketOp::Forget(gone) => entries.retain(|entry| *entry != gone),
                    SocketOp::SetStale(changed, is_stale) => {
                        let entry = entries.iter_mut().find(|entry| **entry == changed).unwrap();
                        entry.role = Role::Connected { is_stale };
                    }
                }
            }
        }
    }
}

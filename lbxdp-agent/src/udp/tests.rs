use std::net::IpAddr;

use lbxdp_common::{Flow, FlowKey, FlowState, FrontendKind, Hook, IPPROTO_TCP, Octets};

use super::*;
use crate::model::{Endpoints, Family, Frontend, FrontendAddr, ServicePortName};

const SECOND: u64 = 1_000_000_000;

/// Both families of one scene: a client, a node, two addresses of Services and two pods.
const NETS: [[&str; 6]; 2] = [
    ["192.0.2.7", "192.0.2.1", "10.96.0.10", "10.96.0.11", "10.244.0.1", "10.244.1.1"],
    ["2001:db8::7", "2001:db8::1", "fd00:96::10", "fd00:96::11", "fd00:244::1", "fd00:244:1::1"],
];

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn desired<const N: usize>(frontends: [(SocketAddr, Protocol, &[SocketAddr]); N]) -> Desired {
    let mut desired = Desired::default();
    for (addr, protocol, serving) in frontends {
        let name = ServicePortName {
            namespace: "default".into(),
            service: "dns".into(),
            port: addr.port().to_string().into(),
        };
        // What clients choose from does not matter, only what serves.
        let mut frontend =
            Frontend::new(FrontendKind::ClusterIp, name, Endpoints::Drop, Endpoints::Reject);
        frontend.serving = serving.iter().copied().collect();
        let addr = FrontendAddr { addr: addr.ip(), port: addr.port(), protocol };
        desired.frontends.insert(addr, frontend);
    }
    desired
}

/// Both halves of a flow, as the programs make them.
fn halves(
    protocol: u8,
    client: SocketAddr,
    frontend: SocketAddr,
    source: SocketAddr,
    backend: SocketAddr,
) -> [FlowEntry; 2] {
    fn pair<A: Octets>(
        protocol: u8,
        addresses: [A; 4],
        ports: [u16; 4],
        entry: fn(FlowKey<A>, Flow<A>) -> FlowEntry,
    ) -> [FlowEntry; 2] {
        let [client, frontend, source, backend] = addresses;
        let [client_port, frontend_port, source_port, backend_port] = ports;
        let key = FlowKey {
            src: client,
            dst: frontend,
            src_port: client_port,
            dst_port: frontend_port,
            protocol,
            _pad: [0; 3],
        };
        let flow = Flow {
            src: source,
            dst: backend,
            src_port: source_port,
            dst_port: backend_port,
            frontend: 1,
            check: 0,
            state: FlowState::Datagram as u8,
            hook: Hook::Ingress as u8,
            flags: 0,
            _pad: 0,
            last_seen: 0,
            backend: 1,
            _pad2: 0,
        };
        let reply = Flow {
            src: key.dst,
            dst: key.src,
            src_port: key.dst_port,
            dst_port: key.src_port,
            flags: Flow::<A>::REPLY,
            ..flow
        };
        [entry(key, flow), entry(flow.sibling_key(&key), reply)]
    }
    let addresses = [client, frontend, source, backend];
    let ports = addresses.map(|addr| addr.port());
    let v4 = addresses.map(|addr| match addr.ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    });
    let v6 = addresses.map(|addr| match addr.ip() {
        IpAddr::V4(_) => [0; 16],
        IpAddr::V6(ip) => ip.octets(),
    });
    match Family::of(client.ip()) {
        Family::V4 => pair(protocol, v4, ports, FlowEntry::V4),
        Family::V6 => pair(protocol, v6, ports, FlowEntry::V6),
    }
}

#[test]
fn a_flow_stays_exactly_as_long_as_its_backend_serves_its_frontend() {
    for [client, node, service, other, pod, far] in NETS {
        let frontend = at(service, 53);
        let (one, two) = (at(pod, 5353), at(far, 5353));
        let flow = halves(IPPROTO_UDP, at(client, 4000), frontend, at(node, 61_000), two);
        let is_stale = |desired: &Desired| {
            let stale = Serving::of(desired).stale(flow);
            // Each half is judged alone and alike.
            assert!(stale.is_empty() || stale == flow, "{stale:?}");
            !stale.is_empty()
        };
        let udp = Protocol::Udp;
        for (desired, expected, why) in [
            (desired([(frontend, udp, &[one, two])]), false, "it serves"),
            (desired([(frontend, udp, &[one])]), true, "another one serves"),
            (desired([(frontend, udp, &[])]), true, "nobody serves"),
            (desired([]), true, "the Service is gone"),
            (desired([(frontend, udp, &[at(far, 5354)])]), true, "another port of the pod"),
            (desired([(at(service, 54), udp, &[two])]), true, "another port of the Service"),
            (desired([(at(other, 53), udp, &[two])]), true, "another Service of the pod"),
            (desired([(frontend, Protocol::Tcp, &[two])]), true, "another protocol"),
        ] {
            assert_eq!(is_stale(&desired), expected, "{why}");
        }
        let mut unknown = desired([(frontend, udp, &[])]);
        unknown.kept.extend(unknown.frontends.keys().copied());
        assert!(!is_stale(&unknown), "the input is not complete");
    }
}

#[test]
fn flows_of_other_frontends_and_protocols_are_left_alone() {
    for [client, node, service, other, pod, far] in NETS {
        let (source, pod, far) = (at(node, 61_000), at(pod, 5353), at(far, 5353));
        let gone = halves(IPPROTO_UDP, at(client, 1), at(service, 53), source, pod);
        let tcp = halves(IPPROTO_TCP, at(client, 1), at(service, 53), source, pod);
        let sctp = halves(132, at(client, 1), at(service, 53), source, pod);
        let same_pod = halves(IPPROTO_UDP, at(client, 1), at(other, 53), source, pod);
        let same_frontend = halves(IPPROTO_UDP, at(client, 2), at(service, 53), source, far);
        let desired = desired([
            (at(service, 53), Protocol::Udp, &[far]),
            (at(other, 53), Protocol::Udp, &[pod]),
        ]);
        let all = [tcp, same_pod, gone, sctp, same_frontend].concat();
        assert_eq!(Serving::of(&desired).stale(all), gone);
    }
}

#[test]
fn an_answer_that_is_under_way_finds_its_flow() {
    for [client, node, service, _, pod, far] in NETS {
        let of = |port, pod| {
            let (client, frontend) = (at(client, port), at(service, 53));
            halves(IPPROTO_UDP, client, frontend, at(node, 60_000 + port), at(pod, 5353))
        };
        let ([request, reply], [other, _], [_, late]) = (of(1, pod), of(2, far), of(3, pod));
        assert_eq!(ending_gently(vec![reply, request, other]), [request, other]);
        // Of an earlier first sweep, unless an answer has put the request's entry back.
        assert_eq!(ending_gently(vec![late, reply]), [late, reply]);
        assert_eq!(ending_gently(vec![late, reply, request]), [late, request]);
    }
}

fn serving(pods: &[u16]) -> Desired {
    let pods: Vec<_> = pods.iter().map(|port| at("10.244.0.1", *port)).collect();
    desired([(at("10.96.0.1", 53), Protocol::Udp, &pods)])
}

/// The times at which sweeps happen, if `is_clean` is what they find and `published` the maps.
fn sweeps(
    sweeps: &mut Sweeps,
    published: &[(u64, Desired)],
    until: u64,
    is_clean: impl Fn(u64) -> bool,
) -> Vec<u64> {
    let mut times = Vec::new();
    for tenth in 0..=until * 10 {
        let now = tenth * SECOND / 10;
        for (_, desired) in published.iter().filter(|(at, _)| *at == tenth) {
            sweeps.published(desired, &Changes::All);
        }
        if sweeps.begin(now).is_some() {
            times.push(tenth);
            sweeps.swept(now, is_clean(tenth));
        }
    }
    times
}

#[test]
fn a_node_without_udp_is_never_swept() {
    let tcp = desired([(at("10.96.0.1", 80), Protocol::Tcp, &[at("10.244.0.1", 80)])]);
    let published = [(0, tcp), (5, desired([])), (20, desired([]))];
    let mut none = Sweeps::new(&Actual::default());
    assert!(sweeps(&mut none, &published, 5, |_| false).is_empty());
}

#[test]
fn a_start_and_every_loss_are_swept_twice_and_a_gain_is_not() {
    let published = [
        (3, serving(&[1])),
        (40, serving(&[1, 2])),
        (60, serving(&[2])),
        (100, desired([])),
        (150, serving(&[2])),
    ];
    let mut all = Sweeps::new(&Actual::default());
    assert_eq!(sweeps(&mut all, &published, 20, |_| true), [3, 13, 60, 70, 100, 110]);
}

#[test]
fn losses_in_a_row_are_swept_once_a_second() {
    let published: Vec<_> = (0..30).map(|n| (n, serving(&[n as u16 + 1]))).collect();
    let mut all = Sweeps::new(&Actual::default());
    assert_eq!(sweeps(&mut all, &published, 10, |_| true), [0, 10, 20, 30, 40]);
}

#[test]
fn sweeps_go_on_while_they_find_something() {
    let mut all = Sweeps::new(&Actual::default());
    let times = sweeps(&mut all, &[(0, serving(&[1]))], 10, |tenth| tenth > 25);
    assert_eq!(times, [0, 10, 20, 30]);
}

#[test]
fn what_an_agent_left_behind_is_swept_after_the_start() {
    let mut actual = Actual::default();
    let frontend = FrontendAddr { addr: [10, 96, 0, 1].into(), port: 53, protocol: Protocol::Udp };
    actual.frontends.insert(frontend, 1);
    let nothing = [(0, desired([]))];
    assert_eq!(sweeps(&mut Sweeps::new(&actual), &nothing, 5, |_| true), [0, 10]);

    let mut actual = Actual::default();
    let flags = AddressFlags { flags: AddressFlags::TOMBSTONE };
    actual.addresses.insert(frontend.addr, flags);
    assert_eq!(sweeps(&mut Sweeps::new(&actual), &nothing, 5, |_| true), [0, 10]);
}

#[test]
fn an_input_that_becomes_complete_is_swept() {
    let mut unknown = serving(&[1]);
    unknown.kept.extend(unknown.frontends.keys().copied());
    let published = [(0, unknown.clone()), (30, serving(&[1])), (60, unknown)];
    let mut all = Sweeps::new(&Actual::default());
    assert_eq!(sweeps(&mut all, &published, 10, |_| true), [0, 10, 30, 40]);
}

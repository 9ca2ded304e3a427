//! Source ranges and affinity: what frontends share, and what clients meet between two operations.

use lbxdp_common::MemberKey;
use lbxdp_common::limits::{MAX_MEMBERS, MAX_RANGES};

use super::*;

const CLUSTER_IP: &str = "10.96.0.1:80";
const VIP: &str = "203.0.113.1:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const ENDPOINTS: [&str; 2] = ["10.1.0.1:80", "10.1.0.2:80"];

fn clients(affinity: u32, ranges: Option<&[&str]>) -> Clients {
    let parse = |ranges: &[&str]| ranges.iter().map(|range| range.parse().unwrap()).collect();
    Clients { affinity, source_ranges: ranges.map(parse) }
}

impl World {
    fn rule(&mut self, addr: &str, clients: Clients) {
        self.desired.frontends.get_mut(&frontend(addr)).unwrap().clients = clients;
    }

    /// A Service with a ClusterIP, a NodePort and a load balancer's address.
    fn with_service() -> Self {
        let mut world = Self::new();
        world.set(NODE_PORT, FrontendKind::NodePort, "a", serve(&ENDPOINTS));
        world.set(VIP, FrontendKind::LoadBalancer, "a", serve(&ENDPOINTS));
        world.set(CLUSTER_IP, FrontendKind::ClusterIp, "a", serve(&ENDPOINTS));
        world
    }

    fn all_rules(&mut self, clients: &Clients) {
        for frontend in self.desired.frontends.values_mut() {
            frontend.clients = clients.clone();
        }
    }

    fn id(&self, addr: &str) -> u32 {
        self.maps.actual.frontends[&frontend(addr)]
    }
}

/// Whether a client may begin a flow at a frontend, as the programs decide it.
fn admits(actual: &Actual, addr: &FrontendAddr, client: IpAddr) -> Option<bool> {
    let family = Family::of(addr.addr);
    let descriptor = actual.descriptors.get(&(family, *actual.frontends.get(addr)?))?;
    if !descriptor.has(Descriptor::SOURCE_RANGES) {
        return Some(true);
    }
    let ranges = actual.ranges.get(&(family, descriptor.service));
    Some(ranges.into_iter().flatten().any(|range| range.contains(&client)))
}

/// Members are exactly the backends of the tables with affinity, and ranges are somebody's.
pub(super) fn check(actual: &Actual) -> Result<(), TestCaseError> {
    let mut members = BTreeSet::new();
    let mut services = BTreeSet::new();
    for ((family, _), descriptor) in &actual.descriptors {
        if descriptor.has(Descriptor::SOURCE_RANGES) {
            services.insert((*family, descriptor.service));
        }
        for word in [descriptor.external, descriptor.internal] {
            let Some(range) = BlockRange::of(TableRef(word)) else { continue };
            if descriptor.affinity != 0 {
                let slots = actual.tables.get(range).unwrap().iter().flat_map(|block| block.slots);
                let key = |backend| MemberKey { first_block: range.first, backend };
                members.extend(slots.map(key));
            }
        }
    }
    prop_assert_eq!(&actual.members, &members);
    for key in actual.ranges.keys() {
        prop_assert!(services.contains(key), "{:?} has ranges and no frontend", key);
    }
    Ok(())
}

#[test]
fn ranges_come_before_the_descriptor_that_leads_to_them_and_go_after_it() {
    let mut world = World::with_service();
    world.run(None);
    world.rule(VIP, clients(0, Some(&["10.7.0.0/16"])));
    assert_eq!(kinds(&world.run(None)), ["range", "descriptor"]);
    world.rule(VIP, clients(0, Some(&["10.8.0.0/16"])));
    assert_eq!(kinds(&world.run(None)), ["range", "remove range"]);
    world.rule(VIP, clients(0, None));
    assert_eq!(kinds(&world.run(None)), ["descriptor", "remove range"]);
    assert_eq!(world.maps.actual.ranges.len(), 0);
}

#[test]
fn members_come_before_the_descriptor_that_leads_to_them_and_go_after_it() {
    let mut world = World::with_service();
    world.run(None);
    world.all_rules(&clients(10, None));
    assert_eq!(kinds(&world.run(None)), ["member", "descriptor"]);
    assert_eq!(world.maps.actual.members.len(), 2, "the frontends share a table");
    world.all_rules(&clients(20, None));
    assert_eq!(kinds(&world.run(None)), ["descriptor"]);
    world.set(VIP, FrontendKind::LoadBalancer, "a", serve(&ENDPOINTS[1..]));
    world.rule(VIP, clients(20, None));
    assert_eq!(kinds(&world.run(None)), ["table", "member", "descriptor"]);
    assert_eq!(world.maps.actual.members.len(), 3);
    world.all_rules(&clients(0, None));
    assert_eq!(kinds(&world.run(None)), ["descriptor", "remove member"]);
    assert_eq!(world.maps.actual.members.len(), 0);
}

#[test]
fn the_frontends_of_a_service_port_share_their_clients() {
    let mut world = World::with_service();
    world.set("10.96.0.2:80", FrontendKind::ClusterIp, "b", serve(&ENDPOINTS));
    world.all_rules(&clients(10, None));
    world.run(None);
    let service = world.id(CLUSTER_IP);
    for addr in [CLUSTER_IP, VIP, NODE_PORT] {
        assert_eq!(world.descriptor(addr).service, service, "{addr}");
        assert_eq!(world.descriptor(addr).affinity, 10, "{addr}");
    }
    assert_eq!(world.descriptor("10.96.0.2:80").service, world.id("10.96.0.2:80"));
}

#[test]
fn the_id_of_a_service_port_stays_as_long_as_its_frontend_does() {
    let mut world = World::new();
    world.set(VIP, FrontendKind::LoadBalancer, "a", serve(&ENDPOINTS));
    world.all_rules(&clients(10, None));
    world.run(None);
    let service = world.id(VIP);

    // A frontend that comes first in order comes later in time.
    world.set(CLUSTER_IP, FrontendKind::ClusterIp, "a", serve(&ENDPOINTS));
    world.all_rules(&clients(10, None));
    world.run(None);
    assert_eq!(world.descriptor(CLUSTER_IP).service, service);
    world.planner = Planner::new(&world.maps.actual, MAX_FRONTENDS, 0);
    assert_eq!(world.plan(None).ops, []);

    // Its frontend becomes another Service's, which has an id already.
    world.set(VIP, FrontendKind::LoadBalancer, "b", serve(&ENDPOINTS));
    world.set("10.96.0.2:80", FrontendKind::ClusterIp, "b", serve(&ENDPOINTS));
    world.all_rules(&clients(10, None));
    world.run(None);
    let other = world.id("10.96.0.2:80");
    assert_eq!(world.descriptor(CLUSTER_IP).service, world.id(CLUSTER_IP));
    assert_eq!(world.descriptor("10.96.0.2:80").service, other);
    assert_eq!(world.descriptor(VIP).service, other);
}

#[test]
fn the_flag_says_which_frontends_the_ranges_are_for() {
    let mut world = World::with_service();
    world.rule(VIP, clients(0, Some(&["10.7.0.0/16"])));
    world.run(None);
    let outside: IpAddr = [10, 8, 0, 1].into();
    for (addr, is) in [(CLUSTER_IP, true), (NODE_PORT, true), (VIP, false)] {
        assert_eq!(admits(&world.maps.actual, &frontend(addr), outside), Some(is), "{addr}");
    }
    assert_eq!(world.descriptor(CLUSTER_IP).service, 0, "nothing to share");
    assert_eq!(world.descriptor(VIP).service, world.id(CLUSTER_IP));
}

#[test]
fn no_range_at_all_admits_nobody() {
    let mut world = World::with_service();
    world.rule(VIP, clients(0, Some(&[])));
    world.run(None);
    let anybody: IpAddr = [10, 8, 0, 1].into();
    assert_eq!(admits(&world.maps.actual, &frontend(VIP), anybody), Some(false));
    assert!(dump(&world.maps.actual).contains("clients: nobody"));
}

#[test]
fn the_node_is_exempt_if_one_of_its_addresses_is_in_a_range() {
    let mut world = World::with_service();
    world.facts.addresses.insert("2001:db8::1".parse().unwrap());
    world.facts.addresses.insert("192.0.2.1".parse().unwrap());
    for (range, is) in [("192.0.2.0/24", true), ("192.0.2.128/25", false), ("0.0.0.0/0", true)] {
        world.rule(VIP, clients(0, Some(&[range])));
        world.run(None);
        assert_eq!(world.descriptor(VIP).has(Descriptor::NODE_IN_RANGE), is, "{range}");
        assert!(!world.descriptor(CLUSTER_IP).has(Descriptor::NODE_IN_RANGE));
    }
    // The node's addresses change.
    world.rule(VIP, clients(0, Some(&["192.0.2.0/24"])));
    world.facts.addresses.remove(&"192.0.2.1".parse().unwrap());
    world.run(None);
    assert!(!world.descriptor(VIP).has(Descriptor::NODE_IN_RANGE));
}

#[test]
fn a_client_is_served_by_what_all_frontends_of_a_port_say() {
    let mut world = World::with_service();
    world.rule(VIP, clients(0, Some(&["10.7.0.0/16", "10.8.0.0/16"])));
    world.rule(NODE_PORT, clients(0, Some(&["10.8.0.0/16", "10.9.0.0/16"])));
    world.run(None);
    for (client, is) in [([10, 7, 0, 1], false), ([10, 8, 0, 1], true), ([10, 9, 0, 1], false)] {
        for addr in [VIP, NODE_PORT] {
            let admitted = admits(&world.maps.actual, &frontend(addr), client.into());
            assert_eq!(admitted, Some(is), "{client:?} at {addr}");
        }
    }
}

#[test]
fn what_an_agent_left_behind_under_an_id_is_gone_before_the_id_is_used() {
    let mut world = World::with_service();
    world.run(None);
    let mut actual = world.maps.actual.clone();
    let service = world.id(CLUSTER_IP);
    actual.ranges.insert((Family::V4, service), ["0.0.0.0/0".parse().unwrap()].into());
    let word = TableRef(world.descriptor(VIP).external);
    actual.members.insert(MemberKey { first_block: word.first_block(), backend: 77 });
    world.maps = FakeMaps::holding(actual);
    world.planner = Planner::new(&world.maps.actual, MAX_FRONTENDS, 0);
    world.all_rules(&clients(10, Some(&["10.7.0.0/16"])));
    let order = ["remove member", "remove range", "member", "range", "descriptor"];
    assert_eq!(kinds(&world.run(None)), order);
}

#[test]
fn ranges_without_room_are_closed_and_named_until_room_comes() {
    let mut world = World::with_service();
    world.set("203.0.113.2:80", FrontendKind::LoadBalancer, "b", serve(&ENDPOINTS));
    let most = (0..MAX_RANGES as u32 - 1).map(|i| {
        let [a, b, c, d] = (0x0b00_0000 | i << 4).to_be_bytes();
        IpNet::new([a, b, c, d].into(), 28).unwrap()
    });
    let many = Clients { affinity: 0, source_ranges: Some(most.collect()) };
    world.rule(VIP, many);
    assert_eq!(world.run(None).problems, []);
    world.rule("203.0.113.2:80", clients(0, Some(&["10.7.0.0/16", "10.8.0.0/16"])));
    let problems: Vec<_> = world.run(None).problems.iter().map(Problem::to_string).collect();
    assert_eq!(
        problems,
        ["Service default/b: port http: clients in 1 of 2 source ranges are not served: 65536 \
          IPv4 ranges exist"]
    );
    let second = frontend("203.0.113.2:80");
    let admitted = |world: &World| {
        [[10, 7, 0, 1], [10, 8, 0, 1], [10, 9, 0, 1]]
            .map(|client| admits(&world.maps.actual, &second, client.into()).unwrap())
    };
    assert_eq!(admitted(&world), [true, false, false]);
    assert!(!world.planner.is_waiting());

    world.rule(VIP, clients(0, None));
    assert_eq!(world.run(None).problems.len(), 1, "it is known when the plan is made");
    assert!(world.planner.is_waiting());
    assert_eq!(world.run(None).problems, []);
    assert_eq!(admitted(&world), [true, true, false]);
    assert!(!world.planner.is_waiting());
}

#[test]
fn a_frontend_without_room_for_its_members_is_served_without_affinity() {
    let mut world = World::with_service();
    let mut actual = Actual::default();
    // Of tables that somebody else's descriptors lead to.
    let word = TableRef::serve(16, 4).0;
    let other = Descriptor { external: word, internal: word, affinity: 1, ..Descriptor::default() };
    actual.descriptors.insert((Family::V4, 99), other);
    let member = |backend| MemberKey { first_block: 16, backend };
    actual.members = (0..MAX_MEMBERS as u32 - 1).map(member).collect();
    world.planner = Planner::new(&actual, MAX_FRONTENDS, 0);
    world.all_rules(&clients(10, None));
    let plan = world.plan(None);
    let problems: Vec<_> = plan.problems.iter().map(Problem::to_string).collect();
    assert_eq!(problems.len(), 3);
    assert!(
        problems[0].starts_with("Service default/a: port http: 10.96.0.1:80/TCP is served without"),
        "{problems:?}"
    );
    let descriptors: Vec<_> = plan
        .ops
        .iter()
        .filter_map(|op| match op {
            MapOp::SetDescriptor { descriptor, .. } => Some(descriptor),
            _ => None,
        })
        .filter(|descriptor| descriptor.external != 0)
        .collect();
    assert_eq!(descriptors.len(), 3);
    assert!(descriptors.iter().all(|descriptor| descriptor.affinity == 0));

    // The members that nothing wants any more make room for the next plan.
    world.planner.commit(&plan.ops);
    assert!(world.planner.is_waiting());
    let plan = world.plan(None);
    assert_eq!(plan.problems, []);
    world.planner.commit(&plan.ops);
    assert!(!world.planner.actual().members.is_empty());
}

/// Clients inside and outside of the ranges of [`range`].
fn sample(v4: bool) -> [IpAddr; 3] {
    let sample = match v4 {
        true => ["10.7.1.1", "10.7.2.1", "172.16.0.1"],
        false => ["2001:db8:7:1::1", "2001:db8:7:2::1", "fd00::1"],
    };
    sample.map(|client| client.parse().unwrap())
}

/// Carries out a plan op by op. A client that is admitted before and after it is admitted in
/// between; one that is admitted neither before nor after is refused in between.
fn watch(actual: &Actual, ops: &[MapOp]) -> Result<(), TestCaseError> {
    let mut after = actual.clone();
    ops.iter().for_each(|op| after.carry_out(op));
    let mut now = actual.clone();
    for op in ops {
        now.carry_out(op);
        // Tables are large and say nothing of clients.
        if matches!(op, MapOp::WriteTable { .. } | MapOp::SetBackend { .. }) {
            continue;
        }
        for addr in now.frontends.keys() {
            for client in sample(addr.addr.is_ipv4()) {
                let (before, after) = (admits(actual, addr, client), admits(&after, addr, client));
                let is_same = before.is_none() || after.is_none() || before == after;
                if let (Some(expected), true) = (before.or(after), is_same) {
                    prop_assert_eq!(
                        admits(&now, addr, client),
                        Some(expected),
                        "{} at {} after {:?}",
                        client,
                        addr,
                        op
                    );
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_client_is_admitted_or_refused_by_mistake_between_two_operations(steps in steps()) {
        let mut desired = Desired::default();
        let mut facts = NodeFacts::default();
        take_step(&Step::Node { local: 0x0f, routed: 0xff, addresses: 1 }, &mut desired, &mut facts);
        let mut planner = Planner::new(&Actual::default(), MAX_FRONTENDS, 0);
        let mut now = 0;
        for step in steps {
            take_step(&step, &mut desired, &mut facts);
            if let Step::Sweep { wait, .. } = step {
                now += u64::from(wait) * SECOND / 10;
            }
            let plan = planner.plan(&desired, &facts, None, now);
            watch(planner.actual(), &plan.ops)?;
            planner.commit(&plan.ops);
        }
    }
}

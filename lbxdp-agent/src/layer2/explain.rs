//! Why an address is or is not announced by this node, in sentences, and what to do about it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::account::{Account, Agent, NotThere};
use super::choice::Unfit;
use super::handover::TAKING_OVER;
use super::report::Report;

/// So many nodes are named; more are counted.
const NAMED: usize = 5;

/// Something that is so, and what would change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What is so.
    pub what: String,
    /// What to do, if there is something to do.
    pub remedy: Option<String>,
}

/// The first one says what is, the others why.
pub fn explain(account: &Account, report: &Report, agent: Agent) -> Vec<Reason> {
    let mut reasons = Reasons(Vec::new());
    reasons.outcome(account, report);
    if report.is_off {
        reasons.advise(
            format!(
                "Announcing is switched off on {}, and that is for all nodes or none.",
                account.here.node
            ),
            "Somebody else announces addresses then; or start all agents without --layer2 off.",
        );
        return reasons.0;
    }
    reasons.of_agent(account, report, agent);
    let is_chosen = reasons.of_service(account);
    if is_chosen {
        reasons.of_nodes(account, report);
    }
    reasons.0
}

struct Reasons(Vec<Reason>);

impl Reasons {
    fn say(&mut self, what: impl Into<String>) {
        self.0.push(Reason { what: what.into(), remedy: None });
    }

    fn advise(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Reason { what: what.into(), remedy: Some(remedy.into()) });
    }

    fn outcome(&mut self, account: &Account, report: &Report) {
        let Account { service, address, owner, here, .. } = account;
        let node = &here.node;
        let Some(address) = address else {
            return self.say(format!("Service {service} has no address to announce."));
        };
        let what = match owner {
            _ if here.is_answered => {
                let devices = here.devices.join(", ");
                format!(
                    "{address} of Service {service} is announced by this node, {node}, by {devices}."
                )
            }
            Some(owner) if owner != node && !report.members.isolated => {
                format!(
                    "{address} of Service {service} is announced by {owner}, not by this node, {node}."
                )
            }
            Some(_) => {
                format!("{address} of Service {service} is not announced by this node, {node}.")
            }
            None => format!("{address} of Service {service} is announced by no node."),
        };
        self.say(what);
    }

    /// What keeps this node from announcing anything.
    fn of_agent(&mut self, account: &Account, report: &Report, agent: Agent) {
        let node = &account.here.node;
        if !agent.is_running {
            self.advise(
                format!("No agent runs on {node}: it announces nothing, and what is said here is what the last one knew."),
                "Start the agent; its log says why the last one ended.",
            );
        } else if report.members.isolated {
            self.advise(
                format!("{node} sees neither the API nor any other node: it keeps silent, because the others take it for lost."),
                "Look at the node's network, and whether the members' UDP port is open between nodes.",
            );
        } else if !account.here.devices.is_empty() && !agent.is_gate_open {
            self.advise(
                format!("Programs on {node} do not answer: the gate is closed, because the agent has not said for too long that it is there."),
                "The agent is stopped or starved, or not healthy: look at its log, /livez, and the node's load.",
            );
        }
        for (what, why) in &report.failures {
            let remedy = if *what == TAKING_OVER {
                "Find out whose link-layer address that is: a node whose agent does not hear the others, or somebody else who was given the address."
            } else {
                "It is tried again every second; frames need CAP_NET_RAW."
            };
            self.advise(format!("On {node} this fails: {what}: {why}."), remedy);
        }
    }

    /// What the Service, pools and advertisements say; whether nodes come into it.
    fn of_service(&mut self, account: &Account) -> bool {
        let Account { service, address, class, is_ours, pool, advertisements, .. } = account;
        if !is_ours {
            match class {
                Some(class) => self.advise(
                    format!("Its spec.loadBalancerClass is {class}: somebody else gives it addresses and announces them."),
                    "spec.loadBalancerClass cannot be changed: make the Service anew, with lbxdp.io/lbxdp or none.",
                ),
                None => self.advise(
                    "It has no spec.loadBalancerClass, and such Services are left to others: --adopt-classless is not given, or a controller of MetalLB runs.",
                    "Give it the class lbxdp.io/lbxdp, or start agents with --adopt-classless and end MetalLB's controller.",
                ),
            }
            return false;
        }
        let Some(address) = address else {
            let (namespace, name) = service.split_once('/').unwrap_or_default();
            self.advise(
                "Its status.loadBalancer.ingress shows none that is served: no pool has given it one, or not yet.",
                format!("The condition lbxdp.io/AddressAllocated and Events say why: kubectl -n {namespace} describe service {name}"),
            );
            return false;
        };
        let Some(pool) = pool else {
            self.advise(
                format!("No IPAddressPool has {address}: whoever gave it has to announce it."),
                "Write a pool that has it, or let the Service have an address of a pool.",
            );
            return false;
        };
        if advertisements.is_empty() {
            let shared = &account.shared_with;
            let mut what = format!("No L2Advertisement is about pool {pool} and this Service.");
            if !shared.is_empty() {
                let shared = shared.join(", ");
                what.push_str(&format!(" The address is shared with {shared}, and then one with serviceSelectors does not count."));
            }
            self.advise(
                what,
                format!("Write one whose ipAddressPools has {pool}, or that names no pools."),
            );
            return false;
        }
        let advertisements = advertisements.join(", ");
        self.say(format!(
            "It is of pool {pool}, which is announced as L2Advertisement {advertisements} says."
        ));
        true
    }

    /// Who is chosen, and why not this node, or why nobody.
    fn of_nodes(&mut self, account: &Account, report: &Report) {
        let Account { owner, next, not, here, .. } = account;
        let node = &here.node;
        let all = 1 + next.len();
        match owner {
            Some(owner) if owner == node && all == 1 => {
                self.say("No other node can announce it: if this one is lost, nobody does.");
            }
            Some(owner) if owner == node => self.say(format!(
                "{node} comes first in this address's order of the {all} nodes that can; {} would be next.",
                next[0]
            )),
            Some(owner) => {
                if let Some(place) = next.iter().position(|it| it == node) {
                    self.say(format!(
                        "{owner} comes first in this address's order of the {all} nodes that can, {node} is number {}.",
                        place + 2
                    ));
                } else if let Some(NotThere { reason, .. }) = not.iter().find(|it| it.node == *node) {
                    self.unfit(*reason, std::slice::from_ref(node), account, report);
                } else {
                    self.advise(
                        format!("There is no Node object of the name {node}."),
                        "--node-name has to be the name of the Node.",
                    );
                }
            }
            None if not.is_empty() => self.advise(
                "No node is known.",
                "Nodes come from the API, or from the directory of manifests.",
            ),
            None => {
                let mut by_reason = BTreeMap::<Unfit, Vec<String>>::new();
                for NotThere { node, reason, .. } in not {
                    by_reason.entry(*reason).or_default().push(node.clone());
                }
                for (reason, nodes) in by_reason {
                    self.unfit(reason, &nodes, account, report);
                }
            }
        }
    }

    /// Why these nodes cannot announce it.
    fn unfit(&mut self, reason: Unfit, nodes: &[String], account: &Account, report: &Report) {
        let (namespace, name) = account.service.split_once('/').unwrap_or_default();
        let mut who = nodes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if nodes.len() > NAMED {
            who.push_str(&format!(" and {} more", nodes.len() - NAMED));
        }
        let first = nodes.first().map(String::as_str).unwrap_or_default();
        let advertisements = account.advertisements.join(", ");
        let slices = format!(
            "kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}"
        );
        let remedy = match reason {
            Unfit::NoEndpoint => format!("A pod of it has to be ready: {slices}"),
            Unfit::NotSelected => format!(
                "Label the node as spec.nodeSelectors of {advertisements} want it, or change them."
            ),
            Unfit::NotLive => "Is an agent there, and does it hear the others? `lbxdp-agent status` on both nodes says.".to_owned(),
            Unfit::Leaving => format!("Wait, or let it stay: kubectl describe node {first}"),
            Unfit::NoNetwork => {
                format!("The network plugin sets it, and says why: kubectl describe node {first}")
            }
            Unfit::Excluded => format!(
                "kubectl label node {first} node.kubernetes.io/exclude-from-external-load-balancers-"
            ),
            Unfit::NotHealthy => {
                "`lbxdp-agent status` on the node and its agent's log say why.".to_owned()
            }
            Unfit::NoDevice => {
                let devices: Vec<_> = report.here.devices.iter().map(String::as_str).collect();
                let devices = if devices.is_empty() { "none".to_owned() } else { devices.join(", ") };
                format!(
                    "Devices that could be used on {}: {devices}. Name one in spec.interfaces of \
                     {advertisements}, or have it served with --device.",
                    report.here.name
                )
            }
            Unfit::NoLocalEndpoint => format!(
                "Run a pod of it there, or set externalTrafficPolicy: Cluster. {slices} -o wide"
            ),
        };
        self.advise(format!("Not from {who}: {reason}."), remedy);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::account::{Subject, accounts};
    use super::super::{Balancer, Here, NodeFacts, Resources, Seen};
    use super::*;
    use crate::members::Members;
    use crate::source::{Kind, ObjectId, Sourced};
    use crate::vip::Facts;
    use crate::vip::resources::read;

    const RUNNING: Agent = Agent { is_running: true, is_gate_open: true };
    /// First for 192.0.2.1 is n2, then n1, then n3.
    const ADDRESS: &str = "192.0.2.1";

    /// What there is, as the node "n1" sees it.
    struct World {
        seen: Seen,
        advertisements: Vec<Value>,
        nodes: Vec<NodeFacts>,
        balancer: Balancer,
        agent: Agent,
        adopts: bool,
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    impl World {
        fn new() -> Self {
            let all = ["n1", "n2", "n3"];
            let seen = Seen {
                here: Here {
                    name: "n1".to_owned(),
                    is_healthy: true,
                    is_leaving: false,
                    devices: names(&["eth0"]),
                },
                members: Members { alive: names(&all), ..Members::default() },
                ..Seen::default()
            };
            let node = |name: &str| NodeFacts { name: name.to_owned(), ..NodeFacts::default() };
            let balancer = Balancer {
                addresses: vec![ADDRESS.parse().unwrap()],
                endpoints: names(&all),
                ..Balancer::default()
            };
            Self {
                seen,
                advertisements: vec![json!({})],
                nodes: all.map(node).into(),
                balancer,
                agent: RUNNING,
                adopts: true,
            }
        }

        fn answering(mut self) -> Self {
            self.seen.answered = [(ADDRESS.parse().unwrap(), "eth0".to_owned())].into();
            self
        }

        fn report(&self) -> Report {
            Report::new(&self.seen(), &Report::default(), 7)
        }

        fn seen(&self) -> Seen {
            let object = |name: String, spec: &Value| json!({"metadata": {"name": name, "namespace": "lb"}, "spec": spec});
            let pool = object("first".to_owned(), &json!({"addresses": ["192.0.2.0/28"]}));
            let advertisements = self.advertisements.iter().enumerate().map(|(index, spec)| {
                Sourced::new("", read(&object(format!("l{index}"), spec)).unwrap())
            });
            let facts = Facts {
                pools: vec![Sourced::new("", read(&pool).unwrap())],
                advertisements: advertisements.collect(),
                ..Facts::default()
            };
            let resources = Resources::new(&facts, self.nodes.clone(), self.adopts);
            let id = ObjectId::new(Kind::Service, Some("shop"), "web");
            Seen {
                resources: Some(Arc::new(resources)),
                balancers: Some(Arc::new([(id, Arc::new(self.balancer.clone()))].into())),
                ..self.seen.clone()
            }
        }

        /// The sentences, and behind an arrow what to do, as far as the first full stop.
        fn explained(&self) -> Vec<String> {
            let report = self.report();
            let subject: Subject = "shop/web".parse().unwrap();
            let all = accounts(&report, &subject, self.agent).unwrap();
            assert_eq!(all.len(), 1);
            let reasons = explain(&all[0], &report, self.agent);
            let line = |it: &Reason| match &it.remedy {
                Some(remedy) => format!("{} -> {remedy}", it.what),
                None => it.what.clone(),
            };
            reasons.iter().map(line).collect()
        }
    }

    #[track_caller]
    fn assert_explained(world: &World, expected: &[&str]) {
        let explained = world.explained();
        assert_eq!(explained.len(), expected.len(), "{explained:#?}");
        for (line, expected) in explained.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line:?}\ndoes not begin with\n{expected:?}");
        }
    }

    const BY_OTHER: &str =
        "192.0.2.1 of Service shop/web is announced by n2, not by this node, n1.";
    const BY_NONE: &str = "192.0.2.1 of Service shop/web is announced by no node.";
    const BY_THIS: &str = "192.0.2.1 of Service shop/web is announced by this node, n1, by eth0.";
    const NOT_BY_THIS: &str = "192.0.2.1 of Service shop/web is not announced by this node, n1.";
    const POOL: &str = "It is of pool first, which is announced as L2Advertisement lb/l0 says.";

    #[test]
    fn a_node_that_is_not_first_says_who_is_and_which_it_is() {
        let world = World::new();
        let place = "n2 comes first in this address's order of the 3 nodes that can, n1 is number";
        assert_explained(&world, &[BY_OTHER, POOL, place]);
        let mut world = World::new().answering();
        world.seen.members.alive = names(&["n1", "n3"]);
        let place = "n1 comes first in this address's order of the 2 nodes that can; n3 would be";
        assert_explained(&world, &[BY_THIS, POOL, place]);
        world.seen.members.alive = names(&["n1"]);
        assert_explained(&world, &[BY_THIS, POOL, "No other node can announce it"]);
    }

    #[test]
    fn a_node_that_cannot_says_why_and_what_would_help() {
        let unfit = |change: &dyn Fn(&mut World), expected: &str| {
            let mut world = World::new();
            change(&mut world);
            assert_explained(&world, &[BY_OTHER, POOL, expected]);
        };
        unfit(
            &|world| world.seen.here.devices = names(&[]),
            "Not from n1: none of the devices that are named is there and carries frames. -> \
             Devices that could be used on n1: none.",
        );
        unfit(
            &|world| {
                world.advertisements = vec![json!({"interfaces": ["eth9"]})];
            },
            "Not from n1: none of the devices that are named is there and carries frames. -> \
             Devices that could be used on n1: eth0. Name one in spec.interfaces of lb/l0",
        );
        unfit(
            &|world| {
                world.balancer.is_local = true;
                world.balancer.endpoints = names(&["n2", "n3"]);
            },
            "Not from n1: externalTrafficPolicy is Local, and no endpoint is on the node. -> \
             Run a pod of it there, or set externalTrafficPolicy: Cluster.",
        );
        unfit(
            &|world| world.seen.here.is_healthy = false,
            "Not from n1: the node's programs do not run. -> ",
        );
        let excluded = "node.kubernetes.io/exclude-from-external-load-balancers";
        unfit(
            &|world| drop(world.nodes[0].labels.insert(excluded.to_owned(), String::new())),
            "Not from n1: the node's label node.kubernetes.io/exclude-from-external-load-balancers. \
             -> kubectl label node n1 node.kubernetes.io/exclude-from-external-load-balancers-",
        );
        unfit(
            &|world| world.nodes[0].lacks_network = true,
            "Not from n1: the node's condition NetworkUnavailable. -> ",
        );
        unfit(
            &|world| world.nodes[0].is_leaving = true,
            "Not from n1: the node is drained, or its agent ends. -> ",
        );
        unfit(&|world| drop(world.nodes.remove(0)), "There is no Node object of the name n1. -> ");
    }

    #[test]
    fn what_nobody_announces_has_reasons_for_all_nodes() {
        let mut world = World::new();
        world.balancer.endpoints.clear();
        let endpoint = "Not from n1, n2, n3: the Service has no endpoint. -> A pod of it has to be \
                        ready: kubectl -n shop get endpointslices -l kubernetes.io/service-name=web";
        assert_explained(&world, &[BY_NONE, POOL, endpoint]);
        let mut world = World::new();
        world.balancer.is_local = true;
        world.balancer.endpoints = names(&["n3"]);
        world.seen.members.alive = names(&["n1", "n2"]);
        let expected = [
            BY_NONE,
            POOL,
            "Not from n3: the node is not heard. -> ",
            "Not from n1, n2: externalTrafficPolicy is Local",
        ];
        assert_explained(&world, &expected);
        world.nodes.clear();
        assert_explained(&world, &[BY_NONE, POOL, "No node is known. -> "]);
    }

    #[test]
    fn what_is_not_announced_at_all_has_a_reason_before_any_node() {
        let mut world = World::new();
        world.advertisements = vec![json!({"ipAddressPools": ["second"]})];
        let none = "No L2Advertisement is about pool first and this Service. -> Write one whose";
        assert_explained(&world, &[BY_NONE, none]);
        world.balancer.addresses = vec!["198.51.100.1".parse().unwrap()];
        let by_none = "198.51.100.1 of Service shop/web is announced by no node.";
        assert_explained(&world, &[by_none, "No IPAddressPool has 198.51.100.1: whoever gave it"]);
        world.balancer.addresses.clear();
        let nothing = "Service shop/web has no address to announce.";
        assert_explained(&world, &[nothing, "Its status.loadBalancer.ingress shows none that is"]);
        world.adopts = false;
        assert_explained(&world, &[nothing, "It has no spec.loadBalancerClass, and such Services"]);
        world.balancer.class = Some("example.com/other".into());
        assert_explained(&world, &[nothing, "Its spec.loadBalancerClass is example.com/other: "]);
    }

    #[test]
    fn an_agent_that_is_silent_is_named_first() {
        let mut world = World::new().answering();
        world.nodes.truncate(1);
        world.agent.is_gate_open = false;
        let alone = "No other node can announce it";
        let gate = "Programs on n1 do not answer: the gate is closed";
        assert_explained(&world, &[NOT_BY_THIS, gate, POOL, alone]);
        world.agent.is_running = false;
        assert_explained(&world, &[NOT_BY_THIS, "No agent runs on n1: ", POOL, alone]);
        let mut world = World::new();
        world.seen.members.isolated = true;
        world.seen.failures = [("withdrawing addresses", "map announced_v4: no".to_owned())].into();
        let isolated = "n1 sees neither the API nor any other node: it keeps silent";
        let fails = "On n1 this fails: withdrawing addresses: map announced_v4: no. -> ";
        let place = "n2 comes first in this address's order";
        assert_explained(&world, &[NOT_BY_THIS, isolated, fails, POOL, place]);
    }

    #[test]
    fn announcing_that_is_switched_off_is_all_there_is_to_say() {
        let mut world = World::new();
        world.seen.is_off = true;
        assert_explained(
            &world,
            &[BY_NONE, "Announcing is switched off on n1, and that is for all"],
        );
    }

    #[test]
    fn what_nobody_announces_is_counted_by_what_would_have_to_be_otherwise() {
        let counts = |change: &dyn Fn(&mut World)| {
            let mut world = World::new();
            change(&mut world);
            world.seen().not_announced().named().map(|(_, count)| count)
        };
        assert_eq!(counts(&|_| {}), [0, 0, 0, 0]);
        let elsewhere = "198.51.100.1".parse().unwrap();
        assert_eq!(counts(&|world| world.balancer.addresses.push(elsewhere)), [1, 0, 0, 0]);
        assert_eq!(counts(&|world| world.advertisements.clear()), [0, 1, 0, 0]);
        assert_eq!(counts(&|world| world.balancer.endpoints.clear()), [0, 0, 1, 0]);
        assert_eq!(counts(&|world| world.seen.members.alive.clear()), [0, 0, 0, 1]);
        // What is not ours is not missed.
        assert_eq!(counts(&|world| world.adopts = false), [0, 0, 0, 0]);
        let off = |world: &mut World| {
            world.seen.is_off = true;
            world.seen.members.alive.clear();
        };
        assert_eq!(counts(&off), [0, 0, 0, 0]);
    }

    #[test]
    fn what_nobody_knows_is_an_error_that_names_it() {
        let report = World::new().report();
        let error = |subject: &str| {
            let subject = subject.parse().unwrap();
            accounts(&report, &subject, RUNNING).unwrap_err().to_string()
        };
        let free = "192.0.2.9 is of no Service of type LoadBalancer that the agent of node n1 \
                    serves; pool first has it, and it may be free";
        assert_eq!(error("192.0.2.9"), free);
        assert!(error("203.0.113.1").ends_with("serves, and no pool has it"));
        assert!(error("shop/mail").starts_with("Service shop/mail is not there, is not of type"));
        let nothing = Report::new(&World::new().seen, &Report::default(), 7);
        let subject: Subject = ADDRESS.parse().unwrap();
        let error = accounts(&nothing, &subject, RUNNING).unwrap_err().to_string();
        assert!(error.starts_with("the agent of node n1 does not know yet"), "{error}");
        for text in ["web", "shop/", "/web", "a/b/c", ""] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}

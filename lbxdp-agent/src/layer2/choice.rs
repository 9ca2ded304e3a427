//! Which nodes may answer for an address, and which of them does.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::owner;
use crate::members::Devices;
use crate::vip::{Advertisement, Labels};

/// A node that could be chosen, as every node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Labels of its object.
    pub labels: Labels,
    /// Whether it is heard.
    pub is_live: bool,
    /// Whether its programs run and its maps are what they should be.
    pub is_healthy: bool,
    /// Whether it lets go of everything, because it is drained or its agent ends.
    pub is_leaving: bool,
    /// The condition `NetworkUnavailable`.
    pub lacks_network: bool,
    /// Whether load balancers are to leave it alone
    /// (`node.kubernetes.io/exclude-from-external-load-balancers`).
    pub is_excluded: bool,
    /// Its devices that carry frames and have programs; `None` if only the node itself knows them.
    pub devices: Option<BTreeSet<String>>,
    /// What it says of them.
    pub said: Devices,
}

/// An address that somebody has to answer for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The address by which nodes are sorted: the first of the Service, so that both families are on
    /// one node.
    pub first: IpAddr,
    /// Where endpoints are that can be used, by the names of their nodes.
    pub endpoints: &'a BTreeSet<String>,
    /// Whether only those nodes may answer (`externalTrafficPolicy: Local`).
    pub is_local: bool,
}

/// Why a node cannot be chosen. The first reason counts, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Unfit {
    /// No endpoint is anywhere.
    NoEndpoint,
    /// No advertisement selects it.
    NotSelected,
    /// It is not heard.
    NotLive,
    /// It lets go of everything.
    Leaving,
    /// Its condition says so.
    NoNetwork,
    /// Its label says so.
    Excluded,
    /// Its programs do not run.
    NotHealthy,
    /// It has none of the devices that the advertisements name, or they carry nothing.
    NoDevice,
    /// It has no endpoint, and the policy is Local.
    NoLocalEndpoint,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoint => "the Service has no endpoint",
            Self::NotSelected => "no L2Advertisement selects the node",
            Self::NotLive => "the node is not heard",
            Self::Leaving => "the node is drained, or its agent ends",
            Self::NoNetwork => "the node's condition NetworkUnavailable",
            Self::Excluded => {
                "the node's label node.kubernetes.io/exclude-from-external-load-balancers"
            }
            Self::NotHealthy => "the node's programs do not run",
            Self::NoDevice => "none of the devices that are named is there and carries frames",
            Self::NoLocalEndpoint => {
                "externalTrafficPolicy is Local, and no endpoint is on the node"
            }
        })
    }
}

/// What was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Who may answer, the owner first, then who would be next; each with the devices to do it by.
    pub fit: Vec<(&'a str, BTreeSet<&'a str>)>,
    /// The others, by name.
    pub unfit: Vec<(&'a str, Unfit)>,
}

impl<'a> Choice<'a> {
    /// Who answers.
    pub fn owner(&self) -> Option<&'a str> {
        self.fit.first().map(|(name, _)| *name)
    }

    /// By which devices this node answers: none, unless it is the owner.
    pub fn devices_of(&self, node: &str) -> impl Iterator<Item = &'a str> + '_ {
        let owner = self.fit.first().filter(|(name, _)| *name == node);
        owner.into_iter().flat_map(|(_, devices)| devices.iter().copied())
    }
}

/// Chooses among `nodes` for an address that these advertisements are about. All of them together say
/// from where: whatever one allows is allowed, and preferences add up.
pub fn choose<'a>(
    wanted: &Wanted<'_>,
    advertisements: &[&Advertisement],
    nodes: &'a [Node],
) -> Choice<'a> {
    let mut choice = Choice::default();
    let mut fit = Vec::new();
    for node in nodes {
        match judge(wanted, advertisements, node) {
            Ok(devices) => {
                let preferences =
                    admitting(advertisements, node).map(|it| it.preference(&node.labels));
                fit.push((node.name.as_str(), devices, preferences.sum::<i32>()));
            }
            Err(why) => choice.unfit.push((node.name.as_str(), why)),
        }
    }
    owner::sort(&mut fit, wanted.first, |(_, _, preference)| *preference, |(name, _, _)| name);
    choice.fit = fit.into_iter().map(|(name, devices, _)| (name, devices)).collect();
    choice.unfit.sort_unstable();
    choice
}

fn admitting<'b>(
    advertisements: &'b [&Advertisement],
    node: &'b Node,
) -> impl Iterator<Item = &'b Advertisement> {
    advertisements.iter().copied().filter(|it| it.admits_node(&node.labels))
}

/// The devices by which a node can answer, or why it cannot.
fn judge<'a>(
    wanted: &Wanted<'_>,
    advertisements: &[&Advertisement],
    node: &'a Node,
) -> Result<BTreeSet<&'a str>, Unfit> {
    let refuse = |is_so: bool, why: Unfit| if is_so { Err(why) } else { Ok(()) };
    refuse(wanted.endpoints.is_empty(), Unfit::NoEndpoint)?;
    refuse(admitting(advertisements, node).next().is_none(), Unfit::NotSelected)?;
    refuse(!node.is_live, Unfit::NotLive)?;
    refuse(node.is_leaving, Unfit::Leaving)?;
    refuse(node.lacks_network, Unfit::NoNetwork)?;
    refuse(node.is_excluded, Unfit::Excluded)?;
    refuse(!node.is_healthy, Unfit::NotHealthy)?;
    let admits =
        |device: &&str| admitting(advertisements, node).any(|it| it.admits_interface(device));
    let known = node.devices.iter().flatten().map(String::as_str);
    let devices: BTreeSet<_> = known.filter(admits).collect();
    let is_said = || {
        let may = |it: &Advertisement| it.admits_some_interface(|name| node.said.have(name));
        !node.said.is_none() && admitting(advertisements, node).any(may)
    };
    let has_device = if node.devices.is_some() { !devices.is_empty() } else { is_said() };
    refuse(!has_device, Unfit::NoDevice)?;
    refuse(wanted.is_local && !wanted.endpoints.contains(&node.name), Unfit::NoLocalEndpoint)?;
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::problem::Problems;
    use crate::source::Sourced;
    use crate::vip::resources::read;
    use crate::vip::{Advertisements, Pools, Reserved};

    const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// The names of nodes that fit, best first, with advertisements of these specs.
    fn fit(specs: &[Value], nodes: &[Node], endpoints: &[&str], is_local: bool) -> Vec<String> {
        with(specs, nodes, endpoints, is_local, |choice| {
            choice.fit.iter().map(|(name, _)| (*name).to_owned()).collect()
        })
    }

    fn with<T>(
        specs: &[Value],
        nodes: &[Node],
        endpoints: &[&str],
        is_local: bool,
        look: impl FnOnce(&Choice<'_>) -> T,
    ) -> T {
        let mut problems = Problems::default();
        let pool = json!({
            "metadata": {"name": "a", "namespace": "n"},
            "spec": {"addresses": ["192.0.2.0/24"]},
        });
        let pool = Sourced::new("", read(&pool).unwrap());
        let pools = Pools::new(&[pool], Reserved::default(), &BTreeSet::new(), &mut problems);
        let objects = specs.iter().map(|spec| {
            let object = json!({"metadata": {"name": "l", "namespace": "n"}, "spec": spec});
            Sourced::new("", read(&object).unwrap())
        });
        let objects: Vec<_> = objects.collect();
        let all = Advertisements::new(&objects, &pools, &mut problems);
        let labels = Labels::new();
        let about: Vec<_> = all.of("a", &pools, &labels, false).collect();
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        let wanted = Wanted { first: FIRST, endpoints: &endpoints, is_local };
        look(&choose(&wanted, &about, nodes))
    }

    fn node(name: &str, rack: &str) -> Node {
        Node {
            name: name.to_owned(),
            labels: [("rack".to_owned(), rack.to_owned())].into(),
            is_live: true,
            is_healthy: true,
            devices: Some(["eth0".to_owned(), "eth1".to_owned()].into()),
            ..Node::default()
        }
    }

    fn three() -> Vec<Node> {
        vec![node("n1", "1"), node("n2", "2"), node("n3", "2")]
    }

    fn rack(number: &str) -> Value {
        json!({"matchLabels": {"rack": number}})
    }

    #[test]
    fn every_node_sees_the_same_order_whatever_it_hears_first() {
        let mut nodes = three();
        let order = fit(&[json!({})], &nodes, &["n1"], false);
        assert_eq!(order.len(), 3);
        nodes.reverse();
        assert_eq!(fit(&[json!({})], &nodes, &["n1"], false), order);
    }

    /// L3, and what MetalLB does not look at.
    #[test]
    fn a_node_that_cannot_answer_is_not_chosen_and_comes_back() {
        type Change = fn(&mut Node);
        let changes: [(Change, Unfit); 7] = [
            (|node| node.is_live = false, Unfit::NotLive),
            (|node| node.is_leaving = true, Unfit::Leaving),
            (|node| node.lacks_network = true, Unfit::NoNetwork),
            (|node| node.is_excluded = true, Unfit::Excluded),
            (|node| node.is_healthy = false, Unfit::NotHealthy),
            (|node| node.devices = Some(BTreeSet::new()), Unfit::NoDevice),
            (|node| (node.devices, node.said) = (None, Devices::NONE), Unfit::NoDevice),
        ];
        let order = fit(&[json!({})], &three(), &["n1"], false);
        for (change, why) in changes {
            let mut nodes = three();
            let owner = nodes.iter_mut().find(|node| node.name == order[0]).unwrap();
            change(owner);
            with(&[json!({})], &nodes, &["n1"], false, |choice| {
                assert_eq!(choice.owner(), Some(order[1].as_str()), "{why}");
                assert_eq!(choice.unfit, [(order[0].as_str(), why)]);
            });
        }
    }

    /// L4.
    #[test]
    fn selected_nodes_answer_and_advertisements_add_up() {
        let one = json!({"nodeSelectors": [rack("1")]});
        let two = json!({"nodeSelectors": [rack("2")]});
        assert_eq!(fit(std::slice::from_ref(&one), &three(), &["n2"], false), ["n1"]);
        assert_eq!(fit(&[one, two], &three(), &["n2"], false).len(), 3);
        let none = json!({"nodeSelectors": [rack("9")]});
        with(&[none], &three(), &["n1"], false, |choice| {
            assert_eq!(choice.owner(), None);
            assert!(choice.unfit.iter().all(|(_, why)| *why == Unfit::NotSelected));
        });
        // No advertisement is about the pool: nobody announces.
        assert!(fit(&[], &three(), &["n1"], false).is_empty());
    }

    /// L5.
    #[test]
    fn a_node_answers_by_the_devices_that_are_named_and_is_not_chosen_without_one() {
        let devices = |specs: &[Value], nodes: &[Node]| {
            with(specs, nodes, &["n1"], false, |choice| {
                let owner = choice.owner().unwrap_or_default();
                choice.devices_of(owner).map(str::to_owned).collect::<Vec<_>>()
            })
        };
        let by = |name: &str| json!({"interfaces": [name]});
        assert_eq!(devices(&[json!({})], &three()), ["eth0", "eth1"]);
        assert_eq!(devices(&[by("eth1")], &three()), ["eth1"]);
        assert_eq!(devices(&[by("eth1"), by("eth0")], &three()), ["eth0", "eth1"]);
        assert!(devices(&[by("eth9")], &three()).is_empty());
        // One that the node is not selected by says nothing of its devices.
        let other = json!({"interfaces": ["eth0"], "nodeSelectors": [rack("9")]});
        assert_eq!(devices(&[by("eth1"), other], &three()), ["eth1"]);
        // The elected node of MetalLB may lack the device, and then nobody announces.
        let order = fit(&[by("eth1")], &three(), &["n1"], false);
        let mut nodes = three();
        let owner = nodes.iter_mut().find(|node| node.name == order[0]).unwrap();
        owner.devices = Some(["eth0".to_owned()].into());
        assert_eq!(fit(&[by("eth1")], &nodes, &["n1"], false), order[1..]);
        with(&[by("eth1")], &nodes, &["n1"], false, |choice| {
            assert_eq!(choice.devices_of(&order[0]).count(), 0, "it is not the owner");
        });
    }

    /// L6.
    #[test]
    fn preferred_nodes_come_first_and_preferences_add_up() {
        let prefer = |weight: i32, number: &str| json!({"preferredNodeSelectors": [{"weight": weight, "preference": rack(number)}]});
        for (specs, owners) in [
            (vec![prefer(10, "1")], &["n1"][..]),
            (vec![prefer(10, "2")], &["n2", "n3"]),
            (vec![prefer(10, "1"), prefer(20, "2")], &["n2", "n3"]),
            (vec![prefer(10, "1"), prefer(20, "2"), prefer(15, "1")], &["n1"]),
        ] {
            let order = fit(&specs, &three(), &["n1"], false);
            assert!(owners.contains(&order[0].as_str()), "{specs:?}: {order:?}");
            assert_eq!(order.len(), 3, "those that are not preferred are next");
        }
    }

    /// L11, and where traffic stays on its node.
    #[test]
    fn nobody_answers_for_what_nobody_serves() {
        with(&[json!({})], &three(), &[], false, |choice| {
            assert_eq!(choice.owner(), None);
            assert!(choice.unfit.iter().all(|(_, why)| *why == Unfit::NoEndpoint));
        });
        let mut local = fit(&[json!({})], &three(), &["n1", "n3", "elsewhere"], true);
        local.sort_unstable();
        assert_eq!(local, ["n1", "n3"]);
        assert_eq!(fit(&[json!({})], &three(), &["n1"], false).len(), 3);
        assert!(fit(&[json!({})], &three(), &["elsewhere"], true).is_empty());
    }
}

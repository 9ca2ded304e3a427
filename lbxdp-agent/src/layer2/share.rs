//! Which addresses this node announces, and by which devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::choice::{self, Choice, Node, Wanted};
use super::resources::Resources;
use crate::members::Members;
use crate::source::ObjectId;
use crate::vip::Labels;

/// A Service of type LoadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
    /// `metadata.uid`, where there is an API.
    pub uid: Option<Box<str>>,
    /// Its addresses, as its status has them; none yet, perhaps.
    pub addresses: Vec<IpAddr>,
    /// `spec.loadBalancerClass`.
    pub class: Option<Box<str>>,
    /// Its labels.
    pub labels: Labels,
    /// Whether `externalTrafficPolicy` is Local.
    pub is_local: bool,
    /// Names of the nodes where endpoints are that get connections. An endpoint that is on none has an
    /// empty name here.
    pub endpoints: BTreeSet<String>,
}

/// All of them.
pub type Balancers = BTreeMap<ObjectId, Arc<Balancer>>;

/// This node, as nobody else knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// Its name.
    pub name: String,
    /// Whether its programs run and its maps are what they should be.
    pub is_healthy: bool,
    /// Whether its agent ends.
    pub is_leaving: bool,
    /// Names of the devices that face outwards, have programs and carry frames.
    pub devices: BTreeSet<String>,
}

/// One Service, and what was chosen for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The Service.
    pub service: &'a ObjectId,
    /// Its addresses that are of pools which somebody announces.
    pub addresses: Vec<IpAddr>,
    /// From where.
    pub choice: Choice<'a>,
}

/// Every node that could be chosen, as this one sees it.
pub fn nodes(resources: &Resources, members: &Members, here: &Here) -> Vec<Node> {
    let mut nodes: Vec<Node> = resources
        .written
        .nodes
        .iter()
        .map(|facts| {
            let is_here = facts.name == here.name;
            let said = members.says.get(&facts.name).copied().unwrap_or_default();
            // A node knows itself best.
            let is_healthy = if is_here { here.is_healthy } else { !said.lacks_programs };
            Node {
                name: facts.name.clone(),
                labels: facts.labels.clone(),
                is_live: members.alive.contains(&facts.name),
                is_healthy,
                is_leaving: facts.is_leaving
                    || if is_here { here.is_leaving } else { said.is_leaving },
                lacks_network: facts.lacks_network,
                is_excluded: facts.is_excluded(),
                devices: is_here.then(|| here.devices.clone()),
                said: said.devices,
            }
        })
        .collect();
    if resources.written.is_alone && !nodes.iter().any(|node| node.name == here.name) {
        nodes.push(Node {
            name: here.name.clone(),
            is_live: true,
            is_healthy: here.is_healthy,
            is_leaving: here.is_leaving,
            devices: Some(here.devices.clone()),
            ..Node::default()
        });
    }
    nodes
}

/// Decides for every Service, in the order of their names.
pub fn decide<'a>(
    balancers: &'a Balancers,
    resources: &Resources,
    nodes: &'a [Node],
) -> Vec<Decision<'a>> {
    let ours = balancers.iter().filter(|(_, it)| resources.are_ours(it.class.as_deref()));
    let ours: Vec<_> = ours.collect();
    let mut users: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for addr in ours.iter().flat_map(|(_, it)| &it.addresses) {
        *users.entry(*addr).or_default() += 1;
    }
    let decisions = ours.into_iter().filter_map(|(service, balancer)| {
        let mut about = Vec::new();
        let mut addresses = Vec::new();
        for addr in &balancer.addresses {
            let is_shared = users.get(addr).is_some_and(|users| *users > 1);
            let Some(pool) = resources.pools.of(*addr) else { continue };
            let (pools, labels) = (&resources.pools, &balancer.labels);
            let before = about.len();
            about.extend(resources.advertisements.of(pool, pools, labels, is_shared));
            if about.len() > before {
                addresses.push(*addr);
            }
        }
        let first = *balancer.addresses.first()?;
        let Balancer { endpoints, is_local, .. } = &**balancer;
        let wanted = Wanted { first, endpoints, is_local: *is_local };
        // Both families are of one pool: what was said for one of them was said for the other.
        about.dedup_by_key(|it| std::ptr::from_ref(*it));
        about.sort_by_key(|it| &it.name);
        about.dedup_by_key(|it| std::ptr::from_ref(*it));
        let choice = choice::choose(&wanted, &about, nodes);
        (!addresses.is_empty()).then_some(Decision { service, addresses, choice })
    });
    decisions.collect()
}

/// What was chosen for each address that somebody owns.
pub type Owners<'a, 'b> = BTreeMap<IpAddr, &'b Choice<'a>>;

/// Those who share an address have one owner: that of the first who has one.
pub fn owners<'a, 'b>(decisions: &'b [Decision<'a>]) -> Owners<'a, 'b> {
    let mut owners = Owners::new();
    for Decision { addresses, choice, .. } in decisions {
        if choice.owner().is_some() {
            for addr in addresses {
                owners.entry(*addr).or_insert(choice);
            }
        }
    }
    owners
}

/// What this node announces: the addresses that it owns, each with the names of devices.
pub fn mine(owners: &Owners<'_, '_>, this: &str) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let mine = owners.iter().map(|(addr, choice)| {
        (*addr, choice.devices_of(this).map(str::to_owned).collect::<BTreeSet<_>>())
    });
    mine.filter(|(_, devices)| !devices.is_empty()).collect()
}

/// The addresses that other nodes own.
pub fn of_others(owners: &Owners<'_, '_>, this: &str) -> BTreeSet<IpAddr> {
    owners
        .iter()
        .filter(|(_, choice)| choice.owner() != Some(this))
        .map(|(addr, _)| *addr)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::NodeFacts;
    use super::*;
    use crate::members::{Devices, Says};
    use crate::source::{Kind, Sourced};
    use crate::vip::Facts;
    use crate::vip::resources::read;

    const POOL: &str = "192.0.2.0/24";

    fn resources(advertisements: &[Value], adopts: bool) -> Resources {
        let pool = json!({
            "metadata": {"name": "a", "namespace": "n"},
            "spec": {"addresses": [POOL, "2001:db8::/120"]},
        });
        let named = advertisements.iter().enumerate().map(|(index, spec)| {
            let name = format!("l{index}");
            let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
            Sourced::new("", read(&object).unwrap())
        });
        let facts = Facts {
            pools: vec![Sourced::new("", read(&pool).unwrap())],
            advertisements: named.collect(),
            ..Facts::default()
        };
        let names = ["n1", "n2", "n3"];
        let nodes = names.map(|name| NodeFacts { name: name.to_owned(), ..NodeFacts::default() });
        Resources::new(&facts, nodes.into(), adopts)
    }

    fn here(name: &str) -> Here {
        let devices = ["eth0", "eth1"].map(str::to_owned).into();
        Here { name: name.to_owned(), is_healthy: true, is_leaving: false, devices }
    }

    fn balancer(addresses: &[&str]) -> Balancer {
        Balancer {
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            endpoints: ["n1".to_owned()].into(),
            ..Balancer::default()
        }
    }

    fn balancers<const N: usize>(all: [(&str, Balancer); N]) -> Balancers {
        let id = |name| ObjectId::new(Kind::Service, None, name);
        all.into_iter().map(|(name, it)| (id(name), Arc::new(it))).collect()
    }

    fn members(alive: &[&str]) -> Members {
        let alive = alive.iter().map(ToString::to_string).collect();
        Members { alive, ..Members::default() }
    }

    /// What each node announces by itself.
    fn all(
        balancers: &Balancers,
        resources: &Resources,
        alive: &[&str],
    ) -> BTreeMap<String, BTreeMap<IpAddr, BTreeSet<String>>> {
        let shares = alive.iter().map(|name| {
            let nodes = nodes(resources, &members(alive), &here(name));
            ((*name).to_owned(), mine(&owners(&decide(balancers, resources, &nodes)), name))
        });
        shares.collect()
    }

    #[test]
    fn an_address_has_one_owner_and_both_families_have_the_same() {
        let resources = resources(&[json!({})], true);
        for host in 1..50 {
            let (v4, v6) = (format!("192.0.2.{host}"), format!("2001:db8::{host:x}"));
            let services = balancers([("a", balancer(&[&v4, &v6]))]);
            let shares = all(&services, &resources, &["n1", "n2", "n3"]);
            let owners: Vec<_> = shares.values().filter(|share| !share.is_empty()).collect();
            assert_eq!(owners.len(), 1, "{shares:?}");
            assert_eq!(owners[0].len(), 2);
            assert!(owners[0].values().all(|devices| devices.len() == 2));
        }
    }

    #[test]
    fn what_no_advertisement_is_about_nobody_announces() {
        let services = balancers([("a", balancer(&["192.0.2.1"]))]);
        for (advertisements, addr) in [
            (vec![], "192.0.2.1"),
            (vec![json!({"ipAddressPools": ["other"]})], "192.0.2.1"),
            (vec![json!({})], "198.51.100.1"),
        ] {
            let services = match addr {
                "192.0.2.1" => services.clone(),
                other => balancers([("a", balancer(&[other]))]),
            };
            let shares = all(&services, &resources(&advertisements, true), &["n1", "n2"]);
            assert!(shares.values().all(BTreeMap::is_empty), "{advertisements:?} {shares:?}");
        }
    }

    #[test]
    fn services_of_others_are_left_to_them() {
        let of = |class: Option<&str>| {
            balancers([("a", Balancer { class: class.map(Box::from), ..balancer(&["192.0.2.1"]) })])
        };
        let is_announced = |class: Option<&str>, adopts: bool| {
            let shares = all(&of(class), &resources(&[json!({})], adopts), &["n1"]);
            !shares["n1"].is_empty()
        };
        assert!(is_announced(None, true) && !is_announced(None, false));
        assert!(is_announced(Some("lbxdp.io/lbxdp"), false));
        assert!(!is_announced(Some("example.com/other"), true));
    }

    /// A6 and L6: one address of two Services is announced from one node.
    #[test]
    fn who_shares_an_address_has_one_owner() {
        let silent = Balancer { endpoints: BTreeSet::new(), ..balancer(&["192.0.2.7"]) };
        let services = balancers([("a", silent), ("b", balancer(&["192.0.2.7"]))]);
        let shares = all(&services, &resources(&[json!({})], true), &["n1", "n2", "n3"]);
        assert_eq!(shares.values().filter(|share| !share.is_empty()).count(), 1);
        // Their labels may differ, so an advertisement that goes by labels is about neither.
        let by_label = json!({"serviceSelectors": [{"matchLabels": {}}]});
        let shares = all(&services, &resources(&[by_label], true), &["n1", "n2", "n3"]);
        assert!(shares.values().all(BTreeMap::is_empty));
    }

    /// L5.
    #[test]
    fn the_devices_that_advertisements_name_are_used() {
        let services = balancers([("a", balancer(&["192.0.2.1"]))]);
        let by = |advertisements: &[Value]| {
            let shares = all(&services, &resources(advertisements, true), &["n1"]);
            let devices = shares["n1"].values().next().cloned().unwrap_or_default();
            devices.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(by(&[json!({})]), "eth0 eth1");
        assert_eq!(by(&[json!({"interfaces": ["eth1"]})]), "eth1");
        assert_eq!(by(&[json!({"interfaces": ["eth9"]})]), "");
        assert_eq!(
            by(&[json!({"interfaces": ["eth1"]}), json!({"interfaces": ["eth0"]})]),
            "eth0 eth1"
        );
    }

    #[test]
    fn a_node_without_an_object_counts_only_where_there_is_no_cluster() {
        let services = balancers([("a", balancer(&["192.0.2.1"]))]);
        let elsewhere = resources(&[json!({})], true);
        assert!(all(&services, &elsewhere, &["n9"])["n9"].is_empty());
        assert!(!all(&services, &elsewhere.alone(), &["n9"])["n9"].is_empty());
    }

    #[test]
    fn a_node_that_is_ill_announces_nothing() {
        let services = balancers([("a", balancer(&["192.0.2.1"]))]);
        let resources = resources(&[json!({})], true);
        let ill = Here { is_healthy: false, ..here("n1") };
        let nodes = nodes(&resources, &members(&["n1"]), &ill);
        assert!(mine(&owners(&decide(&services, &resources, &nodes)), "n1").is_empty());
    }

    /// Who ends leaves its addresses to others, and where there are none to nobody.
    #[test]
    fn who_leaves_owns_nothing_and_knows_who_is_next() {
        let services = balancers([("a", balancer(&["192.0.2.1"]))]);
        let resources = resources(&[json!({})], true);
        for (alive, expected) in [(&["n1", "n2"][..], 1), (&["n1"], 0)] {
            let leaving = Here { is_leaving: true, ..here("n1") };
            let nodes = nodes(&resources, &members(alive), &leaving);
            let decisions = decide(&services, &resources, &nodes);
            let owners = owners(&decisions);
            assert!(mine(&owners, "n1").is_empty());
            assert_eq!(of_others(&owners, "n1").len(), expected);
        }
    }

    /// The owner says that it cannot, and all agree on the next one.
    #[test]
    fn a_node_that_says_that_it_cannot_announce_is_passed_over_by_all() {
        let services = balancers([("a", balancer(&["192.0.2.1"]))]);
        let resources = resources(&[json!({})], true);
        let names = ["n1", "n2", "n3"];
        let owner_by = |members: &Members, ill: &str| {
            let owners = names.map(|name| {
                let devices = if name == ill { BTreeSet::new() } else { here(name).devices };
                let nodes = nodes(&resources, members, &Here { devices, ..here(name) });
                decide(&services, &resources, &nodes)[0].choice.owner().unwrap().to_owned()
            });
            assert!(owners.iter().all(|owner| *owner == owners[0]), "{owners:?}");
            owners[0].clone()
        };
        let owner = owner_by(&members(&names), "");
        for says in [
            Says { devices: Devices::NONE, ..Says::default() },
            Says { lacks_programs: true, devices: Devices::NONE, ..Says::default() },
            Says { is_leaving: true, devices: Devices::NONE, ..Says::default() },
        ] {
            let members = Members { says: [(owner.clone(), says)].into(), ..members(&names) };
            assert_ne!(owner_by(&members, &owner), owner, "{says:?}");
        }
    }

    /// L5: who lacks the device that is named is passed over by all, whoever decides.
    #[test]
    fn an_advertisement_that_names_a_device_is_for_those_who_have_it() {
        let resources = resources(&[json!({"interfaces": ["eth1"]})], true);
        let names = ["n1", "n2", "n3"];
        for host in 1..50 {
            let services = balancers([("a", balancer(&[&format!("192.0.2.{host}")]))]);
            for has in names {
                let of = |name: &str| {
                    let all = if name == has { &["eth0", "eth1"][..] } else { &["eth0"] };
                    all.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
                };
                let says = names.map(|name| {
                    let devices = Devices::of(of(name).iter().map(String::as_str));
                    (name.to_owned(), Says { devices, ..Says::default() })
                });
                let members = Members { says: says.into(), ..members(&names) };
                for name in names {
                    let nodes =
                        nodes(&resources, &members, &Here { devices: of(name), ..here(name) });
                    let decisions = decide(&services, &resources, &nodes);
                    assert_eq!(decisions[0].choice.owner(), Some(has), "says {name}");
                }
            }
        }
    }

    /// Where 500 addresses are over three nodes, one that is lost moves its own third alone.
    #[test]
    fn a_lost_node_moves_its_own_addresses_alone() {
        let resources = resources(&[json!({})], true);
        let id = |name: String| ObjectId::new(Kind::Service, None, &name);
        let services: Balancers = (1..=250)
            .map(|host| (id(format!("s{host}")), Arc::new(balancer(&[&format!("192.0.2.{host}")]))))
            .collect();
        let before = all(&services, &resources, &["n1", "n2", "n3"]);
        let after = all(&services, &resources, &["n1", "n2"]);
        for name in ["n1", "n2"] {
            let kept = before[name].keys().filter(|addr| after[name].contains_key(addr)).count();
            assert_eq!(kept, before[name].len());
        }
        assert_eq!(after.values().map(BTreeMap::len).sum::<usize>(), 250);
    }
}

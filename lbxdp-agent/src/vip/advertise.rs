//! Which addresses are announced on the local network, from which nodes and by which devices.

use super::pool::{Pool, Pools};
use super::resources::{L2Advertisement, Read};
use super::select::{Labels, Selectors};
use crate::problem::{Problems, Reporter, quoted};
use crate::source::Sourced;

/// Every advertisement.
///
/// An address of a pool that none of them is about is given out and not announced.
#[derive(Debug, Default)]
pub struct Advertisements {
    all: Vec<Advertisement>,
}

/// One advertisement.
#[derive(Debug)]
pub struct Advertisement {
    /// `namespace/name`.
    pub name: String,
    pools: List,
    nodes: List,
    services: List,
    interfaces: Vec<String>,
    preferred: Vec<(i32, Selectors)>,
}

/// Names and selectors; none of either is everything.
#[derive(Debug, Default)]
struct List {
    names: Vec<String>,
    selectors: Selectors,
    is_written: bool,
}

impl List {
    fn has(&self, name: &str, labels: &Labels) -> bool {
        !self.is_written
            || self.names.iter().any(|other| other == name)
            || self.selectors.select(labels)
    }
}

impl Advertisements {
    /// Checks advertisements, and says which pools none of them is about.
    pub fn new(
        objects: &[Sourced<Read<L2Advertisement>>],
        pools: &Pools,
        problems: &mut Problems,
    ) -> Self {
        let mut all = Vec::new();
        for Sourced { origin, object: Read { object, unsupported } } in objects {
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            let name =
                format!("{namespace}/{}", object.metadata.name.as_deref().unwrap_or_default());
            let mut report = problems.about(origin, &format!("L2Advertisement {name}"));
            for field in unsupported {
                report.warning(field, "unsupported: it has no effect");
            }
            for (index, pool) in object.spec.ip_address_pools.iter().flatten().enumerate() {
                if pools.named(pool).is_none() {
                    let message = format!("there is no pool {}", quoted(pool));
                    report.warning(format!("spec.ipAddressPools[{index}]"), message);
                }
            }
            all.push(Advertisement::read(name, object, &mut report));
        }
        for pool in pools.iter() {
            if !all.iter().any(|advertisement| advertisement.is_about(pool)) {
                let name = format!("IPAddressPool {}/{}", pool.namespace, pool.name);
                let message = "no L2Advertisement is about it: its addresses are not announced";
                problems.about("", &name).warning("", message);
            }
        }
        Self { all }
    }

    /// Those that announce addresses of a Service, which are of this pool. All of them together say
    /// from where: whatever one of them allows is allowed.
    pub fn of<'a>(
        &'a self,
        pool: &str,
        pools: &'a Pools,
        service: &'a Labels,
        is_shared: bool,
    ) -> impl Iterator<Item = &'a Advertisement> {
        let pool = pools.named(pool);
        let all = self.all.iter().filter(move |it| pool.is_some_and(|pool| it.is_about(pool)));
        // Those who share an address have to be announced from one node, and labels may differ.
        all.filter(move |it| !(is_shared && it.services.is_written))
            .filter(|it| it.services.has("", service))
    }
}

impl Advertisement {
    fn read(name: String, object: &L2Advertisement, report: &mut Reporter<'_>) -> Self {
        let spec = &object.spec;
        let mut list = |names: Option<&[String]>, written: Option<&[_]>, field: &str| List {
            names: names.unwrap_or_default().to_vec(),
            is_written: !names.unwrap_or_default().is_empty()
                || !written.unwrap_or_default().is_empty(),
            selectors: Selectors::read(written, &format!("spec.{field}"), report).0,
        };
        let selectors = spec.ip_address_pool_selectors.as_deref();
        let pools = list(spec.ip_address_pools.as_deref(), selectors, "ipAddressPoolSelectors");
        let nodes = list(None, spec.node_selectors.as_deref(), "nodeSelectors");
        let services = list(None, spec.service_selectors.as_deref(), "serviceSelectors");
        let mut preferred = Vec::new();
        for (index, written) in spec.preferred_node_selectors.iter().flatten().enumerate() {
            let field = format!("spec.preferredNodeSelectors[{index}]");
            if !(1..=100).contains(&written.weight) {
                let message = format!("{} is not from 1 to 100: ignored", written.weight);
                report.error(format!("{field}.weight"), message);
                continue;
            }
            let one = std::slice::from_ref(&written.preference);
            let selectors = Selectors::read(Some(one), &format!("{field}.preference"), report).0;
            preferred.push((written.weight, selectors));
        }
        let interfaces = spec.interfaces.clone().unwrap_or_default();
        Self { name, pools, nodes, services, interfaces, preferred }
    }

    fn is_about(&self, pool: &Pool) -> bool {
        self.pools.has(&pool.name, &pool.labels)
    }

    /// Whether it announces from a node with these labels.
    pub fn admits_node(&self, labels: &Labels) -> bool {
        self.nodes.has("", labels)
    }

    /// Whether it announces by this device.
    pub fn admits_interface(&self, name: &str) -> bool {
        self.interfaces.is_empty() || self.interfaces.iter().any(|other| other == name)
    }

    /// Whether it announces by one that has this name, as somebody says.
    pub fn admits_some_interface(&self, has: impl Fn(&str) -> bool) -> bool {
        self.interfaces.is_empty() || self.interfaces.iter().any(|name| has(name))
    }

    /// How much better than others it likes a node with these labels.
    pub fn preference(&self, labels: &Labels) -> i32 {
        let weights = self.preferred.iter().filter(|(_, selectors)| selectors.select(labels));
        weights.map(|(weight, _)| weight).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::vip::Reserved;
    use crate::vip::resources::read;
    use crate::vip::tests::labels;

    /// Pools "a" with label `x=1` and "b".
    fn pools() -> Pools {
        let pool = |name: &str, range: &str, labels: Value| {
            let pool = json!({
                "metadata": {"name": name, "namespace": "n", "labels": labels},
                "spec": {"addresses": [range]},
            });
            Sourced::new("", read(&pool).unwrap())
        };
        let all =
            [pool("a", "192.0.2.0/24", json!({"x": "1"})), pool("b", "198.51.100.0/24", json!({}))];
        let mut problems = Problems::default();
        let pools = Pools::new(&all, Reserved::default(), &BTreeSet::new(), &mut problems);
        assert!(problems.into_sorted().is_empty());
        pools
    }

    fn advertisements(specs: &[Value]) -> (Advertisements, Vec<String>) {
        let objects = specs.iter().enumerate().map(|(index, spec)| {
            let name = format!("l{index}");
            let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
            Sourced::new("", read(&object).unwrap())
        });
        let mut problems = Problems::default();
        let objects: Vec<_> = objects.collect();
        let all = Advertisements::new(&objects, &pools(), &mut problems);
        (all, problems.into_sorted().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_pool_is_announced_by_those_that_are_about_it() {
        let select =
            |key: &str| json!([{"matchExpressions": [{"key": key, "operator": "Exists"}]}]);
        let web = labels(&[("web", "")]);
        for (spec, pool, is_shared, expected) in [
            (json!({}), "a", true, true),
            (json!({"ipAddressPools": ["a"]}), "a", false, true),
            (json!({"ipAddressPools": ["a"]}), "b", false, false),
            (json!({"ipAddressPoolSelectors": select("x")}), "a", false, true),
            (json!({"ipAddressPoolSelectors": select("x")}), "b", false, false),
            (
                json!({"ipAddressPools": ["b"], "ipAddressPoolSelectors": select("x")}),
                "b",
                false,
                true,
            ),
            (json!({"serviceSelectors": select("web")}), "a", false, true),
            (json!({"serviceSelectors": select("web")}), "a", true, false),
            (json!({"serviceSelectors": select("mail")}), "a", false, false),
            (json!({}), "c", false, false),
        ] {
            let all = advertisements(std::slice::from_ref(&spec)).0;
            let pools = pools();
            let found = all.of(pool, &pools, &web, is_shared).count();
            assert_eq!(found, usize::from(expected), "{spec} {pool}");
        }
    }

    #[test]
    fn nodes_and_devices_are_chosen_and_preferred() {
        let spec = json!({
            "nodeSelectors": [{"matchLabels": {"rack": "1"}}],
            "interfaces": ["eth0", "eth1"],
            "preferredNodeSelectors": [
                {"weight": 10, "preference": {"matchLabels": {"fast": "yes"}}},
                {"weight": 5, "preference": {"matchLabels": {"rack": "1"}}},
            ],
        });
        let (all, problems) = advertisements(&[spec]);
        assert_eq!(problems, Vec::<String>::new());
        let one = &all.all[0];
        assert!(one.admits_node(&labels(&[("rack", "1")])) && !one.admits_node(&labels(&[])));
        assert!(one.admits_interface("eth1") && !one.admits_interface("eth2"));
        assert_eq!(one.preference(&labels(&[("rack", "1"), ("fast", "yes")])), 15);
        assert_eq!(one.preference(&labels(&[("fast", "no")])), 0);
        let bare = &advertisements(&[json!({})]).0.all[0];
        assert!(bare.admits_node(&labels(&[])) && bare.admits_interface("any"));
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let like = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        let (all, problems) = advertisements(&[json!({
            "ipAddressPools": ["a", "c"], "nodeSelectors": [like], "vlan": 7,
            "preferredNodeSelectors": [{"weight": 0, "preference": {}}],
        })]);
        let parts = [
            "IPAddressPool n/b: no L2Advertisement is about it",
            "L2Advertisement n/l0: spec.ipAddressPools[1]: there is no pool \"c\"",
            "L2Advertisement n/l0: spec.nodeSelectors[0]: ",
            "L2Advertisement n/l0: spec.preferredNodeSelectors[0].weight: 0 is not",
            "L2Advertisement n/l0: spec.vlan: unsupported",
        ];
        assert_eq!(problems.len(), parts.len(), "{problems:?}");
        for (problem, part) in problems.iter().zip(parts) {
            assert!(problem.starts_with(part), "{problem}");
        }
        // A selector that cannot be read must not announce from everywhere.
        assert!(!all.all[0].admits_node(&labels(&[])));
    }
}

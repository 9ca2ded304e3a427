//! Everything that addresses are given by, and one decision about all of it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;

use super::advertise::Advertisements;
use super::allocate::{Allocator, Input, Outcome};
use super::pool::Pools;
use super::report::PoolCounts;
use super::reserved::Reserved;
use super::resources::{IpAddressPool, L2Advertisement, Read};
use super::select::Labels;
use crate::model::{Problem, Reason};
use crate::problem::Problems;
use crate::source::Sourced;

/// What there is besides Services.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Pools.
    pub pools: Vec<Sourced<Read<IpAddressPool>>>,
    /// Advertisements.
    pub advertisements: Vec<Sourced<Read<L2Advertisement>>>,
    /// Labels of all namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// What is somebody else's.
    pub reserved: Reserved,
    /// Where pools and advertisements have to be, everywhere if empty: those who may write them in
    /// other namespaces need not be those who run the network.
    pub pool_namespaces: BTreeSet<String>,
}

/// What a decision comes to.
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// For Services and pools.
    pub outcome: Outcome,
    /// What is wrong with pools and advertisements.
    pub problems: Vec<Problem>,
}

impl Facts {
    /// Decides who has which address.
    pub fn decide<S: AsRef<Service>>(
        &self,
        services: &[S],
        adopt_classless: bool,
        allocator: &mut Allocator,
    ) -> Decided {
        let mut problems = Problems::default();
        let (pools, _) = self.check(&mut problems);
        let namespaces = &self.namespaces;
        let input = Input { services, namespaces, pools: &pools, adopt_classless };
        let outcome = allocator.run(&input);
        Decided { outcome, problems: problems.into_sorted() }
    }

    /// Checks pools and advertisements.
    pub fn check(&self, problems: &mut Problems) -> (Pools, Advertisements) {
        let reserved = self.reserved.clone();
        let pools = Pools::new(&self.pools, reserved, &self.pool_namespaces, problems);
        let advertisements = self.advertisements_in_place(problems);
        let advertisements = Advertisements::new(&advertisements, &pools, problems);
        (pools, advertisements)
    }

    fn advertisements_in_place(
        &self,
        problems: &mut Problems,
    ) -> Vec<Sourced<Read<L2Advertisement>>> {
        let mut all = self.advertisements.clone();
        all.retain(|Sourced { origin, object }| {
            let metadata = &object.object.metadata;
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            let is_here =
                self.pool_namespaces.is_empty() || self.pool_namespaces.contains(namespace);
            if !is_here {
                let name = metadata.name.as_deref().unwrap_or_default();
                let ours: Vec<_> = self.pool_namespaces.iter().map(String::as_str).collect();
                let message =
                    format!("advertisements are read from {}: it has no effect", ours.join(", "));
                let about = format!("L2Advertisement {namespace}/{name}");
                let mut report = problems.about(origin, &about);
                report.because(Reason::InvalidField).error("metadata.namespace", message);
            }
            is_here
        });
        all
    }
}

impl Decided {
    /// How many Services lack what they ask for, by reason.
    pub fn pending(&self) -> BTreeMap<&'static str, usize> {
        let mut pending = BTreeMap::new();
        let failures = self.outcome.services.values().filter_map(|it| it.failure.as_ref());
        for failure in failures {
            *pending.entry(failure.reason.as_identifier()).or_default() += 1;
        }
        pending
    }

    /// What each pool has, by `namespace/name`.
    pub fn counts(&self) -> BTreeMap<String, PoolCounts> {
        let pools = self.outcome.pools.iter();
        pools.map(|((namespace, name), counts)| (format!("{namespace}/{name}"), *counts)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vip::resources::read;

    #[test]
    fn an_advertisement_elsewhere_has_no_effect_and_says_so() {
        let pool = json!({
            "metadata": {"name": "a", "namespace": "lb"}, "spec": {"addresses": ["192.0.2.0/30"]},
        });
        let advertisement = json!({"metadata": {"name": "l2", "namespace": "shop"}});
        let mut facts = Facts {
            pools: vec![Sourced::new("", read(&pool).unwrap())],
            advertisements: vec![Sourced::new("", read(&advertisement).unwrap())],
            ..Facts::default()
        };
        let problems = |facts: &Facts| {
            let decided = facts.decide::<Box<Service>>(&[], true, &mut Allocator::default());
            decided.problems.iter().map(Problem::to_string).collect::<Vec<_>>()
        };
        assert_eq!(problems(&facts), Vec::<String>::new());
        facts.pool_namespaces = ["lb".to_owned()].into();
        let [pool, advertisement] = &problems(&facts)[..] else { panic!("{facts:?}") };
        assert!(pool.contains("IPAddressPool lb/a: no L2Advertisement is about it"), "{pool}");
        assert!(
            advertisement.contains(
                "L2Advertisement shop/l2: metadata.namespace: advertisements are read from lb"
            ),
            "{advertisement}"
        );
    }
}

//! Any sequence of changes, restarts and failures leads where the model says, and never to two
//! Services with one address.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::model::{
    ADDRESSES, Families, Model, PoolWish, Whose, Wish, address, has_class, name, namespace_of,
};
use super::*;

/// Set for the long forms of tests.
const LONG_ENV: &str = "LBXDP_LONG";

const SERVICES: usize = 6;
const POOLS: usize = 4;

/// Something that happens.
#[derive(Clone, Debug)]
enum Op {
    /// A Service is made, or changed.
    Service(usize, Wish),
    Delete(usize),
    /// A pool is made, or changed.
    Pool(usize, PoolWish),
    DropPool(usize),
    /// A node comes to have an address, or has it no more.
    Node(u8),
}

/// What the agent does then.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Whatever there is to do.
    Settle,
    /// It starts again first.
    Restart,
    /// Nothing yet.
    Nothing,
    /// A pass of which nothing is to be seen yet.
    Lag,
    /// A pass of which only some writes are done, then it starts again.
    Crash(u8),
}

fn wish() -> impl Strategy<Value = Wish> {
    use Families::*;
    let whose =
        prop_oneof![10 => Just(Whose::Ours), 1 => Just(Whose::Foreign), 1 => Just(Whose::Plain)];
    let families = prop_oneof![
        6 => Just(V4), 1 => Just(V6), 1 => Just(Prefer), 1 => Just(PreferV6First), 1 => Just(Require),
    ];
    let one = |v6| (0..ADDRESSES).prop_map(move |n| vec![address(v6, n)]);
    let both =
        (0..ADDRESSES, 0..ADDRESSES).prop_map(|(a, b)| vec![address(true, a), address(false, b)]);
    let wanted = prop_oneof![8 => Just(Vec::new()), 3 => one(false), 1 => one(true), 1 => both];
    let pool = prop_oneof![5 => Just(None), 1 => (0..POOLS).prop_map(Some)];
    let sharing =
        (option::of(0..2u8), 80..83u16, prop_oneof![3 => Just(None), 1 => (0..2u8).prop_map(Some)]);
    (whose, families, wanted, pool, sharing).prop_map(
        |(whose, families, wanted, pool, (key, port, local))| {
            // What does not share needs no policy to tell it from others.
            let local = local.filter(|_| key.is_some());
            Wish { whose, families, wanted, pool, key, port, local }
        },
    )
}

fn pool() -> impl Strategy<Value = PoolWish> {
    let range = |v6: BoxedStrategy<bool>| {
        (v6, 0..ADDRESSES, 0..4u8)
            .prop_map(|(v6, first, more)| (v6, first, (first + more).min(ADDRESSES - 1)))
    };
    let v6 = prop_oneof![3 => Just(false), 1 => Just(true)].boxed();
    let audience = option::weighted(0.4, (select(vec![0, 1, 2]), vec(0..2usize, 0..2)));
    (vec(range(v6), 1..4), prop::bool::weighted(0.8), any::<bool>(), audience).prop_map(
        |(ranges, auto_assign, avoid_buggy, audience)| PoolWish {
            ranges,
            auto_assign,
            avoid_buggy,
            audience,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..SERVICES, wish()).prop_map(|(n, wish)| Op::Service(n, wish)),
        2 => (0..SERVICES).prop_map(Op::Delete),
        3 => (0..POOLS, pool()).prop_map(|(n, pool)| Op::Pool(n, pool)),
        1 => (0..POOLS).prop_map(Op::DropPool),
        1 => (0..ADDRESSES).prop_map(Op::Node),
    ]
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        6 => Just(Then::Settle),
        1 => Just(Then::Restart),
        1 => Just(Then::Nothing),
        3 => Just(Then::Lag),
        3 => any::<u8>().prop_map(Then::Crash),
    ]
}

/// The real thing and the model of it, side by side.
#[derive(Default)]
struct Both {
    world: World,
    model: Model,
}

fn service_name(n: usize) -> String {
    format!("n{}/s{n}", namespace_of(n))
}

fn described(n: usize, wish: &Wish) -> Value {
    let ips = wish.families.list().into_iter().map(|v6| if v6 { "fd00::1" } else { "10.96.0.1" });
    let ips: Vec<_> = ips.collect();
    let policy = match wish.families {
        Families::V4 | Families::V6 => "SingleStack",
        Families::Prefer | Families::PreferV6First => "PreferDualStack",
        Families::Require => "RequireDualStack",
    };
    let mut annotations = BTreeMap::new();
    if !wish.wanted.is_empty() && wish.whose != Whose::Foreign {
        let wanted: Vec<_> = wish.wanted.iter().map(ToString::to_string).collect();
        annotations.insert("metallb.io/loadBalancerIPs".to_owned(), wanted.join(","));
    }
    if let Some(pool) = wish.pool {
        annotations.insert("metallb.io/address-pool".to_owned(), name(pool));
    }
    if let Some(key) = wish.key {
        // Both prefixes mean the same.
        let prefix = if n.is_multiple_of(3) { "metallb.universe.tf" } else { "metallb.io" };
        annotations.insert(format!("{prefix}/allow-shared-ip"), format!("k{key}"));
    }
    json!({
        "metadata": {"annotations": annotations},
        "spec": {
            "type": if wish.whose == Whose::Plain { "ClusterIP" } else { "LoadBalancer" },
            "loadBalancerClass": match wish.whose {
                Whose::Foreign => json!("example.com/other"),
                _ if has_class(n) => json!(CLASS),
                _ => Value::Null,
            },
            "clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": policy,
            "ports": [{"port": wish.port}],
            "externalTrafficPolicy": if wish.local.is_some() { "Local" } else { "Cluster" },
            "selector": {"app": format!("a{}", wish.local.unwrap_or(7))},
        },
    })
}

fn described_pool(pool: &PoolWish) -> Value {
    let ranges = pool.ranges.iter();
    let ranges = ranges.map(|(v6, a, b)| format!("{}-{}", address(*v6, *a), address(*v6, *b)));
    let mut spec = json!({
        "addresses": ranges.collect::<Vec<_>>(),
        "autoAssign": pool.auto_assign, "avoidBuggyIPs": pool.avoid_buggy,
    });
    if let Some((priority, namespaces)) = &pool.audience {
        let names: Vec<_> = namespaces.iter().map(|n| format!("n{n}")).collect();
        spec["serviceAllocation"] = json!({"priority": priority, "namespaces": names});
    }
    spec
}

impl Both {
    fn shown(&self) -> BTreeMap<usize, Assignment> {
        let all = self.model.services.iter();
        all.map(|(n, _)| (*n, Assignment::shown(&self.world.services[&service_name(*n)]))).collect()
    }

    /// One pass of each, compared. What has to hold whatever the model says is looked at as well.
    fn pass(&mut self) -> Outcome {
        let shown = self.shown();
        let expected = self.model.decide(&shown);
        let outcome = self.world.pass();
        let decided: BTreeMap<usize, Assignment> = expected
            .keys()
            .map(|n| (*n, outcome.services[&id(&service_name(*n))].assignment.clone()))
            .collect();
        self.check(&shown, &decided);
        assert_eq!(decided, expected, "{:#?}\n{shown:#?}", self.model);
        self.model.decided = decided.into_iter().filter(|(n, new)| *new != shown[n]).collect();
        outcome
    }

    fn check(&self, shown: &BTreeMap<usize, Assignment>, decided: &BTreeMap<usize, Assignment>) {
        for (n, Assignment { addresses, pool }) in decided {
            let wish = self.model.wish(*n);
            let held = self.model.held(*n, shown);
            for addr in addresses {
                // Nobody has an address with somebody whom he does not share it with.
                for (m, theirs) in decided.iter().filter(|(m, _)| *m != n) {
                    let shares = wish.agrees(self.model.wish(*m));
                    assert!(shares || !theirs.addresses.contains(addr), "{addr} twice");
                }
                // Nobody has an address of a pool that it is not in.
                let pools = self.model.pools.iter().filter(|(p, _)| Some(name(*p)) == *pool);
                let mut all = pools.flat_map(|(_, pool)| pool.addresses());
                assert!(all.any(|other| other == *addr), "{addr} is not in {pool:?}");
                if held.addresses.contains(addr) {
                    continue;
                }
                // Nobody gets an address of a node, nor one that somebody else still shows.
                assert!(!self.model.nodes.contains(addr), "{addr} is a node's");
                for (m, theirs) in shown.iter().filter(|(m, _)| *m != n) {
                    let is_nobodys =
                        self.model.wish(*m).whose == Whose::Plain && theirs.pool.is_none();
                    let keeps = decided.get(m).is_some_and(|d| d.addresses.contains(addr));
                    let shows = theirs.addresses.contains(addr);
                    assert!(!shows || keeps || is_nobodys, "{addr} is still shown");
                }
            }
            // Nobody loses what he may keep.
            let may_keep = |addr: &IpAddr| {
                let is_asked_for = wish.wanted.is_empty() || wish.wanted.contains(addr);
                let has_family = wish.families.list().contains(&addr.is_ipv6());
                let is_alone = shown.keys().all(|m| {
                    let theirs = self.model.held(*m, shown);
                    m == n
                        || self.model.wish(*m).whose != Whose::Ours
                        || !theirs.addresses.contains(addr)
                        || wish.agrees(self.model.wish(*m))
                });
                is_asked_for && has_family && is_alone
            };
            let is_covered = self.model.pools.iter().any(|(p, pool)| {
                let all = pool.addresses();
                pool.admits(*n)
                    && wish.pool.is_none_or(|asked| asked == *p)
                    && held.addresses.iter().all(|addr| all.contains(addr))
            });
            let is_as_asked = wish.wanted.is_empty() || wish.wanted.len() == held.addresses.len();
            if is_covered && is_as_asked && held.addresses.iter().all(may_keep) {
                assert!(addresses.starts_with(&held.addresses), "{held:?} became {addresses:?}");
            }
        }
    }

    /// Passes until there is nothing more to do.
    fn settle(&mut self) {
        for _ in 0..SERVICES + 2 {
            let outcome = self.pass();
            if !self.world.carry_out(&outcome) {
                return;
            }
        }
        panic!("no end");
    }

    fn restart(&mut self) {
        self.world.restart();
        self.model.decided.clear();
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Service(n, wish) => {
                let service = service_name(n);
                self.world.service(&service, described(n, &wish));
                if wish.whose == Whose::Foreign {
                    // Whoever it belongs to gives it addresses of his own.
                    let theirs = Assignment { addresses: wish.wanted.clone(), pool: None };
                    theirs.show(self.world.services.get_mut(&service).unwrap());
                }
                // What was decided about what it was before is refused when it is written.
                self.model.decided.remove(&n);
                match self.model.services.iter_mut().find(|(m, _)| *m == n) {
                    Some((_, known)) => *known = wish,
                    None => self.model.services.push((n, wish)),
                }
            }
            Op::Delete(n) => {
                self.world.services.remove(&service_name(n));
                self.model.services.retain(|(m, _)| *m != n);
                self.model.decided.remove(&n);
            }
            Op::Pool(n, pool) => {
                self.world.pool(&name(n), described_pool(&pool));
                match self.model.pools.iter_mut().find(|(m, _)| *m == n) {
                    Some((_, known)) => *known = pool,
                    None => self.model.pools.push((n, pool)),
                }
            }
            Op::DropPool(n) => {
                if self.model.pool(n).is_some() {
                    self.world.drop_pool(&name(n));
                    self.model.pools.retain(|(m, _)| *m != n);
                }
            }
            Op::Node(n) => {
                let addr = address(false, n);
                if self.model.nodes.remove(&addr) {
                    self.world.reserved.nodes.remove(&addr);
                } else {
                    self.model.nodes.insert(addr);
                    self.world.reserved.nodes.insert(addr, "n".to_owned());
                }
            }
        }
    }

    fn go_on(&mut self, then: Then) {
        match then {
            Then::Settle => self.settle(),
            Then::Restart => {
                self.restart();
                self.settle();
            }
            Then::Nothing => {}
            Then::Lag => {
                self.pass();
            }
            Then::Crash(which) => {
                let mut outcome = self.pass();
                let mut index = 0;
                outcome.services.retain(|_, _| {
                    index += 1;
                    which & (1 << index) != 0
                });
                self.world.carry_out(&outcome);
                self.restart();
            }
        }
    }
}

/// All of it, then once more from what the objects show: nothing is to be done.
fn run(steps: Vec<(Op, Then)>) {
    let mut both = Both::default();
    for (op, then) in steps {
        both.apply(op);
        both.go_on(then);
    }
    both.settle();
    both.restart();
    let outcome = both.pass();
    assert!(!outcome.services.values().any(|decision| decision.must_write), "{outcome:?}");
}

#[test]
fn any_sequence_of_changes_leads_where_the_model_says() {
    let cases = if std::env::var_os(LONG_ENV).is_some() { 100_000 } else { 1_000 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in vec((op(), then()), 1..25))| run(steps));
}

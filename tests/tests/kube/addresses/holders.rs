//! Who decides, and that nothing moves when that is another agent or none.

use std::time::Duration;

use lbxdp_tests::kube::{Api, Fault, Proxy, Upstream};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions};
use serde_json::{Value, json};

use super::{
    addresses, adopting, events, path, pool, service, shows, wait_fails, wait_shows, world,
};
use crate::world::{LONG, World, metric};

const PORT: u16 = 7443;
/// A holder that says nothing is believed for fifteen seconds, and looked for every fifteen at least.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);

fn holder(api: &Api) -> String {
    let lease = api.get("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/lbxdp");
    let holder = lease.as_ref().and_then(|lease| lease["spec"]["holderIdentity"].as_str());
    holder.unwrap_or_default().to_owned()
}

fn leads(agent: &Agent) -> bool {
    metric(agent, "lbxdp_address_controller_leader") == Some(1.0)
}

/// Three Services that have addresses, and one before them by name that has none.
fn fill(world: &World) -> Vec<(&'static str, String)> {
    let api = world.plane.api();
    let names = ["m", "n", "o"];
    for name in names {
        api.apply(&[service(name, &[], json!({}))]);
        wait_until(&format!("{name} has an address"), super::GIVEN_WITHIN, || {
            !shows(api, name).is_empty()
        });
    }
    api.apply(&[service("a-pending", &[], json!({}))]);
    wait_fails(api, "a-pending", "no available IPs");
    names.map(|name| (name, shows(api, name))).into()
}

#[track_caller]
fn assert_same(api: &Api, before: &[(&str, String)]) {
    for (name, shown) in before {
        assert_eq!(shows(api, name), *shown, "{name}");
    }
    assert_eq!(shows(api, "a-pending"), "");
}

fn version(api: &Api, name: &str) -> Value {
    api.get(&path(name)).expect("a Service")["metadata"]["resourceVersion"].clone()
}

#[test]
#[ignore = "needs root"]
fn a05_a_restart_and_another_holder_move_nothing_and_write_nothing() {
    let Some(world) = world(2) else { return };
    let api = world.plane.api();
    api.apply(&[addresses("a", &["203.0.113.0-203.0.113.2"])]);
    let mut first = adopting(&world, 0);
    wait_until("the first one holds the lease", TAKEN_OVER_WITHIN, || leads(&first));
    let mut second = adopting(&world, 1);
    let before = fill(&world);
    let versions: Vec<_> = before.iter().map(|(name, _)| version(api, name)).collect();

    // The same agent again.
    first.restart();
    wait_until("it goes on", TAKEN_OVER_WITHIN, || leads(&first) || leads(&second));
    // Killed: the other one waits for the end of the lease.
    let (holder_agent, other) =
        if leads(&first) { (&mut first, &mut second) } else { (&mut second, &mut first) };
    holder_agent.kill9();
    wait_until("the other one takes over", TAKEN_OVER_WITHIN, || leads(other));
    assert_eq!(holder(api), other.node_name());
    // Something that only its decision can bring about.
    api.apply(&[pool("b", json!({ "addresses": ["198.51.100.1/32"], "autoAssign": false }))]);
    api.apply(&[service("new", &[("address-pool", "b")], json!({}))]);
    wait_shows(api, "new", "198.51.100.1 of b");
    assert_same(api, &before);
    let after: Vec<_> = before.iter().map(|(name, _)| version(api, name)).collect();
    assert_eq!(versions, after, "nothing was written");
    for (name, _) in &before {
        let told = events(api, "Service", name);
        assert_eq!(told.len(), 1, "{told:?}");
    }
    assert_eq!(events(api, "Service", "a-pending").len(), 1);

    // Stopped: the lease is free at once.
    other.stop();
    assert_eq!(holder(api), "");
    holder_agent.start_again();
    wait_until("it is taken", TAKEN_OVER_WITHIN, || leads(holder_agent));
    api.delete(&[service("m", &[], json!({}))]);
    wait_until("the pending one gets it", super::GIVEN_WITHIN, || {
        shows(api, "a-pending") == before[0].1
    });
}

#[test]
#[ignore = "needs root"]
fn a05_an_outage_of_the_api_moves_nothing() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    let upstream = Upstream::first(&world.plane);
    let proxy = Proxy::tunnel(&world.cluster.client, upstream, PORT);
    let flags = world.in_pod(&[&proxy.url]);
    let extra = vec!["--adopt-classless".to_owned()];
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let agent = Agent::watch(world.cluster.node(0), &flags, options);
    api.apply(&[addresses("a", &["203.0.113.0-203.0.113.2"])]);
    let before = fill(&world);

    for fault in [Fault::Cut, Fault::Silence] {
        proxy.set(fault);
        wait_until("the lease runs out", TAKEN_OVER_WITHIN, || !leads(&agent));
        assert_same(api, &before);
        // What happens meanwhile is caught up on.
        let name = format!("late-{fault:?}").to_lowercase();
        let address = match fault {
            Fault::Cut => "192.0.2.65/32",
            _ => "192.0.2.66/32",
        };
        let spec = json!({ "addresses": [address], "autoAssign": false });
        api.apply(&[pool(&name, spec), service(&name, &[("address-pool", &name)], json!({}))]);
        proxy.set(Fault::None);
        proxy.cut();
        wait_until("the lease is held again", LONG, || leads(&agent));
        wait_until("what is late", LONG, || shows(api, &name).ends_with(&format!(" of {name}")));
        assert_same(api, &before);
    }
}

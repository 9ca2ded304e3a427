//! What is to be seen of it from afar.

use lbxdp_tests::process::wait_until;
use serde_json::json;

use super::{GIVEN_WITHIN, addresses, adopting, service, wait_fails, wait_shows, world};
use crate::world::metric;

#[test]
#[ignore = "needs root"]
fn a14_the_agent_that_decides_says_what_there_is() {
    let Some(world) = world(2) else { return };
    let api = world.plane.api();
    api.apply(&[addresses("a", &["203.0.113.0/30", "2001:db8:ff::/127"])]);
    let agent = adopting(&world, 0);
    wait_until("it holds the lease", GIVEN_WITHIN, || {
        metric(&agent, "lbxdp_address_controller_leader") == Some(1.0)
    });
    let other = adopting(&world, 1);
    for name in ["x", "y"] {
        api.apply(&[service(name, &[], json!({}))]);
    }
    wait_shows(api, "x", "203.0.113.0 of a");
    wait_shows(api, "y", "203.0.113.1 of a");
    api.apply(&[service("pending", &[("address-pool", "b")], json!({}))]);
    wait_fails(api, "pending", "unknown pool");

    let of = |family: &str| format!("{{pool=\"metallb-system/a\",family=\"{family}\"}}");
    for (name, family, expected) in [
        ("lbxdp_pool_addresses", "IPv4", 4.0),
        ("lbxdp_pool_addresses_in_use", "IPv4", 2.0),
        ("lbxdp_pool_addresses_available", "IPv4", 2.0),
        ("lbxdp_pool_addresses", "IPv6", 2.0),
        ("lbxdp_pool_addresses_in_use", "IPv6", 0.0),
        ("lbxdp_pool_addresses_available", "IPv6", 2.0),
    ] {
        let name = format!("{name}{}", of(family));
        wait_until(&format!("{name} is {expected}"), GIVEN_WITHIN, || {
            metric(&agent, &name) == Some(expected)
        });
        assert_eq!(metric(&other, &name), None, "{name}");
    }
    let pending = "lbxdp_services_pending{reason=\"AllocationFailed\"}";
    assert_eq!(metric(&agent, pending), Some(1.0));
    assert_eq!(metric(&other, pending), None);
    let written = "lbxdp_address_writes_total{object=\"service\",result=\"done\"}";
    assert!(metric(&agent, written) >= Some(3.0), "{:?}", metric(&agent, written));
    assert_eq!(metric(&other, written), Some(0.0));
    assert_eq!(metric(&other, "lbxdp_address_controller_leader"), Some(0.0));
}

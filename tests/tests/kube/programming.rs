//! How long it takes from a change of endpoints to the maps, as the agent measures it.

use k8s_openapi::jiff::Timestamp;
use lbxdp_tests::AgentOptions;
use lbxdp_tests::process::wait_until;
use serde_json::{Value, json};

use crate::world::{CHANGE_WITHIN, World, metric, service, wait_backends, wait_log};

const COUNT: &str = "lbxdp_network_programming_duration_seconds_count";

/// The slices of a Service that changed now, with so many endpoints.
fn changed(world: &World, last: u8, endpoints: usize) -> Vec<Value> {
    let mut slices = service(last).slices(&world.endpoints()[..endpoints]);
    for slice in &mut slices {
        slice["metadata"]["annotations"] = json!({
            "endpoints.kubernetes.io/last-change-trigger-time": Timestamp::now().to_string(),
        });
    }
    slices
}

#[test]
#[ignore = "needs root"]
fn changes_after_the_start_are_measured_from_the_event_that_caused_them() {
    let Some(world) = World::start(1) else { return };
    let api = world.plane.api();
    api.apply(&[service(1).object(), service(2).object()]);
    api.apply(&changed(&world, 1, 2));
    let filter = "info,lbxdp_agent::progress=trace";
    let options = AgentOptions { log_filter: Some(filter.to_owned()), ..AgentOptions::default() };
    let agent = world.agent_on(0, options);
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);
    assert_eq!(metric(&agent, COUNT), Some(0.0), "the first list is no change");

    let offset = agent.log().len();
    api.apply(&changed(&world, 1, 1));
    wait_until("measured", CHANGE_WITHIN, || metric(&agent, COUNT) == Some(1.0));
    let sum = metric(&agent, "lbxdp_network_programming_duration_seconds_sum").expect("a sum");
    assert!(sum > 0.0 && sum < CHANGE_WITHIN.as_secs_f64(), "{sum}");
    wait_log(&agent, offset, "programmed slice=EndpointSlice default/web-1", CHANGE_WITHIN);
    let log = agent.log()[offset..].to_owned();
    let line = log.lines().find(|line| line.contains("programmed slice=")).expect("a line");
    assert!(line.contains("since_change=Some(") && line.contains("since_heard="), "{line}");
    println!("{line}");

    // Another time and no other endpoints: nothing was programmed for it. The second Service, whose
    // slice comes later by the same watch, shows that the first one has arrived.
    api.apply(&changed(&world, 1, 1));
    api.apply(&changed(&world, 2, 2));
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);
    wait_until("measured", CHANGE_WITHIN, || metric(&agent, COUNT) == Some(2.0));

    // A slice that goes has no time of its own.
    api.delete(&changed(&world, 2, 2));
    wait_backends(&agent, 2, Some(0), CHANGE_WITHIN);
    assert_eq!(metric(&agent, COUNT), Some(2.0));
    for kind in ["services", "endpoints"] {
        let pending = format!("lbxdp_changes_pending{{kind=\"{kind}\"}}");
        wait_until("nothing waits", CHANGE_WITHIN, || metric(&agent, &pending) == Some(0.0));
    }
}

//! Every way a packet can take, with real hosts, agents and sockets: who answers, whom it sees,
//! what the client sees, and by the counters which program did it.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is all test")]

mod bulk;
mod errors;
mod first_packet;
mod flooding;
mod fragments;
mod hairpin;
mod mtu;
mod onward;
mod others;
mod pod_device;
mod policy;
mod router;
mod scene;
mod spoofed;
mod strict;
mod tail;
mod ways;

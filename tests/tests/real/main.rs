//! Programs that were not written for this: nginx, dnsmasq, curl, the C library's resolver.
//!
//! They need root and fail without.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is all test")]

mod dns;
mod proxy;

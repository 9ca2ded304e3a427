//! A large cluster's objects: as many sets of endpoints as Services, and no endpoint twice.

use serde_json::Value;

use crate::manifests::{Endpoint, Port, Service};

/// Endpoints of each Service.
pub const ENDPOINTS: u32 = 10;

/// Service number `n` and its slice.
pub fn service(n: u32) -> [Value; 2] {
    let [_, _, high, low] = n.to_be_bytes();
    let endpoint = |e: u32| {
        let [_, a, b, c] = (n * ENDPOINTS + e).to_be_bytes();
        Endpoint::new([10, 10 + a, b, c], "elsewhere")
    };
    let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    let objects = Service::new(&format!("s-{n}"))
        .cluster_ip(&format!("10.96.{}.{low}", 128 + high))
        .port(Port::tcp("http", 80, 8080))
        .with(&endpoints);
    objects.try_into().expect("a Service and one slice")
}

//! Names looked up by the C library's resolver, as most programs do it.

use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What came of many lookups.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lookups {
    /// How many there were.
    pub count: u32,
    /// How many gave another address or none.
    pub failed: u32,
    /// How many took longer than a second: the resolver had to ask again.
    pub slow: u32,
    /// The longest, in milliseconds.
    pub slowest_ms: u64,
    /// The first few failures.
    pub errors: Vec<String>,
}

/// The addresses of a name.
pub fn addresses(name: &str) -> std::io::Result<BTreeSet<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Looks up `count` different names under `domain`, each of which must be `expected`, one after
/// the other with a pause of `pace` between them.
pub fn run(domain: &str, expected: IpAddr, count: u32, pace: Duration) -> Lookups {
    let mut lookups = Lookups { count, ..Lookups::default() };
    for number in 0..count {
        let name = format!("n{number}.{domain}");
        let start = Instant::now();
        let found = (name.as_str(), 0).to_socket_addrs();
        let took = start.elapsed();
        let error = match found.map(|mut found| found.next()) {
            Ok(Some(addr)) if addr.ip() == expected => None,
            Ok(other) => Some(format!("{name}: {other:?}")),
            Err(error) => Some(format!("{name}: {error}")),
        };
        if let Some(error) = error {
            lookups.failed += 1;
            if lookups.errors.len() < 5 {
                lookups.errors.push(error);
            }
        }
        lookups.slow += u32::from(took > Duration::from_secs(1));
        lookups.slowest_ms = lookups.slowest_ms.max(took.as_millis() as u64);
        thread::sleep(pace);
    }
    lookups
}

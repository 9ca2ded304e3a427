//! Which backends are on this node, counted by the frontends that say so.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::model::FrontendAddr;

/// The count.
#[derive(Clone, Debug, Default)]
pub(super) struct Locals {
    /// Never empty.
    of_frontend: BTreeMap<FrontendAddr, Vec<SocketAddr>>,
    /// Never zero.
    frontends: BTreeMap<SocketAddr, usize>,
}

impl Locals {
    /// Takes the local backends of a frontend instead of those it had; the backends of which that
    /// may change something.
    pub(super) fn replace(
        &mut self,
        frontend: FrontendAddr,
        mut backends: Vec<SocketAddr>,
    ) -> Vec<SocketAddr> {
        backends.sort_unstable();
        backends.dedup();
        let mut touched = self.of_frontend.remove(&frontend).unwrap_or_default();
        if touched == backends && backends.is_empty() {
            return touched;
        }
        for backend in &backends {
            *self.frontends.entry(*backend).or_default() += 1;
        }
        for backend in &touched {
            if let Some(count) = self.frontends.get_mut(backend) {
                *count -= 1;
                if *count == 0 {
                    self.frontends.remove(backend);
                }
            }
        }
        touched.extend(&backends);
        if !backends.is_empty() {
            self.of_frontend.insert(frontend, backends);
        }
        touched
    }

    /// Whether some frontend says that a backend is here.
    pub(super) fn contains(&self, backend: &SocketAddr) -> bool {
        self.frontends.contains_key(backend)
    }
}

//! Maps that fail on purpose, to prove that reconciliation converges all the same.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Actual, FlowEntry, MapError, MapOp, Maps};

/// Maps of which a share of the operations fails.
#[derive(Debug)]
pub struct FaultyMaps<M> {
    /// The maps underneath.
    pub inner: M,
    /// How many of a thousand operations fail.
    pub per_mille: u16,
    random: u64,
}

impl<M> FaultyMaps<M> {
    /// Fails `per_mille` of a thousand operations, the same ones for the same seed.
    pub fn new(inner: M, per_mille: u16, seed: u64) -> Self {
        // Xorshift stays at zero for ever.
        Self { inner, per_mille, random: seed.max(1) }
    }

    fn fails(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) % 1_000 < u64::from(self.per_mille)
    }
}

impl<M: Maps> Maps for FaultyMaps<M> {
    fn frontends(&self) -> usize {
        self.inner.frontends()
    }

    fn read(&self) -> Result<Actual, MapError> {
        self.inner.read()
    }

    fn apply(&mut self, ops: &[MapOp]) -> (usize, Option<MapError>) {
        for (done, op) in ops.iter().enumerate() {
            if self.fails() {
                let source = std::io::Error::other("failed on purpose");
                return (done, Some(MapError { map: "faulty", key: format!("{op:?}"), source }));
            }
            if let (_, Some(error)) = self.inner.apply(std::slice::from_ref(op)) {
                return (done, Some(error));
            }
        }
        (ops.len(), None)
    }

    fn flow_addresses(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        self.inner.flow_addresses()
    }

    fn udp_flows(&self) -> Result<Vec<FlowEntry>, MapError> {
        self.inner.udp_flows()
    }

    fn end_half(&mut self, half: &FlowEntry) -> Result<bool, MapError> {
        if self.fails() {
            let source = std::io::Error::other("failed on purpose");
            return Err(MapError { map: "faulty", key: format!("{half:?}"), source });
        }
        self.inner.end_half(half)
    }
}

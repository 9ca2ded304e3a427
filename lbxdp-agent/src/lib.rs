//! The lbxdp agent: sources → index → plan → reconcile → apply.
//!
//! `source` reads manifests, `index` turns them into what should be served, `plan` compares that
//! with what is programmed and orders the map operations, `apply` carries them out. Only
//! `apply` and `attach` speak aya; everything between the edges is pure.

pub mod apply;
pub mod dump;
pub mod maglev;
pub mod model;
pub mod plan;
pub mod quarantine;
pub mod reconcile;
pub mod slab;

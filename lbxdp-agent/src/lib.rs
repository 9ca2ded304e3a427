//! The lbxdp agent: sources → index → plan → reconcile → apply.
//!
//! `source` reads manifests, `index` turns them into what should be served, `plan` compares that
//! with what is programmed and orders the map operations, `apply` carries them out. Only
//! `apply` and `attach` speak aya; everything between the edges is pure.

pub mod agent;
pub mod apply;
pub mod attach;
pub mod carry;
pub mod changes;
pub mod cli;
pub mod device;
pub mod dump;
pub mod foreign;
pub mod health;
pub mod hops;
pub mod index;
pub mod keep;
pub mod layer2;
pub mod lock;
pub mod maglev;
pub mod members;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod object;
pub mod pins;
pub mod plan;
pub mod problem;
pub mod progress;
pub mod publish;
pub mod quarantine;
pub mod reconcile;
pub mod serve;
pub mod service_cidrs;
pub mod slab;
pub mod snat_ports;
pub mod sockets;
pub mod source;
pub mod sys;
pub mod table;
pub mod take_over;
pub mod udp;
pub mod view;
pub mod vip;

//! The lbxdp agent.
fn main() {}

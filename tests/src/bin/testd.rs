//! Test servers and clients.
fn main() {}

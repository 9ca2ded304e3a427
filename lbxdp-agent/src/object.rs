//! The BPF object that the agent loads.

use anyhow::{Context as _, bail};

/// Environment variable that names another object than the embedded one; also read at build time.
pub const OBJECT_ENV: &str = "LBXDP_EBPF_OBJECT";

/// Empty when the agent was built without an object.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lbxdp-ebpf"));

/// The object named by [`OBJECT_ENV`], else the embedded one.
pub fn bytes() -> anyhow::Result<Vec<u8>> {
    if let Some(path) = std::env::var_os(OBJECT_ENV) {
        let path = std::path::PathBuf::from(path);
        return std::fs::read(&path)
            .with_context(|| format!("{OBJECT_ENV} names {}", path.display()));
    }
    if EMBEDDED.is_empty() {
        bail!(
            "this agent was built without its BPF object: run `cargo xtask build-ebpf`, then \
             build the agent again, or name an object with {OBJECT_ENV}"
        );
    }
    Ok(EMBEDDED.to_vec())
}

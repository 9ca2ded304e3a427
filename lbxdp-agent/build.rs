//! Embeds the BPF object, when there is one. `cargo check` and `cargo clippy` need none.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=LBXDP_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("lbxdp-ebpf");

    let is_next = env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some();
    let name = if is_next { "lbxdp-ebpf-next" } else { "lbxdp-ebpf" };
    let object = match env::var_os("LBXDP_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => built_object(&manifest.join("..").join("target").join("bpf"), name),
    };
    if object.exists() {
        println!("cargo::rerun-if-changed={}", object.display());
    }
    let bytes = fs::read(&object).unwrap_or_default();
    if let Err(error) = fs::write(&out, bytes) {
        println!("cargo::error={}: {error}", out.display());
    }
}

/// Where `cargo xtask build-ebpf` leaves the object. An empty file stands in for it before the
/// first build: cargo reruns a build script each time when a file it watches does not exist.
fn built_object(directory: &Path, name: &str) -> PathBuf {
    let object = directory.join(name);
    if !object.exists() {
        // A read-only checkout has no object and cannot get one: nothing to watch.
        let _ = fs::create_dir_all(directory).and_then(|()| fs::write(&object, []));
    }
    object
}

//! Builds the packet programs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

use crate::util::{self, cargo, root, step};

const TARGET: &str = "bpfel-unknown-none";

/// Flags of rustc. The processor `v3` (kernel 5.1) gives 32-bit instructions and jumps; unaligned loads
/// are what lets an address of a packet be read in one piece, and the kernel's verifier allows
/// them on every machine with efficient unaligned access.
const RUSTFLAGS: &[&str] = &[
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "-Ctarget-cpu=v3",
    "-Clink-arg=--cpu-features=+alu32,+allows-misaligned-mem-access",
    "-Cdebuginfo=2",
];

/// Which programs.
#[derive(Clone, Copy)]
enum Variant {
    /// Those that are shipped.
    Current,
    /// Those with the layout of maps that stands for the next version, for tests of upgrades.
    Next,
    /// The benchmark's own.
    Bench,
}

impl Variant {
    /// Name of the object in `target/bpf`, where the agent's build looks for it.
    const fn object(self) -> &'static str {
        match self {
            Self::Current => "lbxdp-ebpf",
            Self::Next => "lbxdp-ebpf-next",
            Self::Bench => "lbxdp-bench-ebpf",
        }
    }

    /// The package, and the program in it.
    const fn package(self) -> &'static str {
        match self {
            Self::Current | Self::Next => "lbxdp-ebpf",
            Self::Bench => "lbxdp-bench-ebpf",
        }
    }

    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Current | Self::Bench => &[],
            Self::Next => &["--features", "next-layout"],
        }
    }
}

/// Builds the object and writes it to `target/bpf`, without debug information: four fifths of it, which
/// each agent would carry in its memory. BTF stays. What is there is left alone if nothing changed,
/// so that the agent is not built again.
fn build(variant: Variant) -> Result<()> {
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let mut flags = RUSTFLAGS.to_vec();
    flags.push(&arch);
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", variant.package(), "--bin", variant.package()]);
    build.args(["--release", "--target", TARGET, "-Zbuild-std=core"]);
    build.args(["--target-dir", "target/bpf-build"]).args(variant.arguments());
    build.env("RUSTC_BOOTSTRAP", "1");
    // Incremental builds are cut into many units, which changes what the optimizer sees: it then joins
    // stores to the stack at offsets that the verifier refuses.
    build.env("CARGO_INCREMENTAL", "0");
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    build.env_remove("RUSTFLAGS");
    util::run(&mut build)?;

    let built =
        root().join("target/bpf-build").join(TARGET).join("release").join(variant.package());
    let object = fs::read(&built).with_context(|| built.display().to_string())?;
    let object = stripped(&object).with_context(|| built.display().to_string())?;
    let dir = root().join("target/bpf");
    let copy = dir.join(variant.object());
    if fs::read(&copy).ok().as_ref() != Some(&object) {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        // By rename: a build of the agent that runs at the same time sees all of it or nothing.
        let draft = dir.join(format!("{}.{}", variant.object(), std::process::id()));
        fs::write(&draft, &object).with_context(|| draft.display().to_string())?;
        fs::rename(&draft, &copy).with_context(|| copy.display().to_string())?;
    }
    Ok(())
}

/// An object without its DWARF sections.
fn stripped(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in builder.sections.iter_mut() {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // The compiler keeps the names of sections among those of symbols; the writer wants them apart.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// The command.
pub fn run() -> Result<()> {
    crate::setup::toolchain()?;
    step("building the packet programs");
    build(Variant::Current)
}

/// Builds the object of the next layout.
pub fn run_next() -> Result<()> {
    step("building the packet programs with the next layout of maps");
    build(Variant::Next)
}

/// Builds the benchmark's programs, and says where they are.
pub fn run_bench() -> Result<PathBuf> {
    step("building the benchmark's programs");
    build(Variant::Bench)?;
    Ok(root().join("target/bpf").join(Variant::Bench.object()))
}

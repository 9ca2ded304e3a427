//! Installs what is missing, or says what to install.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Uid;

use crate::util::{self, command, output, step};

/// Its LLVM and the compiler's must match (22 for Rust 1.95): bump it together with
/// `rust-toolchain.toml`.
pub const BPF_LINKER_VERSION: &str = "0.10.3";

/// Programs that tests, demo and lab run, and the Debian packages they come from.
const PROGRAMS: &[(&str, &str)] = &[
    ("bpftool", "bpftool"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("tcpdump", "tcpdump"),
    ("nginx", "nginx-light"),
    ("iperf3", "iperf3"),
    ("wrk", "wrk"),
    ("curl", "curl"),
    ("dnsmasq", "dnsmasq-base"),
    ("ping", "iputils-ping"),
    ("nsenter", "util-linux"),
    ("sysctl", "procps"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("strip", "binutils"),
];

/// What building the lab's container runtime needs beside Go.
const RUNTIME: &[(&str, &str)] = &[("gcc", "gcc"), ("/usr/include/seccomp.h", "libseccomp-dev")];

/// What building static programs needs beside the compiler: parts of the TLS library are in C.
const STATIC_PROGRAMS: &[(&str, &str)] = &[("musl-gcc", "musl-tools")];

const MINIMUM_KERNEL: (u32, u32) = (5, 15);
const BPFFS: &str = "/sys/fs/bpf";

/// Everything.
fn all() -> Result<()> {
    toolchain()?;
    machine()
}

/// Everything, said at the end.
pub fn run() -> Result<()> {
    all()?;
    step("everything is there");
    Ok(())
}

/// What building the packet programs needs.
pub fn toolchain() -> Result<()> {
    let sysroot = output(command("rustc").args(["--print", "sysroot"])).context("rustc")?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.exists() {
        step("installing rust-src");
        util::run(command("rustup").args(["component", "add", "rust-src"])).context(
            "the packet programs are built with their own `core`: install the component rust-src \
             of this toolchain",
        )?;
    }
    let installed = output(command("bpf-linker").arg("--version")).unwrap_or_default();
    if installed.split_whitespace().nth(1) != Some(BPF_LINKER_VERSION) {
        step(&format!("installing bpf-linker {BPF_LINKER_VERSION} (a few minutes)"));
        let mut install = command("cargo");
        install.args(["install", "bpf-linker", "--locked", "--force"]);
        install.args(["--version", BPF_LINKER_VERSION]);
        util::run(&mut install).with_context(|| {
            format!("install it: cargo install bpf-linker --version {BPF_LINKER_VERSION} --locked")
        })?;
    }
    Ok(())
}

/// The target of static programs on this machine, with what building for it needs.
pub fn musl_target() -> Result<String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let libdir = output(command("rustc").args(["--print", "target-libdir", "--target", &target]));
    if !Path::new(libdir.context("rustc")?.trim()).exists() {
        step(&format!("installing the standard library for {target}"));
        util::run(command("rustup").args(["target", "add", &target])).with_context(|| {
            format!("the image has a static program: install the target {target} of this toolchain")
        })?;
    }
    packages(STATIC_PROGRAMS)?;
    Ok(target)
}

/// What the programs of a Kubernetes cluster are built with, Go aside.
pub fn cluster() -> Result<()> {
    packages(RUNTIME)
}

/// What running the dataplane needs.
pub fn machine() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "network namespaces and BPF programs need root: run this as root"
    );
    kernel()?;
    packages(PROGRAMS)?;
    bpffs()
}

fn kernel() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel version")?;
    let mut numbers = release.split(['.', '-']).map_while(|n| n.trim().parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = MINIMUM_KERNEL;
    ensure!(
        version >= MINIMUM_KERNEL,
        "kernel {}: at least {major}.{minor} is needed",
        release.trim()
    );
    ensure!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
    );
    Ok(())
}

/// Installs the packages of those `programs` that are not there.
fn packages(programs: &[(&str, &str)]) -> Result<()> {
    let missing = || -> Vec<(&str, &str)> {
        programs.iter().copied().filter(|(program, _)| !installed(program)).collect()
    };
    let wanted = missing();
    if wanted.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = wanted.iter().map(|(_, package)| *package).collect();
    if !installed("apt-get") {
        let programs: Vec<_> = wanted.iter().map(|(program, _)| *program).collect();
        bail!(
            "missing: {}; on Debian they are in the packages {}",
            programs.join(", "),
            packages.join(" ")
        );
    }
    step(&format!("installing {}", packages.join(" ")));
    let hint = || format!("install them: apt-get install {}", packages.join(" "));
    let apt = || {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o=Dpkg::Use-Pty=0"]);
        apt
    };
    util::run(apt().arg("update")).with_context(hint)?;
    util::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(&packages))
        .with_context(hint)?;
    let still = missing();
    ensure!(still.is_empty(), "still missing after the installation: {still:?}");
    Ok(())
}

/// Whether a program is in the path, or a file is there.
fn installed(program: &str) -> bool {
    let path = command(program)
        .get_envs()
        .find_map(|(key, value)| (key == "PATH").then_some(value).flatten())
        .map(std::ffi::OsStr::to_owned)
        .unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if !mounted {
        step(&format!("mounting the BPF file system on {BPFFS}"));
        util::run(command("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    Ok(())
}

//! The archive byte by byte, and the agent in it with nothing around.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use lbxdp_tests::chart::{FLAT, objects};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Netns, Process, Scratch};
use serde_json::{Value, json};
use tar::Archive;

use super::*;

/// Name and contents of every entry, and whether all are as old as time and root's.
fn entries(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in Archive::new(tar).entries().expect("a tar file") {
        let mut entry = entry.expect("an entry");
        let header = entry.header();
        let (time, user, group) = (header.mtime(), header.uid(), header.gid());
        assert_eq!((time.unwrap(), user.unwrap(), group.unwrap()), (0, 0, 0));
        let name = entry.path().expect("a path").to_str().expect("text").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("contents");
        assert!(all.insert(name.clone(), bytes).is_none(), "twice: {name}");
    }
    all
}

#[test]
fn digests_in_the_archive_are_those_of_its_parts() {
    let image = entries(&archive(b"an agent", "1.2.3").expect("an archive"));
    let manifest: Value = serde_json::from_slice(&image["manifest.json"]).expect("JSON");
    assert_eq!(manifest[0]["RepoTags"], json!(["localhost/lbxdp:1.2.3"]));
    assert_eq!(manifest[0]["Layers"], json!(["layer.tar"]));
    let config_name = manifest[0]["Config"].as_str().expect("a name");
    let config = &image[config_name];
    assert_eq!(config_name, format!("{}.json", sha256(config)));
    let config: Value = serde_json::from_slice(config).expect("JSON");
    let layer = &image["layer.tar"];
    assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(layer))]));
    assert_eq!(config["config"]["Entrypoint"], json!(["/lbxdp-agent"]));
    assert_eq!(image.len(), 3);

    let layer = entries(layer);
    assert_eq!(layer["lbxdp-agent"], b"an agent");
    let (directories, files): (Vec<_>, Vec<_>) = layer.keys().partition(|name| name.ends_with('/'));
    assert_eq!(files, ["lbxdp-agent"]);
    assert_eq!(directories, MOUNT_POINTS.iter().collect::<Vec<_>>());
}

#[test]
fn equal_agents_give_equal_archives_and_a_bad_tag_none() {
    let first = archive(b"an agent", "1").expect("an archive");
    assert!(first == archive(b"an agent", "1").expect("an archive"));
    assert!(first != archive(b"another", "1").expect("an archive"));
    for tag in ["", "a/b", "a b", "a:b"] {
        assert!(archive(b"an agent", tag).is_err(), "{tag:?}");
    }
}

/// sysfs has the directories under /sys, everything else the image must have.
#[test]
fn there_is_a_place_for_everything_that_the_manifest_mounts() {
    let manifest = fs::read_to_string(root().join(FLAT)).expect(FLAT);
    let objects = objects(&manifest).expect("YAML");
    let daemon = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    let container = &daemon["spec"]["template"]["spec"]["containers"][0];
    let mut seen = 0;
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let path = mount["mountPath"].as_str().expect("a path");
        let place = format!("{}/", path.trim_start_matches('/'));
        let is_there = MOUNT_POINTS.contains(&place.as_str()) || path == "/sys/fs/bpf";
        assert!(is_there, "{path} is not in the image");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

/// What the manifest gives the agent, and what `chroot` needs.
const CAPABILITIES: &str = "--bounding-set=-all,+bpf,+net_admin,+net_raw,+perfmon,+sys_chroot";
const START: &str = "exec setpriv \"$0\" chroot \"$@\"";

/// `agent` with these arguments where there is nothing but the image, proc and sysfs, and a BPF file
/// system if `has_bpffs`.
fn in_the_image(netns: &Netns, image: &Path, has_bpffs: bool, arguments: &[&str]) -> Command {
    let mounts = "mount -t proc proc \"$1/proc\" && mount -t sysfs sysfs \"$1/sys\"";
    let bpffs = if has_bpffs { "mount -t bpf bpf \"$1/sys/fs/bpf\" && " } else { "" };
    let mut command = netns.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{mounts} && {bpffs}{START}")).arg(CAPABILITIES);
    command.arg(image).arg(format!("/{AGENT}")).args(arguments);
    command
}

const RUN: &[&str] =
    &["run", "--manifests", "/etc", "--node-name", "a", "--cgroup", "none", "--pin-path"];

#[test]
#[ignore = "needs root"]
fn the_agent_runs_with_nothing_around_it_and_three_capabilities() {
    let agent = build_agent(&root().join("target")).expect("the agent");
    let bytes = fs::read(&agent).expect("the agent");
    let image = archive(&bytes, "test").expect("an archive");
    let scratch = Scratch::new("image");
    let unpacked = scratch.join("root");
    Archive::new(entries(&image)["layer.tar"].as_slice()).unpack(&unpacked).expect("the layer");
    let mode = fs::metadata(unpacked.join(AGENT)).expect("the agent").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let netns = Netns::new("image");

    let version = in_the_image(&netns, &unpacked, false, &["--version"]).output().expect("sh");
    let said = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(said, format!("lbxdp-agent {}\n", env!("CARGO_PKG_VERSION")), "{version:?}");

    let run: Vec<&str> = [RUN, &["/sys/fs/bpf/lbxdp"]].concat();
    let refused = in_the_image(&netns, &unpacked, false, &run).output().expect("sh");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains("no BPF file system at /sys/fs/bpf"), "{said}");

    // The programs are loaded before the first list of devices is logged or served.
    let mut process =
        Process::spawn(&mut in_the_image(&netns, &unpacked, true, &run), &scratch.join("log"));
    let pid = process.pid().to_string();
    let status = || {
        let mut status = util::command("nsenter");
        status.args(["--target", &pid, "--mount", "--net", "sh", "-c", START, CAPABILITIES]);
        status.arg(&unpacked).arg(format!("/{AGENT}")).args(["status", "-o", "json"]);
        status.output().expect("nsenter")
    };
    wait_until("the maps are there", Duration::from_secs(60), || {
        assert!(process.ended().is_none(), "{}", process.log());
        status().status.success()
    });
    process.stop(Duration::from_secs(10));
}

#[test]
#[ignore = "needs root"]
fn building_again_gives_the_same_agent() {
    // Without --long the second build finds everything made: then this says only that nothing that
    // changes from run to run is put in.
    let again = Scratch::new("build");
    let directory =
        if lbxdp_tests::long() { again.path().to_owned() } else { root().join("target") };
    let first = fs::read(build_agent(&root().join("target")).expect("first")).expect("first");
    let second = fs::read(build_agent(&directory).expect("second")).expect("second");
    assert_eq!(sha256(&first), sha256(&second));
}

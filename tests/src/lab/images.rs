//! Images: none can be pulled, so all are made here and imported on each node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::go::target;
use crate::image::Image;
use crate::kube::binaries::COREDNS;
use crate::process::{command, run, workspace_binary};

/// Directories for what runtimes mount.
const DIRECTORIES: &[&str] = &[
    "dev/", "etc/", "lib/", "lib64/", "proc/", "run/", "sys/", "tmp/", "usr/", "usr/lib/", "var/",
];
const TAG: &str = "lab";
/// The test servers and clients.
pub const TEST: &str = "localhost/lbxdp-test:lab";
/// What a pod's namespaces are held by: the same program, doing nothing.
pub const PAUSE: &str = "localhost/pause:lab";
/// The name server.
pub const DNS: &str = "localhost/coredns:lab";
/// Where the test program is in its image.
pub const TESTD: &str = "/lbxdp-testd";

/// The archive that `cargo xtask image` writes.
pub fn agent_image() -> PathBuf {
    target().join("lbxdp.tar")
}

/// Makes the archives in a directory, those of the agent aside.
#[track_caller]
pub fn make(dir: &Path) -> Vec<PathBuf> {
    fs::create_dir_all(dir).expect("a directory");
    let coredns = COREDNS.find().unwrap_or_else(|error| panic!("{error:#}"));
    let coredns = fs::read(coredns).expect("CoreDNS");
    let dns = Image {
        name: DNS.trim_end_matches(":lab"),
        tag: TAG,
        directories: DIRECTORIES,
        files: &[("coredns", &coredns)],
        entrypoint: &["/coredns"],
        created_by: "cargo xtask lab",
        ..Image::default()
    };
    let testd = dir.join("testd");
    // Debugging information is most of it.
    run(command("strip").arg("-o").arg(&testd).arg(workspace_binary("lbxdp-testd")));
    let libraries = libraries(&testd);
    let contents: Vec<_> =
        libraries.iter().map(|path| fs::read(path).expect("a library")).collect();
    let program = fs::read(&testd).expect("the test program");
    let mut files = vec![(TESTD.trim_start_matches('/'), program.as_slice())];
    for (path, contents) in libraries.iter().zip(&contents) {
        files.push((path.trim_start_matches('/'), contents));
    }
    let test = Image {
        name: TEST.trim_end_matches(":lab"),
        tag: TAG,
        directories: DIRECTORIES,
        files: &files,
        entrypoint: &[TESTD],
        created_by: "cargo xtask lab",
        ..Image::default()
    };
    let pause = Image {
        name: PAUSE.trim_end_matches(":lab"),
        entrypoint: &[TESTD, "pause"],
        ..test.clone()
    };
    let all = [("coredns.tar", dns), ("test.tar", test), ("pause.tar", pause)];
    let archives = all.map(|(name, image)| {
        let path = dir.join(name);
        let archive = image.archive().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        fs::write(&path, archive).expect("write an image");
        path
    });
    archives.into()
}

/// The shared libraries of a program, and what loads them.
#[track_caller]
fn libraries(program: &Path) -> Vec<String> {
    let list = run(Command::new("ldd").arg(program));
    let paths = list.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned)
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries() {
        let libraries = libraries(Path::new("/bin/sh"));
        assert!(libraries.iter().any(|path| path.contains("/libc.so")), "{libraries:?}");
        assert!(libraries.iter().any(|path| path.contains("/ld-")), "{libraries:?}");
    }
}

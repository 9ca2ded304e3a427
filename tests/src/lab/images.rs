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
    "dev/",
    "etc/",
    "host/",
    "host/cgroup/",
    "lib/",
    "lib64/",
    "proc/",
    "run/",
    "sys/",
    "tmp/",
    "usr/",
    "usr/lib/",
    "var/",
    "var/lib/",
    "var/lib/lbxdp/",
    "var/run/",
];
const TAG: &str = "lab";
/// The test servers and clients.
pub const TEST: &str = "localhost/lbxdp-test:lab";
/// What a pod's namespaces are held by: the same program, doing nothing.
pub const PAUSE: &str = "localhost/pause:lab";
/// The machine's nginx.
pub const NGINX: &str = "localhost/nginx:lab";
/// The name server.
pub const DNS: &str = "localhost/coredns:lab";
/// Tag of the agent with the next layout of maps.
pub const NEXT_TAG: &str = "next";
/// Where the test program is in its image.
pub const TESTD: &str = "/lbxdp-testd";

/// The users that nginx knows by name, also where it changes to none of them.
const PASSWD: &[u8] = b"root:x:0:0::/:/none\nnobody:x:65534:65534::/:/none\n";
const GROUP: &[u8] = b"root:x:0:\nnobody:x:65533:\nnogroup:x:65534:\n";

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
    let testd = Contents::of(dir, "lbxdp-testd");
    let files = testd.files(TESTD.trim_start_matches('/'));
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
    let nginx = Contents::of_program(dir, Path::new("/usr/sbin/nginx"));
    let mut files = nginx.files("usr/sbin/nginx");
    files.extend([("etc/passwd", PASSWD), ("etc/group", GROUP)]);
    let nginx = Image {
        name: NGINX.trim_end_matches(":lab"),
        files: &files,
        entrypoint: &["/usr/sbin/nginx", "-p", "/tmp", "-e", "stderr"],
        ..test.clone()
    };
    let all =
        [("coredns.tar", dns), ("test.tar", test), ("pause.tar", pause), ("nginx.tar", nginx)];
    let archives = all.map(|(name, image)| {
        let path = dir.join(name);
        let archive = image.archive().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        fs::write(&path, archive).expect("write an image");
        path
    });
    archives.into()
}

/// Writes the archive of the agent with the next layout of maps, `localhost/lbxdp:next`. It is what
/// `cargo xtask build-next` makes, for tests alone, so it comes with its libraries.
#[track_caller]
pub fn make_next(dir: &Path) -> PathBuf {
    let next = Contents::of(dir, "lbxdp-agent-next");
    let image = Image {
        name: "localhost/lbxdp",
        tag: NEXT_TAG,
        directories: DIRECTORIES,
        files: &next.files("lbxdp-agent"),
        entrypoint: &["/lbxdp-agent"],
        created_by: "a test",
        ..Image::default()
    };
    let path = dir.join("next.tar");
    let archive = image.archive().unwrap_or_else(|error| panic!("{NEXT_TAG}: {error:#}"));
    fs::write(&path, archive).expect("write an image");
    path
}

/// A program, and its libraries.
struct Contents {
    program: Vec<u8>,
    libraries: Vec<(String, Vec<u8>)>,
}

impl Contents {
    /// Of this workspace.
    #[track_caller]
    fn of(dir: &Path, name: &str) -> Self {
        Self::of_program(dir, &workspace_binary(name))
    }

    /// Debugging information is most of a program, so it is left out, in a copy in `dir`.
    #[track_caller]
    fn of_program(dir: &Path, program: &Path) -> Self {
        let stripped = dir.join(program.file_name().expect("a program"));
        run(command("strip").arg("-o").arg(&stripped).arg(program));
        let read = |path: String| {
            let contents = fs::read(&path).expect("a library");
            (path, contents)
        };
        Self {
            program: fs::read(&stripped).expect("a program"),
            libraries: libraries(&stripped).into_iter().map(read).collect(),
        }
    }

    /// What is in the image, with the program at this path.
    fn files<'a>(&'a self, path: &'a str) -> Vec<(&'a str, &'a [u8])> {
        let libraries = self.libraries.iter();
        let libraries = libraries.map(|(path, contents)| (&path[1..], contents.as_slice()));
        [(path, self.program.as_slice())].into_iter().chain(libraries).collect()
    }
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

//! Where a lab is and what it is called.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Proxy;
use crate::image::sha256;
use crate::process::command;
use crate::sweep::NETNS_DIR;

/// File in a lab's directory that says what it is.
const FILE: &str = "lab.json";
/// Paths that are a node's own, where no lab can be.
const HIDDEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// A directory, a name that is part of the names of everything the lab makes, and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Everything of it that is a file.
    pub dir: PathBuf,
    /// Namespaces and cgroups begin with it.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// Who serves Services.
    pub proxy: Proxy,
    /// Whether all of it came up.
    pub is_complete: bool,
}

impl Place {
    /// A lab in this directory, its name made from the directory's.
    pub fn new(dir: &Path, nodes: usize, proxy: Proxy) -> Self {
        let digest = sha256(dir.as_os_str().as_encoded_bytes());
        Self::named(dir, &format!("lab-{}", &digest[..6]), nodes, proxy)
    }

    /// A lab of this name in this directory.
    #[track_caller]
    pub fn named(dir: &Path, name: &str, nodes: usize, proxy: Proxy) -> Self {
        assert!(dir.is_absolute(), "{}: not an absolute path", dir.display());
        let hidden = HIDDEN.iter().find(|hidden| dir.starts_with(hidden));
        assert!(hidden.is_none(), "{}: nodes have a {hidden:?} of their own", dir.display());
        Self { dir: dir.to_owned(), name: name.to_owned(), nodes, proxy, is_complete: false }
    }

    /// The lab that is in this directory, or half of one.
    pub fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(FILE)).ok()?;
        let place: Self = serde_json::from_str(&text).ok()?;
        // Never another directory than the one that was named: it is going to be removed.
        Some(Self { dir: dir.to_owned(), ..place })
    }

    /// Removes what is left of an earlier lab in this directory or of this name. Panics if the
    /// directory is somebody else's.
    #[track_caller]
    pub fn clear(&self) {
        if let Some(earlier) = Self::read(&self.dir) {
            earlier.remove();
        }
        let mut entries = fs::read_dir(&self.dir).into_iter().flatten();
        assert!(entries.next().is_none(), "{}: has files that are no lab's", self.dir.display());
        self.remove();
    }

    /// Writes it down.
    #[track_caller]
    pub fn write(&self) {
        fs::create_dir_all(&self.dir).expect("the lab's directory");
        let text = serde_json::to_string(self).expect("JSON");
        fs::write(self.dir.join(FILE), text).expect("write down the lab");
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory of this name in it, made if it is not there.
    #[track_caller]
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        if let Err(error) = fs::create_dir_all(&path) {
            panic!("{}: {error}", path.display());
        }
        path
    }

    /// Where programs have the names by which others look for them.
    pub fn bin(&self) -> PathBuf {
        self.join("bin")
    }

    /// What the hosts' programs write.
    pub fn log(&self, name: &str) -> PathBuf {
        self.join("logs").join(format!("{name}.log"))
    }

    /// The name of a host's network namespace.
    pub fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    /// Ends and removes everything, also when only a part of it is there.
    pub fn remove(&self) {
        super::cgroups::remove(&self.name);
        let ours = self.netns("");
        for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&ours)) {
                let _ = command("ip").args(["netns", "del"]).arg(entry.file_name()).output();
            }
        }
        unmount_below(&self.dir);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The node with this number, from 0.
pub fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}

/// Takes away what is mounted in a directory, the last mount first.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    points.reverse();
    for point in points {
        let _ = command("umount").arg("--lazy").arg(point).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn labs_in_two_directories_have_two_names() {
        let one = Place::new(Path::new("/a/target/lab"), 3, Proxy::Lbxdp);
        let other = Place::new(Path::new("/b/target/lab"), 3, Proxy::Lbxdp);
        assert_ne!(one.name, other.name);
        assert_eq!(one, Place::new(Path::new("/a/target/lab"), 3, Proxy::Lbxdp));
    }

    #[test]
    fn only_a_lab_is_cleared() {
        let scratch = Scratch::new("place");
        let place = Place::named(scratch.path(), "lbxdp-test-none", 1, Proxy::None);
        place.write();
        place.clear();
        assert!(!scratch.path().exists());
        fs::create_dir(scratch.path()).unwrap();
        fs::write(scratch.join("letter"), "").unwrap();
        let cleared = std::panic::catch_unwind(|| place.clear());
        assert!(cleared.is_err() && scratch.join("letter").exists());
    }

    #[test]
    #[should_panic(expected = "of their own")]
    fn no_lab_is_where_nodes_have_their_own_files() {
        Place::new(Path::new("/var/lib/lab"), 3, Proxy::Lbxdp);
    }
}

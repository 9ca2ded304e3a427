//! A machine of the lab: its namespaces and its cgroup.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::daemon::Daemon;
use super::{Place, cgroups};
use crate::netns::Netns;
use crate::process::{command, run};
use crate::{cgroup, sweep};

/// What kubelets set in the kernel. It is the same for all of them and for the machine that the lab
/// is on, whose own settings stay as they are: a node sees files with these values in their place.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
];

/// A machine. The outside client and the control plane share the files of the machine that the lab
/// is on; a node has its own name and its own `/run`, `/var/lib`, `/var/log`, BPF file system and
/// cgroup v2 hierarchy.
#[derive(Debug)]
pub struct Host {
    /// What it is called.
    pub name: String,
    /// Its network.
    pub netns: Netns,
    place: Place,
    cgroup: PathBuf,
    has_own_files: bool,
}

impl Host {
    /// Makes the network namespace and the cgroup.
    #[track_caller]
    pub fn make(place: &Place, name: &str) -> Self {
        cgroups::make(&place.name, name);
        Netns::new_kept(&place.netns(name));
        Self::get(place, name, false)
    }

    /// Makes all namespaces of a node, and the cgroup.
    #[track_caller]
    pub fn make_node(place: &Place, name: &str) -> Self {
        let host = Self { has_own_files: true, ..Self::make(place, name) };
        for dir in ["lib", "log", "namespaces"] {
            place.make(&format!("{name}/{dir}"));
        }
        let settings = place.make(&format!("{name}/kernel"));
        let mut script = String::from(
            "set -e\n\
             hostname \"$NODE\"\n\
             # The namespaces of others: they would live as long as this one.\n\
             umount --recursive --lazy /run/netns 2>/dev/null || true\n\
             mount -t tmpfs tmpfs /run\n\
             mount --bind \"$DIR/lib\" /var/lib\n\
             mount --bind \"$DIR/log\" /var/log\n\
             mount -t bpf bpf \"$BPFFS\"\n\
             mount --bind \"$CGROUP\" \"$CGROUP_ROOT\"\n",
        );
        for (key, value) in KERNEL_SETTINGS {
            let file = settings.join(key.replace('/', "."));
            fs::write(&file, format!("{value}\n")).expect("a setting");
            script.push_str(&format!("mount --bind {} /proc/sys/{key}\n", file.display()));
        }
        // Containers see what is mounted on the node later, and the other way around.
        script.push_str("mount --make-rshared /\n");

        // A mount namespace can be kept only where mounts are not passed on.
        let files = host.namespaces();
        run(command("mount").arg("--bind").arg(&files).arg(&files));
        run(command("mount").arg("--make-private").arg(&files));
        let mut unshare = command("unshare");
        for kind in ["mount", "uts"] {
            fs::write(files.join(kind), "").expect("a file");
            unshare.arg(format!("--{kind}={}", files.join(kind).display()));
        }
        unshare.args(["--propagation", "private", "sh", "-c", &script]);
        unshare.env("NODE", name).env("DIR", place.join(name)).env("BPFFS", sweep::BPFFS);
        unshare.env("CGROUP", &host.cgroup);
        unshare.env("CGROUP_ROOT", cgroup::root().expect("cgroup v2 is mounted"));
        run(&mut unshare);
        host
    }

    /// One that is there.
    #[track_caller]
    pub fn get(place: &Place, name: &str, has_own_files: bool) -> Self {
        let root = cgroup::root().expect("cgroup v2 is mounted");
        Self {
            name: name.to_owned(),
            netns: Netns::kept(&place.netns(name)),
            place: place.clone(),
            cgroup: root.join(&place.name).join(name),
            has_own_files,
        }
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.netns.path().exists() && self.cgroup.is_dir()
    }

    /// The cgroup that everything on it is in; on a node, the root of what it sees of version 2.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The directory of its files in the lab's.
    pub fn dir(&self) -> PathBuf {
        self.place.join(&self.name)
    }

    fn namespaces(&self) -> PathBuf {
        self.dir().join("namespaces")
    }

    /// A program on this host, as a child of the calling process.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.enter(command("sh"), program.as_ref())
    }

    /// A program that has nothing to do with the calling process any more once it was started.
    pub fn detached(&self, program: impl AsRef<OsStr>) -> Command {
        let mut setsid = command("setsid");
        setsid.arg("sh");
        self.enter(setsid, program.as_ref())
    }

    /// Each of the programs becomes the next one, so the process stays the same.
    fn enter(&self, mut sh: Command, program: &OsStr) -> Command {
        sh.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.cgroup);
        sh.arg("nsenter").arg(format!("--net={}", self.netns.path().display()));
        if self.has_own_files {
            for kind in ["mount", "uts"] {
                sh.arg(format!("--{kind}={}", self.namespaces().join(kind).display()));
            }
        }
        sh.arg(program);
        let path = sh.get_envs().find_map(|(key, value)| value.filter(|_| key == "PATH"));
        let mut with_ours = self.place.bin().into_os_string();
        with_ours.push(":");
        with_ours.push(path.unwrap_or_default());
        sh.env("PATH", with_ours).env("KUBECONFIG", self.place.kubeconfig("admin"));
        sh
    }

    /// The background program of this name on this host.
    pub fn daemon(&self, name: &str) -> Daemon {
        Daemon::new(&self.place, &format!("{}-{name}", self.name))
    }
}

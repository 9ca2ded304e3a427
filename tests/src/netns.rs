//! One network namespace: a host, a pod, or a switch.

use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};

use crate::process::{command, run};
use crate::sweep::{self, NETNS_DIR};

/// A network namespace with a name. Dropping it ends the processes inside and deletes it, and
/// with it every device in it, unless it is [kept](Self::kept).
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    is_kept: bool,
}

impl Netns {
    /// A new namespace with the loopback device up, no IPv6 duplicate address detection and no
    /// router advertisements. `role` only makes listings readable.
    #[track_caller]
    pub fn new(role: &str) -> Self {
        sweep::stale();
        Self::add(sweep::unique(role), false)
    }

    /// A new namespace of this name, as [`Self::new`] makes it, that outlives handle and process.
    #[track_caller]
    pub fn new_kept(name: &str) -> Self {
        Self::add(name.to_owned(), true)
    }

    /// A namespace that is there already, and stays.
    pub fn kept(name: &str) -> Self {
        Self { path: Path::new(NETNS_DIR).join(name), name: name.to_owned(), is_kept: true }
    }

    #[track_caller]
    fn add(name: String, is_kept: bool) -> Self {
        // `ip netns add` makes /run/netns a shared mount on its first use; two at once may both
        // try.
        static ADDING: Mutex<()> = Mutex::new(());

        let creating = sweep::creating();
        let adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
        run(command("ip").args(["netns", "add", &name]));
        drop(adding);
        let path = Path::new(NETNS_DIR).join(&name);
        let netns = Self { name, path, is_kept };
        drop(creating);
        netns.ip("link set lo up");
        for (key, value) in [
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv6.conf.all.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.all.accept_ra", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
        ] {
            netns.sysctl(key, value);
        }
        netns
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, for `nsenter --net=`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into the namespace, for good: call it in a thread of its own.
    #[track_caller]
    pub fn enter(&self) {
        enter(&self.path);
    }

    /// Runs `f` in a thread inside the namespace and returns its value; its panics are ours.
    #[track_caller]
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                self.enter();
                f()
            };
            match scope.spawn(inside).join() {
                Ok(value) => value,
                Err(panic) => resume_unwind(panic),
            }
        })
    }

    /// Runs `f` in a thread inside the namespace, in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path.clone();
        thread::spawn(move || {
            enter(&path);
            f()
        })
    }

    /// A command that runs inside. Through `nsenter`, as `ip netns exec` would hide the BPF file
    /// system.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = command("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg(program);
        command
    }

    /// Runs one command line, split at white space, and returns what it printed.
    #[track_caller]
    pub fn exec(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program");
        run(self.command(program).args(words))
    }

    /// `ip ARGUMENTS`, split at white space.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        run(self.command("ip").args(arguments.split_whitespace()))
    }

    /// Several `ip` commands in one go, each without the word `ip`. The first failure panics.
    #[track_caller]
    pub fn ip_batch<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) {
        use std::io::Write;
        use std::process::Stdio;

        let mut text = String::new();
        for line in lines {
            text.push_str(line.as_ref());
            text.push('\n');
        }
        if text.is_empty() {
            return;
        }
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start ip");
        let mut stdin = child.stdin.take().expect("piped");
        let written = stdin.write_all(text.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("wait for ip");
        assert!(
            written.is_ok() && output.status.success(),
            "ip -batch in {}: {}{}\n{text}",
            self.name,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
    }

    /// Sets a `net.…` sysctl; write `/` for `.` inside a device's name.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = sysctl_path(key);
        self.run(|| {
            if let Err(error) = fs::write(&path, value) {
                panic!("{path} = {value}: {error}");
            }
        });
    }

    /// Reads a `net.…` sysctl.
    #[track_caller]
    pub fn read_sysctl(&self, key: &str) -> String {
        let path = sysctl_path(key);
        self.run(|| match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) => panic!("{path}: {error}"),
        })
    }

    /// Makes the namespace a router for both families.
    #[track_caller]
    pub fn enable_forwarding(&self) {
        self.sysctl("net.ipv4.ip_forward", "1");
        self.sysctl("net.ipv6.conf.all.forwarding", "1");
    }

    /// Strict reverse path filtering, now and for devices to come.
    #[track_caller]
    pub fn strict_rp_filter(&self) {
        self.sysctl("net.ipv4.conf.all.rp_filter", "1");
        self.sysctl("net.ipv4.conf.default.rp_filter", "1");
    }

    /// Forgets every neighbour that was learned.
    #[track_caller]
    pub fn flush_neighbours(&self) {
        self.ip("neigh flush all");
    }

    /// Loads an nftables ruleset.
    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        run(self.command("nft").arg(ruleset));
    }
}

#[track_caller]
fn enter(path: &Path) {
    let entered = File::open(path)
        .map_err(|error| error.to_string())
        .and_then(|file| setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string()));
    if let Err(error) = entered {
        panic!("enter {}: {error}", path.display());
    }
}

fn sysctl_path(key: &str) -> String {
    let swapped: String = key
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    format!("/proc/sys/{swapped}")
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        sweep::end_processes(&self.path);
        let _ = command("ip").args(["netns", "del", &self.name]).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_and_a_command_run_inside_and_nothing_is_left() {
        let netns = Netns::new("inside");
        netns.ip("link add veth0 type veth peer name veth1");
        netns.sysctl("net.ipv4.conf.veth0.rp_filter", "1");
        assert_eq!(netns.read_sysctl("net.ipv4.conf.veth0.rp_filter"), "1");
        assert!(netns.exec("ip -o link").contains("veth0@veth1"));
        assert!(!run(command("ip").args(["-o", "link"])).contains("veth0@veth1"));
        let path = netns.path().to_owned();
        drop(netns);
        assert!(!path.exists());
    }

    #[test]
    #[should_panic(expected = "inside a thread")]
    fn a_panic_inside_comes_out() {
        Netns::new("panic").run(|| panic!("inside a thread"));
    }
}

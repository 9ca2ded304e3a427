//! Names that say who made a thing, and the removal of all things of one maker.
//!
//! Namespaces, scratch directories, pin directories and cgroups carry the process id of their
//! maker. [`stale`] removes those of processes that are gone, [`on_signal`] those of this one
//! when it is told to stop.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use crate::process::command;

/// Where named network namespaces live.
pub const NETNS_DIR: &str = "/run/netns";
/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

const PREFIX: &str = "lbx-";
const PIN_PREFIX: &str = "lbxdp-test-";

static COUNTER: AtomicU32 = AtomicU32::new(0);
static LIFECYCLE: RwLock<()> = RwLock::new(());
static STOP: AtomicBool = AtomicBool::new(false);
static STOP_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// A name no other process and no other call uses: `lbx-<pid>-<n>-<role>`.
pub fn unique(role: &str) -> String {
    format!("{PREFIX}{}-{}-{role}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A pin path no other process and no other call uses.
pub fn unique_pin_path() -> PathBuf {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    Path::new(BPFFS).join(format!("{PIN_PREFIX}{}-{n}", std::process::id()))
}

/// Held while something that a sweep would remove comes into being, so that a sweep on a signal
/// cannot miss it.
pub(crate) fn creating() -> RwLockReadGuard<'static, ()> {
    LIFECYCLE.read().unwrap_or_else(PoisonError::into_inner)
}

fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PIN_PREFIX).or_else(|| name.strip_prefix(PREFIX))?;
    rest.split('-').next()?.parse().ok()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn owned(dir: &Path, wanted: &dyn Fn(u32) -> bool) -> Vec<PathBuf> {
    let mut paths = entries(dir);
    paths.retain(|path| {
        path.file_name().and_then(|name| name.to_str()).and_then(owner).is_some_and(wanted)
    });
    paths
}

/// Ends the processes that live in a network namespace, this one aside.
pub(crate) fn end_processes(netns: &Path) {
    let Ok(wanted) = fs::metadata(netns) else { return };
    let inside = || -> Vec<i32> {
        entries(Path::new("/proc"))
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok())
            .filter(|pid| pid.unsigned_abs() != std::process::id())
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()))
            })
            .collect()
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let pids = inside();
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn remove(wanted: &dyn Fn(u32) -> bool) {
    // Labs first: what is theirs depends on each other.
    for path in owned(&std::env::temp_dir(), wanted) {
        if let Some(place) = crate::lab::Place::read(&path) {
            place.remove();
        }
    }
    let namespaces = owned(Path::new(NETNS_DIR), wanted);
    for path in &namespaces {
        end_processes(path);
    }
    for path in owned(Path::new(BPFFS), wanted) {
        let _ = fs::remove_dir_all(path);
    }
    for path in &namespaces {
        if let Some(name) = path.file_name() {
            let _ = command("ip").args(["netns", "del"]).arg(name).output();
        }
    }
    for path in owned(&std::env::temp_dir(), wanted) {
        let _ = fs::remove_dir_all(path);
    }
    if let Some(root) = crate::cgroup::root() {
        for path in owned(&root, wanted) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Removes what runs left behind whose process is gone. Runs once per process, before the first
/// namespace is made.
pub fn stale() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        remove(&|pid| !Path::new(&format!("/proc/{pid}")).exists());
    });
}

/// Removes everything this process made, whoever still holds it.
pub fn own() {
    remove(&|pid| pid == std::process::id());
}

/// How many things of this process are left: namespaces, pins, directories, cgroups.
pub fn own_count() -> usize {
    let mine = |pid| pid == std::process::id();
    let mut dirs = vec![PathBuf::from(NETNS_DIR), PathBuf::from(BPFFS), std::env::temp_dir()];
    dirs.extend(crate::cgroup::root());
    dirs.iter().map(|dir| owned(dir, &mine).len()).sum()
}

extern "C" fn note_signal(signal: i32) {
    STOP_SIGNAL.store(signal, Ordering::SeqCst);
    STOP.store(true, Ordering::SeqCst);
}

/// From here on SIGINT, SIGTERM and SIGHUP remove everything this process made and end it with
/// 128 + the signal's number. A thread that panics in between waits for that: the clean-up took
/// its network away.
///
/// A handler with a flag, not a blocked signal and `sigwait`: children inherit a blocked mask,
/// and agents must stay deaf to nothing.
pub fn on_signal() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let action =
            SigAction::new(SigHandler::Handler(note_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler stores to two atomics and does nothing else, which is
            // async-signal-safe.
            unsafe { sigaction(signal, &action) }.expect("install a signal handler");
        }
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            wait_if_stopping();
            default_hook(info);
        }));
        thread::spawn(|| {
            while !STOP.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(20));
            }
            // Never released: nothing new comes into being while the rest is removed. A thread
            // that holds it and was stopped half-way is not waited for for long.
            let patience = Instant::now() + Duration::from_secs(3);
            let _stopped = loop {
                match LIFECYCLE.try_write() {
                    Ok(guard) => break Some(guard),
                    Err(TryLockError::Poisoned(error)) => break Some(error.into_inner()),
                    Err(TryLockError::WouldBlock) if Instant::now() > patience => break None,
                    Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
                }
            };
            eprintln!("\ninterrupted, cleaning up");
            own();
            std::process::exit(128 + STOP_SIGNAL.load(Ordering::SeqCst));
        });
    });
}

/// Waits for the end of the process if a signal asked for it. For places from which a thread
/// would go on with what is being removed.
pub fn wait_if_stopping() {
    while STOP.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed_with_what_runs_in_it() {
        let mut gone = command("true").spawn().expect("start a process");
        let pid = gone.id();
        gone.wait().expect("its end");
        let name = format!("{PREFIX}{pid}-0-left");
        crate::process::run(command("ip").args(["netns", "add", &name]));
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).expect("create a directory");
        let path = Path::new(NETNS_DIR).join(&name);
        let mut inside = command("nsenter")
            .arg(format!("--net={}", path.display()))
            .args(["sleep", "60"])
            .spawn()
            .expect("start a process inside");
        // Until it is inside.
        let ns = format!("/proc/{}/ns/net", inside.id());
        crate::process::wait_until("inside", Duration::from_secs(5), || {
            let ino = |path: &Path| fs::metadata(path).map(|meta| meta.ino()).ok();
            ino(Path::new(&ns)) == ino(&path)
        });
        remove(&|owner| owner == pid);
        assert!(!path.exists() && !dir.exists());
        assert!(!inside.wait().expect("its end").success());
    }

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner(&unique("client")), Some(std::process::id()));
        let pin = unique_pin_path();
        assert_eq!(
            owner(pin.file_name().expect("name").to_str().expect("text")),
            Some(std::process::id())
        );
        assert_eq!(owner("lbxdp"), None);
        assert_eq!(owner("somebody-else"), None);
    }
}

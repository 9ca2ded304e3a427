//! Programs that go on when the process that started them has ended.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Place;
use crate::process::words;

/// Lines of a log that a failure shows.
const TAIL: usize = 30;

/// A program in the background, known by a file with its process.
#[derive(Clone, Debug)]
pub struct Daemon {
    name: String,
    file: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// The one of this name, whether it runs or not.
    pub fn new(place: &Place, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            file: place.join("processes").join(name),
            log: place.log(name),
        }
    }

    /// Starts it, unless it runs. Its output is added to its log.
    #[track_caller]
    pub fn start(&self, command: &mut Command) {
        if self.is_running() {
            return;
        }
        let open = || {
            fs::File::options().create(true).append(true).open(&self.log).expect("a daemon's log")
        };
        for file in [&self.file, &self.log] {
            fs::create_dir_all(file.parent().expect("in a directory")).expect("a directory");
        }
        let child = command.stdin(Stdio::null()).stdout(open()).stderr(open()).spawn();
        let pid = match child {
            Ok(child) => i32::try_from(child.id()).expect("process ids are positive"),
            Err(error) => panic!("{}: {error}", words(command)),
        };
        let started = started(pid).unwrap_or_default();
        fs::write(&self.file, format!("{pid} {started}")).expect("write down a process");
    }

    /// Its process, if it runs.
    pub fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(&self.file).ok()?;
        let (pid, time) = text.split_once(' ')?;
        let pid = pid.parse().ok()?;
        // Another process may have the number by now.
        (started(pid)? == time).then_some(pid)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` holds; panics with the end of the log when it ends before.
    #[track_caller]
    pub fn wait_ready(&self, timeout: Duration, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + timeout;
        while !ready() {
            assert!(self.is_running(), "{}: ended before it was ready\n{}", self.name, self.tail());
            assert!(
                Instant::now() < deadline,
                "{}: not ready within {timeout:?}\n{}",
                self.name,
                self.tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// SIGKILL, and its end.
    pub fn kill(&self) {
        self.end(Signal::SIGKILL, Duration::from_secs(10));
    }

    /// SIGTERM and its end, by SIGKILL if it takes longer.
    pub fn stop(&self, patience: Duration) {
        self.end(Signal::SIGTERM, patience);
        self.kill();
    }

    fn end(&self, signal: Signal, patience: Duration) {
        self.signal(signal);
        let deadline = Instant::now() + patience;
        while self.is_running() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// When a process was started, in ticks since the machine was; none if it has ended, and nobody has
/// asked yet how.
fn started(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in the second field may have anything in it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    // Field 22 of proc_pid_stat(5); `fields` is at 4.
    let time = fields.nth(22 - 4)?;
    (state != "Z" && state != "X").then(|| time.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;
    use crate::lab::Proxy;
    use crate::process::command;

    #[test]
    fn a_daemon_is_known_until_it_ends() {
        let scratch = Scratch::new("daemon");
        let place = Place::named(scratch.path(), "none", 1, Proxy::None);
        let daemon = Daemon::new(&place, "sleep");
        fs::create_dir_all(place.join("logs")).unwrap();
        daemon.start(command("sleep").arg("60"));
        let pid = daemon.pid().unwrap();
        daemon.start(&mut command("false"));
        assert_eq!(Daemon::new(&place, "sleep").pid(), Some(pid));
        daemon.stop(Duration::from_secs(5));
        assert!(!daemon.is_running());
        // Somebody else with the same number.
        fs::write(&daemon.file, format!("{} 1", std::process::id())).unwrap();
        assert!(!daemon.is_running());
    }
}

//! Commands that must succeed, and programs that run until their handle is dropped.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command whose `PATH` has the administrator's directories too: Debian keeps bpftool, nginx
/// and ethtool there.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path).stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns what it printed; panics with its words if it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{}: {error}", words(command)),
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}: {}\n{}{stdout}",
        words(command),
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    stdout
}

/// A command as one would type it.
pub fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Waits until `done` holds, looking every 10 ms.
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !done() {
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Finds a program of this workspace beside the running one: `target/<profile>/<name>`, or what
/// the environment variable `LBXDP_BIN_DIR` says.
#[track_caller]
pub fn workspace_binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("path of this program");
    let dir = std::env::var_os("LBXDP_BIN_DIR").map(PathBuf::from);
    dir.iter()
        .map(PathBuf::as_path)
        .chain(exe.ancestors().skip(1).take(2))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no {name} beside {}: build it first", exe.display()))
}

/// A program in the background, its output in a file. Dropping the handle kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    words: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    #[track_caller]
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let _creating = crate::sweep::creating();
        let open = || File::options().create(true).append(true).open(log);
        let (stdout, stderr) = match (open(), open()) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr),
            (Err(error), _) | (_, Err(error)) => panic!("{}: {error}", log.display()),
        };
        let words = words(command);
        let child = match command.stdout(stdout).stderr(stderr).spawn() {
            Ok(child) => child,
            Err(error) => panic!("{words}: {error}"),
        };
        Self { child, words, log: log.to_owned() }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until `ready` holds; panics with the log when the program ends before.
    #[track_caller]
    pub fn wait_ready(&mut self, timeout: Duration, mut ready: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + timeout;
        while !ready(self) {
            if let Some(status) = self.ended() {
                panic!("{}: ended before it was ready: {status}\n{}", self.words, self.log());
            }
            assert!(
                Instant::now() < deadline,
                "{}: not ready within {timeout:?}\n{}",
                self.words,
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a line of output that begins with `start`.
    #[track_caller]
    pub fn wait_line(&mut self, start: &str, timeout: Duration) {
        self.wait_ready(timeout, |process| process.log().lines().any(|l| l.starts_with(start)));
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process ids are positive");
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// SIGKILL, then the status.
    pub fn kill9(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0))
    }

    /// SIGTERM, then the status; panics with the log if it is still there after `timeout`.
    #[track_caller]
    pub fn stop(&mut self, timeout: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{}: still there {timeout:?} after SIGTERM\n{}",
                self.words,
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

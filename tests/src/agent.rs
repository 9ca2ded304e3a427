//! The agent under test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::cluster::Node;
use crate::process::{Process, run, workspace_binary};
use crate::scratch::Scratch;
use crate::sweep;
use crate::traffic::http;
use crate::traffic::socket::Source;

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9969);
/// Of a build that is hardly optimised, which may have to copy the maps of another layout while several
/// others do so on the same processors. How long a start takes is no promise: the programs go on.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A page of metrics reads every map, and other tests may keep the machine busy.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How to start an agent.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// `--device`, once each; detection if empty.
    pub devices: Vec<String>,
    /// `--snat-ports`.
    pub snat_ports: Option<(u16, u16)>,
    /// Whose processes are clients on the node.
    pub cgroup: ServedCgroup,
    /// Further arguments of `run`.
    pub extra: Vec<String>,
    /// `LBXDP_LOG`; `info` if not set.
    pub log_filter: Option<String>,
    /// The netns is ready for use before the agent is: do not wait for `/readyz`.
    pub do_not_wait: bool,
    /// At which step of a take-over to end, which only `lbxdp-agent-next` can be told.
    pub end_at: Option<&'static str>,
    /// Another program than the one beside this test.
    pub binary: Option<PathBuf>,
}

/// `--cgroup`. Never the machine's own root: every process would be a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServedCgroup {
    /// One of the agent's own, with the processes of [`Agent::pod_command`].
    #[default]
    Own,
    /// This one.
    At(PathBuf),
    /// `--cgroup none`.
    None,
}

/// An agent in a node's namespace, with pins of its own. Dropping it kills the agent and removes
/// every trace of it from the node.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    netns: PathBuf,
    node_name: String,
    /// What `run` is told about where its objects come from.
    source: Vec<String>,
    pin_path: PathBuf,
    options: AgentOptions,
    binary: PathBuf,
    scratch: Scratch,
    cgroup: Cgroup,
}

impl Agent {
    /// Starts an agent on a node and waits until it has programmed what the manifests say.
    #[track_caller]
    pub fn start(node: &Node, manifests: &Path, options: AgentOptions) -> Self {
        let source = ["--manifests".to_owned(), manifests.display().to_string()];
        Self::start_with(node, &source, options)
    }

    /// Starts an agent that watches an API; `access` are the flags that say how. Its state
    /// directory is its own.
    #[track_caller]
    pub fn watch(node: &Node, access: &[String], options: AgentOptions) -> Self {
        Self::start_with(node, access, options)
    }

    #[track_caller]
    fn start_with(node: &Node, source: &[String], options: AgentOptions) -> Self {
        sweep::stale();
        let binary = options.binary.clone();
        let binary = binary.unwrap_or_else(|| workspace_binary("lbxdp-agent"));
        let mut agent = Self {
            process: None,
            netns: node.netns.path().to_owned(),
            node_name: node.name.clone(),
            source: source.to_owned(),
            pin_path: sweep::unique_pin_path(),
            options,
            binary,
            scratch: Scratch::new("agent"),
            cgroup: Cgroup::new("sockets"),
        };
        agent.start_again();
        agent
    }

    /// A command in the namespace of one of this node's pods, a client whose sockets are served
    /// unless the agent was given another cgroup. It must end before the agent goes.
    pub fn pod_command(
        &self,
        pod: &crate::Netns,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> std::process::Command {
        let mut command = self.cgroup.command("nsenter");
        command.arg(format!("--net={}", pod.path().display())).arg("--").arg(program);
        command
    }

    /// The program that the next start runs, by its name in the workspace.
    pub fn set_program(&mut self, name: &str) {
        self.binary = workspace_binary(name);
    }

    /// The pin path; the maps of a layout are in `v` and its number below it.
    pub fn pin_path(&self) -> &Path {
        &self.pin_path
    }

    /// Where it keeps its last input.
    pub fn state_dir(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Where the next start has its objects from.
    pub fn set_source(&mut self, source: &[String]) {
        self.source = source.to_owned();
    }

    /// The name of the node it serves.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Everything this agent and its predecessors on the same pins have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The process, unless it was ended.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Changes what the next start uses.
    pub fn set_options(&mut self, options: AgentOptions) {
        self.options = options;
    }

    /// Starts the agent on the pins that are there, and waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the agent is running");
        let AgentOptions {
            devices,
            snat_ports,
            cgroup,
            extra,
            log_filter,
            do_not_wait,
            end_at,
            binary: _,
        } = &self.options;
        let mut command = self.inside();
        command.arg("run").args(&self.source).arg("--state-dir").arg(self.state_dir());
        command.args(["--node-name", &self.node_name]).arg("--pin-path").arg(&self.pin_path);
        command.args(["--listen", &LISTEN.to_string()]);
        for device in devices {
            command.args(["--device", device]);
        }
        if let Some((low, high)) = snat_ports {
            command.args(["--snat-ports", &format!("{low}-{high}")]);
        }
        command.arg("--cgroup").arg(match cgroup {
            ServedCgroup::Own => self.cgroup.path(),
            ServedCgroup::At(path) => path,
            ServedCgroup::None => Path::new("none"),
        });
        command.args(extra);
        command.env("LBXDP_LOG", log_filter.as_deref().unwrap_or("info"));
        command.env("RUST_BACKTRACE", "1").env("NO_COLOR", "1");
        if let Some(step) = end_at {
            command.env("LBXDP_END_AT", step);
        }
        let mut process = Process::spawn(&mut command, &self.log_path());
        if !do_not_wait {
            process
                .wait_ready(READY_WITHIN, |_| self.get("/readyz").is_some_and(|(s, _)| s == 200));
        }
        self.process = Some(process);
    }

    /// Waits until `/readyz` says yes.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let mut process = self.process.take().expect("the agent is running");
        process.wait_ready(READY_WITHIN, |_| self.get("/readyz").is_some_and(|(s, _)| s == 200));
        self.process = Some(process);
    }

    /// Changes some of what the next start uses.
    pub fn change_options(&mut self, change: impl FnOnce(&mut AgentOptions)) {
        change(&mut self.options);
    }

    /// Waits until the agent has ended by itself. The pins stay.
    #[track_caller]
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the agent is running");
        let mut status = None;
        crate::process::wait_until("the agent has ended", READY_WITHIN, || {
            status = process.ended();
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// SIGKILL. The pins stay.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.process.take().expect("the agent is running").kill9();
    }

    /// SIGTERM. The pins stay.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process.take().expect("the agent is running").stop(Duration::from_secs(10))
    }

    /// SIGTERM, then a new agent on the same pins.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Runs a subcommand on this agent's pins, in its node, and returns what it printed. Works
    /// whether the agent lives or not.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> String {
        run(self.inside().args(arguments).arg("--pin-path").arg(&self.pin_path))
    }

    /// Whether a subcommand has something to show: not before the agent has made its maps.
    pub fn can(&self, arguments: &[&str]) -> bool {
        let mut command = self.inside();
        command.args(arguments).arg("--pin-path").arg(&self.pin_path);
        command.output().is_ok_and(|output| output.status.success())
    }

    /// [`Self::cli`] with `-o json`.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "json"]);
        let text = self.cli(&arguments);
        match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(error) => panic!("{arguments:?}: {error}\n{text}"),
        }
    }

    /// `status -o json`.
    #[track_caller]
    pub fn status(&self) -> Status {
        Status(self.json(&["status"]))
    }

    /// `GET path` from the address of `--listen`: status code and body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = std::fs::File::open(&self.netns).ok()?;
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
                http::get(LISTEN, Source::ANY, path, ANSWER_WITHIN).ok()
            });
            inside.join().ok().flatten()
        })
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join("agent.log")
    }

    fn inside(&self) -> std::process::Command {
        let mut command = crate::process::command("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(&self.binary);
        command
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process = None;
        if std::thread::panicking() {
            // The test harness shows it with the failure.
            println!("--- log of the agent on {}\n{}", self.node_name, self.log());
        }
        let _ = self.inside().arg("cleanup").arg("--pin-path").arg(&self.pin_path).output();
        // Whatever `cleanup` did: no pin may survive a test.
        let _ = std::fs::remove_dir_all(&self.pin_path);
    }
}

/// What `status -o json` says.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// The counter of this name, from the object `counters`; 0 if there is none.
    pub fn counter(&self, name: &str) -> u64 {
        self.number("/counters", name)
    }

    /// Drops for the reason of this name, from the object `drops`; 0 if there is none.
    pub fn drops(&self, name: &str) -> u64 {
        self.number("/drops", name)
    }

    /// Drops for all reasons together.
    pub fn all_drops(&self) -> u64 {
        let drops = self.0.pointer("/drops").and_then(Value::as_object);
        drops.map_or(0, |drops| drops.values().filter_map(Value::as_u64).sum())
    }

    /// Every counter and drop reason that changed since `before`, and by how much:
    /// `counters.flow_new`, `drops.malformed`. For tests that name every change they expect.
    pub fn changes_since(&self, before: &Self) -> BTreeMap<String, i128> {
        let mut changes = BTreeMap::new();
        for object in ["counters", "drops"] {
            for (status, sign) in [(self, 1), (before, -1)] {
                let values = status.0.get(object).and_then(Value::as_object);
                for (name, value) in values.into_iter().flatten() {
                    let value = i128::from(value.as_u64().unwrap_or(0));
                    *changes.entry(format!("{object}.{name}")).or_default() += sign * value;
                }
            }
        }
        changes.retain(|_, change| *change != 0);
        changes
    }

    fn number(&self, object: &str, name: &str) -> u64 {
        self.0.pointer(object).and_then(|o| o.get(name)).and_then(Value::as_u64).unwrap_or(0)
    }
}

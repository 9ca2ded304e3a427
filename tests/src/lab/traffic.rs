//! Requests from everywhere: outside, from a node's own processes, and from pods.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Output, Stdio};

use serde::de::DeserializeOwned;

use super::images::TESTD;
use super::{Lab, Node};
use crate::process::{run, words, workspace_binary};
use crate::sweep;
use crate::traffic::load::Report;
use crate::traffic::spread::Outcome;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody outside the cluster.
    Client,
    /// A process of the node with this number, from 0, in its network.
    Node(usize),
    /// The first container of a pod, made of the test image: `NAME`, or `deployment/NAME` for one
    /// of its pods.
    Pod(String),
    /// The first container of the pod of this name, asked of the runtime of the node with this number:
    /// the API need not answer.
    Container(usize, String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => write!(f, "the client"),
            Self::Node(index) => write!(f, "a process of node {index}"),
            Self::Pod(pod) => write!(f, "pod {pod}"),
            Self::Container(index, pod) => write!(f, "pod {pod} on node {index}"),
        }
    }
}

impl Lab {
    /// `lbxdp-testd` there.
    #[track_caller]
    pub fn testd(&self, origin: &Origin) -> Command {
        let program = || workspace_binary("lbxdp-testd");
        match origin {
            Origin::Client => self.client.command(program()),
            Origin::Node(index) => self.nodes[*index].host.command(program()),
            Origin::Pod(pod) => {
                let mut command = self.kubectl_command();
                command.args(["exec", "--stdin", pod, "--", TESTD]);
                command
            }
            Origin::Container(index, pod) => self.nodes[*index].container_command(pod, TESTD),
        }
    }

    /// So many HTTP requests, each on a connection of its own, and who answered them.
    #[track_caller]
    pub fn spread(&self, origin: &Origin, target: SocketAddr, count: u32) -> Outcome {
        let mut testd = self.testd(origin);
        testd.args(["client", "connect-spread", &target.to_string()]);
        testd.args(["--timeout-ms", "1000", "--count", &count.to_string()]);
        json(&mut testd)
    }

    /// The addresses that a name has there; none if nobody there knows it.
    #[track_caller]
    pub fn lookup(&self, origin: &Origin, name: &str) -> BTreeSet<IpAddr> {
        let mut testd = self.testd(origin);
        testd.args(["client", "lookup", name]);
        let output = output(&mut testd);
        if output.stdout.is_empty() {
            return BTreeSet::new();
        }
        parse(&words(&testd), &output.stdout)
    }

    /// Starts a steady load: so many new connections each second, and so many that stay.
    #[track_caller]
    pub fn load(&self, origin: &Origin, target: SocketAddr, rate: u32, held: u32) -> Load {
        let mut testd = self.testd(origin);
        testd.args(["client", "load", &target.to_string(), "--rate", &rate.to_string()]);
        testd.args(["--held", &held.to_string()]);
        testd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match testd.spawn() {
            Ok(child) => Load { child, words: words(&testd) },
            Err(error) => panic!("{}: {error}", words(&testd)),
        }
    }
}

impl Node {
    /// A program in the first container of a pod, by the runtime alone.
    #[track_caller]
    fn container_command(&self, pod: &str, program: &str) -> Command {
        let ctr = || {
            let mut ctr = self.host.command("ctr");
            ctr.args(["--namespace", "k8s.io"]);
            ctr
        };
        let wanted = format!(
            "labels.\"io.kubernetes.pod.name\"=={pod},labels.\"io.cri-containerd.kind\"==container"
        );
        let found = run(ctr().args(["containers", "list", "--quiet", &wanted]));
        let container = found.lines().next();
        let container = container.unwrap_or_else(|| panic!("{}: no pod {pod}", self.name()));
        let mut exec = ctr();
        exec.args(["tasks", "exec", "--exec-id", &sweep::unique("exec"), container, program]);
        exec
    }
}

/// A load that goes on until it is [stopped](Self::stop).
#[derive(Debug)]
pub struct Load {
    child: Child,
    words: String,
}

impl Load {
    /// Ends it, and says what came of it.
    #[track_caller]
    pub fn stop(mut self) -> Report {
        // The end of its input is the end of the load.
        drop(self.child.stdin.take());
        let mut said = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            let _ = stdout.read_to_string(&mut said);
        }
        let _ = self.child.wait();
        parse(&self.words, said.as_bytes())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn output(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{}: {error}", words(command)),
    }
}

/// What a client says. It fails if a request failed, and says so in what it prints.
#[track_caller]
fn json<T: DeserializeOwned>(command: &mut Command) -> T {
    let output = output(command);
    assert!(
        !output.stdout.is_empty(),
        "{}: {}\n{}",
        words(command),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    parse(&words(command), &output.stdout)
}

#[track_caller]
fn parse<T: DeserializeOwned>(words: &str, text: &[u8]) -> T {
    serde_json::from_slice(text)
        .unwrap_or_else(|error| panic!("{words}: {error}: {}", String::from_utf8_lossy(text)))
}

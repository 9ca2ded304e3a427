//! How `run` learns which nodes are alive.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::ensure;
use clap::Args;

use crate::members::{DEFAULT_PORT, Key, Options};

#[derive(Debug, Args)]
pub struct MemberArgs {
    /// Talk to the agents of the other nodes at this UDP port, to notice within a second when one is
    /// gone. The same on every node.
    #[arg(long, env = "LBXDP_MEMBERS_PORT", value_name = "PORT", default_value_t = DEFAULT_PORT,
          value_parser = clap::value_parser!(u16).range(1..))]
    members_port: u16,
    /// File with the key by which agents know each other, at least 16 bytes that are the same on every
    /// node and that nobody else knows. Without it agents do not talk to each other.
    #[arg(long, env = "LBXDP_MEMBERS_KEY_FILE", value_name = "FILE")]
    members_key_file: Option<PathBuf>,
    /// Address of another node whose agent to talk to (repeatable), with a port if it is another one.
    /// One that is there is enough, it knows the others. In a cluster they are found without.
    #[arg(long = "peer", env = "LBXDP_PEERS", value_name = "ADDR", value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Go on sending new connections to the endpoints of a node that is dead, until Kubernetes says that they
    /// are not ready (40 s by default). Otherwise they get none as soon as the agents miss the node, if others
    /// are left.
    #[arg(long, env = "LBXDP_KEEP_DEAD_NODES")]
    keep_dead_nodes: bool,
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    At(SocketAddr),
    On(IpAddr),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(Self::On).or_else(|_| text.parse().map(Self::At));
        address.map_err(|_| "neither an IP address nor one with a port".to_owned())
    }
}

impl MemberArgs {
    /// Reads the key.
    pub fn options(self, node: &str, state_dir: &Path) -> anyhow::Result<Options> {
        let Self { members_port, members_key_file, peers, keep_dead_nodes } = self;
        let key = members_key_file.as_deref().map(Key::read).transpose()?.flatten();
        ensure!(
            peers.is_empty() || key.is_some(),
            "--peer needs the file of --members-key-file: agents believe nobody without a key"
        );
        let at = |peer: Peer| match peer {
            Peer::At(at) => at,
            Peer::On(ip) => SocketAddr::new(ip, members_port),
        };
        Ok(Options {
            node: node.to_owned(),
            port: members_port,
            peers: peers.into_iter().map(at).collect(),
            key,
            state_dir: state_dir.to_owned(),
            without_dead: keep_dead_nodes,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        members: MemberArgs,
    }

    #[test]
    fn peers_have_the_usual_port_unless_they_name_another() {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "0123456789abcdef").unwrap();
        let flags = [
            "lbxdp-agent",
            "--members-key-file",
            key.path().to_str().unwrap(),
            "--members-port=7",
            "--peer=192.0.2.1,192.0.2.2:9",
            "--peer=2001:db8::1",
            "--peer=[2001:db8::2]:9",
        ];
        let options = Cli::try_parse_from(flags).unwrap().members;
        let options = options.options("a", Path::new("/s")).unwrap();
        let expected = ["192.0.2.1:7", "192.0.2.2:9", "[2001:db8::1]:7", "[2001:db8::2]:9"];
        assert_eq!(options.peers, expected.map(|at| at.parse().unwrap()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (flag, reason) in [
            ("--peer=node-1", "neither an IP address"),
            ("--members-port=0", "0 is not in 1..=65535"),
        ] {
            let error = Cli::try_parse_from(["lbxdp-agent", flag]).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let members = Cli::try_parse_from(["lbxdp-agent", "--peer=192.0.2.1"]).unwrap().members;
        let error = members.options("a", Path::new("/s")).unwrap_err().to_string();
        assert!(error.contains("--peer needs the file of --members-key-file"), "{error}");
    }
}

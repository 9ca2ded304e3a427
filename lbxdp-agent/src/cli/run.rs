//! `lbxdp-agent run`: the flags, checked and handed on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lbxdp_common::flow_set::LARGEST_TABLE;
use lbxdp_common::limits::{MAX_ADDRESSES, MAX_FLOWS, MAX_FRONTENDS};

use crate::agent::{self, Options};
use crate::attach::{Config, TcMode, cgroup};
use crate::cli::PinArgs;
use crate::cli::members::MemberArgs;
use crate::cli::source::SourceArgs;
use crate::device::Pattern;
use crate::index::{self, NodePortAddresses};
use crate::object;
use crate::service_cidrs::ServiceCidrs;
use crate::snat_ports::{self, HostPorts, Ports};

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Name of this node, as EndpointSlices and the Node object have it.
    #[arg(long, env = "LBXDP_NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// Serve this device (repeatable) instead of those with a default route or a node address,
    /// and overlays.
    #[arg(long = "device", env = "LBXDP_DEVICES", value_name = "IF", value_delimiter = ',')]
    devices: Vec<String>,
    /// Serve pods behind devices of this name with tc (repeatable; * and ? are wildcards): for
    /// sandboxed pods, whose connections no socket hook sees.
    #[arg(
        long = "pod-device",
        env = "LBXDP_POD_DEVICES",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pod_devices: Vec<Pattern>,
    /// Serve spec.externalIPs in this range (repeatable). By default none is served: whoever may
    /// write a Service could take any address with them (CVE-2020-8554).
    #[arg(long = "allow-external-ips", env = "LBXDP_ALLOW_EXTERNAL_IPS", value_name = "CIDR",
          value_delimiter = ',', value_parser = index::range)]
    allow_external_ips: Vec<IpNet>,
    /// Serve NodePorts on the addresses of this node's devices in this range (repeatable) instead
    /// of its primary addresses, which `primary` stands for; never on loopback.
    #[arg(
        long = "nodeport-addresses",
        env = "LBXDP_NODEPORT_ADDRESSES",
        value_name = "CIDR|primary",
        value_delimiter = ','
    )]
    node_port_addresses: Vec<NodePortAddresses>,
    /// Let spec.loadBalancerSourceRanges restrict NodePorts and ClusterIPs as well, not only load
    /// balancer and external addresses.
    #[arg(long, env = "LBXDP_SOURCE_RANGES_ALL_FRONTENDS")]
    source_ranges_all_frontends: bool,
    /// Drop what is sent to an address in this range that no Service has (repeatable, at most 4 of
    /// each family).
    #[arg(long = "service-cidr", env = "LBXDP_SERVICE_CIDRS", value_name = "CIDR",
          value_delimiter = ',', value_parser = index::range)]
    service_cidrs: Vec<IpNet>,
    #[command(flatten)]
    members: MemberArgs,
    #[command(flatten)]
    pins: PinArgs,
    /// Source ports of flows to backends on other nodes.
    #[arg(long, env = "LBXDP_SNAT_PORTS", value_name = "LO-HI", default_value = "61000-65535",
          value_parser = snat_ports::parse)]
    snat_ports: Ports,
    /// Entries of each flow table, one for IPv4 and one for IPv6: a power of two. A flow has two
    /// entries, of 64 bytes (IPv6: 128).
    #[arg(long, env = "LBXDP_FLOWS", value_name = "ENTRIES", default_value_t = MAX_FLOWS as u32,
          value_parser = flow_entries)]
    flows: u32,
    /// Frontends of each family that there is room for: ports of Services times their addresses.
    #[arg(long, env = "LBXDP_FRONTENDS", value_name = "NUMBER", default_value_t = MAX_FRONTENDS as u32,
          value_parser = clap::value_parser!(u32).range(1..=MOST_FRONTENDS))]
    frontends: u32,
    /// Where to serve /livez, /readyz, /healthz and /metrics.
    #[arg(long, env = "LBXDP_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Native XDP where the driver has it, or none at all.
    #[arg(long, env = "LBXDP_XDP_MODE", value_enum, default_value_t = XdpMode::Native)]
    xdp_mode: XdpMode,
    /// How tc programs are attached: tcx where the kernel has it (6.6), or clsact filters.
    #[arg(long, env = "LBXDP_TC_MODE", value_enum, default_value_t = TcFlag::Auto)]
    tc_mode: TcFlag,
    /// Serve the processes of this cgroup (v2) as clients, pods and the node itself alike, or
    /// `none`. By default where cgroup v2 is mounted; in a container that has to be the node's.
    #[arg(long, env = "LBXDP_CGROUP", value_name = "PATH|none")]
    cgroup: Option<CgroupFlag>,
    /// Leave what begins to the stack, that is to kube-proxy, and go on with the flows that there
    /// are: the way back. `status` says how many are left.
    #[arg(long, env = "LBXDP_HAND_OVER")]
    hand_over: bool,
    /// Announce addresses of load balancers on the local network, as L2Advertisements say. Off where somebody
    /// else does; the same on every node, because each takes the others to do their share.
    #[arg(long, env = "LBXDP_LAYER2", value_enum, default_value_t = Switch::On)]
    layer2: Switch,
    /// Log what the programs do, for debugging: it costs time with each packet it is about.
    #[arg(long, env = "LBXDP_PACKET_LOG")]
    packet_log: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum XdpMode {
    Native,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TcFlag {
    Auto,
    Clsact,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum CgroupFlag {
    None,
    At(PathBuf),
}

impl FromStr for CgroupFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err("neither an absolute path nor `none`".to_owned()),
        }
    }
}

/// The cgroup whose processes are served.
fn served_cgroup(flag: Option<CgroupFlag>) -> anyhow::Result<Option<PathBuf>> {
    let path = match flag {
        None => cgroup::detect()?,
        Some(CgroupFlag::None) => return Ok(None),
        Some(CgroupFlag::At(path)) => path,
    };
    cgroup::check(&path)?;
    Ok(Some(path))
}

/// Level of `info!` in the programs, as `aya_log` counts.
const INFO: u8 = 3;

/// A device cannot both lead outwards and to a pod.
fn apart(devices: &[String], pods: &[Pattern]) -> anyhow::Result<()> {
    for device in devices {
        if let Some(pattern) = pods.iter().find(|pattern| pattern.matches(device)) {
            bail!("--device {device} and --pod-device {pattern} name the same device");
        }
    }
    Ok(())
}

impl RunArgs {
    /// What the command line lacks, if anything.
    pub fn missing(&self) -> Option<&'static str> {
        self.source.missing()
    }
}

/// Runs the agent until SIGINT or SIGTERM.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        source,
        node_name,
        devices,
        pod_devices,
        allow_external_ips,
        node_port_addresses,
        source_ranges_all_frontends,
        service_cidrs,
        members,
        pins: PinArgs { pin_path },
        snat_ports,
        flows,
        frontends,
        listen,
        xdp_mode,
        tc_mode,
        cgroup,
        hand_over,
        layer2,
        packet_log,
    } = args;
    apart(&devices, &pod_devices)?;
    snat_ports::check(&snat_ports, &HostPorts::read()?)?;
    let members = members.options(&node_name, source.state_dir())?;
    let options = Options {
        members,
        source: source.options(&service_cidrs),
        node_name,
        index: index::Config {
            allow_external_ips,
            node_port_addresses,
            source_ranges_all_frontends,
        },
        devices,
        pod_devices,
        listen,
        without_xdp: xdp_mode == XdpMode::Off,
        hand_over,
        layer2: layer2 == Switch::On,
        object: object::bytes()?,
        dataplane: Config {
            pin_path,
            snat_ports,
            flows,
            frontends,
            service_cidrs: ServiceCidrs::new(&service_cidrs)?,
            log_level: if packet_log { INFO } else { 0 },
            tc: match tc_mode {
                TcFlag::Auto => TcMode::Auto,
                TcFlag::Clsact => TcMode::Clsact,
            },
            cgroup: served_cgroup(cgroup)?,
            without_frags: false,
        },
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(agent::run(options))
}

/// As many as there is room for addresses.
const MOST_FRONTENDS: i64 = MAX_ADDRESSES as i64;

fn flow_entries(text: &str) -> Result<u32, String> {
    const SMALLEST: u32 = 1_024;
    let entries: u32 = text.parse().map_err(|error| format!("{error}"))?;
    if entries.is_power_of_two() && (SMALLEST..=LARGEST_TABLE).contains(&entries) {
        Ok(entries)
    } else {
        Err(format!("expected a power of two from {SMALLEST} to {LARGEST_TABLE}"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(more: &[&str]) -> Result<RunArgs, clap::Error> {
        let flags = ["lbxdp-agent", "--manifests", "d", "--node-name", "n"];
        Cli::try_parse_from(flags.iter().chain(more)).map(|cli| cli.run)
    }

    #[test]
    fn ranges_may_be_repeated_or_separated_by_commas() {
        let args = parse(&[
            "--allow-external-ips=192.0.2.0/24,2001:db8::/32",
            "--allow-external-ips=198.51.100.0/24",
            "--nodeport-addresses=primary",
            "--nodeport-addresses=10.0.0.0/8",
        ]);
        let args = args.unwrap();
        let ranges = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.0/24"];
        assert_eq!(args.allow_external_ips, ranges.map(|range| range.parse().unwrap()));
        let primary = NodePortAddresses::Primary;
        let range = NodePortAddresses::In("10.0.0.0/8".parse().unwrap());
        assert_eq!(args.node_port_addresses, [primary, range]);
    }

    #[test]
    fn a_device_is_named_for_one_purpose() {
        let args = parse(&["--device=eth0,veth1", "--pod-device=cali*,veth?"]).unwrap();
        let error = apart(&args.devices, &args.pod_devices).unwrap_err().to_string();
        assert_eq!(error, "--device veth1 and --pod-device veth? name the same device");
        let args = parse(&["--device=eth0", "--pod-device=cali*", "--pod-device=veth*"]).unwrap();
        assert_eq!(args.pod_devices.len(), 2);
        apart(&args.devices, &args.pod_devices).unwrap();
        let error = parse(&["--pod-device=veth[12]"]).unwrap_err().to_string();
        assert!(error.contains("only * and ?"), "{error}");
    }

    #[test]
    fn sockets_are_served_where_the_flag_says_or_nowhere() {
        assert_eq!(served_cgroup(parse(&["--cgroup=none"]).unwrap().cgroup).unwrap(), None);
        let error = served_cgroup(parse(&["--cgroup=/proc"]).unwrap().cgroup).unwrap_err();
        assert!(error.to_string().contains("--cgroup /proc: not a directory of"), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (flag, reason) in [
            ("--allow-external-ips=192.0.2.1", "not a range of addresses"),
            ("--nodeport-addresses=all", "not a range of addresses"),
            ("--cgroup=sys/fs/cgroup", "neither an absolute path nor `none`"),
            ("--nodeport-addresses=127.0.0.0/8", "never served on loopback"),
            ("--service-cidr=10.96.0.1", "not a range of addresses"),
        ] {
            let error = parse(&[flag]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}

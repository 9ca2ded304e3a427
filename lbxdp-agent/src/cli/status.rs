//! `lbxdp-agent status`: what runs where and why, what it did, what it dropped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use lbxdp_common::{ABI_VERSION, Mode};
use serde::Serialize;

use crate::apply::pinned::{FlowCounts, Sizes};
use crate::apply::sockets::SocketMaps;
use crate::attach::cgroup::{self, SocketStatus};
use crate::attach::{self, DeviceStatus, TcKind};
use crate::cli::output::{self, Format, table};
use crate::cli::source::StateArgs;
use crate::cli::{ReadArgs, list};
use crate::lock::Lock;
use crate::members;
use crate::netlink::Monitor;
use crate::pins::Pins;
use crate::sockets;
use crate::source::kube::{Report, WatchReport, Work};
use crate::sys::{self, Access};

/// So many of the nodes that are gone are named.
const GONE: usize = 10;

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Serialize)]
struct Status {
    version: &'static str,
    abi: u32,
    pin_path: String,
    /// `None` without an API.
    source: Option<SourceLine>,
    members: MembersLine,
    devices: Vec<DeviceLine>,
    sockets: SocketLine,
    /// Directories of maps that earlier programs use: an upgrade has not come to its end.
    replaced: Vec<String>,
    frontends: usize,
    backends: usize,
    flows: usize,
    take_over: TakeOverLine,
    counters: BTreeMap<&'static str, u64>,
    drops: BTreeMap<&'static str, u64>,
}

/// What the last agent with an API said of it, and whether that agent still runs.
#[derive(Debug, Serialize)]
struct SourceLine {
    running: bool,
    connected: bool,
    #[serde(flatten)]
    report: Report,
}

impl SourceLine {
    fn read(state_dir: &Path) -> Option<Self> {
        let report = Report::read(state_dir)?;
        let running = Lock::is_held(state_dir);
        let connected = running && report.watches.values().all(|watch| watch.connected);
        Some(Self { running, connected, report })
    }

    /// `now` is in seconds of the epoch.
    fn text(&self, now: u64) -> String {
        let work = self.report.work.as_ref().map(|work| work_text(work, now)).unwrap_or_default();
        self.connection() + &work
    }

    fn connection(&self) -> String {
        let Self { running, connected, report } = self;
        let server = &report.server;
        if *connected {
            return format!("API server {server}, connected\n");
        } else if !running {
            return format!("API server {server}, but no agent runs\n");
        }
        let mut text = format!("API server {server}, not connected:");
        for (kind, WatchReport { connected, error, .. }) in &report.watches {
            if !connected {
                let error = error.as_deref().unwrap_or("waiting for an answer");
                // Servers and proxies write what they like.
                let error = error.escape_debug();
                let _ = write!(text, "\n  {kind}s: {error}");
            }
        }
        text.push('\n');
        text
    }
}

/// What the agent has made of its input.
fn work_text(work: &Work, now: u64) -> String {
    let Work { last_sync, error, warnings, errors } = work;
    let mut text = match last_sync {
        0 => "never programmed".to_owned(),
        last => format!("last programmed {} s ago", now.saturating_sub(*last)),
    };
    if let Some(error) = error {
        let _ = write!(text, ", changes are not: {}", error.escape_debug());
    }
    let _ = writeln!(text, "; problems of the input: {errors} errors, {warnings} warnings");
    text
}

/// Which nodes are alive, as the last agent knew it, and whether that agent still runs.
#[derive(Debug, Serialize)]
struct MembersLine {
    running: bool,
    #[serde(flatten)]
    report: members::Report,
}

impl MembersLine {
    fn read(state_dir: &Path, pins: &Pins) -> Self {
        let report = members::Report::read(state_dir).unwrap_or_default();
        Self { running: Lock::is_held(pins.root()), report }
    }

    fn text(&self) -> String {
        let Self { running, report } = self;
        if report.nodes.is_empty() || !running {
            return String::new();
        }
        let (alive, known) = (report.alive(), report.nodes.len() + 1);
        let mut text = format!("nodes alive: {alive} of {known}");
        if !report.protocol {
            text.push_str(", by their leases alone");
        }
        if report.isolated {
            text.push_str("; this one sees neither the API nor any other");
        }
        let gone = report.nodes.iter().filter(|(_, node)| !node.alive);
        let gone: Vec<&str> = gone.map(|(name, _)| name.as_str()).take(GONE).collect();
        if !gone.is_empty() {
            let _ = write!(text, "; gone: {}", gone.join(", "));
            if known - alive > GONE {
                text.push_str(" …");
            }
        }
        if report.dead() > 0 {
            let (dead, left_out) = (report.dead(), report.left_out);
            let _ = write!(text, "; dead: {dead}, whose {left_out} endpoints get nothing new");
        }
        text.push('\n');
        text
    }
}

/// Whose connections there are, and whose new ones will be.
#[derive(Debug, Serialize)]
struct TakeOverLine {
    mode: &'static str,
    /// Connections that end with the programs: `cleanup` breaks them.
    established: usize,
    /// Other flows that do.
    other: usize,
    /// UDP sockets that get their answers through the programs.
    udp_sockets: usize,
    /// Connections that the stack translates, and that end with it.
    foreign_established: usize,
    /// Other flows of the stack.
    foreign_other: usize,
}

impl TakeOverLine {
    fn new(mode: Mode, counts: FlowCounts, udp_sockets: usize) -> Self {
        let FlowCounts { established, other, foreign_established, foreign_other } = counts;
        Self {
            mode: mode.as_str(),
            established,
            other,
            udp_sockets,
            foreign_established,
            foreign_other,
        }
    }

    fn text(&self) -> String {
        let Self { mode, established, other, udp_sockets, foreign_established, foreign_other } =
            self;
        let mut text = String::new();
        if *mode == Mode::HandingOver.as_str() {
            let _ = writeln!(
                text,
                "handing over: left are {established} established connections, {other} other flows \
                 and {udp_sockets} UDP sockets"
            );
        } else if *mode == Mode::TakingOver.as_str() {
            text.push_str("taking over: the stack's connections are not known yet\n");
        }
        if foreign_established + foreign_other > 0 {
            let _ = writeln!(
                text,
                "the stack translates {foreign_established} established connections and \
                 {foreign_other} other flows"
            );
        }
        text
    }
}

#[derive(Debug, Serialize)]
struct DeviceLine {
    name: String,
    ifindex: u32,
    xdp: &'static str,
    /// Why there is no native XDP.
    reason: Option<String>,
    tc: &'static str,
}

#[derive(Debug, Serialize)]
struct SocketLine {
    served: bool,
    /// Whose processes are served.
    cgroup: Option<String>,
    /// Whether packets are looked at because there are stale sockets.
    stale: bool,
}

impl From<SocketStatus> for SocketLine {
    fn from(status: SocketStatus) -> Self {
        let SocketStatus { cgroup, has_stale } = status;
        let cgroup = cgroup.map(|path| path.display().to_string());
        Self { served: cgroup.is_some(), cgroup, stale: has_stale }
    }
}

impl From<DeviceStatus> for DeviceLine {
    fn from(status: DeviceStatus) -> Self {
        let DeviceStatus { name, ifindex, why: _, xdp, tc, error: _, is_pod_name: _ } = status;
        Self {
            name,
            ifindex,
            xdp: if xdp.is_ok() { "native" } else { "none" },
            reason: xdp.err().map(|reason| reason.to_string()),
            tc: tc.map_or("none", TcKind::as_str),
        }
    }
}

/// Prints the status.
pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let StatusArgs { read: args, state: StateArgs { state_dir } } = args;
    let pins = args.pins();
    let maps = list::open_maps(args)?;
    let Sizes { frontends, backends, addresses: _ } = maps.sizes()?;
    let devices = attach::read_status(&pins, &Monitor::snapshot()?)?;
    let counts = maps.flow_counts(sys::coarse_ns())?;
    let udp_sockets = sockets::count(&SocketMaps::open(&pins, Access::ReadOnly)?.udp()?);
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        abi: ABI_VERSION,
        pin_path: pins.root().display().to_string(),
        source: SourceLine::read(state_dir),
        members: MembersLine::read(state_dir, &pins),
        devices: devices.into_iter().map(DeviceLine::from).collect(),
        sockets: cgroup::read_status(&pins)?.into(),
        replaced: pins.replaced()?.iter().map(|path| path.display().to_string()).collect(),
        frontends,
        backends,
        flows: counts.own(),
        take_over: TakeOverLine::new(maps.mode()?, counts, udp_sockets),
        counters: maps.counters()?.into_iter().map(|(key, sum)| (key.as_str(), sum)).collect(),
        drops: maps.drops()?.into_iter().map(|(key, sum)| (key.as_str(), sum)).collect(),
    };
    match args.output {
        Format::Json => output::print(&serde_json::to_string_pretty(&status)?),
        Format::Table => output::print(&text(&status)),
    }
}

fn text(status: &Status) -> String {
    let Status {
        version,
        abi,
        pin_path,
        source,
        members,
        devices,
        sockets,
        replaced,
        frontends,
        backends,
        flows,
        take_over,
        counters,
        drops,
    } = status;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let source = source.as_ref().map(|source| source.text(now)).unwrap_or_default();
    let mut device_table = table(&["device", "xdp", "tc", "why not native"]);
    for DeviceLine { name, ifindex: _, xdp, reason, tc } in devices {
        device_table.add_row([name, *xdp, *tc, reason.as_deref().unwrap_or("")]);
    }
    let mut count_table = table(&["counter", "packets"]);
    for (name, count) in counters.iter().filter(|(_, count)| **count > 0) {
        count_table.add_row([*name, &count.to_string()]);
    }
    let mut drop_table = table(&["dropped because", "packets"]);
    for (name, count) in drops.iter().filter(|(_, count)| **count > 0) {
        drop_table.add_row([*name, &count.to_string()]);
    }
    let mut text = format!(
        "lbxdp {version}, map layout {abi}, pins in {pin_path}\n\
         {source}{frontends} frontends, {backends} backends, {flows} flows\n"
    );
    text.push_str(&match &sockets.cgroup {
        Some(cgroup) => format!("sockets are served in {cgroup}\n"),
        None => "sockets are not served\n".to_owned(),
    });
    for maps in replaced {
        let _ = writeln!(text, "an upgrade is not finished: programs may still use {maps}");
    }
    text.push_str(&take_over.text());
    text.push_str(&members.text());
    for (part, nothing) in [
        (device_table, "no programs are attached"),
        (count_table, "no packet was served yet"),
        (drop_table, "no packet was dropped"),
    ] {
        text.push('\n');
        if part.row_count() == 0 {
            text.push_str(nothing);
        } else {
            text.push_str(&part.trim_fmt());
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_and_those_that_are_gone_are_named() {
        let node = |alive| members::NodeReport { alive, ..members::NodeReport::default() };
        let nodes = [("b".to_owned(), node(true)), ("c".to_owned(), node(false))].into();
        let report = members::Report { protocol: true, nodes, ..members::Report::default() };
        let mut members = MembersLine { running: true, report };
        assert_eq!(members.text(), "nodes alive: 2 of 3; gone: c\n");
        let c = members.report.nodes.get_mut("c").unwrap();
        c.dead = true;
        members.report.left_out = 7;
        assert_eq!(
            members.text(),
            "nodes alive: 2 of 3; gone: c; dead: 1, whose 7 endpoints get nothing new\n"
        );
        members.report.nodes.get_mut("c").unwrap().dead = false;
        (members.report.protocol, members.report.isolated) = (false, true);
        assert_eq!(
            members.text(),
            "nodes alive: 2 of 3, by their leases alone; this one sees neither the API nor any other; \
             gone: c\n"
        );
        members.running = false;
        assert_eq!(members.text(), "");
    }

    #[test]
    fn the_connection_and_what_came_of_it_are_two_lines() {
        let watch = WatchReport { connected: true, reconnects: 0, error: None };
        let mut source = SourceLine {
            running: true,
            connected: true,
            report: Report {
                server: "https://192.0.2.1/".to_owned(),
                servers: vec!["https://192.0.2.1/".to_owned()],
                watches: [("Service".to_owned(), watch)].into(),
                work: None,
            },
        };
        let connected = "API server https://192.0.2.1/, connected\n";
        assert_eq!(source.text(100), connected);
        let work = Work { last_sync: 97, error: None, warnings: 2, errors: 1 };
        source.report.work = Some(work.clone());
        let problems = "; problems of the input: 1 errors, 2 warnings\n";
        let expected = format!("{connected}last programmed 3 s ago{problems}");
        assert_eq!(source.text(100), expected);
        let error = Some("map x: \u{1b}[2Jfull".to_owned());
        source.report.work = Some(Work { last_sync: 0, error, ..work });
        let failed = "never programmed, changes are not: map x: \\u{1b}[2Jfull";
        assert_eq!(source.text(100), format!("{connected}{failed}{problems}"));
    }
}

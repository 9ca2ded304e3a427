//! `lbxdp-agent vip list`: the addresses that this node answers for, from the pins. `vip show` and `vip
//! explain`: who announces an address and why, from what the agent has written of it.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Context as _;
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::apply::announced::{Announced, Gate};
use crate::cli::ReadArgs;
use crate::cli::output::{print_each, print_rows, printable, table};
use crate::cli::source::StateArgs;
use crate::layer2::{self, Account, Agent, Reason, Report, Subject};
use crate::lock::Lock;
use crate::netlink::Monitor;
use crate::sys::Access;

#[derive(Debug, Args)]
pub struct AskArgs {
    /// An address, or NAMESPACE/NAME of a Service.
    #[arg(value_name = "ADDRESS|NAMESPACE/NAME")]
    subject: Subject,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// What is known of an address, and why it is so.
#[derive(Debug, Serialize)]
struct Explained<'a> {
    service: &'a str,
    address: Option<IpAddr>,
    /// Of this node.
    node: &'a str,
    /// Whether it announces the address.
    announced: bool,
    reasons: Vec<Reason>,
}

/// An address and a device.
#[derive(Debug, Serialize)]
struct Row {
    address: IpAddr,
    /// Name, or the interface index of one that is gone.
    device: String,
    /// Whether questions are answered: not if the agent has not said for a while that it is there.
    answered: bool,
}

/// Lists them.
pub fn list(args: &ReadArgs) -> anyhow::Result<()> {
    let pins = args.pins();
    let maps = Announced::open(&pins, Access::ReadOnly).with_context(|| {
        format!("no agent of this version has run with pins in {}", pins.root().display())
    })?;
    let answered = Gate::is_open(&pins).context("map watch")?;
    let network = Monitor::snapshot().context("netlink")?;
    let device = |ifindex: u32| match network.links.get(&ifindex) {
        Some(link) => link.name.clone(),
        None => ifindex.to_string(),
    };
    let rows = maps.answered()?.into_iter();
    let rows = rows.map(|(address, dev)| Row { address, device: device(dev), answered });
    let rows: Vec<Row> = rows.collect();
    print_rows(args.output, &rows, &["address", "device", "answered"], |row| {
        let answered = if row.answered { "yes" } else { "no: no agent renews it" };
        vec![row.address.to_string(), row.device.clone(), answered.to_owned()]
    })
}

impl AskArgs {
    fn report(&self) -> anyhow::Result<(Report, Agent)> {
        let pins = self.read.pins();
        let is_running = Lock::is_held(pins.root());
        let report = Report::read(&self.state.state_dir).with_context(|| match is_running {
            true => "the agent has not said yet what it announces, or has another --state-dir",
            false => "no agent runs, and none has left word of what it announced",
        })?;
        // Without pins there is nothing that could answer.
        let is_gate_open = Gate::is_open(&pins).unwrap_or(false);
        Ok((report, Agent { is_running, is_gate_open }))
    }
}

/// Shows who announces an address, or those of a Service.
pub fn show(args: &AskArgs) -> anyhow::Result<()> {
    let (report, agent) = args.report()?;
    let accounts = layer2::accounts(&report, &args.subject, agent)?;
    print_each(args.read.output, &accounts, shown)
}

/// Says why it is so.
pub fn explain(args: &AskArgs) -> anyhow::Result<()> {
    let (report, agent) = args.report()?;
    let accounts = layer2::accounts(&report, &args.subject, agent)?;
    let explained = accounts.iter().map(|account| Explained {
        service: &account.service,
        address: account.address,
        node: &account.here.node,
        announced: account.here.is_answered,
        reasons: layer2::explain(account, &report, agent),
    });
    let explained: Vec<_> = explained.collect();
    print_each(args.read.output, &explained, |it| told(&it.reasons))
}

fn shown(account: &Account) -> String {
    let Account {
        service, address, shared_with, pool, advertisements, owner, next, not, here, ..
    } = account;
    let listed = |all: &[String]| match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(", "),
    };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let mut lines = vec![
        ("address", or_none(address.map(|addr| addr.to_string()))),
        ("service", service.clone()),
    ];
    if !shared_with.is_empty() {
        lines.push(("shared with", listed(shared_with)));
    }
    lines.push(("pool", or_none(pool.clone())));
    lines.push(("advertisements", listed(advertisements)));
    let this = |node: &String| match *node == here.node {
        true => format!("{node} (this node)"),
        false => node.clone(),
    };
    lines.push(("owner", or_none(owner.as_ref().map(this))));
    lines.push(("next", listed(&next.iter().map(this).collect::<Vec<_>>())));
    if let Some(since) = here.since {
        lines.push(("devices", listed(&here.devices)));
        let since = i64::try_from(since).ok().and_then(|it| Timestamp::from_second(it).ok());
        lines.push(("since", since.map(|it| it.to_string()).unwrap_or_default()));
        let answered = if here.is_answered { "yes" } else { "no: no agent renews it" };
        lines.push(("answered", answered.to_owned()));
    }
    let mut pairs = table(&[]);
    for (title, value) in lines {
        pairs.add_row([title, &printable(&value)]);
    }
    let mut text = pairs.trim_fmt();
    if !not.is_empty() {
        let mut nodes = table(&["node", "why not"]);
        for it in not {
            nodes.add_row([printable(&this(&it.node)), it.message.clone()]);
        }
        let _ = write!(text, "\n\n{}", nodes.trim_fmt());
    }
    text
}

fn told(reasons: &[Reason]) -> String {
    let mut lines = Vec::new();
    for (index, Reason { what, remedy }) in reasons.iter().enumerate() {
        lines.push(if index == 0 { printable(what) } else { format!("* {}", printable(what)) });
        lines.extend(remedy.as_ref().map(|it| format!("  -> {}", printable(it))));
    }
    lines.join("\n")
}

//! `lbxdp-agent service|backend|flow list`: from the pins, names included.

use std::collections::BTreeSet;

use anyhow::Context as _;

use crate::apply::pinned::PinnedMaps;
use crate::apply::{Actual, Maps as _};
use crate::cli::ReadArgs;
use crate::cli::output::print_rows;
use crate::sys::{self, Access};
use crate::view::{self, Decision, FrontendView};

/// Opens the pinned maps for reading.
pub fn open_maps(args: &ReadArgs) -> anyhow::Result<PinnedMaps> {
    let pins = args.pins();
    PinnedMaps::open(&pins, Access::ReadOnly).with_context(|| {
        format!("no agent of this version has run with pins in {}", pins.root().display())
    })
}

/// Opens the pinned maps and reads what is programmed.
fn open(args: &ReadArgs) -> anyhow::Result<(PinnedMaps, Actual)> {
    let maps = open_maps(args)?;
    let actual = maps.read()?;
    Ok((maps, actual))
}

/// Lists frontends.
pub fn services(args: &ReadArgs) -> anyhow::Result<()> {
    let (maps, actual) = open(args)?;
    let rows = view::frontends(&maps, &actual)?;
    let header = [
        "service", "type", "address", "proto", "clients", "backends", "packets", "bytes", "replies",
    ];
    print_rows(args.output, &rows, &header, |row| {
        let backends = if row.decision == Decision::Serve {
            let backends = row.backends.iter().map(|backend| {
                format!("{}{}", backend.address, if backend.local { " (local)" } else { "" })
            });
            shortened(backends.collect())
        } else {
            row.decision.as_str().to_owned()
        };
        vec![
            row.service.clone(),
            row.kind.to_owned(),
            row.address.to_string(),
            row.protocol.clone(),
            clients(row),
            backends,
            row.packets.to_string(),
            row.bytes.to_string(),
            row.reply_packets.to_string(),
        ]
    })
}

/// Who is served, and whether clients keep their backend.
fn clients(row: &FrontendView) -> String {
    let mut text = match &row.source_ranges {
        None => "all".to_owned(),
        Some(ranges) if ranges.is_empty() => "none".to_owned(),
        Some(ranges) => shortened(ranges.iter().cloned().collect()),
    };
    if row.affinity_seconds > 0 {
        text.push_str(&format!(" (affinity {}s)", row.affinity_seconds));
    }
    text
}

/// Lists backends.
pub fn backends(args: &ReadArgs) -> anyhow::Result<()> {
    let (_, actual) = open(args)?;
    let rows = view::backends(&actual);
    print_rows(args.output, &rows, &["backend", "where", "source", "services"], |row| {
        vec![
            row.address.to_string(),
            if row.local { "local" } else { "remote" }.to_owned(),
            row.snat_source.map_or_else(|| "client".to_owned(), |source| source.to_string()),
            shortened(row.services.iter().cloned().collect()),
        ]
    })
}

/// Lists flows.
pub fn flows(args: &ReadArgs) -> anyhow::Result<()> {
    let (maps, actual) = open(args)?;
    let rows = view::flows(&maps, &actual, sys::coarse_ns())?;
    let header = ["proto", "client", "frontend", "source", "backend", "state", "idle", "service"];
    print_rows(args.output, &rows, &header, |row| {
        vec![
            row.protocol.clone(),
            row.client.to_string(),
            row.frontend.to_string(),
            if row.source == row.client { "client".to_owned() } else { row.source.to_string() },
            format!("{}{}", row.backend, if row.local { " (local)" } else { "" }),
            format!("{}{}", row.state, if row.foreign { " (stack)" } else { "" }),
            format!("{}s", row.idle_seconds),
            row.service.clone(),
        ]
    })
}

/// As much of a list as a line has room for; JSON has all of it.
fn shortened(items: BTreeSet<String>) -> String {
    const SHOWN: usize = 4;
    let more = items.len().saturating_sub(SHOWN);
    let mut text = items.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(", and {more} more"));
    }
    text
}

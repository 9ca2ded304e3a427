//! The maps as text, with every id resolved: the same text for the same behaviour, however the
//! ids fell.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use lbxdp_common::{AddressFlags, Descriptor, FrontendKind, TablePolicy, TableRef};

use crate::apply::{Actual, BackendEntry};
use crate::model::{Family, FrontendAddr};
use crate::slab::BlockRange;

const FLAG_NAMES: [(u32, &str); 5] = [
    (AddressFlags::SERVICE, "service"),
    (AddressFlags::CLUSTER_IP, "cluster-ip"),
    (AddressFlags::NODE, "node"),
    (AddressFlags::BACKEND, "backend"),
    (AddressFlags::TOMBSTONE, "tombstone"),
];

/// Renders frontends, addresses and backends, each sorted.
pub fn dump(actual: &Actual) -> String {
    let mut text = String::new();
    write(&mut text, actual).expect("a string takes everything");
    text
}

fn write(text: &mut String, actual: &Actual) -> fmt::Result {
    writeln!(text, "frontends")?;
    for (addr, id) in &actual.frontends {
        write_frontend(text, actual, *addr, *id)?;
    }
    writeln!(text, "\naddresses")?;
    for (addr, flags) in &actual.addresses {
        writeln!(text, "  {addr}  {}", flag_names(*flags))?;
    }
    writeln!(text, "\nbackends")?;
    let backends: BTreeMap<SocketAddr, &BackendEntry> =
        actual.backends.values().map(|entry| (entry.addr(), entry)).collect();
    for (addr, entry) in backends {
        let way = if entry.is_local() {
            "local".to_owned()
        } else {
            format!("remote, source {}", entry.snat_source())
        };
        let state = if entry.is_retired() { ", retired" } else { "" };
        writeln!(text, "  {addr}  {way}{state}")?;
    }
    Ok(())
}

fn write_frontend(text: &mut String, actual: &Actual, addr: FrontendAddr, id: u32) -> fmt::Result {
    let key = (Family::of(addr.addr), id);
    let (kind, name) = match actual.infos.get(&key) {
        Some(info) => {
            (FrontendKind::from_number(info.kind).map_or("?", FrontendKind::as_str), info.name())
        }
        None => ("?", "?"),
    };
    writeln!(text, "  {addr}  {kind}  {name}")?;
    let descriptor = actual.descriptors.get(&key).copied().unwrap_or_default();
    write_clients(text, actual, key.0, &descriptor)?;
    let external = side(actual, key.0, TableRef(descriptor.external));
    let internal = side(actual, key.0, TableRef(descriptor.internal));
    if external == internal {
        write_side(text, "external, internal", &external)
    } else {
        write_side(text, "external", &external)?;
        write_side(text, "internal", &internal)
    }
}

/// Rules about clients, where there are any.
fn write_clients(
    text: &mut String,
    actual: &Actual,
    family: Family,
    descriptor: &Descriptor,
) -> fmt::Result {
    if descriptor.affinity != 0 {
        writeln!(text, "    affinity: {} s", descriptor.affinity)?;
    }
    if !descriptor.has(Descriptor::SOURCE_RANGES) {
        return Ok(());
    }
    let ranges = actual.ranges.get(&(family, descriptor.service));
    let mut clients: Vec<String> = ranges.into_iter().flatten().map(ToString::to_string).collect();
    if clients.is_empty() {
        clients.push("nobody".to_owned());
    }
    if descriptor.has(Descriptor::NODE_IN_RANGE) {
        clients.push("the node".to_owned());
    }
    writeln!(text, "    clients: {}", clients.join(", "))
}

fn write_side(text: &mut String, name: &str, side: &Side) -> fmt::Result {
    writeln!(text, "    {name}: {}", side.verdict)?;
    for (backend, share) in &side.shares {
        match backend {
            Ok(addr) => writeln!(text, "      {addr}  {share}")?,
            Err(id) => writeln!(text, "      missing backend {id}  {share}")?,
        }
    }
    Ok(())
}

/// What a client may get: as far as the text goes, two equal sides are the same.
#[derive(PartialEq, Eq)]
struct Side {
    verdict: String,
    /// Slots of each backend, or of each id that is none.
    shares: BTreeMap<Result<SocketAddr, u32>, usize>,
}

fn side(actual: &Actual, family: Family, table: TableRef) -> Side {
    let mut shares = BTreeMap::new();
    let verdict = match table.policy() {
        policy if policy == TablePolicy::None as u8 => "unused".to_owned(),
        policy if policy == TablePolicy::Serve as u8 => {
            format!("{} slots", 1_u64 << table.log2_slots().min(63))
        }
        policy if policy == TablePolicy::Reject as u8 => "reject".to_owned(),
        policy if policy == TablePolicy::Drop as u8 => "drop".to_owned(),
        policy => format!("policy {policy}"),
    };
    let blocks = BlockRange::of(table).and_then(|range| actual.tables.get(range));
    for id in blocks.into_iter().flatten().flat_map(|block| block.slots) {
        let backend = actual.backends.get(&(family, id)).map(BackendEntry::addr).ok_or(id);
        *shares.entry(backend).or_default() += 1;
    }
    Side { verdict, shares }
}

fn flag_names(flags: AddressFlags) -> String {
    let mut names: Vec<String> = FLAG_NAMES
        .iter()
        .filter(|(flag, _)| flags.has(*flag))
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let known = FLAG_NAMES.iter().fold(0, |known, (flag, _)| known | flag);
    if flags.has(!known) {
        names.push(format!("{:#x}", flags.flags & !known));
    }
    names.join(" ")
}

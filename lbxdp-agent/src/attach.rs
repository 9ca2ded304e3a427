//! Loads the programs and attaches them to devices, and takes over what an earlier agent left.
//!
//! XDP is attached natively through a link or not at all. tc programs are attached through tcx
//! links (6.6+) at the head of the chain, or as filters of a clsact qdisc. They hand on whatever
//! they do not drop or redirect, so that a CNI's programs get their turn: on the way in they see
//! packets already translated where tc did it, on the way out with the frontend's address, as
//! they would with a translation in netfilter.
//!
//! Links are pinned. A new agent replaces their programs in place, and no packet meets none. A
//! link whose device is gone is dead and is removed; a device that was recreated gets a new one.
//!
//! Nothing here is stored for later: what is attached is read back from pins and netlink, which
//! also tells the status while no agent runs ([`read_status`]).

pub mod cgroup;
mod step;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use lbxdp_common::flow_set::{LARGEST_TABLE, WAYS};
use lbxdp_common::limits::{MAX_FLOWS, MAX_FRONTENDS};

use crate::apply::MapError;
use crate::apply::pinned::PinnedMaps;
use crate::carry::{self, Carry};
use crate::device::{self, NoXdp, Rules, Selection, TC_PAIRS, Wanted, Why};
use crate::netlink::Network;
use crate::netlink::tc::{Place, Tc};
use crate::pins::{self, LinkPin, MapSpec, Pins};
use crate::service_cidrs::ServiceCidrs;
use crate::sys::{self, Access, Point};

const XDP_FRAGS: &str = "lbxdp_xdp_frags";
const XDP_PLAIN: &str = "lbxdp_xdp";
/// The tc programs.
const TC: [(Point, &str); 4] = [
    (Point::Ingress, "lbxdp_ingress"),
    (Point::Egress, "lbxdp_egress"),
    (Point::PodIngress, "lbxdp_pod_ingress"),
    (Point::PodEgress, "lbxdp_pod_egress"),
];

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcMode {
    /// tcx where the kernel has it.
    #[default]
    Auto,
    /// clsact filters, on any kernel.
    Clsact,
}

/// What the programs are loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of pins.
    pub pin_path: PathBuf,
    /// Source ports of translated flows to remote backends.
    pub snat_ports: RangeInclusive<u16>,
    /// Entries of each flow table: a power of two. A flow has two.
    pub flows: u32,
    /// Frontends of each family that there is room for.
    pub frontends: u32,
    /// Ranges of addresses that only Services have.
    pub service_cidrs: ServiceCidrs,
    /// Log level of the programs, as `aya_log` counts: 0 is off, 5 is trace.
    pub log_level: u8,
    /// How tc programs are attached.
    pub tc: TcMode,
    /// The cgroup (v2) whose sockets are served, if any.
    pub cgroup: Option<PathBuf>,
    /// Loads the XDP program without frags even where the kernel could: for tests.
    pub without_frags: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pin_path: pins::DEFAULT_PIN_PATH.into(),
            snat_ports: 61_000..=65_535,
            flows: MAX_FLOWS as u32,
            frontends: MAX_FRONTENDS as u32,
            service_cidrs: ServiceCidrs::default(),
            log_level: 0,
            tc: TcMode::Auto,
            cgroup: None,
            without_frags: false,
        }
    }
}

/// How tc programs are attached to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcKind {
    /// Links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl TcKind {
    /// The name users know.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What runs on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Name.
    pub name: String,
    /// Interface index; zero when there is no such device.
    pub ifindex: u32,
    /// Why the device is served; `None` when only its pins are known, and they do not tell.
    pub why: Option<Why>,
    /// Native XDP, or why not.
    pub xdp: Result<(), NoXdp>,
    /// tc, if it is attached in both directions.
    pub tc: Option<TcKind>,
    /// What failed; it is tried again with every [`Dataplane::sync`].
    pub error: Option<String>,
    /// [`Wanted::is_pod_name`].
    pub is_pod_name: bool,
}

struct Loaded {
    fd: OwnedFd,
    id: u32,
}

impl Loaded {
    fn of(fd: BorrowedFd<'_>) -> anyhow::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()?, id: sys::prog_id(fd)? })
    }
}

/// The loaded programs. Dropping it detaches nothing.
pub struct Dataplane {
    ebpf: Ebpf,
    pins: Pins,
    specs: BTreeMap<String, MapSpec>,
    programs: BTreeMap<Point, Loaded>,
    sockets: cgroup::Sockets,
    frags: bool,
    tc_kind: TcKind,
    rebuilt: Vec<pins::Mismatch>,
    /// Maps in use that other ones are to replace.
    replaces: Option<PathBuf>,
    takeover: Option<takeover::TakeOver>,
    /// Leftovers of earlier agents are gone.
    settled: bool,
    /// Pods' devices were left for the next round.
    is_behind: bool,
}

/// How long one round may go on attaching to pods' devices. The kernel waits for its readers with
/// each first program of a device, some 10 ms, and nothing else should wait for hundreds of them.
const POD_ROUND: Duration = Duration::from_millis(500);

impl Dataplane {
    /// Loads `object`, on the pinned maps if they fit and on new ones if not. Nothing is attached
    /// yet, and what is attached keeps running, on maps that stay what they are.
    pub fn load(object: &[u8], config: &Config) -> anyhow::Result<Self> {
        ensure!(
            kernel_at_least(5, 15),
            "this kernel is older than Linux 5.15, the oldest that the programs are made for"
        );
        let pins = Pins::new(&config.pin_path);
        pins.prepare()?;
        let pins_in = || format!("pins in {}", pins.root().display());
        pins.recover().with_context(pins_in)?;
        let specs = specs(object, config)?;
        let rebuilt = pins.verify(&specs);
        for mismatch in &rebuilt {
            tracing::warn!("{mismatch}: all maps are rebuilt");
        }
        let in_use = pins.in_use().with_context(pins_in)?;
        let has_ours = in_use.contains(&pins.maps());
        let replaces = match in_use.last() {
            Some(other) if !has_ours => Some(other.clone()),
            Some(_) if !rebuilt.is_empty() => Some(pins.maps()),
            _ => None,
        };
        let maps = if replaces.is_some() { pins.new_maps() } else { pins.maps() };
        std::fs::create_dir_all(&maps).with_context(|| format!("pins {}", maps.display()))?;
        let loaded = replaces
            .as_ref()
            .map_or(Ok(()), |replaced| carry::share(replaced, &maps, &specs))
            .with_context(pins_in)
            .and_then(|()| load_programs(object, config, &maps, &specs));
        if loaded.is_err() {
            pins.discard_new().with_context(pins_in)?;
        }
        let (mut ebpf, programs, frags) = loaded?;
        let sockets = cgroup::Sockets::load(&mut ebpf, config.cgroup.as_deref());
        let tc_kind = match config.tc {
            TcMode::Auto if kernel_at_least(6, 6) => TcKind::Tcx,
            TcMode::Auto | TcMode::Clsact => TcKind::Clsact,
        };
        Ok(Self {
            ebpf,
            pins,
            specs,
            programs,
            sockets,
            frags,
            tc_kind,
            rebuilt,
            replaces,
            takeover: None,
            settled: false,
            is_behind: false,
        })
    }

    /// Makes the maps that the programs were loaded with those in use: fills new ones with what the
    /// others hold. Programs of earlier agents go on with theirs until the first [`Self::reconcile`].
    pub fn adopt(&mut self) -> anyhow::Result<()> {
        let pins = &self.pins;
        let mut carries = Vec::new();
        let earlier = pins.replaced()?;
        match self.replaces.take() {
            Some(replaced) => {
                let maps = pins.new_maps();
                carry::describe(&maps).with_context(|| format!("pins {}", maps.display()))?;
                tracing::info!(from = %replaced.display(), "filling new maps");
                step::reached("new");
                let mut carry = Carry::open(&replaced, &maps);
                carry.fill();
                carries.push(carry);
                step::reached("filled");
                pins.replace().context("putting the new maps in their place")?;
                step::reached("in place");
            }
            None => {
                let maps = pins.maps();
                carry::describe(&maps).with_context(|| format!("pins {}", maps.display()))?;
                for other in pins.in_use()?.iter().filter(|other| **other != maps) {
                    carries.push(Carry::open(other, &maps));
                    pins.set_aside(other)?;
                }
            }
        }
        carries.extend(earlier.iter().map(|directory| Carry::open(directory, &pins.maps())));
        self.takeover = takeover::TakeOver::new(carries);
        Ok(())
    }

    /// The loaded object, for its log.
    pub const fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The pin directory.
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whether the XDP program takes packets in more than one buffer (MTU over a page).
    pub const fn frags(&self) -> bool {
        self.frags
    }

    /// Whether the last round ended before every pod's device had its programs: the next one
    /// should follow at once.
    pub const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// The pinned maps that did not fit; not empty if the maps are new for that reason.
    pub fn rebuilt(&self) -> &[pins::Mismatch] {
        &self.rebuilt
    }

    /// Opens the maps.
    pub fn maps(&self) -> Result<PinnedMaps, MapError> {
        PinnedMaps::open(&self.pins, Access::ReadWrite)
    }

    /// Interface indices of the devices with an XDP link of ours: what [`device::select`] asks for.
    pub fn xdp_devices(&self) -> io::Result<BTreeSet<u32>> {
        Ok(xdp_devices(&self.pins.links()?))
    }

    /// The programs for sockets.
    pub const fn sockets(&self) -> &cgroup::Sockets {
        &self.sockets
    }

    /// Says whether packets of stale sockets are to end.
    pub fn set_stale_sockets(&mut self, has_stale: bool) {
        self.sockets.set_stale(has_stale, &self.pins);
    }

    fn program(&self, point: Point) -> &Loaded {
        // `load_programs` loads one for each point.
        &self.programs[&point]
    }

    /// Chooses devices, attaches to them and tells the programs about them: one round of
    /// everything, to be repeated whenever the network changes and at least every few seconds.
    pub fn reconcile(
        &mut self,
        network: &Network,
        rules: &Rules,
        maps: &mut PinnedMaps,
    ) -> anyhow::Result<Vec<DeviceStatus>> {
        let ours = self.xdp_devices().context("listing pinned links")?;
        let selection = device::select(network, rules, &ours);
        // A program that starts on a device must find itself; what it may do there can wait.
        let known = maps.devices()?;
        for (ifindex, entry) in device::entries(network, &selection.wanted, &BTreeSet::new()) {
            if !known.contains_key(&ifindex) {
                maps.set_device(ifindex, &entry)?;
            }
        }
        self.take_over();
        self.sockets.sync(&self.pins);
        step::reached("sockets replaced");
        let statuses = self.sync(&selection);
        let native =
            statuses.iter().filter(|status| status.xdp.is_ok()).map(|status| status.ifindex);
        maps.sync_devices(&device::entries(network, &selection.wanted, &native.collect()))?;
        Ok(statuses)
    }

    /// Attaches the programs to the devices of `selection` and to no other. A device that fails
    /// does not stop the others.
    pub fn sync(&mut self, selection: &Selection) -> Vec<DeviceStatus> {
        let mut statuses: Vec<_> = selection
            .rejected
            .iter()
            .map(|rejected| DeviceStatus {
                name: rejected.name.clone(),
                ifindex: rejected.ifindex,
                why: None,
                xdp: Err(NoXdp::Refused(rejected.reason.to_owned())),
                tc: None,
                error: Some(rejected.reason.to_owned()),
                is_pod_name: false,
            })
            .collect();
        let (mut links, broken) = match self.keep_links(&selection.wanted) {
            Ok(links) => (links, None),
            Err(error) => (BTreeMap::new(), Some(format!("pinned links: {error}"))),
        };
        let mut tc = Tc::open();
        let since = Instant::now();
        self.is_behind = false;
        for wanted in &selection.wanted {
            if wanted.why == Why::Pod
                && self.tc_kind == TcKind::Tcx
                && !links.contains_key(&(wanted.ifindex, Point::PodIngress))
                && since.elapsed() > POD_ROUND
            {
                self.is_behind = true;
                continue;
            }
            let status = match (&broken, &mut tc) {
                (Some(error), _) => failed(wanted, error.clone()),
                (None, Err(error)) => failed(wanted, format!("netlink: {error}")),
                (None, Ok(tc)) => match self.attach(wanted, &mut links, tc) {
                    Some(status) => status,
                    None => continue,
                },
            };
            statuses.push(status);
        }
        drop(links);
        if let Ok(tc) = &mut tc
            && (self.tc_kind == TcKind::Clsact || !self.settled)
            && let Err(error) = self.sweep_filters(&selection.wanted, tc)
        {
            tracing::warn!(%error, "removing tc filters from devices that are not served");
        }
        self.settle(&statuses);
        statuses
    }

    /// Removes links to devices that are gone or not to be served, and moves the pins of renamed
    /// devices. Returns the others.
    fn keep_links(&self, wanted: &[Wanted]) -> io::Result<BTreeMap<(u32, Point), LinkPin>> {
        let (mut kept, mut renamed) = (BTreeMap::new(), Vec::new());
        let owners: BTreeMap<_, _> = wanted.iter().map(|wanted| (wanted.ifindex, wanted)).collect();
        for link in self.pins.links()? {
            let owner = owners.get(&link.info.ifindex).filter(|owner| owner.runs(link.point));
            let (device, point) = (link.device.clone(), link.point);
            let done = match owner {
                Some(owner) if self.pins.link(&owner.name, point) == link.path => {
                    kept.insert((owner.ifindex, point), link);
                    continue;
                }
                Some(owner) => link.unpin().map(|fd| renamed.push((owner, link, fd))),
                None => link.remove(),
            };
            match done {
                Ok(()) => tracing::info!(device, point = point.as_str(), "unpinned"),
                Err(error) => tracing::warn!(device, point = point.as_str(), %error, "unpinning"),
            }
        }
        // Two devices may have swapped names, so all pins go before the first comes back. The
        // links live on in their descriptors.
        for (owner, mut link, fd) in renamed {
            match link.pin(fd.as_fd(), self.pins.link(&owner.name, link.point)) {
                Ok(()) => {
                    kept.insert((owner.ifindex, link.point), link);
                }
                // Dropping the link detaches it, and it is attached anew.
                Err(error) => tracing::warn!(device = owner.name, %error, "pinning again"),
            }
        }
        Ok(kept)
    }

    /// Attaches what belongs on a device; `None` if it was a pod's and has gone with the pod, which
    /// is no failure.
    fn attach(
        &self,
        wanted: &Wanted,
        links: &mut BTreeMap<(u32, Point), LinkPin>,
        tc: &mut Tc,
    ) -> Option<DeviceStatus> {
        let mut errors = Vec::new();
        let tc_kind = wanted.tc.then_some(self.tc_kind);
        // What undoes comes before what does, and what finishes before what begins: each part may be
        // alone for a moment, and there may be others in the stack who take what is left half-way.
        for point in wanted.tc_points().into_iter().rev() {
            let link = links.remove(&(wanted.ifindex, point));
            let attached = match tc_kind {
                Some(TcKind::Tcx) => self.attach_link(wanted, point, link),
                Some(TcKind::Clsact) => self.attach_filter(wanted, point, link, tc),
                None => Ok(()),
            };
            if let Err(error) = attached {
                if wanted.why == Why::Pod && error.raw_os_error() == Some(libc::ENODEV) {
                    return None;
                }
                errors.push(format!("tc {}: {error}", point.as_str()));
            }
        }
        let xdp = wanted.xdp.clone().and_then(|()| {
            let link = links.remove(&(wanted.ifindex, Point::Xdp));
            self.attach_link(wanted, Point::Xdp, link).map_err(|error| match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => NoXdp::Driver,
                Some(libc::EBUSY | libc::EEXIST) => NoXdp::Foreign { prog_id: 0 },
                Some(libc::ERANGE) if !self.frags => {
                    NoXdp::Refused(format!("{error} (MTU too large for one buffer)"))
                }
                _ => NoXdp::Refused(error.to_string()),
            })
        });
        Some(DeviceStatus {
            name: wanted.name.clone(),
            ifindex: wanted.ifindex,
            why: Some(wanted.why),
            xdp,
            tc: tc_kind.filter(|_| errors.is_empty()),
            error: (!errors.is_empty()).then(|| errors.join("; ")),
            is_pod_name: wanted.is_pod_name,
        })
    }

    fn attach_link(&self, wanted: &Wanted, point: Point, link: Option<LinkPin>) -> io::Result<()> {
        let program = self.program(point);
        let path = self.pins.link(&wanted.name, point);
        if self.takeover.is_some() {
            let replaced = link.as_ref().and_then(|link| link.open().ok());
            let second = self.pins.second_link(&wanted.name, point);
            if takeover::promote(&second, &path, program.id)? {
                // Without this it would go a moment later.
                let _ = replaced.map(|link| sys::link_detach(link.as_fd()));
                tracing::info!(device = wanted.name, point = point.as_str(), "program replaced");
                step::reached("one link replaced");
                return Ok(());
            }
        }
        if let Some(link) = link {
            if link.info.prog_id == program.id {
                return Ok(());
            }
            match link.open().and_then(|fd| sys::link_update(fd.as_fd(), program.fd.as_fd())) {
                Ok(()) => {
                    tracing::info!(
                        device = wanted.name,
                        point = point.as_str(),
                        "program replaced"
                    );
                    return Ok(());
                }
                // The old program was of a kind that this one cannot replace.
                Err(error) => {
                    tracing::warn!(
                        device = wanted.name,
                        point = point.as_str(),
                        %error,
                        "program could not be replaced, attaching anew"
                    );
                    link.remove()?;
                }
            }
        }
        let link = sys::link_create(program.fd.as_fd(), wanted.ifindex, point)?;
        sys::obj_pin(link.as_fd(), &path).map_err(|error| {
            io::Error::new(error.kind(), format!("pin {}: {error}", path.display()))
        })?;
        tracing::info!(device = wanted.name, point = point.as_str(), "attached");
        Ok(())
    }

    fn attach_filter(
        &self,
        wanted: &Wanted,
        point: Point,
        link: Option<LinkPin>,
        tc: &mut Tc,
    ) -> io::Result<()> {
        let program = self.program(point);
        if tc.filter_program(wanted.ifindex, point, Place::First)? != Some(program.id) {
            if tc.add_clsact(wanted.ifindex)? {
                match std::fs::create_dir(self.pins.qdisc_mark(&wanted.name)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            tc.set_filter(wanted.ifindex, point, Place::First, program.fd.as_fd())?;
            tracing::info!(device = wanted.name, point = point.as_str(), "attached (clsact)");
        }
        // An earlier agent used tcx.
        link.map_or(Ok(()), LinkPin::remove)
    }

    /// Removes our filters from devices that are not to have them, and qdiscs that only they
    /// needed.
    fn sweep_filters(&self, wanted: &[Wanted], tc: &mut Tc) -> io::Result<()> {
        for device in tc.devices()? {
            let keep = self.tc_kind == TcKind::Clsact
                && wanted.iter().any(|wanted| wanted.tc && wanted.ifindex == device.ifindex);
            if keep {
                continue;
            }
            for point in [Point::Ingress, Point::Egress] {
                tc.remove_filters(device.ifindex, point)?;
            }
            let mark = self.pins.qdisc_mark(&device.name);
            if mark.is_dir() {
                if !tc.has_filters(device.ifindex)? {
                    tc.remove_clsact(device.ifindex)?;
                }
                std::fs::remove_dir(mark)?;
            }
        }
        Ok(())
    }

    /// Removes what only earlier programs used, once none of them is attached any more.
    fn settle(&mut self, statuses: &[DeviceStatus]) {
        // A device that is not served at all runs no program of an earlier agent.
        let failed = |status: &DeviceStatus| status.why.is_some() && status.error.is_some();
        if self.settled || statuses.iter().any(failed) {
            return;
        }
        let ours: BTreeSet<_> = self.programs.values().map(|program| program.id).collect();
        let mut takeover = self.takeover.take();
        let mut settle = || -> io::Result<bool> {
            if self.pins.links()?.iter().any(|link| !ours.contains(&link.info.prog_id))
                || !self.sockets.are_ours(&self.pins)?
            {
                return Ok(false);
            }
            step::reached("replaced");
            if let Some(takeover) = &mut takeover {
                takeover.finish();
            }
            self.part()?;
            step::reached("parted");
            for path in self.pins.remove_unused(&self.specs)? {
                tracing::info!(path = %path.display(), "removed, no program uses it");
            }
            Ok(true)
        };
        match settle() {
            Ok(settled) => self.settled = settled,
            Err(error) => tracing::warn!(%error, "removing maps of earlier agents"),
        }
        if !self.settled {
            self.takeover = takeover;
        }
    }
}

fn failed(wanted: &Wanted, error: String) -> DeviceStatus {
    DeviceStatus {
        name: wanted.name.clone(),
        ifindex: wanted.ifindex,
        why: Some(wanted.why),
        xdp: Err(NoXdp::Refused(error.clone())),
        tc: None,
        error: Some(error),
        is_pod_name: wanted.is_pod_name,
    }
}

/// The interface indices of devices with an XDP link of ours, dead links left out.
fn xdp_devices(links: &[LinkPin]) -> BTreeSet<u32> {
    links
        .iter()
        .filter(|link| link.point == Point::Xdp && link.info.ifindex != 0)
        .map(|link| link.info.ifindex)
        .collect()
}

/// The maps whose size is a setting: tables of flows, and what there is for each frontend.
const FLOW_MAPS: [&str; 2] = ["flows_v4", "flows_v6"];
const FRONTEND_MAPS: [&str; 8] = [
    "frontends_v4",
    "frontends_v6",
    "descriptors_v4",
    "descriptors_v6",
    "names_v4",
    "names_v6",
    "stats_v4",
    "stats_v6",
];

const fn flow_sets(config: &Config) -> u32 {
    config.flows / WAYS as u32
}

/// What is pinned, in the sizes that were asked for.
fn specs(object: &[u8], config: &Config) -> anyhow::Result<BTreeMap<String, MapSpec>> {
    ensure!(
        config.flows.is_power_of_two() && (WAYS as u32..=LARGEST_TABLE).contains(&config.flows),
        "{} flow entries: not a power of two up to {LARGEST_TABLE}",
        config.flows
    );
    ensure!(config.frontends > 0, "no room for frontends");
    let mut specs = pins::pinned_maps(object)?;
    for (name, entries) in sizes(config) {
        if let Some(spec) = specs.get_mut(name) {
            spec.max_entries = entries;
        }
    }
    Ok(specs)
}

/// The entries of maps whose size is a setting.
fn sizes(config: &Config) -> impl Iterator<Item = (&'static str, u32)> {
    let flows = FLOW_MAPS.map(|name| (name, flow_sets(config)));
    let frontends = FRONTEND_MAPS.map(|name| (name, config.frontends));
    flows.into_iter().chain(frontends)
}

fn load_programs(
    object: &[u8],
    config: &Config,
    maps: &Path,
    specs: &BTreeMap<String, MapSpec>,
) -> anyhow::Result<(Ebpf, BTreeMap<Point, Loaded>, bool)> {
    let (lowest, highest) =
        (u32::from(*config.snat_ports.start()), u32::from(*config.snat_ports.end()));
    if lowest > highest || lowest == 0 {
        bail!("source ports {lowest}-{highest}: not a range");
    }
    let flow_sets = flow_sets(config);
    let sets_errno = u32::from(cgroup::sets_errno());
    let netns_cookie = sys::netns_cookie().context("the cookie of the network namespace")?;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("SETS_ERRNO", &sets_errno, true)
        .override_global("NODE_NETNS_COOKIE", &netns_cookie, true)
        .override_global("FLOW_SETS", &flow_sets, true)
        .override_global("SNAT_PORT_LO", &lowest, true)
        .override_global("SNAT_PORT_HI", &highest, true)
        .override_global("SERVICE_CIDRS_V4", config.service_cidrs.v4.as_slice(), true)
        .override_global("SERVICE_CIDRS_V6", config.service_cidrs.v6.as_slice(), true)
        .override_global(aya_log::LEVEL, &config.log_level, false);
    for name in specs.keys() {
        loader.map_pin_path(name, maps.join(name));
    }
    for (name, entries) in sizes(config) {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader.load(object).context("loading the BPF object")?;

    let mut programs = BTreeMap::new();
    let (xdp, frags) = load_xdp(&mut ebpf, config)?;
    programs.insert(Point::Xdp, xdp);
    for (point, name) in TC {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the BPF object has no program {name}"))?
            .try_into()
            .with_context(|| format!("program {name}"))?;
        patiently(|| program.load()).with_context(|| format!("program {name}"))?;
        programs.insert(point, Loaded::of(program.fd()?.as_fd())?);
    }
    Ok((ebpf, programs, frags))
}

/// Loads a program. The verifier gives up with EAGAIN when a signal is pending, which says nothing
/// about the program. libbpf tries five times at once; here five at once have been seen to fail,
/// so there is a pause between them.
pub fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 10;
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock =>
            {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
    load()
}

/// The program with frags (5.18+, or backported), else the one without.
fn load_xdp(ebpf: &mut Ebpf, config: &Config) -> anyhow::Result<(Loaded, bool)> {
    let mut load = |name: &str| -> anyhow::Result<Loaded> {
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the BPF object has no program {name}"))?
            .try_into()
            .with_context(|| format!("program {name}"))?;
        patiently(|| program.load()).with_context(|| format!("program {name}"))?;
        Loaded::of(program.fd()?.as_fd())
    };
    if !config.without_frags {
        match load(XDP_FRAGS) {
            Ok(program) => return Ok((program, true)),
            // From 5.18 on, the flag is not what the kernel objects to.
            Err(error) if kernel_at_least(5, 18) => return Err(error),
            Err(error) => tracing::info!("no XDP frags on this kernel: {error:#}"),
        }
    }
    Ok((load(XDP_PLAIN)?, false))
}

fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
}

/// What runs on which device, as far as pins and netlink tell: with a dead agent, that is
/// everything but what it would do about errors.
pub fn read_status(pins: &Pins, network: &Network) -> anyhow::Result<Vec<DeviceStatus>> {
    let links = pins.links().with_context(|| format!("pins in {}", pins.root().display()))?;
    let ours = xdp_devices(&links);
    let mut tc = Tc::open().context("netlink")?;
    let mut devices: BTreeMap<u32, (String, BTreeSet<Point>, Option<TcKind>)> = BTreeMap::new();
    for link in &links {
        // A dead link says nothing about a device, except that it is gone.
        if let Some(device) = network.links.get(&link.info.ifindex) {
            let (_, points, _) = devices
                .entry(device.ifindex)
                .or_insert_with(|| (device.name.clone(), BTreeSet::new(), None));
            points.insert(link.point);
        }
    }
    let has_pair = |points: &BTreeSet<Point>| {
        TC_PAIRS.iter().any(|pair| pair.iter().all(|point| points.contains(point)))
    };
    for (_, points, kind) in devices.values_mut() {
        *kind = has_pair(points).then_some(TcKind::Tcx);
    }
    for device in tc.devices()? {
        for pair in TC_PAIRS {
            if tc.filter_program(device.ifindex, pair[0], Place::First)?.is_some()
                && tc.filter_program(device.ifindex, pair[1], Place::First)?.is_some()
            {
                let (_, points, kind) = devices
                    .entry(device.ifindex)
                    .or_insert_with(|| (device.name.clone(), BTreeSet::new(), None));
                points.extend(pair);
                kind.get_or_insert(TcKind::Clsact);
            }
        }
    }
    Ok(devices
        .into_iter()
        .map(|(ifindex, (name, points, tc))| {
            let is_pod = points.contains(&Point::PodIngress);
            let xdp = if points.contains(&Point::Xdp) {
                Ok(())
            } else if is_pod {
                Err(NoXdp::Pod)
            } else {
                Err(device::no_xdp(network, ifindex, &ours)
                    .unwrap_or_else(|| NoXdp::Refused("not attached".to_owned())))
            };
            let why = is_pod.then_some(Why::Pod);
            DeviceStatus { name, ifindex, why, xdp, tc, error: None, is_pod_name: false }
        })
        .collect())
}

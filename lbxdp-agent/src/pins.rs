//! The pin directory: what of lbxdp outlives the agent, and what may be reused of it.
//!
//! ```text
//! <pin path>/v<ABI>/<map>                             maps, for the agent and for the CLI
//! <pin path>/v<ABI>/layout/<map>                      what they consist of ([`crate::carry`])
//! <pin path>/v<ABI>/links/…                           links behind those below, while these maps take over
//! <pin path>/v<ABI>-new/<map>                         maps that no program uses yet
//! <pin path>/v<ABI>-ready/<map>                       the same, filled: they are next
//! <pin path>/v<ABI>-replaced/<map>                    earlier maps, until nothing uses them
//! <pin path>/links/<device>-{xdp,ingress,egress,pod_ingress,pod_egress}
//!                                                     links: their programs stay attached
//! <pin path>/links/<device>-qdisc                     a directory: we made the device's clsact qdisc
//! <pin path>/links/cgroup/{connect4,…,stale}          links to the cgroup whose sockets are served
//! ```
//!
//! Links are outside the ABI directory: whatever an agent of another ABI attaches comes to stand
//! where the former was, and no packet meets none. bpffs refuses names with dots, so `.` in a
//! device name is written `%2e` (and `%` is `%25`).
//!
//! A pinned map is reused only if it is what the object defines; aya does not look. One map that
//! differs condemns all of its directory, because ids in one map index another. New maps are then
//! made beside, as for a directory of another version, and filled with what the old ones hold. Which
//! directory is whose the name says, and each step is one rename, so an agent that ends anywhere
//! leaves what the next one, of either version, goes on from.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aya_obj::generated::bpf_map_type;
use aya_obj::{EbpfSectionKind, Object};
use lbxdp_common::ABI_VERSION;
use nix::mount::MsFlags;
use nix::sys::statfs::{FsType, statfs};

use crate::netlink::tc;
use crate::sys::{self, Access, CgroupLinkInfo, CgroupPoint, LinkInfo, Point};

/// Where pins are unless the operator says otherwise.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/lbxdp";

const BPFFS: &str = "/sys/fs/bpf";
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
const QDISC: &str = "qdisc";
const LINKS: &str = "links";
const CGROUP: &str = "cgroup";

/// What the object says about a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Number in `enum bpf_map_type`.
    pub map_type: u32,
    /// Bytes in a key.
    pub key_size: u32,
    /// Bytes in a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// Flags.
    pub flags: u32,
}

/// The maps of `object` that are pinned, by name. Globals, scratch space, logs and program arrays
/// belong to one generation of programs and are not.
#[expect(clippy::disallowed_methods, reason = "collected into an ordered map")]
pub fn pinned_maps(object: &[u8]) -> anyhow::Result<BTreeMap<String, MapSpec>> {
    let object = Object::parse(object).context("the BPF object cannot be read")?;
    Ok(object
        .maps
        .iter()
        .filter(|(name, map)| {
            let global = matches!(
                map.section_kind(),
                EbpfSectionKind::Bss | EbpfSectionKind::Data | EbpfSectionKind::Rodata
            );
            !global
                && !name.starts_with("scratch_")
                && !name.starts_with('.')
                && *name != "AYA_LOGS"
                && map.map_type() != bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32
        })
        .map(|(name, map)| {
            let spec = MapSpec {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            };
            (name.clone(), spec)
        })
        .collect())
}

/// A pinned map that is not what the object defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the map.
    pub map: String,
    /// What differs.
    pub difference: Difference,
}

/// See [`Mismatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The pin is something else than a map, or cannot be opened.
    Unreadable(String),
    /// A field.
    Field {
        /// Name of the field.
        field: &'static str,
        /// The pinned map's.
        pinned: u32,
        /// The object's.
        expected: u32,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, difference } = self;
        match difference {
            Difference::Unreadable(error) => write!(f, "pinned map {map}: {error}"),
            Difference::Field { field, pinned, expected } => {
                write!(f, "pinned map {map}: {field} is {pinned}, expected {expected}")
            }
        }
    }
}

/// The first field in which `pinned` differs from `spec`.
fn difference(pinned: &sys::MapInfo, spec: &MapSpec) -> Option<Difference> {
    let MapSpec { map_type, key_size, value_size, max_entries, flags } = *spec;
    [
        ("type", pinned.map_type, map_type),
        ("key size", pinned.key_size, key_size),
        ("value size", pinned.value_size, value_size),
        ("max entries", pinned.max_entries, max_entries),
        ("flags", pinned.map_flags, flags),
    ]
    .into_iter()
    .find(|(_, pinned, expected)| pinned != expected)
    .map(|(field, pinned, expected)| Difference::Field { field, pinned, expected })
}

/// A link that is pinned for a device.
#[derive(Debug)]
pub struct LinkPin {
    /// Name of the device at the time of pinning.
    pub device: String,
    /// Where on the device.
    pub point: Point,
    /// The pin.
    pub path: PathBuf,
    /// What the kernel says; `ifindex` is zero when the device is gone.
    pub info: LinkInfo,
}

impl LinkPin {
    /// Opens the link. It is not kept open: there may be more links than a process may have files.
    pub fn open(&self) -> io::Result<OwnedFd> {
        sys::obj_get(&self.path, Access::ReadWrite)
    }

    /// Removes the pin. The link lives on in what is returned.
    pub fn unpin(&self) -> io::Result<OwnedFd> {
        let link = self.open()?;
        std::fs::remove_file(&self.path)?;
        Ok(link)
    }

    /// Pins `link`, which was unpinned, at `path`.
    pub fn pin(&mut self, link: BorrowedFd<'_>, path: PathBuf) -> io::Result<()> {
        sys::obj_pin(link, &path)?;
        self.path = path;
        Ok(())
    }

    /// Detaches the link and removes the pin.
    pub fn remove(self) -> io::Result<()> {
        // A dead link cannot be detached any more, and need not be.
        let _ = self.open().and_then(|link| sys::link_detach(link.as_fd()));
        std::fs::remove_file(&self.path)
    }
}

/// A link that is pinned for a cgroup.
#[derive(Debug)]
pub struct CgroupPin {
    /// Where on the cgroup.
    pub point: CgroupPoint,
    /// The pin.
    pub path: PathBuf,
    /// What the kernel says; `cgroup_id` is zero when the cgroup is gone.
    pub info: CgroupLinkInfo,
    /// The link.
    pub fd: OwnedFd,
}

impl CgroupPin {
    /// Detaches the link and removes the pin.
    pub fn remove(self) -> io::Result<()> {
        // As for devices.
        let _ = sys::link_detach(self.fd.as_fd());
        std::fs::remove_file(&self.path)
    }
}

/// A pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The directory at `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The pin path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of this ABI's maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    /// Where this ABI's maps are before any program uses them.
    pub fn new_maps(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}{NEW}"))
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn links_dir(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    /// The pin of a link behind that of a device, while this ABI's maps take over.
    pub fn second_link(&self, device: &str, point: Point) -> PathBuf {
        self.maps().join(LINKS).join(format!("{}-{}", encode(device), point.as_str()))
    }

    /// The pin of a link behind that of the cgroup, while this ABI's maps take over.
    pub fn second_cgroup_link(&self, point: CgroupPoint) -> PathBuf {
        self.maps().join(LINKS).join(CGROUP).join(point.as_str())
    }

    /// Makes the directories of second links.
    pub fn prepare_second_links(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.maps().join(LINKS).join(CGROUP))
    }

    /// The pin of a link.
    pub fn link(&self, device: &str, point: Point) -> PathBuf {
        self.links_dir().join(format!("{}-{}", encode(device), point.as_str()))
    }

    /// No device's link can be there: their names end with a point.
    fn cgroup_links_dir(&self) -> PathBuf {
        self.links_dir().join(CGROUP)
    }

    /// The pin of a link to the cgroup.
    pub fn cgroup_link(&self, point: CgroupPoint) -> PathBuf {
        self.cgroup_links_dir().join(point.as_str())
    }

    /// The directory that says that we made the clsact qdisc of `device`.
    pub fn qdisc_mark(&self, device: &str) -> PathBuf {
        self.links_dir().join(format!("{}-{QDISC}", encode(device)))
    }

    /// Makes the directories of links. Mounts a BPF file system at `/sys/fs/bpf` if the pin path needs it
    /// and there is none; any other place must be on one already.
    pub fn prepare(&self) -> anyhow::Result<()> {
        let on_bpffs = |path: &Path| {
            let existing = path.ancestors().find(|path| path.exists());
            existing.is_some_and(|path| {
                statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
            })
        };
        if !on_bpffs(&self.root) {
            let root = self.root.display();
            if !self.root.starts_with(BPFFS) || on_bpffs(Path::new(BPFFS)) {
                bail!(
                    "pin path {root} is not on a BPF file system: mount one there (`mount -t bpf \
                     bpf DIRECTORY`) or choose another --pin-path"
                );
            }
            nix::mount::mount(
                Some("bpf"),
                BPFFS,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=0700"),
            )
            .with_context(|| {
                format!(
                    "pin path {root}: no BPF file system at {BPFFS}, and mounting one failed; on \
                     the node, as root: `mount -t bpf bpf {BPFFS}`"
                )
            })?;
        }
        for directory in [self.links_dir(), self.cgroup_links_dir()] {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("pin directory {}", directory.display()))?;
        }
        Ok(())
    }

    /// Compares every pinned map with what the object defines. A map that is not pinned is no
    /// mismatch.
    pub fn verify(&self, specs: &BTreeMap<String, MapSpec>) -> Vec<Mismatch> {
        specs
            .iter()
            .filter_map(|(name, spec)| {
                let path = self.map(name);
                let found = sys::obj_get(&path, Access::ReadOnly)
                    .and_then(|map| sys::map_info(map.as_fd()));
                let difference = match found {
                    Ok(pinned) => difference(&pinned, spec)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                    Err(error) => Difference::Unreadable(error.to_string()),
                };
                Some(Mismatch { map: name.clone(), difference })
            })
            .collect()
    }

    /// The directories of maps that are in use: one, unless an agent was stopped that knew nothing of
    /// other versions.
    pub fn in_use(&self) -> io::Result<Vec<PathBuf>> {
        self.maps_in(State::InUse)
    }

    /// The directories of maps that earlier programs may still use.
    pub fn replaced(&self) -> io::Result<Vec<PathBuf>> {
        self.maps_in(State::Replaced)
    }

    fn maps_in(&self, state: State) -> io::Result<Vec<PathBuf>> {
        let directories = map_directories(&self.root)?.into_iter();
        Ok(directories.filter(|directory| directory.state == state).map(|d| d.path).collect())
    }

    /// Finishes or undoes what an agent had begun when it ended: maps that were filled take over,
    /// maps that were not go.
    pub fn recover(&self) -> io::Result<()> {
        for MapDirectory { path, version, .. } in map_directories(&self.root)?
            .into_iter()
            .filter(|directory| directory.state == State::Ready)
        {
            self.take_place(&path, version)?;
        }
        self.discard_new()
    }

    /// Removes maps that were not filled.
    pub fn discard_new(&self) -> io::Result<()> {
        for path in self.maps_in(State::New)? {
            remove_tree(&path, &mut Vec::new())?;
        }
        Ok(())
    }

    /// Puts the new maps in the place of those in use. From the first rename on they are what the next
    /// agent finds.
    pub fn replace(&self) -> io::Result<()> {
        let ready = self.root.join(format!("v{ABI_VERSION}{READY}"));
        std::fs::rename(self.new_maps(), &ready)?;
        self.take_place(&ready, ABI_VERSION)
    }

    fn take_place(&self, ready: &Path, version: u32) -> io::Result<()> {
        for path in self.in_use()? {
            self.set_aside(&path)?;
        }
        std::fs::rename(ready, self.root.join(format!("v{version}")))
    }

    /// Renames a directory of maps that are in use: earlier programs may still use them.
    pub fn set_aside(&self, maps: &Path) -> io::Result<()> {
        let name = maps.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // An agent may have ended while such maps were still used, and one of another version too.
        let free = (1..)
            .map(|number| match number {
                1 => format!("{name}{REPLACED}"),
                number => format!("{name}{REPLACED}{number}"),
            })
            .map(|name| self.root.join(name))
            .find(|path| !path.exists());
        free.map_or(Ok(()), |free| std::fs::rename(maps, free))
    }

    /// Removes maps that the attached programs do not use: other ABIs', replaced ones, and those
    /// of this ABI that are not in `specs`.
    pub fn remove_unused(&self, specs: &BTreeMap<String, MapSpec>) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for MapDirectory { path, .. } in map_directories(&self.root)? {
            if path != self.maps() {
                remove_tree(&path, &mut Vec::new())?;
                removed.push(path);
            }
        }
        for (name, path) in entries(&self.maps())? {
            if !specs.contains_key(&name) && !path.is_dir() {
                remove_file(&path, &mut removed)?;
            }
        }
        Ok(removed)
    }

    /// Every pinned link that can be opened, by name.
    pub fn links(&self) -> io::Result<Vec<LinkPin>> {
        links_in(&self.links_dir())
    }

    /// Every pinned link to a cgroup that can be opened.
    pub fn cgroup_links(&self) -> io::Result<Vec<CgroupPin>> {
        cgroup_links_in(&self.cgroup_links_dir())
    }

    /// The links behind the others, of every directory of maps.
    pub fn second_links(&self) -> io::Result<(Vec<LinkPin>, Vec<CgroupPin>)> {
        let (mut devices, mut cgroups) = (Vec::new(), Vec::new());
        for MapDirectory { path, .. } in map_directories(&self.root)? {
            devices.extend(links_in(&path.join(LINKS))?);
            cgroups.extend(cgroup_links_in(&path.join(LINKS).join(CGROUP))?);
        }
        Ok((devices, cgroups))
    }

    /// Detaches the links behind the others, and removes their directories.
    pub fn remove_second_links(&self) -> io::Result<()> {
        let (devices, cgroups) = self.second_links()?;
        devices.into_iter().try_for_each(LinkPin::remove)?;
        cgroups.into_iter().try_for_each(CgroupPin::remove)?;
        for MapDirectory { path, .. } in map_directories(&self.root)? {
            remove_tree(&path.join(LINKS), &mut Vec::new())?;
        }
        Ok(())
    }
}

fn links_in(directory: &Path) -> io::Result<Vec<LinkPin>> {
    let mut links = Vec::new();
    for (name, path) in entries(directory)? {
        let Some((device, point)) = name.rsplit_once('-') else { continue };
        let Some(point) = Point::ALL.into_iter().find(|known| known.as_str() == point) else {
            continue;
        };
        // Removed since it was listed, or not a link: somebody else's.
        let Ok(fd) = sys::obj_get(&path, Access::ReadWrite) else { continue };
        let Ok(info) = sys::link_info(fd.as_fd()) else { continue };
        links.push(LinkPin { device: decode(device), point, path, info });
    }
    Ok(links)
}

fn cgroup_links_in(directory: &Path) -> io::Result<Vec<CgroupPin>> {
    let mut links = Vec::new();
    for (name, path) in entries(directory)? {
        let known = CgroupPoint::ALL.into_iter().find(|point| point.as_str() == name);
        let Some(point) = known else { continue };
        // As for devices.
        let Ok(fd) = sys::obj_get(&path, Access::ReadWrite) else { continue };
        let Ok(info) = sys::cgroup_link_info(fd.as_fd()) else { continue };
        links.push(CgroupPin { point, path, info, fd });
    }
    Ok(links)
}

fn encode(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

/// Names and paths in a directory, sorted; none if it does not exist.
fn entries(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let read = match std::fs::read_dir(directory) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    for entry in read {
        let entry = entry?;
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// Pins the map `name` of one directory in another, if it is what the object defines.
pub fn share_map(from: &Path, to: &Path, name: &str, spec: &MapSpec) -> io::Result<()> {
    let map = match sys::obj_get(&from.join(name), Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        map => map?,
    };
    match sys::map_info(map.as_fd()) {
        Ok(found) if difference(&found, spec).is_none() => {
            sys::obj_pin(map.as_fd(), &to.join(name))
        }
        _ => Ok(()),
    }
}

const NEW: &str = "-new";
const READY: &str = "-ready";
const REPLACED: &str = "-replaced";

/// What the name of a directory of maps says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `v2`: the agent keeps these maps as they should be.
    InUse,
    /// `v2-new`: an agent makes them.
    New,
    /// `v2-ready`: they are filled, and take the place of those in use.
    Ready,
    /// `v2-replaced`: programs of an earlier generation may use them.
    Replaced,
}

#[derive(Debug)]
struct MapDirectory {
    path: PathBuf,
    version: u32,
    state: State,
}

impl MapDirectory {
    fn new(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_prefix('v')?;
        let digits = name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len());
        let (version, state) = name.split_at(digits);
        let state = match state {
            "" => State::InUse,
            NEW => State::New,
            READY => State::Ready,
            state => {
                let number = state.strip_prefix(REPLACED)?;
                if !number.is_empty() && number.parse::<u32>().is_err() {
                    return None;
                }
                State::Replaced
            }
        };
        Some(Self { version: version.parse().ok()?, path, state })
    }
}

/// The layout version of a directory of maps.
pub fn version_of(maps: &Path) -> Option<u32> {
    MapDirectory::new(maps.to_owned()).map(|directory| directory.version)
}

/// Every directory of maps in `root`.
fn map_directories(root: &Path) -> io::Result<Vec<MapDirectory>> {
    Ok(entries(root)?.into_iter().filter_map(|(_, path)| MapDirectory::new(path)).collect())
}

fn missing_is_done(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_file(path: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    if missing_is_done(std::fs::remove_file(path))? {
        removed.push(path.to_owned());
    }
    Ok(())
}

fn remove_directory(path: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    if missing_is_done(std::fs::remove_dir(path))? {
        removed.push(path.to_owned());
    }
    Ok(())
}

fn remove_tree(directory: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    for (_, path) in entries(directory)? {
        if path.is_dir() {
            remove_tree(&path, removed)?;
        } else {
            remove_file(&path, removed)?;
        }
    }
    remove_directory(directory, removed)
}

/// What [`cleanup`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Programs that were detached, as `device xdp`, `device ingress (clsact)`, `cgroup connect4`
    /// and the like.
    pub detached: Vec<String>,
    /// Pins and directories.
    pub pins: Vec<PathBuf>,
}

impl Removed {
    /// Whether there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        let Self { detached, pins } = self;
        detached.is_empty() && pins.is_empty()
    }
}

/// Takes lbxdp off this node: detaches its programs from the cgroup and from every device of this
/// network namespace (pinned links, and tc filters of ours), removes the clsact qdiscs we made unless others use
/// them by now, and all pins of every version. Running it again removes nothing.
///
/// What does not look like ours in `pin_path` stays, and so does `pin_path` then.
pub fn cleanup(pin_path: &Path) -> anyhow::Result<Removed> {
    let pins = Pins::new(pin_path);
    let mut removed = Removed::default();
    let pins_in = || format!("pins in {}", pin_path.display());
    let (second_links, second_cgroup_links) = pins.second_links().with_context(pins_in)?;
    for link in pins.links().with_context(pins_in)?.into_iter().chain(second_links) {
        removed.detached.push(format!("{} {}", link.device, link.point.as_str()));
        let path = link.path.clone();
        link.remove().with_context(|| format!("pin {}", path.display()))?;
        removed.pins.push(path);
    }
    let cgroup_links = pins.cgroup_links().with_context(pins_in)?;
    for link in cgroup_links.into_iter().chain(second_cgroup_links) {
        removed.detached.push(format!("cgroup {}", link.point.as_str()));
        let path = link.path.clone();
        link.remove().with_context(|| format!("pin {}", path.display()))?;
        removed.pins.push(path);
    }

    let mut tc = tc::Tc::open().context("netlink")?;
    for device in tc.devices().context("listing devices")? {
        for point in [Point::Ingress, Point::Egress] {
            let context = || format!("tc {} of {}", point.as_str(), device.name);
            if tc.remove_filters(device.ifindex, point).with_context(context)? {
                removed.detached.push(format!("{} {} (clsact)", device.name, point.as_str()));
            }
        }
        if pins.qdisc_mark(&device.name).is_dir() && !tc.has_filters(device.ifindex)? {
            tc.remove_clsact(device.ifindex)
                .with_context(|| format!("clsact qdisc of {}", device.name))?;
        }
    }

    remove_pins(&pins, &mut removed.pins).with_context(pins_in)?;
    Ok(removed)
}

fn remove_pins(pins: &Pins, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    remove_tree(&pins.links_dir(), removed)?;
    for MapDirectory { path, .. } in map_directories(&pins.root)? {
        remove_tree(&path, removed)?;
    }
    if entries(&pins.root)?.is_empty() {
        remove_directory(&pins.root, removed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_survive_encoding() {
        for name in ["eth0", "eth0.100", "vxlan.calico", "a%2eb", "a-b", "%", "x%25"] {
            let encoded = encode(name);
            assert!(!encoded.contains('.'), "{encoded}");
            assert_eq!(decode(&encoded), name);
        }
    }

    #[test]
    fn the_first_field_that_differs_is_named() {
        let spec = MapSpec { map_type: 1, key_size: 4, value_size: 8, max_entries: 16, flags: 1 };
        let same = sys::MapInfo {
            map_type: 1,
            id: 77,
            key_size: 4,
            value_size: 8,
            max_entries: 16,
            map_flags: 1,
        };
        assert_eq!(difference(&same, &spec), None);
        let other = sys::MapInfo { value_size: 4, map_flags: 0, ..same };
        let mismatch =
            Mismatch { map: "flows_v4".into(), difference: difference(&other, &spec).unwrap() };
        assert_eq!(mismatch.to_string(), "pinned map flows_v4: value size is 4, expected 8");
    }

    #[test]
    fn only_directories_of_ours_count_as_maps() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "v1",
            "v2-replaced",
            "v",
            "vx",
            "links",
            "v1x",
            "v10",
            "v-new",
            "v3-new",
            "v3-ready",
            "v2-replaced2",
            "v2-replacedx",
            "v3-old",
        ] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let found: Vec<_> = map_directories(root.path())
            .unwrap()
            .into_iter()
            .map(|directory| (directory.version, directory.state))
            .collect();
        let expected = [
            (1, State::InUse),
            (10, State::InUse),
            (2, State::Replaced),
            (2, State::Replaced),
            (3, State::New),
            (3, State::Ready),
        ];
        assert_eq!(found, expected);
    }

    fn names(root: &Path) -> Vec<String> {
        entries(root).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn wherever_an_agent_ends_the_next_one_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        let (ours, new) = (format!("v{ABI_VERSION}"), format!("v{ABI_VERSION}{NEW}"));
        let make = |names: &[&str]| {
            for name in names {
                std::fs::create_dir(root.path().join(name)).unwrap();
            }
        };
        // While it fills new maps.
        make(&["v0", &new]);
        pins.recover().unwrap();
        assert_eq!(names(root.path()), ["v0"]);
        // Filled, and nothing renamed yet; and with what an earlier one had left.
        make(&["v0-replaced", "v9-ready"]);
        pins.recover().unwrap();
        assert_eq!(names(root.path()), ["v0-replaced", "v0-replaced2", "v9"]);
        // Between the two renames.
        std::fs::rename(root.path().join("v9"), root.path().join("v9-ready")).unwrap();
        pins.recover().unwrap();
        assert_eq!(names(root.path()), ["v0-replaced", "v0-replaced2", "v9"]);
        // And without an end.
        make(&[&new]);
        pins.replace().unwrap();
        assert_eq!(pins.in_use().unwrap(), [root.path().join(ours)]);
        assert_eq!(pins.replaced().unwrap().len(), 3);
        assert!(root.path().join("v9-replaced").is_dir());
    }

    #[test]
    fn a_pin_path_elsewhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = Pins::new(directory.path().join("lbxdp")).prepare().unwrap_err().to_string();
        assert!(error.contains("not on a BPF file system"), "{error}");
    }
}

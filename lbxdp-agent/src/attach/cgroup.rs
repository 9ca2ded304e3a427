//! The programs for sockets: loads them and attaches them to a cgroup.
//!
//! They serve every process below that cgroup, whatever network namespace it is in. Links are
//! pinned, and a new agent replaces their programs in place, as with devices. Whatever fails here
//! leaves devices served: clients on the node are then not, which the status and `/readyz` say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use aya::Ebpf;
use aya::programs::{CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Loaded, patiently, takeover};
use crate::pins::{CgroupPin, Pins};
use crate::sys::{self, CgroupPoint};

/// Where mounts are listed.
const MOUNTS: &str = "/proc/self/mounts";

/// Where cgroup v2 is mounted; the first place if there are several.
pub fn detect() -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string(MOUNTS).context(MOUNTS)?;
    mount_point(&mounts).ok_or_else(|| {
        anyhow!(
            "no cgroup v2 in {MOUNTS}: mount it, name the cgroup whose processes are served with \
             --cgroup PATH, or serve no clients on this node with --cgroup none"
        )
    })
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        // Blanks and the like are octal there (getmntent(3)).
        let path = path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        (kind == "cgroup2").then(|| path.into())
    })
}

/// Checks that `path` is a directory of a cgroup v2 file system.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let found = statfs(path).with_context(|| format!("--cgroup {}", path.display()))?;
    ensure!(
        found.filesystem_type() == CGROUP2_SUPER_MAGIC && path.is_dir(),
        "--cgroup {}: not a directory of a cgroup v2 file system",
        path.display()
    );
    Ok(())
}

/// Whether the kernel lets these programs say which error a call ends with (6.1). Where it does
/// not, a call that is refused ends with `EPERM`.
pub fn sets_errno() -> bool {
    let probed = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    probed.unwrap_or_else(|error| {
        tracing::warn!(%error, "asking the kernel for bpf_set_retval");
        false
    })
}

const fn program_name(point: CgroupPoint) -> &'static str {
    match point {
        CgroupPoint::Connect4 => "lbxdp_connect4",
        CgroupPoint::Connect6 => "lbxdp_connect6",
        CgroupPoint::Sendmsg4 => "lbxdp_sendmsg4",
        CgroupPoint::Sendmsg6 => "lbxdp_sendmsg6",
        CgroupPoint::Recvmsg4 => "lbxdp_recvmsg4",
        CgroupPoint::Recvmsg6 => "lbxdp_recvmsg6",
        CgroupPoint::Getpeername4 => "lbxdp_peername4",
        CgroupPoint::Getpeername6 => "lbxdp_peername6",
        CgroupPoint::Release => "lbxdp_release",
        CgroupPoint::Stale => "lbxdp_stale",
    }
}

/// The programs for sockets, and where they belong.
pub struct Sockets {
    cgroup: Option<PathBuf>,
    programs: BTreeMap<CgroupPoint, Loaded>,
    /// Whether there are stale sockets; unknown until somebody has looked.
    has_stale: Option<bool>,
    error: Option<String>,
}

impl Sockets {
    /// Loads the programs, unless no cgroup is served.
    pub(super) fn load(ebpf: &mut Ebpf, cgroup: Option<&Path>) -> Self {
        let mut sockets = Self {
            cgroup: cgroup.map(Path::to_owned),
            programs: BTreeMap::new(),
            has_stale: None,
            error: None,
        };
        if cgroup.is_some() {
            match CgroupPoint::ALL
                .into_iter()
                .map(|point| Ok((point, load(ebpf, point)?)))
                .collect()
            {
                Ok(programs) => sockets.programs = programs,
                Err(error) => {
                    let error: anyhow::Error = error;
                    sockets.failed(format!("{error:#}"));
                }
            }
        }
        sockets
    }

    /// Whether sockets are to be served.
    pub const fn are_wanted(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Why sockets are not served although they should be.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Says whether there are stale sockets, whose packets then end.
    pub(super) fn set_stale(&mut self, has_stale: bool, pins: &Pins) {
        if self.has_stale.replace(has_stale) != Some(has_stale) {
            self.sync(pins);
        }
    }

    /// Attaches what is to be attached and detaches the rest: to be repeated, since a cgroup may
    /// be made anew.
    pub(super) fn sync(&mut self, pins: &Pins) {
        if self.are_wanted() && self.programs.is_empty() {
            // They did not load, and what an earlier agent attached is better than nothing.
            return;
        }
        match self.try_sync(pins) {
            Ok(()) => {
                if self.error.take().is_some() {
                    tracing::info!("sockets are served");
                }
            }
            Err(error) => self.failed(format!("{error:#}")),
        }
    }

    fn failed(&mut self, error: String) {
        if self.error.as_ref() != Some(&error) {
            tracing::error!("sockets are not served: {error}");
        }
        self.error = Some(error);
    }

    fn try_sync(&self, pins: &Pins) -> anyhow::Result<()> {
        let links = pins.cgroup_links().context("pinned links")?;
        let mut links: BTreeMap<_, _> = links.into_iter().map(|link| (link.point, link)).collect();
        let Some(path) = &self.cgroup else {
            for (point, link) in links {
                link.remove().with_context(|| format!("detaching {}", point.as_str()))?;
                tracing::info!(point = point.as_str(), "detached from its cgroup");
            }
            return Ok(());
        };
        let cgroup = File::open(path).with_context(|| format!("cgroup {}", path.display()))?;
        let id = cgroup.metadata().with_context(|| format!("cgroup {}", path.display()))?.ino();
        for (point, program) in &self.programs {
            let link = links.remove(point);
            let is_wanted = match point {
                CgroupPoint::Stale => self.has_stale.unwrap_or(link.is_some()),
                _ => true,
            };
            if !is_wanted {
                link.map_or(Ok(()), CgroupPin::remove)
                    .with_context(|| format!("detaching {}", point.as_str()))?;
                continue;
            }
            attach(pins, *point, program, link, &cgroup, id)
                .with_context(|| format!("cgroup {}: {}", path.display(), point.as_str()))?;
        }
        Ok(())
    }

    /// The program that belongs behind the one of a link, and the cgroup, if it is the one that is
    /// served and another agent's program runs there.
    pub(super) fn joins(&self, link: &CgroupPin) -> io::Result<Option<(&Loaded, File)>> {
        let (Some(path), Some(program)) = (&self.cgroup, self.programs.get(&link.point)) else {
            return Ok(None);
        };
        let cgroup = File::open(path)?;
        let is_served = cgroup.metadata()?.ino() == link.info.cgroup_id;
        Ok((is_served && program.id != link.info.prog_id).then_some((program, cgroup)))
    }

    /// Whether no link runs a program of an earlier agent.
    pub(super) fn are_ours(&self, pins: &Pins) -> io::Result<bool> {
        Ok(pins
            .cgroup_links()?
            .iter()
            .all(|link| self.programs.values().any(|program| program.id == link.info.prog_id)))
    }
}

fn load(ebpf: &mut Ebpf, point: CgroupPoint) -> anyhow::Result<Loaded> {
    let name = program_name(point);
    let program =
        ebpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => load_sock_addr(program),
        Program::CgroupSock(program) => load_sock(program),
        Program::CgroupSkb(program) => load_skb(program),
        _ => bail!("program {name} is not one for cgroups"),
    };
    loaded.with_context(|| format!("program {name}"))
}

fn load_sock_addr(program: &mut CgroupSockAddr) -> anyhow::Result<Loaded> {
    patiently(|| program.load())?;
    Loaded::of(program.fd()?.as_fd())
}

fn load_sock(program: &mut CgroupSock) -> anyhow::Result<Loaded> {
    patiently(|| program.load())?;
    Loaded::of(program.fd()?.as_fd())
}

fn load_skb(program: &mut CgroupSkb) -> anyhow::Result<Loaded> {
    patiently(|| program.load())?;
    Loaded::of(program.fd()?.as_fd())
}

fn attach(
    pins: &Pins,
    point: CgroupPoint,
    program: &Loaded,
    link: Option<CgroupPin>,
    cgroup: &File,
    id: u64,
) -> io::Result<()> {
    let second = pins.second_cgroup_link(point);
    if takeover::promote(&second, &pins.cgroup_link(point), program.id)? {
        // Without this it would go a moment later.
        let _ = link.map(|link| sys::link_detach(link.fd.as_fd()));
        tracing::info!(point = point.as_str(), "program replaced at the cgroup");
        return Ok(());
    }
    if let Some(link) = link {
        if link.info.cgroup_id == id {
            if link.info.prog_id == program.id {
                return Ok(());
            }
            sys::link_update(link.fd.as_fd(), program.fd.as_fd())?;
            tracing::info!(point = point.as_str(), "program replaced at the cgroup");
            return Ok(());
        }
        // Another cgroup, or one that is gone.
        link.remove()?;
    }
    let link = sys::cgroup_link_create(program.fd.as_fd(), cgroup.as_fd(), point)?;
    sys::obj_pin(link.as_fd(), &pins.cgroup_link(point))?;
    tracing::info!(point = point.as_str(), "attached to the cgroup");
    Ok(())
}

/// What the pins tell about sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketStatus {
    /// The cgroup that the programs are attached to; `None` if any of them is missing.
    pub cgroup: Option<PathBuf>,
    /// Whether packets are looked at because there are stale sockets.
    pub has_stale: bool,
}

/// Whose sockets are served, as far as pins tell.
pub fn read_status(pins: &Pins) -> anyhow::Result<SocketStatus> {
    let links =
        pins.cgroup_links().with_context(|| format!("pins in {}", pins.root().display()))?;
    let at = |point| {
        let link = links.iter().find(|link| link.point == point);
        link.map(|link| link.info.cgroup_id).filter(|id| *id != 0)
    };
    let first = at(CgroupPoint::Connect4);
    let is_complete = CgroupPoint::ALL
        .into_iter()
        .filter(|point| *point != CgroupPoint::Stale)
        .all(|point| at(point) == first);
    let id = first.filter(|_| is_complete);
    Ok(SocketStatus {
        cgroup: id.map(|id| path_of(id).unwrap_or_else(|| format!("#{id}").into())),
        has_stale: at(CgroupPoint::Stale).is_some(),
    })
}

/// The directory with this inode number below the place where cgroup v2 is mounted. Most often it
/// is that place.
fn path_of(id: u64) -> Option<PathBuf> {
    let mut level = vec![detect().ok()?];
    while !level.is_empty() {
        let is_it = |path: &&PathBuf| path.metadata().is_ok_and(|found| found.ino() == id);
        if let Some(found) = level.iter().find(is_it) {
            return Some(found.clone());
        }
        level = level
            .iter()
            .filter_map(|path| path.read_dir().ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found_in_either_layout() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(mount_point(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(mount_point("proc /proc proc rw 0 0\ncgroup2 only"), None);
    }

    #[test]
    fn what_is_no_cgroup_is_refused_by_its_flag() {
        for path in ["/proc", "/nowhere/at/all"] {
            let error = check(Path::new(path)).unwrap_err();
            assert!(format!("{error:#}").starts_with(&format!("--cgroup {path}")), "{error:#}");
        }
    }
}

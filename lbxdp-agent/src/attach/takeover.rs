//! From programs on maps of one layout to programs on maps of another, without a packet that finds
//! neither its flow nor anybody to begin one.
//!
//! Replacing the programs one by one would not do: a reply may meet a new program a moment after its
//! request met an old one. So the new programs are first attached *behind* the old ones at every tc
//! hook and at the cgroup, and get what those pass on. Then the old ones are made to begin nothing
//! new ([`Carry::close`]): a flow is served by whoever has it, a new one begins in the new maps. What
//! the old maps have is complete now and is copied, and only then are the programs replaced, through
//! the links that are there. XDP, where only one program may be, needs no second one: what an old one
//! passes on, the new one at tc ingress serves. Until the new maps have every flow of the old ones, each
//! generation gives out source ports of a half of its own: a flow that took the port of one it did not
//! know would never see its replies.
//!
//! Nobody waits while this goes on, and each state in between serves every packet. An agent that ends
//! in one of them leaves it to the next.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::{Dataplane, TC, step};
use crate::carry::Carry;
use crate::netlink::tc::{Place, Tc};
use crate::pins::{CgroupPin, LinkPin};
use crate::sys::{self, Access, Point};

/// The maps that earlier programs use.
#[derive(Debug)]
pub(super) struct TakeOver {
    carries: Vec<Carry>,
    /// The new programs get what the old ones pass on.
    is_joined: bool,
}

impl TakeOver {
    /// `None` if there are none.
    pub(super) fn new(carries: Vec<Carry>) -> Option<Self> {
        (!carries.is_empty()).then_some(Self { carries, is_joined: false })
    }

    /// The last look, once every program is replaced.
    pub(super) fn finish(&mut self) {
        wait_for_programs();
        self.carries.iter_mut().for_each(Carry::finish);
    }
}

/// The latest link of each place: the last of ours there, because each is put behind the others. The
/// kernel counts links.
fn last_of_each<L, P: Ord>(
    links: &[L],
    place: impl Fn(&L) -> P,
    id: impl Fn(&L) -> u32,
) -> impl Iterator<Item = &L> {
    let mut last: BTreeMap<P, &L> = BTreeMap::new();
    for link in links {
        let known = last.entry(place(link)).or_insert(link);
        if id(link) > id(known) {
            *known = link;
        }
    }
    last.into_values()
}

/// Makes the link of `program` behind another one, pinned at `second`, the one pinned at `first`:
/// the kernel refuses a program that is there already. The one that is replaced keeps running until
/// its caller, who holds it, detaches it. `false` if there is no such link.
pub(super) fn promote(second: &Path, first: &Path, program: u32) -> io::Result<bool> {
    let link = match sys::obj_get(second, Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        link => link?,
    };
    if sys::link_info(link.as_fd())?.prog_id != program {
        return Ok(false);
    }
    std::fs::rename(second, first).map(|()| true)
}

fn wait_for_programs() {
    if let Err(error) = sys::wait_for_programs() {
        tracing::warn!(%error, "waiting for programs that are under way");
    }
}

impl Dataplane {
    /// Does everything that comes before programs are replaced.
    pub(super) fn take_over(&mut self) {
        let Some(mut takeover) = self.takeover.take() else { return };
        if !takeover.is_joined {
            takeover.carries.iter().for_each(Carry::share_ports);
            self.join();
            takeover.is_joined = true;
            step::reached("joined");
            // Who gives out every port has come to an end.
            wait_for_programs();
            takeover.carries.iter_mut().for_each(Carry::join);
            // Once more: that was a long time's worth, and what follows is to be little.
            takeover.carries.iter_mut().for_each(Carry::join);
            takeover.carries.iter().for_each(Carry::close);
            step::reached("closed");
            wait_for_programs();
            takeover.carries.iter_mut().for_each(Carry::join);
            takeover.carries.iter().for_each(Carry::give_all_ports);
            tracing::info!("new flows begin in the new maps");
        } else {
            takeover.carries.iter_mut().for_each(Carry::follow);
        }
        self.takeover = Some(takeover);
    }

    /// Attaches the programs behind those of earlier agents. Where that fails, programs are replaced
    /// all the same: what is under way there at that moment may be lost.
    fn join(&self) {
        let prepared = self.pins.prepare_second_links();
        let (links, cgroup_links) = (self.pins.links(), self.pins.cgroup_links());
        let joined = prepared.and_then(|()| {
            let (mut links, mut cgroup_links) = (links?, cgroup_links?);
            // What an agent that did not come to an end has attached behind them.
            let (second, second_cgroup) = self.pins.second_links()?;
            links.extend(second);
            cgroup_links.extend(second_cgroup);
            for link in last_of_each(&links, |link| (link.info.ifindex, link.point), |l| l.info.id)
            {
                if let Err(error) = self.join_link(link) {
                    let (device, point) = (&link.device, link.point.as_str());
                    tracing::warn!(device, point, %error, "attaching behind");
                }
            }
            for link in last_of_each(&cgroup_links, |link| link.point, |link| link.info.id) {
                if let Err(error) = self.join_cgroup(link) {
                    tracing::warn!(point = link.point.as_str(), %error, "attaching behind");
                }
            }
            self.join_filters()
        });
        if let Err(error) = joined {
            tracing::warn!(%error, "attaching behind the programs of earlier agents");
        }
    }

    fn join_link(&self, link: &LinkPin) -> io::Result<()> {
        let program = self.program(link.point);
        let is_over = link.info.ifindex == 0 || link.info.prog_id == program.id;
        let path = self.pins.second_link(&link.device, link.point);
        if is_over || link.point == Point::Xdp || sys::replace_pinned(&path, program.fd.as_fd())? {
            return Ok(());
        }
        let last = link.open()?;
        let second = sys::link_create_behind(
            program.fd.as_fd(),
            last.as_fd(),
            link.info.ifindex,
            link.point,
        )?;
        sys::obj_pin(second.as_fd(), &path)
    }

    fn join_cgroup(&self, link: &CgroupPin) -> io::Result<()> {
        let Some((program, cgroup)) = self.sockets.joins(link)? else { return Ok(()) };
        let path = self.pins.second_cgroup_link(link.point);
        if sys::replace_pinned(&path, program.fd.as_fd())? {
            return Ok(());
        }
        let second = sys::cgroup_link_create(program.fd.as_fd(), cgroup.as_fd(), link.point)?;
        sys::obj_pin(second.as_fd(), &path)
    }

    fn join_filters(&self) -> io::Result<()> {
        let mut tc = Tc::open()?;
        for device in tc.devices()? {
            for (point, _) in TC {
                let program = self.program(point);
                let first = tc.filter_program(device.ifindex, point, Place::First)?;
                if first.is_some_and(|first| first != program.id) {
                    tc.set_filter(device.ifindex, point, Place::Second, program.fd.as_fd())?;
                }
            }
        }
        Ok(())
    }

    /// Removes the programs behind the others, once these are the same.
    pub(super) fn part(&self) -> io::Result<()> {
        self.pins.remove_second_links()?;
        let mut tc = Tc::open()?;
        for device in tc.devices()? {
            for point in [Point::Ingress, Point::Egress] {
                tc.remove_filter(device.ifindex, point, Place::Second)?;
            }
        }
        Ok(())
    }
}

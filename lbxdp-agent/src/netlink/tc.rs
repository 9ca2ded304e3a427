//! clsact qdiscs and their BPF filters: how programs are attached to tc before tcx (6.6).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::request::Requests;
use crate::sys::Point;

/// Which of our filters, by priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before every other filter, like the head of a tcx chain.
    First = 1,
    /// Behind that one, while other maps take over.
    Second = 2,
}

impl Place {
    const ALL: [Self; 2] = [Self::First, Self::Second];
}

/// Tells our filter from others of the same priority.
const HANDLE: u32 = 0x6c62_7864;
const ETH_P_ALL: u16 = 3;
/// The start of our filters' names.
const NAME: &str = "lbxdp";

/// A device that has a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClsactDevice {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
}

/// A conversation with the kernel about tc.
#[derive(Debug)]
pub struct Tc {
    requests: Requests,
}

impl Tc {
    /// In the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self { requests: Requests::route()? })
    }

    /// The devices that have a clsact qdisc.
    pub fn devices(&mut self) -> io::Result<Vec<ClsactDevice>> {
        let answers =
            self.requests.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        let indices: BTreeSet<u32> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(qdisc) => Some(qdisc),
                _ => None,
            })
            .filter(|qdisc| {
                let kind = |attribute: &TcAttribute| {
                    matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact")
                };
                qdisc.attributes.iter().any(kind)
            })
            .map(|qdisc| qdisc.header.index as u32)
            .collect();
        Ok(self
            .requests
            .links()?
            .into_iter()
            .filter(|link| indices.contains(&link.header.index))
            .filter_map(|link| {
                let ifindex = link.header.index;
                link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(ClsactDevice { ifindex, name }),
                    _ => None,
                })
            })
            .collect())
    }

    /// Makes sure that a device has a clsact qdisc; whether it had none.
    pub fn add_clsact(&mut self, ifindex: u32) -> io::Result<bool> {
        let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex));
        match self.requests.ask(message, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a device's clsact qdisc, if it has one.
    pub fn remove_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex));
        match self.requests.ask(message, 0) {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Attaches a program, or replaces the one that an earlier agent attached: no packet meets
    /// neither.
    pub fn set_filter(
        &mut self,
        ifindex: u32,
        point: Point,
        place: Place,
        prog: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = filter(ifindex, point, place);
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(prog.as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name(point))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        self.requests.ask(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE).map(drop)
    }

    /// Id of the program of our filter for `point`.
    pub fn filter_program(
        &mut self,
        ifindex: u32,
        point: Point,
        place: Place,
    ) -> io::Result<Option<u32>> {
        let name = name(point);
        let has_name = |option: &TcFilterBpfOption| matches!(option, TcFilterBpfOption::ProgName(known) if *known == name);
        let is_it =
            |filter: &TcMessage| is_ours(filter, place) && bpf_options(filter).any(has_name);
        let ours = self.filters(ifindex, point)?.into_iter().find(is_it);
        Ok(ours.as_ref().and_then(|filter| {
            bpf_options(filter).find_map(|option| match option {
                TcFilterBpfOption::ProgId(id) => Some(*id),
                _ => None,
            })
        }))
    }

    /// Removes our filters, whichever they are; whether there were any.
    pub fn remove_filters(&mut self, ifindex: u32, point: Point) -> io::Result<bool> {
        let mut removed = false;
        for place in Place::ALL {
            removed |= self.remove_filter(ifindex, point, place)?;
        }
        Ok(removed)
    }

    /// Removes our filter at one place, whichever it is; whether there was one.
    pub fn remove_filter(&mut self, ifindex: u32, point: Point, place: Place) -> io::Result<bool> {
        if !self.filters(ifindex, point)?.iter().any(|filter| is_ours(filter, place)) {
            return Ok(false);
        }
        let message = RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, point, place));
        match self.requests.ask(message, 0) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a device's clsact qdisc holds any filter.
    pub fn has_filters(&mut self, ifindex: u32) -> io::Result<bool> {
        Ok(!self.filters(ifindex, Point::Ingress)?.is_empty()
            || !self.filters(ifindex, Point::Egress)?.is_empty())
    }

    fn filters(&mut self, ifindex: u32, point: Point) -> io::Result<Vec<TcMessage>> {
        let mut message = TcMessage::default();
        message.header.index = ifindex as i32;
        message.header.parent = parent(point);
        let answers = match self.requests.dump(RouteNetlinkMessage::GetTrafficFilter(message)) {
            Ok(answers) => answers,
            Err(error) if is_absent(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
                _ => None,
            })
            // The head of a priority's list of filters is announced as a filter without handle.
            .filter(|filter| filter.header.handle != TcHandle::UNSPEC)
            .collect())
    }
}

/// The answers when the device, the qdisc or the filter is not there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

/// The name of our filter.
fn name(point: Point) -> String {
    format!("{NAME}_{}", point.as_str())
}

fn parent(point: Point) -> TcHandle {
    let minor = match point {
        Point::Egress | Point::PodEgress => TcHandle::MIN_EGRESS,
        Point::Ingress | Point::PodIngress | Point::Xdp => TcHandle::MIN_INGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

fn filter(ifindex: u32, point: Point, place: Place) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.handle = HANDLE.into();
    message.header.parent = parent(point);
    message.header.info = (place as u32) << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

fn bpf_options(filter: &TcMessage) -> impl Iterator<Item = &TcFilterBpfOption> {
    filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .filter_map(|option| match option {
            TcOption::Bpf(option) => Some(option),
            _ => None,
        })
}

fn is_ours(filter: &TcMessage, place: Place) -> bool {
    let named = |option: &TcFilterBpfOption| matches!(option, TcFilterBpfOption::ProgName(name) if name.starts_with(NAME));
    filter.header.handle == HANDLE.into()
        && filter.header.info >> 16 == place as u32
        && bpf_options(filter).any(named)
}

//! Taking a node over from another translator that uses the stack (kube-proxy), and handing it over.
//!
//! Before its programs run for the first time, the agent enters the connections that the stack
//! translates as foreign flows, which are left to it. Some begin while it reads, and until the
//! programs run: so the programs begin in [`Mode::TakingOver`], and the agent reads once more. The
//! mode is pinned, and an agent that finds it begins again.
//!
//! Foreign flows end with what the stack knows of them: one that it has forgotten would be led to
//! nobody, once the other translator is gone.
//!
//! Handing over, the stack gets everything that begins. It must not give new connections the source
//! ports of flows that pass it by, so it is told of those.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use lbxdp_common::Mode;

use crate::apply::pinned::PinnedMaps;
use crate::apply::{FlowEntry, MapError};
use crate::foreign::{self, Reservation};
use crate::model::FrontendAddr;
use crate::netlink::conntrack::{Conntrack, Direction};
use crate::sys;

/// What had come in before the programs ran has passed the stack after this long.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// Foreign flows are compared with conntrack this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// But for no more than one part in so many of the time.
const LOOK_SHARE: u32 = 20;
/// Reservations are renewed this often; they last for 2,000 seconds at least.
const RESERVE_EVERY: Duration = Duration::from_secs(1_800);
/// The stack is told of flows again, before it gets what begins, at most so many times.
const PASSES: u32 = 8;
/// Not if no more than these have begun since the time before.
const FEW: usize = 1;
/// A program that runs now has come to its end after this long.
const PROGRAM_ENDS_WITHIN: Duration = Duration::from_millis(10);

/// Ids of frontends by address.
type Frontends = BTreeMap<FrontendAddr, u32>;

/// What an agent does about the stack's connections, from its start on.
#[derive(Debug)]
pub struct TakeOver {
    stage: Stage,
    conntrack: Option<Conntrack>,
    /// Conntrack's silence has been reported.
    is_reported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The stack's connections are to be read; in this mode meanwhile.
    Unread(Mode),
    /// They were read, and the programs do not run everywhere yet.
    Read,
    /// They are to be read again.
    Again(Instant),
    /// They are known; the foreign flows are to be looked at, unless there are none. No more will come.
    Known(Option<Instant>),
    /// The stack gets what is new; the foreign flows are to be looked at, as before, and the stack is to
    /// be told of others.
    HandingOver { look: Option<Instant>, reserve: Instant },
}

/// The stage that an agent begins with: `mode` is what the maps say, `is_attached` whether programs
/// of an earlier agent run, `is_new` whether the maps have been made anew for the next ones.
fn first(mode: Mode, is_attached: bool, is_new: bool, hand_over: bool, now: Instant) -> Stage {
    match mode {
        _ if hand_over => Stage::HandingOver { look: Some(now), reserve: now + RESERVE_EVERY },
        Mode::Serving if is_attached && !is_new => Stage::Known(Some(now)),
        // What of ours is under way has no flows any more: what the stack gets of it is lost.
        Mode::Serving if is_attached => Stage::Unread(Mode::Serving),
        Mode::Serving | Mode::TakingOver | Mode::HandingOver => Stage::Unread(Mode::TakingOver),
    }
}

/// When to look at foreign flows again after a look that began at `start`.
fn look_after(start: Instant) -> Instant {
    start + LOOK_EVERY.max(start.elapsed() * LOOK_SHARE)
}

impl TakeOver {
    /// Looks where things stand. Handing over begins at once.
    pub fn start(
        maps: &mut PinnedMaps,
        is_attached: bool,
        is_new: bool,
        hand_over: bool,
    ) -> Result<Self, MapError> {
        let before = maps.mode()?;
        let stage = first(before, is_attached, is_new, hand_over, Instant::now());
        let mut this = Self { stage, conntrack: None, is_reported: false };
        if hand_over {
            // Once the mode is set, the stack chooses source ports, and no flow begins any more. What
            // begins while the stack is told of the others, it is to hear of as soon as can be.
            let mut known = BTreeSet::new();
            for _ in 0..PASSES {
                if this.reserve(maps, &mut known) <= FEW {
                    break;
                }
            }
            maps.set_mode(Mode::HandingOver)?;
            // Programs that had read the mode before have come to their end.
            std::thread::sleep(PROGRAM_ENDS_WITHIN);
            this.reserve(maps, &mut known);
            tracing::info!(
                reserved = known.len(),
                "handing over: what begins from now on is left to the stack"
            );
        } else if before == Mode::HandingOver {
            tracing::info!("not handing over any more");
        }
        Ok(this)
    }

    /// Whether the mode is what it is to be.
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Known(_) | Stage::HandingOver { .. })
    }

    /// To be called once the maps are programmed, before programs are attached.
    pub fn before_attaching(&mut self, maps: &mut PinnedMaps, frontends: &Frontends) {
        let Stage::Unread(mode) = self.stage else { return };
        if let Err(error) = maps.set_mode(mode) {
            tracing::error!(%error, "taking over");
        }
        self.enter(maps, frontends);
        self.stage = Stage::Read;
    }

    /// To be called once the programs run wherever they are to.
    pub fn attached(&mut self) {
        if self.stage == Stage::Read {
            self.stage = Stage::Again(Instant::now() + SETTLED_AFTER);
        }
    }

    /// When there is something to do, if it depends on the time.
    pub fn due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Unread(_) | Stage::Read => None,
            Stage::Again(due) => Some(due),
            Stage::Known(look) => look,
            Stage::HandingOver { look, reserve } => {
                Some(look.map_or(reserve, |look| look.min(reserve)))
            }
        }
    }

    /// Does what is due. Whether [`Self::is_done`] has changed.
    pub fn go_on(&mut self, maps: &mut PinnedMaps, frontends: &Frontends) -> bool {
        let now = Instant::now();
        let is_past = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        match self.stage {
            Stage::Again(due) if due <= now => {
                self.enter(maps, frontends);
                match maps.set_mode(Mode::Serving) {
                    Ok(()) => {
                        // What the stack has got while it was read.
                        std::thread::sleep(PROGRAM_ENDS_WITHIN);
                        self.enter(maps, frontends);
                        self.stage = Stage::Known(Some(now + LOOK_EVERY));
                        return true;
                    }
                    Err(error) => {
                        tracing::error!(%error, "taking over");
                        self.stage = Stage::Again(now + LOOK_EVERY);
                    }
                }
            }
            Stage::Known(look) if is_past(look) => {
                let look = self.forget(maps).then(|| look_after(now));
                self.stage = Stage::Known(look);
            }
            Stage::HandingOver { look, reserve } if is_past(look) => {
                let look = self.forget(maps).then(|| look_after(now));
                self.stage = Stage::HandingOver { look, reserve };
            }
            Stage::HandingOver { look, reserve } if reserve <= now => {
                self.reserve(maps, &mut BTreeSet::new());
                self.stage = Stage::HandingOver { look, reserve: now + RESERVE_EVERY };
            }
            _ => {}
        }
        false
    }

    /// Enters what the stack translates and the programs must not.
    fn enter(&mut self, maps: &mut PinnedMaps, frontends: &Frontends) {
        let now = sys::coarse_ns();
        let mut halves: Vec<FlowEntry> = Vec::new();
        self.ask("reading it; connections that the stack translates may break", |conntrack| {
            conntrack.each(|connection| {
                halves.extend(foreign::flow(&connection, frontends, now).into_iter().flatten());
            })
        });
        let mut entered = 0_usize;
        for half in &halves {
            match maps.enter_foreign(half) {
                Ok(is_new) => entered += usize::from(is_new),
                Err(error) => tracing::error!(%error, "entering what the stack translates"),
            }
        }
        if entered > 0 {
            tracing::info!(flows = entered / 2, "connections stay with the stack, which has them");
        }
    }

    /// Removes the foreign flows that the stack does not know any more. Whether there were any.
    fn forget(&mut self, maps: &mut PinnedMaps) -> bool {
        let flows = match maps.foreign_flows() {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!(%error, "reading flows");
                return true;
            }
        };
        if flows.is_empty() {
            return false;
        }
        let mut ended = Vec::new();
        self.ask("comparing foreign flows with it", |conntrack| {
            for flow in flows {
                let (from, to) = flow.arrives();
                if !conntrack.has(flow.protocol(), &Direction { from, to })? {
                    ended.push(flow);
                }
            }
            Ok(())
        });
        for flow in &ended {
            if let Err(error) = maps.remove_foreign(flow) {
                tracing::warn!(%error, "forgetting a flow of the stack");
            }
        }
        true
    }

    /// Tells the stack of flows that pass it by, but for those that are known to it, and adds them. How
    /// many there were.
    fn reserve(&mut self, maps: &PinnedMaps, known: &mut BTreeSet<(u8, Direction)>) -> usize {
        let now = sys::coarse_ns();
        let reservations: Vec<_> = match maps.flows() {
            Ok(flows) => flows
                .filter_map(|flow| foreign::reservation(&flow, now))
                .filter(|it| known.insert((it.protocol, it.sent)))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "reading flows");
                return 0;
            }
        };
        let count = reservations.len();
        if count > 0 {
            self.ask("reserving source ports; connections may get those of others", |conntrack| {
                for Reservation { protocol, sent, seconds } in reservations {
                    match conntrack.reserve(protocol, &sent, seconds) {
                        // A connection of the stack's own has it: it gives it to no other.
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        reserved => reserved?,
                    }
                }
                Ok(())
            });
        }
        count
    }

    /// Asks conntrack. A kernel without it has no connections that could break.
    fn ask(&mut self, what: &str, question: impl FnOnce(&mut Conntrack) -> std::io::Result<()>) {
        let asked = match &mut self.conntrack {
            Some(conntrack) => question(conntrack),
            none => Conntrack::open().and_then(|conntrack| question(none.insert(conntrack))),
        };
        match asked {
            Ok(()) => self.is_reported = false,
            Err(error) => {
                // Answers may be under way that belong to no question any more.
                self.conntrack = None;
                if !std::mem::replace(&mut self.is_reported, true) {
                    tracing::warn!(%error, "conntrack: {what}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_reads_at_its_first_start_and_after_one_that_did_not_come_to_an_end() {
        let now = Instant::now();
        let taking = Stage::Unread(Mode::TakingOver);
        let handing = Stage::HandingOver { look: Some(now), reserve: now + RESERVE_EVERY };
        for (mode, is_attached, is_new, hand_over, stage) in [
            (Mode::Serving, false, true, false, taking),
            (Mode::Serving, false, false, false, taking),
            (Mode::TakingOver, false, false, false, taking),
            (Mode::TakingOver, true, false, false, taking),
            // It has served for a while.
            (Mode::Serving, true, false, false, Stage::Known(Some(now))),
            (Mode::Serving, true, true, false, Stage::Unread(Mode::Serving)),
            // The other one had the new connections meanwhile.
            (Mode::HandingOver, true, false, false, taking),
            (Mode::HandingOver, true, false, true, handing),
            (Mode::TakingOver, true, false, true, handing),
            (Mode::Serving, false, true, true, handing),
        ] {
            let found = first(mode, is_attached, is_new, hand_over, now);
            assert_eq!(found, stage, "{mode:?} {is_attached} {is_new} {hand_over}");
        }
    }
}

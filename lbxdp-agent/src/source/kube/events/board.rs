//! What is told when: pure, time is an input.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::Bucket;
use super::report::Report;
use super::send::Outcome;
use crate::source::ObjectId;

/// A problem that is over so soon is none: objects that belong together come one after the other.
const SETTLE: Duration = Duration::from_secs(1);
/// A problem is told within this time after that, each agent at its own moment, so that most of them find that
/// another one was first.
const SPREAD: Duration = Duration::from_secs(9);
/// A problem that lasts is told again after this time. The API server forgets Events after an hour.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// Problems that are remembered.
const MOST: usize = 1_000;
/// About one object: so many at once,
const OBJECT_BURST: u32 = 10;
/// and then one each so often.
const OBJECT_EVERY: Duration = Duration::from_secs(5 * 60);
/// About all objects.
const BURST: u32 = 25;
const EVERY: Duration = Duration::from_secs(10);

/// How a report is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source::kube) enum How {
    /// As a new Event.
    Create,
    /// As one more of a series, of which it is this one.
    Repeat(i32),
}

/// What is to be told now.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    /// Name of the Event.
    pub(super) name: String,
    pub(super) report: Report,
    pub(super) how: How,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    Tell(Box<Telling>),
    /// Nothing before this time, or before something changes.
    Wait(Option<Instant>),
}

/// What was not told and never will be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) overflow: usize,
    pub(super) outdated: usize,
}

/// Whose Event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Untold,
    /// Told so many times by this agent.
    Ours(i32),
    Others,
}

#[derive(Debug)]
struct Entry {
    report: Report,
    state: State,
    /// The problem is there.
    lasts: bool,
    /// When to tell it (again), or if it does not last to forget it.
    due: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Board {
    node: String,
    /// By the names of their Events.
    entries: BTreeMap<String, Entry>,
    objects: BTreeMap<ObjectId, Bucket>,
    all: Bucket,
    overflow: usize,
}

impl Board {
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            entries: BTreeMap::new(),
            objects: BTreeMap::new(),
            all: Bucket::new(BURST, EVERY, Instant::now()),
            overflow: 0,
        }
    }

    /// These are all problems there are now.
    pub(super) fn set(&mut self, reports: impl Iterator<Item = Report>, now: Instant) -> Lost {
        self.objects.retain(|_, bucket| !bucket.is_full(now));
        let mut before = std::mem::take(&mut self.entries);
        let mut overflow = 0_usize;
        for report in reports {
            let name = report.name(&self.node);
            let entry = match before.remove(&name) {
                Some(entry) if entry.lasts || entry.state == State::Others => {
                    Entry { lasts: true, ..entry }
                }
                // It is back.
                Some(entry) => Entry { lasts: true, due: now + self.delay(&name), ..entry },
                None if self.entries.len() >= MOST => {
                    overflow += 1;
                    continue;
                }
                None => {
                    let due = now + self.delay(&name);
                    Entry { report, state: State::Untold, lasts: true, due }
                }
            };
            self.entries.insert(name, entry);
        }
        let mut lost = Lost { overflow: overflow.saturating_sub(self.overflow), outdated: 0 };
        self.overflow = overflow;
        for (name, entry) in before {
            if entry.state == State::Untold {
                // One that is over before its time was never worth telling.
                lost.outdated += usize::from(entry.due <= now);
            } else if (entry.lasts || entry.due > now) && self.entries.len() < MOST {
                // Should it come back, it is the same Event.
                let due = if entry.lasts { now + REPEAT } else { entry.due };
                self.entries.insert(name, Entry { lasts: false, due, ..entry });
            }
        }
        lost
    }

    /// What to do at `now`. The same again until [`Self::told`].
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let Self { entries, objects, all, .. } = self;
        let mut first: Option<(Instant, &String)> = None;
        for (name, entry) in entries.iter().filter(|(_, entry)| entry.lasts) {
            let object = objects.get(&entry.report.object);
            let due = object.map_or(entry.due, |bucket| entry.due.max(bucket.next(now)));
            if first.is_none_or(|(earliest, _)| due < earliest) {
                first = Some((due, name));
            }
        }
        let Some((due, name)) = first else { return Next::Wait(None) };
        let due = due.max(all.next(now));
        if due > now {
            return Next::Wait(Some(due));
        }
        let Entry { report, state, .. } = &entries[name];
        let how = match state {
            State::Ours(count) => How::Repeat(count.saturating_add(1)),
            State::Untold | State::Others => How::Create,
        };
        Next::Tell(Box::new(Telling { name: name.clone(), report: report.clone(), how }))
    }

    /// What became of what [`Self::next`] said. Not called when nobody answered.
    pub(super) fn told(&mut self, name: &str, outcome: &Outcome, now: Instant) {
        let another = self.delay(name);
        let Some(entry) = self.entries.get_mut(name) else { return };
        self.all.take(now);
        let bucket = Bucket::new(OBJECT_BURST, OBJECT_EVERY, now);
        self.objects.entry(entry.report.object.clone()).or_insert(bucket).take(now);
        entry.state = match (outcome, entry.state) {
            (Outcome::Created, _) => State::Ours(1),
            (Outcome::Repeated, State::Ours(count)) => State::Ours(count.saturating_add(1)),
            (Outcome::Exists, _) => State::Others,
            (Outcome::Gone, _) => State::Untold,
            (Outcome::Repeated | Outcome::Refused | Outcome::Unanswered(_), state) => state,
        };
        entry.due = match outcome {
            Outcome::Gone => now,
            // Whoever it belongs to comes first, and should that agent be gone, one of the others.
            Outcome::Exists => now + REPEAT + another * 60,
            _ => now + REPEAT,
        };
    }

    /// How long this agent waits with an Event.
    fn delay(&self, name: &str) -> Duration {
        // Agents need not agree about it, only differ.
        let mut hash = std::hash::DefaultHasher::new();
        hash.write(self.node.as_bytes());
        hash.write(name.as_bytes());
        let share = f64::from((hash.finish() >> 32) as u32) / f64::from(u32::MAX);
        SETTLE + SPREAD.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Reason;
    use crate::source::Kind;

    const LONGEST: Duration = Duration::from_secs(10);

    fn report(name: &str, note: &str) -> Report {
        Report {
            object: ObjectId::new(Kind::Service, Some("shop"), name),
            uid: name.to_owned(),
            reason: Reason::AddressConflict,
            note: note.to_owned(),
        }
    }

    fn set(board: &mut Board, reports: &[Report], now: Instant) -> Lost {
        board.set(reports.iter().cloned(), now)
    }

    #[track_caller]
    fn telling(board: &mut Board, now: Instant) -> Telling {
        match board.next(now) {
            Next::Tell(telling) => *telling,
            Next::Wait(wake) => panic!("nothing is due before {:?}", wake.map(|at| at - now)),
        }
    }

    #[track_caller]
    fn wait(board: &mut Board, now: Instant) -> Option<Instant> {
        match board.next(now) {
            Next::Wait(wake) => wake,
            Next::Tell(telling) => panic!("{telling:?}"),
        }
    }

    #[test]
    fn a_problem_is_told_once_and_again_while_it_lasts() {
        let start = Instant::now();
        let mut board = Board::new("node");
        assert_eq!(wait(&mut board, start), None);
        let problem = report("web", "x");
        assert_eq!(set(&mut board, std::slice::from_ref(&problem), start), Lost::default());
        let due = wait(&mut board, start).unwrap();
        assert!(due >= start + SETTLE && due <= start + LONGEST);
        // Hearing of it again changes nothing.
        set(&mut board, std::slice::from_ref(&problem), start + SETTLE);
        assert_eq!(wait(&mut board, start), Some(due));

        let told = telling(&mut board, due);
        assert_eq!((told.how, &told.report), (How::Create, &problem));
        board.told(&told.name, &Outcome::Created, due);
        assert_eq!(wait(&mut board, due), Some(due + REPEAT));
        for count in 2..5 {
            let now = due + REPEAT * (count - 1);
            let told = telling(&mut board, now);
            assert_eq!(told.how, How::Repeat(count as i32));
            board.told(&told.name, &Outcome::Repeated, now);
        }
        // Somebody deleted it.
        let now = due + REPEAT * 4;
        let told = telling(&mut board, now);
        board.told(&told.name, &Outcome::Gone, now);
        assert_eq!(telling(&mut board, now).how, How::Create);

        set(&mut board, &[], now);
        assert_eq!(wait(&mut board, now), None);
    }

    #[test]
    fn what_comes_back_is_the_same_event() {
        let start = Instant::now();
        let mut board = Board::new("node");
        let problem = [report("web", "x")];
        set(&mut board, &problem, start);
        let now = start + LONGEST;
        let name = telling(&mut board, now).name;
        board.told(&name, &Outcome::Created, now);
        set(&mut board, &[], now);
        set(&mut board, &problem, now);
        let told = telling(&mut board, now + LONGEST);
        assert_eq!((told.name, told.how), (name, How::Repeat(2)));
        // After a while it is forgotten.
        set(&mut board, &[], now);
        set(&mut board, &[], now + REPEAT);
        assert!(board.entries.is_empty());
    }

    #[test]
    fn what_another_agent_has_told_is_left_to_it() {
        let start = Instant::now();
        let mut board = Board::new("node");
        set(&mut board, &[report("web", "x")], start);
        let now = start + LONGEST;
        let name = telling(&mut board, now).name;
        board.told(&name, &Outcome::Exists, now);
        for problems in [&[][..], &[report("web", "x")]] {
            set(&mut board, problems, now);
        }
        let again = wait(&mut board, now).unwrap();
        assert!(again >= now + REPEAT && again <= now + REPEAT + LONGEST * 60);
        assert_eq!(telling(&mut board, again).how, How::Create);
    }

    #[test]
    fn two_nodes_have_different_moments() {
        let start = Instant::now();
        let due = |node: &str| {
            let mut board = Board::new(node);
            set(&mut board, &[report("web", "x")], start);
            wait(&mut board, start).unwrap()
        };
        assert_eq!(due("a"), due("a"));
        assert_ne!(due("a"), due("b"));
    }

    #[test]
    fn one_object_does_not_use_up_what_all_may_have() {
        let start = Instant::now();
        let mut board = Board::new("node");
        let mut problems: Vec<_> = (0..100).map(|n| report("web", &n.to_string())).collect();
        problems.push(report("other", "x"));
        set(&mut board, &problems, start);
        let now = start + LONGEST;
        let mut told = Vec::new();
        while let Next::Tell(telling) = board.next(now) {
            board.told(&telling.name, &Outcome::Created, now);
            told.push(telling.report.object.name.to_string());
        }
        told.sort();
        let mut expected = vec!["other"];
        expected.extend(["web"; OBJECT_BURST as usize]);
        assert_eq!(told, expected);
        assert_eq!(wait(&mut board, now), Some(now + OBJECT_EVERY));
    }

    #[test]
    fn many_objects_are_told_of_one_after_the_other() {
        let start = Instant::now();
        let mut board = Board::new("node");
        let problems: Vec<_> = (0..100).map(|n| report(&format!("web-{n}"), "x")).collect();
        set(&mut board, &problems, start);
        let mut now = start + LONGEST;
        let mut told = 0;
        while told < problems.len() {
            match board.next(now) {
                Next::Tell(telling) => {
                    board.told(&telling.name, &Outcome::Exists, now);
                    told += 1;
                }
                Next::Wait(wake) => now = wake.unwrap(),
            }
        }
        assert_eq!(now, start + LONGEST + EVERY * (100 - BURST));
    }

    #[test]
    fn what_is_over_too_early_or_too_much_is_counted_once() {
        let now = Instant::now();
        let mut board = Board::new("node");
        let problems: Vec<_> = (0..MOST + 7).map(|n| report(&format!("web-{n}"), "x")).collect();
        assert_eq!(set(&mut board, &problems, now), Lost { overflow: 7, outdated: 0 });
        assert_eq!(set(&mut board, &problems, now), Lost::default());
        // None of them was due yet.
        assert_eq!(set(&mut board, &[], now), Lost::default());
        set(&mut board, &problems[..3], now);
        let later = now + LONGEST;
        assert_eq!(set(&mut board, &[], later), Lost { overflow: 0, outdated: 3 });
        assert_eq!(wait(&mut board, now), None);
    }

    #[test]
    fn what_is_refused_is_not_tried_again_at_once() {
        let start = Instant::now();
        let mut board = Board::new("node");
        set(&mut board, &[report("web", "x")], start);
        let now = start + LONGEST;
        let name = telling(&mut board, now).name;
        board.told(&name, &Outcome::Refused, now);
        assert_eq!(wait(&mut board, now), Some(now + REPEAT));
    }
}

//! Who is alive, by what the members say and what their leases say: pure, time is an input.
//!
//! Each agent renews a lease of its own at the API. Leases are slow and the members are fast, so the members
//! decide; a lease speaks for those that the members say nothing of, and against the members when it is
//! still renewed after they have called its holder down: then it is the network between agents that is
//! broken, and an address must not have two owners because of that.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::swim::Word;

/// A lease is renewed this often.
const RENEW_EVERY: Duration = Duration::from_millis(2_500);
/// But all of them together no more often than so many times a second: with 1,000 nodes each one every
/// 10 s, like the leases of their kubelets.
const RENEWALS_PER_SECOND: u32 = 100;
/// A lease lasts for so many renewals.
const LASTS: u32 = 4;
/// A lease that has run out is looked at this often.
const LOOK_AT_OLD: Duration = Duration::from_secs(30);

/// How often each of so many nodes renews its lease.
pub(super) fn renew_every(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    RENEW_EVERY.max(Duration::from_secs(nodes.into()) / RENEWALS_PER_SECOND)
}

/// How long a lease lasts that is renewed this often.
pub(super) fn lasts(renew_every: Duration) -> Duration {
    renew_every * LASTS
}

/// What a node's lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// Its agent goes on renewing it, or may: it has not been known for long.
    Renewed,
    /// Its agent has stopped, or there is none.
    Old,
    /// Nobody has said yet.
    Untold,
}

/// Whether a node is alive.
pub(super) fn is_alive(word: Option<Word>, lease: Lease) -> bool {
    match (word, lease) {
        (Some(Word::Alive | Word::Suspect), _) => true,
        (Some(Word::Down) | None, lease) => lease == Lease::Renewed,
    }
}

/// Whether the API answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// There is to be none.
    Absent,
    /// It does.
    Heard,
    /// It does not.
    Silent,
}

/// Whether this node should keep quiet, with so many others of which so many answer as members.
pub(super) fn is_isolated(others: usize, answering: usize, api: Api) -> bool {
    match (others, answering, api) {
        // Nobody to be cut off from.
        (0, _, _) => false,
        (_, 1.., _) => false,
        (_, 0, Api::Heard) => false,
        (_, 0, Api::Silent) => true,
        // It is as likely the other one that died as the network, and somebody has to go on.
        (1, 0, Api::Absent) => false,
        (_, 0, Api::Absent) => true,
    }
}

/// A lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Name of the node.
    pub node: String,
    /// Where its agent hears, if it does.
    pub at: Option<std::net::SocketAddr>,
    /// When it was renewed, in its holder's words; `None` if it was given back.
    pub renewed: Option<String>,
    /// How long it lasts, in its holder's words.
    pub lasts: Duration,
}

/// What was read of a lease.
#[derive(Debug)]
struct Read {
    /// As it was last.
    record: Option<Record>,
    /// When it was first seen to be as it is.
    since: Instant,
    /// When it was seen last to be as it was before.
    before: Option<Instant>,
    looked: Instant,
}

impl Read {
    fn is_old(&self) -> bool {
        match &self.record {
            Some(Record { renewed: Some(_), lasts, .. }) => self.looked >= self.since + *lasts,
            _ => true,
        }
    }
}

/// What was read of leases, and when. Nodes' clocks may differ: what counts is whether a lease changes. One
/// that nobody looks at, because the API is away, does not grow old.
#[derive(Debug, Default)]
pub(super) struct Leases {
    read: BTreeMap<String, Read>,
}

impl Leases {
    /// A look at the lease of a node.
    pub(super) fn saw(&mut self, node: &str, record: Option<Record>, now: Instant) {
        match self.read.get_mut(node) {
            Some(read) if read.record == record => read.looked = now,
            Some(read) => {
                let before = Some(read.looked);
                *read = Read { record, since: now, before, looked: now };
            }
            None => {
                let read = Read { record, since: now, before: None, looked: now };
                self.read.insert(node.to_owned(), read);
            }
        }
    }

    /// A look at all leases.
    pub(super) fn saw_all(&mut self, records: Vec<Record>, now: Instant) {
        let gone = |node: &String| !records.iter().any(|record| record.node == *node);
        let gone: Vec<String> = self.read.keys().filter(|node| gone(node)).cloned().collect();
        for node in gone {
            self.saw(&node, None, now);
        }
        for record in records {
            self.saw(&record.node.clone(), Some(record), now);
        }
    }

    /// What the lease of a node says, which the members have called down at this time, if they have.
    pub(super) fn says(&self, node: &str, down: Option<Instant>) -> Lease {
        let Some(read) = self.read.get(node) else { return Lease::Untold };
        if read.is_old() {
            return Lease::Old;
        }
        match down {
            None => Lease::Renewed,
            // The last renewal before the end may be read long after it.
            Some(down) if read.before.is_some_and(|before| before >= down) => Lease::Renewed,
            Some(_) => Lease::Untold,
        }
    }

    /// When to look at a lease that matters (again).
    pub(super) fn look(&self, node: &str) -> Option<Instant> {
        let read = self.read.get(node)?;
        let every = match &read.record {
            Some(record) if !read.is_old() => record.lasts / LASTS,
            _ => LOOK_AT_OLD,
        };
        Some(read.looked + every)
    }

    /// The nodes whose leases were read, and where their agents hear.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, Option<std::net::SocketAddr>)> {
        let known = self.read.iter().filter(|(_, read)| read.record.is_some());
        known.map(|(node, read)| (node.as_str(), read.record.as_ref().and_then(|record| record.at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record(node: &str, renewed: u32) -> Record {
        let renewed = Some(renewed.to_string());
        Record { node: node.to_owned(), at: None, renewed, lasts: 10 * SECOND }
    }

    #[test]
    fn members_decide_and_leases_speak_for_those_they_do_not_call_alive() {
        use Lease::{Old, Renewed, Untold};
        let table = [
            (Some(Word::Alive), [true, true, true]),
            (Some(Word::Suspect), [true, true, true]),
            (Some(Word::Down), [true, false, false]),
            (None, [true, false, false]),
        ];
        for (word, expected) in table {
            for (lease, expected) in [Renewed, Old, Untold].into_iter().zip(expected) {
                assert_eq!(is_alive(word, lease), expected, "{word:?} {lease:?}");
            }
        }
    }

    #[test]
    fn who_sees_neither_members_nor_the_api_is_isolated_unless_nobody_else_is_expected() {
        use Api::{Absent, Heard, Silent};
        let table = [
            ((0, 0), [false, false, false]),
            ((1, 0), [false, false, true]),
            ((2, 0), [true, false, true]),
            ((999, 0), [true, false, true]),
            ((1, 1), [false, false, false]),
            ((999, 1), [false, false, false]),
        ];
        for ((others, answering), expected) in table {
            for (api, expected) in [Absent, Heard, Silent].into_iter().zip(expected) {
                let is = is_isolated(others, answering, api);
                assert_eq!(is, expected, "{others} {answering} {api:?}");
            }
        }
    }

    #[test]
    fn a_lease_is_old_when_it_does_not_change_for_as_long_as_it_lasts() {
        let start = Instant::now();
        let mut leases = Leases::default();
        assert_eq!(leases.says("a", None), Lease::Untold);
        leases.saw("a", Some(record("a", 1)), start);
        assert_eq!(leases.says("a", None), Lease::Renewed);
        leases.saw("a", Some(record("a", 1)), start + 9 * SECOND);
        assert_eq!(leases.says("a", None), Lease::Renewed);
        leases.saw("a", Some(record("a", 1)), start + 10 * SECOND);
        assert_eq!(leases.says("a", None), Lease::Old);
        assert_eq!(leases.look("a"), Some(start + 40 * SECOND));
        leases.saw("a", Some(record("a", 2)), start + 40 * SECOND);
        assert_eq!(leases.says("a", None), Lease::Renewed);
        let given_back = Record { renewed: None, ..record("a", 2) };
        leases.saw("a", Some(given_back), start + 41 * SECOND);
        assert_eq!(leases.says("a", None), Lease::Old);
    }

    #[test]
    fn without_the_api_no_lease_grows_old() {
        // Nobody looks, so nothing is said however long it takes.
        let start = Instant::now();
        let mut leases = Leases::default();
        leases.saw_all(vec![record("a", 1), record("b", 1)], start);
        leases.saw_all(vec![record("a", 2)], start + SECOND);
        assert_eq!((leases.says("a", None), leases.says("b", None)), (Lease::Renewed, Lease::Old));
        // The first look after an outage of an hour finds a renewal.
        leases.saw("a", Some(record("a", 900)), start + 3_600 * SECOND);
        assert_eq!(leases.says("a", None), Lease::Renewed);
    }

    #[test]
    fn only_a_renewal_after_the_verdict_speaks_against_it() {
        let down = Instant::now() + 20 * SECOND;
        let mut leases = Leases::default();
        leases.saw("a", Some(record("a", 1)), down - SECOND);
        assert_eq!(leases.says("a", Some(down)), Lease::Untold);
        // Renewed just before the crash, read long after it was noticed.
        leases.saw("a", Some(record("a", 2)), down + 3 * SECOND);
        leases.saw("a", Some(record("a", 2)), down + 5 * SECOND);
        assert_eq!(leases.says("a", Some(down)), Lease::Untold);
        leases.saw("a", Some(record("a", 3)), down + 7 * SECOND);
        assert_eq!(leases.says("a", Some(down)), Lease::Renewed);
        // Seen for the first time: it may be as old as can be.
        leases.saw("b", Some(record("b", 3)), down + 3 * SECOND);
        assert_eq!(leases.says("b", Some(down)), Lease::Untold);
    }

    #[test]
    fn a_thousand_nodes_renew_no_more_than_a_hundred_leases_a_second() {
        for nodes in [1, 3, 100, 250, 1_000, 5_000] {
            let every = renew_every(nodes);
            assert!(nodes as f64 / every.as_secs_f64() <= 100.5, "{nodes} {every:?}");
            assert!(every >= RENEW_EVERY && lasts(every) == 4 * every);
        }
        assert_eq!(renew_every(1_000), 10 * SECOND);
    }
}

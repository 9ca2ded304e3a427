//! Nodes that are lost, and not their agents alone: pure, time and answers come in.
//!
//! That the members miss an agent says nothing of the pods beside it: an agent may have crashed, and its node
//! forwards without it. Whoever said goodbye is not lost. A node is asked itself, at a port where its agent
//! would be and nobody listens: a kernel that lives refuses. Only one that is silent then counts as dead.
//!
//! Of more than half of all nodes nobody believes that they are dead: it is this one that is cut off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::report::NodeReport;
use super::swim::Word;

/// A node that has answered, and whose agent is still missed, is asked again after this time.
const ASK_LIVING: Duration = Duration::from_secs(5);
/// And one that was silent. A node that was started anew answers long before its pods are there; by then
/// Kubernetes has noticed.
const ASK_DEAD: Duration = Duration::from_secs(60);
/// Then what is not heard of any more is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// Those whose agents are missed.
#[derive(Debug, Default)]
pub(super) struct Lost(BTreeMap<String, Case>);

#[derive(Clone, Copy, Debug)]
struct Case {
    at: SocketAddr,
    since: Instant,
    host: Host,
    /// When to ask it (again); `None` while it is being asked.
    ask: Option<Instant>,
}

/// What is known of the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// It was not asked yet.
    Untold,
    Answers,
    Silent,
}

impl Lost {
    /// What an earlier agent on this node took for dead.
    pub(super) fn remember<'a>(
        &mut self,
        nodes: impl Iterator<Item = (&'a String, &'a NodeReport)>,
        now: Instant,
    ) {
        for (node, report) in nodes.filter(|(_, report)| report.dead) {
            let Some(at) = report.address else { continue };
            let case = Case { at, since: now, host: Host::Silent, ask: Some(now + ASK_DEAD) };
            self.0.insert(node.clone(), case);
        }
    }

    /// What is said of the nodes now. Those of whom nothing is said any more are as they were.
    pub(super) fn see(&mut self, nodes: &BTreeMap<String, NodeReport>, now: Instant) {
        for (node, report) in nodes {
            let is_missed =
                report.word == Some(Word::Down) && !report.alive && !report.says.is_leaving;
            match report.address.filter(|_| is_missed) {
                Some(at) => {
                    let new = Case { at, since: now, host: Host::Untold, ask: Some(now) };
                    self.0.entry(node.clone()).or_insert(new).at = at;
                }
                // Of a node that only the leases know nobody ever heard.
                None if report.word.is_some() || report.alive => drop(self.0.remove(node)),
                None => {}
            }
        }
        self.0.retain(|_, case| now < case.since + FORGET_AFTER);
    }

    /// Whom to ask now. Whoever is asked is not asked again before there is an answer.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<(String, SocketAddr)> {
        let due = self.0.iter_mut().filter(|(_, case)| case.ask.is_some_and(|due| due <= now));
        due.map(|(node, case)| {
            case.ask = None;
            (node.clone(), case.at)
        })
        .collect()
    }

    /// Whether a node has answered itself. Whether that is new.
    pub(super) fn told(&mut self, node: &str, answers: bool, now: Instant) -> bool {
        let Some(case) = self.0.get_mut(node) else { return false };
        let (host, again) =
            if answers { (Host::Answers, ASK_LIVING) } else { (Host::Silent, ASK_DEAD) };
        let is_new = case.host != host;
        (case.host, case.ask) = (host, Some(now + again));
        is_new
    }

    /// When to ask somebody.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|case| case.ask).min()
    }

    /// Those that are dead, with so many others that are alive, and where their agents were.
    pub(super) fn dead(&self, alive: usize) -> BTreeMap<String, SocketAddr> {
        let missed = self.0.iter().filter(|(_, case)| case.host != Host::Answers);
        // This one is there, too.
        let known = 1 + alive + missed.clone().count();
        if missed.clone().count() * 2 > known {
            return BTreeMap::new();
        }
        missed
            .filter(|(_, case)| case.host == Host::Silent)
            .map(|(node, case)| (node.clone(), case.at))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::says::Says;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at() -> SocketAddr {
        "192.0.2.1:10470".parse().unwrap()
    }

    fn node(word: Option<Word>, alive: bool) -> NodeReport {
        NodeReport { alive, word, address: Some(at()), ..NodeReport::default() }
    }

    fn nodes<const N: usize>(all: [(&str, NodeReport); N]) -> BTreeMap<String, NodeReport> {
        all.map(|(name, report)| (name.to_owned(), report)).into()
    }

    fn names<const N: usize>(all: [&str; N]) -> BTreeMap<String, SocketAddr> {
        all.map(|name| (name.to_owned(), at())).into()
    }

    #[test]
    fn who_is_missed_is_asked_and_dead_if_it_is_silent() {
        let now = Instant::now();
        let mut lost = Lost::default();
        let down = node(Some(Word::Down), false);
        lost.see(&nodes([("a", down.clone()), ("b", node(Some(Word::Alive), true))]), now);
        assert_eq!(lost.due(), Some(now));
        assert_eq!(lost.ask(now), [("a".to_owned(), at())]);
        assert_eq!((lost.ask(now), lost.due()), (vec![], None), "it is being asked");
        assert_eq!(lost.dead(1), names([]));
        assert!(lost.told("a", false, now));
        assert!(!lost.told("a", false, now), "known");
        assert_eq!(lost.dead(1), names(["a"]));

        // It answers, but its agent does not.
        assert_eq!(lost.ask(now + ASK_LIVING), []);
        assert_eq!(lost.ask(now + ASK_DEAD).len(), 1);
        lost.told("a", true, now + ASK_DEAD);
        assert_eq!(lost.dead(1), names([]));
        assert_eq!(lost.due(), Some(now + ASK_DEAD + ASK_LIVING));

        // Its agent does.
        lost.told("a", false, now);
        lost.see(&nodes([("a", node(Some(Word::Alive), true))]), now);
        assert_eq!((lost.dead(1), lost.due()), (names([]), None));
        lost.told("a", false, now);
        assert_eq!(lost.dead(1), names([]), "a late answer");
    }

    #[test]
    fn who_said_goodbye_or_renews_its_lease_or_was_never_met_is_not_lost() {
        let now = Instant::now();
        let goodbye = Says { is_leaving: true, ..Says::default() };
        for report in [
            NodeReport { says: goodbye, ..node(Some(Word::Down), false) },
            node(Some(Word::Down), true),
            node(None, false),
        ] {
            let mut lost = Lost::default();
            lost.see(&nodes([("a", report.clone())]), now);
            assert_eq!(lost.ask(now), [], "{report:?}");
        }
    }

    #[test]
    fn more_than_half_are_never_dead() {
        let now = Instant::now();
        let mut lost = Lost::default();
        let down = || node(Some(Word::Down), false);
        lost.see(&nodes([("a", down()), ("b", down())]), now);
        lost.told("a", false, now);
        // The other one is being asked.
        assert_eq!(lost.dead(0), names([]));
        assert_eq!(lost.dead(1), names(["a"]));
        lost.told("b", false, now);
        assert_eq!(lost.dead(0), names([]));
        assert_eq!(lost.dead(1), names(["a", "b"]), "two of four");
        lost.told("b", true, now);
        assert_eq!(lost.dead(0), names(["a"]), "one of two: it is enough that others are left");
    }

    #[test]
    fn the_dead_outlive_an_agent_and_are_forgotten_some_day() {
        let now = Instant::now();
        let dead = NodeReport { dead: true, ..node(Some(Word::Down), false) };
        let mut lost = Lost::default();
        let stored = nodes([("a", dead), ("b", node(Some(Word::Down), false))]);
        lost.remember(stored.iter(), now);
        assert_eq!(lost.dead(1), names(["a"]));
        // The members know nothing of it.
        lost.see(&nodes([("a", node(None, false))]), now + SECOND);
        assert_eq!(lost.dead(1), names(["a"]));
        lost.see(&BTreeMap::new(), now + FORGET_AFTER);
        assert_eq!(lost.dead(1), names([]));
    }
}

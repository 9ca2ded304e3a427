//! What is wrong with the objects, kept by what it is about, so that a change replaces what was said
//! about the same thing before.

use std::collections::BTreeMap;

use crate::model::{FrontendAddr, Problem};
use crate::problem::Problems;
use crate::source::ObjectId;

/// What problems are about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    /// An object.
    Object(ObjectId),
    /// A frontend that several Services want.
    Frontend(FrontendAddr),
    /// The node's addresses for NodePorts, as Services want them.
    NodePorts,
}

/// All problems.
#[derive(Clone, Debug, Default)]
pub(super) struct Complaints {
    /// Never empty.
    by_about: BTreeMap<About, Vec<Problem>>,
    /// All of them, unless something has changed since.
    sorted: Option<Vec<Problem>>,
}

impl Complaints {
    /// Takes these instead of what was said before about the same thing.
    pub(super) fn set(&mut self, about: About, problems: Problems) {
        let problems = problems.into_sorted();
        if problems.is_empty() {
            if self.by_about.remove(&about).is_some() {
                self.sorted = None;
            }
        } else if self.by_about.get(&about) != Some(&problems) {
            self.by_about.insert(about, problems);
            self.sorted = None;
        }
    }

    /// Forgets what was said about frontends.
    pub(super) fn forget_frontends(&mut self) {
        self.by_about.retain(|about, _| !matches!(about, About::Frontend(_)));
        self.sorted = None;
    }

    /// All of them, in the order in which somebody would repair them.
    pub(super) fn sorted(&mut self) -> &[Problem] {
        self.sorted.get_or_insert_with(|| {
            let mut problems = Problems::default();
            problems.extend(self.by_about.values().flatten().cloned());
            problems.into_sorted()
        })
    }
}

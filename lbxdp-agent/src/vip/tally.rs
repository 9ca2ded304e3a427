//! What those see who look at metrics: kept up to date by whoever gives addresses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::report::PoolCounts;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    /// The status of a Service.
    Service,
    /// The status of a pool or an advertisement.
    Pool,
    /// The state file.
    File,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is written.
    Done,
    /// The object was another one by then, and is looked at again.
    Conflict,
    /// It is tried again.
    Failed,
}

impl Written {
    const ALL: [Self; 3] = [Self::Service, Self::Pool, Self::File];

    /// As labels have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Pool => "pool",
            Self::File => "file",
        }
    }
}

impl Fate {
    const ALL: [Self; 3] = [Self::Done, Self::Conflict, Self::Failed];

    /// As labels have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// What is to be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Whether addresses are given here, by this agent.
    pub is_giving: bool,
    /// Whether Services without a class are left to MetalLB although they are to be adopted.
    pub is_adoption_refused: bool,
    /// What pools have, by `namespace/name`.
    pub pools: BTreeMap<String, PoolCounts>,
    /// How many Services lack what they ask for, by reason.
    pub pending: BTreeMap<&'static str, usize>,
}

/// It, and what was written.
#[derive(Debug, Default)]
pub struct Tally {
    view: Mutex<View>,
    writes: Mutex<BTreeMap<(Written, Fate), u64>>,
}

impl Tally {
    /// This is what there is now.
    pub fn show(&self, view: View) {
        *lock(&self.view) = view;
    }

    /// What there is now.
    pub fn view(&self) -> View {
        lock(&self.view).clone()
    }

    /// Something was written, or not.
    pub fn wrote(&self, what: Written, fate: Fate) {
        *lock(&self.writes).entry((what, fate)).or_default() += 1;
    }

    /// How often what was written, with every case.
    pub fn writes(&self) -> Vec<(Written, Fate, u64)> {
        let writes = lock(&self.writes);
        let cases = Written::ALL.iter().flat_map(|what| Fate::ALL.map(|fate| (*what, fate)));
        cases
            .map(|(what, fate)| (what, fate, writes.get(&(what, fate)).copied().unwrap_or(0)))
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is replaced as a whole, whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

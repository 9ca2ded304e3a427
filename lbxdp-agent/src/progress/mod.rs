//! What the agent measures of its work: when it last programmed something, how long that took and
//! how much still waits. kube-proxy's names and meanings, where it has them (`pkg/proxy/metrics`).

mod triggers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};

pub use self::triggers::Triggers;

/// How much of a map is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Name of the map.
    pub map: &'static str,
    /// Entries in use, or the best estimate.
    pub used: u64,
    /// The most there can be.
    pub capacity: u64,
}

/// What a synchronisation had to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything: at the start, when a directory, a route or the node's addresses change, after a
    /// failure, and once a minute.
    Full,
    /// What the changes touch.
    Partial,
}

type ExtentLabel = [(&'static str, &'static str); 1];
/// A histogram for each extent.
pub type Durations = Family<ExtentLabel, Histogram, fn() -> Histogram>;

impl Extent {
    const fn label(self) -> ExtentLabel {
        [(
            "extent",
            match self {
                Self::Full => "full",
                Self::Partial => "partial",
            },
        )]
    }
}

/// Changes of one kind of object.
#[derive(Debug, Default)]
pub struct Changes {
    pending: AtomicU64,
    total: AtomicU64,
}

impl Changes {
    /// Those that came since everything was last programmed.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// All since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn came(&self, count: u64) {
        self.pending.fetch_add(count, Ordering::Relaxed);
        self.total.fetch_add(count, Ordering::Relaxed);
    }
}

/// A moment of the wall clock, in milliseconds since 1970; 0 for never.
#[derive(Debug, Default)]
pub(crate) struct Moment(AtomicU64);

impl Moment {
    pub(crate) fn is_now(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// See the module. Written by the agent, read by whoever asks.
#[derive(Debug)]
pub struct Progress {
    /// From the event that changed endpoints to the maps: Kubernetes' network programming latency.
    pub programming: Histogram,
    /// How long synchronisations took, by [`Extent`].
    pub durations: Durations,
    errors: AtomicU64,
    last_sync: Moment,
    last_queued: Moment,
    /// Of Services.
    pub services: Changes,
    /// Of EndpointSlices.
    pub endpoints: Changes,
    rooms: Mutex<Vec<Room>>,
}

impl Default for Progress {
    fn default() -> Self {
        // kube-proxy's buckets.
        let durations =
            Durations::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15)));
        for extent in [Extent::Full, Extent::Partial] {
            // There from the beginning, as zeroes.
            drop(durations.get_or_create(&extent.label()));
        }
        Self {
            programming: Histogram::new(programming_buckets()),
            durations,
            errors: AtomicU64::new(0),
            last_sync: Moment::default(),
            last_queued: Moment::default(),
            services: Changes::default(),
            endpoints: Changes::default(),
            rooms: Mutex::default(),
        }
    }
}

/// kube-proxy's buckets, so that dashboards and objectives for it fit, and before them those in
/// which an agent that works is found.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let ours = [0.01, 0.025, 0.05, 0.1].into_iter();
    ours.chain(linear_buckets(0.25, 0.25, 2))
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7))
}

impl Progress {
    /// So many Services and EndpointSlices changed, or (none of both) something else did.
    pub fn queued(&self, services: u64, endpoints: u64) {
        self.services.came(services);
        self.endpoints.came(endpoints);
        self.last_queued.is_now();
    }

    /// The maps were compared with what they should be, and changed.
    pub fn synced(&self, extent: Extent, took: Duration, is_done: bool) {
        self.durations.get_or_create(&extent.label()).observe(took.as_secs_f64());
        if is_done {
            self.last_sync.is_now();
            self.services.pending.store(0, Ordering::Relaxed);
            self.endpoints.pending.store(0, Ordering::Relaxed);
        } else {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many did not end well.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// When one last ended well, since 1970; zero for never.
    pub fn last_sync(&self) -> Duration {
        self.last_sync.get()
    }

    /// When something was last found to be done, since 1970; zero for never.
    pub fn last_queued(&self) -> Duration {
        self.last_queued.get()
    }

    /// How full the maps are that only the agent fills.
    pub fn set_rooms(&self, rooms: Vec<Room>) {
        *self.rooms.lock().unwrap_or_else(PoisonError::into_inner) = rooms;
    }

    /// See [`Self::set_rooms`].
    pub fn rooms(&self) -> Vec<Room> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_of_kube_proxy_is_there_in_order() {
        let buckets: Vec<_> = programming_buckets().collect();
        assert!(buckets.is_sorted_by(|a, b| a < b), "{buckets:?}");
        let theirs: Vec<_> = buckets.iter().copied().skip_while(|it| *it < 0.25).collect();
        assert_eq!(theirs.len(), 2 + 59 + 12 + 7);
        for bound in [0.25, 0.5, 1.0, 59.0, 60.0, 65.0, 115.0, 120.0, 150.0, 300.0] {
            assert!(theirs.contains(&bound), "{bound}");
        }
    }

    #[test]
    fn changes_wait_until_a_synchronisation_ends_well() {
        let progress = Progress::default();
        assert_eq!(progress.last_queued(), Duration::ZERO);
        progress.queued(1, 2);
        progress.queued(0, 3);
        progress.synced(Extent::Partial, Duration::from_millis(3), false);
        let seen = |it: &Progress| (it.services.pending(), it.endpoints.pending(), it.errors());
        assert_eq!(seen(&progress), (1, 5, 1));
        assert_eq!(progress.last_sync(), Duration::ZERO);
        progress.synced(Extent::Full, Duration::from_millis(3), true);
        assert_eq!(seen(&progress), (0, 0, 1));
        assert_eq!((progress.services.total(), progress.endpoints.total()), (1, 5));
        assert!(progress.last_sync() >= progress.last_queued());
    }
}

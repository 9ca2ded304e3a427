//! Tells when a manifests directory may have changed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

/// Quiet time after the last event of a burst: editors write, rename and change attributes.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A burst that never ends is cut here.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// How often a look is taken without an event. Events are only the fast way: inotify queues
/// overflow, network file systems send none, and the target of a symlink is not watched.
const RESCAN: Duration = Duration::from_secs(3);

/// Watches the files of `dir`. Cannot fail: without events there is the regular rescan.
///
/// Must be called in a tokio runtime, and before the first look at the directory, so that no
/// change falls between the two.
pub fn watch(dir: impl Into<PathBuf>) -> Watcher {
    Watcher::new(dir.into(), RESCAN)
}

/// Tells when a directory may have changed. See [`watch`].
#[derive(Debug)]
pub struct Watcher {
    dir: PathBuf,
    /// `None` where the system gives no watcher, for instance out of inotify instances.
    notify: Option<RecommendedWatcher>,
    /// Device and inode of the watched directory: it may be removed and made again.
    watched: Option<(u64, u64)>,
    /// Something happened to the directory itself. The new one may have the old inode number.
    directory_touched: Arc<AtomicBool>,
    events: mpsc::Receiver<()>,
    rescan: tokio::time::Interval,
    /// First event and end of the quiet time of a burst. Kept here, so that a cancelled
    /// `changed` loses nothing.
    burst: Option<(Instant, Instant)>,
}

impl Watcher {
    fn new(dir: PathBuf, rescan: Duration) -> Self {
        // One slot is enough: an event says "look again", not what to look at.
        let (sender, events) = mpsc::channel(1);
        let directory_touched = Arc::new(AtomicBool::new(false));
        let (touched, path) = (Arc::clone(&directory_touched), dir.clone());
        let notify = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, |event| may_change_content(event.kind)) {
                if event.is_ok_and(|event| event.paths.contains(&path)) {
                    touched.store(true, Ordering::Relaxed);
                }
                // Full means that the reader is about to look anyway.
                let _ = sender.try_send(());
            }
        });
        let notify = notify
            .inspect_err(|error| {
                tracing::warn!(%error, "no file events: the manifests are read every {RESCAN:?}");
            })
            .ok();
        let mut rescan = interval_at(Instant::now() + rescan, rescan);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let burst = None;
        let mut watcher =
            Self { dir, notify, watched: None, directory_touched, events, rescan, burst };
        watcher.follow_directory();
        watcher
    }

    /// Waits until the directory may have changed: after a burst of events, or when it is time
    /// for a look anyway. Cancelling it loses no event.
    pub async fn changed(&mut self) {
        loop {
            let quiet = self.burst.map(|(_, quiet)| quiet);
            let quiet_over = async {
                match quiet {
                    Some(quiet) => sleep_until(quiet).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = quiet_over => {
                    self.burst = None;
                    self.follow_directory();
                    return;
                }
                // Without a watcher the sender is gone and this branch rests.
                Some(()) = self.events.recv() => {
                    let now = Instant::now();
                    let first = self.burst.map_or(now, |(first, _)| first);
                    self.burst = Some((first, (now + DEBOUNCE).min(first + LONGEST_BURST)));
                }
                _ = self.rescan.tick() => {
                    self.follow_directory();
                    return;
                }
            }
        }
    }

    /// Watches the directory that has the name now.
    fn follow_directory(&mut self) {
        let Some(notify) = &mut self.notify else { return };
        let present = identity(&self.dir);
        let touched = self.directory_touched.swap(false, Ordering::Relaxed);
        if present == self.watched && !touched {
            return;
        }
        if self.watched.take().is_some() {
            // Fails when the kernel has dropped the watch with the directory.
            let _ = notify.unwatch(&self.dir);
        }
        if present.is_some() {
            match notify.watch(&self.dir, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = present,
                Err(error) => tracing::warn!(
                    %error, dir = %self.dir.display(),
                    "no file events: the manifests are read every {RESCAN:?}",
                ),
            }
        }
    }
}

fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Reading is an event too; without this filter every look would cause the next one.
fn may_change_content(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_secs(5);
    const A_WHILE: Duration = Duration::from_millis(400);

    async fn changes(watcher: &mut Watcher) -> bool {
        timeout(SOON, watcher.changed()).await.is_ok()
    }

    async fn stays_quiet(watcher: &mut Watcher) -> bool {
        timeout(A_WHILE, watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn a_burst_of_writes_is_one_change() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path().into(), NEVER);
        for n in 0..20 {
            fs::write(dir.path().join(format!("{n}.yaml")), "x").unwrap();
        }
        assert!(changes(&mut watcher).await);
        assert!(stays_quiet(&mut watcher).await);
    }

    #[tokio::test]
    async fn rename_replace_and_delete_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, temp) = (dir.path().join("a.yaml"), dir.path().join("tmp"));
        fs::write(&file, "x").unwrap();
        fs::write(&temp, "y").unwrap();
        let mut watcher = Watcher::new(dir.path().into(), NEVER);
        fs::rename(&temp, &file).unwrap();
        assert!(changes(&mut watcher).await);
        fs::remove_file(&file).unwrap();
        assert!(changes(&mut watcher).await);
    }

    #[tokio::test]
    async fn reading_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "x").unwrap();
        let mut watcher = Watcher::new(dir.path().into(), NEVER);
        fs::read(&file).unwrap();
        fs::read_dir(dir.path()).unwrap().for_each(drop);
        assert!(stays_quiet(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_directory_made_again_is_followed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("manifests");
        fs::create_dir(&dir).unwrap();
        let mut watcher = Watcher::new(dir.clone(), Duration::from_millis(300));
        fs::remove_dir(&dir).unwrap();
        assert!(changes(&mut watcher).await);
        fs::create_dir(&dir).unwrap();
        assert!(changes(&mut watcher).await);
        // From here on by event, not by the rescan.
        watcher.rescan = interval_at(Instant::now() + NEVER, NEVER);
        watcher.follow_directory();
        while !stays_quiet(&mut watcher).await {}
        fs::write(dir.join("a.yaml"), "x").unwrap();
        assert!(changes(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_directory_replaced_within_a_burst_is_followed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("manifests");
        fs::create_dir(&dir).unwrap();
        let mut watcher = Watcher::new(dir.clone(), NEVER);
        for _ in 0..3 {
            fs::remove_dir_all(&dir).unwrap();
            fs::create_dir(&dir).unwrap();
            assert!(changes(&mut watcher).await);
            fs::write(dir.join("a.yaml"), "x").unwrap();
            assert!(changes(&mut watcher).await);
        }
    }

    #[tokio::test]
    async fn without_events_there_is_the_rescan() {
        let mut watcher = Watcher::new("/does/not/exist".into(), A_WHILE);
        let start = Instant::now();
        watcher.changed().await;
        watcher.changed().await;
        assert!(start.elapsed() >= 2 * A_WHILE);
    }

    #[tokio::test]
    async fn a_cancelled_wait_loses_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path().into(), NEVER);
        fs::write(dir.path().join("a.yaml"), "x").unwrap();
        for _ in 0..200 {
            if timeout(Duration::from_millis(1), watcher.changed()).await.is_ok() {
                return;
            }
        }
        assert!(changes(&mut watcher).await);
    }
}

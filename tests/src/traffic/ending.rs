//! The orderly end of a server: what has begun is finished, and nothing more is begun.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

static IS_ASKED: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A connection that is waited for.
#[derive(Debug)]
pub struct Connection(());

impl Connection {
    /// From now until it is dropped.
    #[must_use]
    pub fn begin() -> Self {
        OPEN.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether the server is to end: answers say that they are the last of their connection.
pub fn is_asked() -> bool {
    IS_ASKED.load(Ordering::SeqCst)
}

/// SIGTERM, to be waited for. To be called in a process's first thread before it starts others: they
/// have to leave the signal to the one that waits. The first process of a container hears no signal
/// that it does not ask for.
pub fn block() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(signals)
}

/// Tells every connection that its next answer is the last, and waits for them, but not for longer
/// than this.
pub fn finish(patience: Duration) {
    IS_ASKED.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + patience;
    while OPEN.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

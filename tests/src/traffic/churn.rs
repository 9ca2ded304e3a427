//! New connections all the time, while something happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use super::spread::{Outcome, Spread};
use crate::netns::Netns;

/// A thread that opens flows one after the other until it is stopped.
#[derive(Debug)]
pub struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Churn {
    /// Starts it in a namespace. `spread` says what each flow is; its count and ports do not
    /// matter. `pause` is the time between two flows.
    pub fn start(netns: &Netns, spread: Spread, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let one = Spread { count: 1, first_port: 0, ..spread };
        let thread = netns.spawn(move || {
            let mut outcome = Outcome::default();
            while !stopped.load(Ordering::Relaxed) {
                outcome.add(one.run());
                sleep(pause);
            }
            outcome
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops it and says what came of all flows.
    #[track_caller]
    pub fn stop(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("stopped only once");
        thread.join().expect("the thread does not panic")
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

//! Steady load while something happens around it: new connections at a rate, and connections that
//! stay. What of it failed, and when.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::http;
use super::socket::Source;

/// Threads that make new connections in turn. One that waits for an answer misses its turns.
const WORKERS: u32 = 16;
/// Between two requests on a connection that stays.
const HELD_EVERY: Duration = Duration::from_millis(100);
/// Failures of which the report says more than that they were.
const ERRORS: usize = 20;

/// Requests to an [`http`] server.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// To whom.
    pub target: SocketAddr,
    /// New connections each second, with one request each.
    pub rate: u32,
    /// Connections that stay, each with a request every 100 ms.
    pub held: u32,
    /// For each step of each request.
    pub timeout: Duration,
}

/// What came of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How long it lasted, in seconds.
    pub seconds: f64,
    /// Requests on connections of their own.
    pub requests: u32,
    /// How many of them had no answer.
    pub failed: u32,
    /// Requests on connections that stay.
    pub held_requests: u32,
    /// Connections of those that were lost: a request had no answer, and nobody had said before that
    /// the connection ends.
    pub lost: u32,
    /// Connections of those that ended in order, as the server had said; others took their places.
    pub ended: u32,
    /// The longest request, in milliseconds.
    pub slowest_ms: u64,
    /// Requests that each backend answered.
    pub backends: BTreeMap<String, u32>,
    /// The first few failures: seconds since the start, and why.
    pub errors: Vec<String>,
}

impl Report {
    fn answered(&mut self, name: String, took: Duration) {
        *self.backends.entry(name).or_default() += 1;
        self.slowest_ms = self.slowest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    fn error(&mut self, start: Instant, what: &str, error: &io::Error) {
        if self.errors.len() < ERRORS {
            self.errors.push(format!("{:.3} {what}: {error}", start.elapsed().as_secs_f64()));
        }
    }
}

struct Run<'a> {
    load: Load,
    start: Instant,
    is_over: &'a AtomicBool,
    report: Mutex<Report>,
}

impl Load {
    /// Goes on until it is over, in the calling thread's namespace.
    pub fn run(&self, is_over: &AtomicBool) -> Report {
        let run = Run {
            load: *self,
            start: Instant::now(),
            is_over,
            report: Mutex::new(Report::default()),
        };
        thread::scope(|scope| {
            for number in 0..WORKERS.min(self.rate) {
                let run = &run;
                scope.spawn(move || run.new_connections(number));
            }
            for _ in 0..self.held {
                scope.spawn(|| run.hold());
            }
        });
        let seconds = run.start.elapsed().as_secs_f64();
        let report = run.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        Report { seconds, ..report }
    }
}

impl Run<'_> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn report(&self, note: impl FnOnce(&mut Report)) {
        note(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Every so many requests of all, from this one on.
    fn new_connections(&self, number: u32) {
        let Load { target, rate, timeout, .. } = self.load;
        let workers = WORKERS.min(rate);
        let step = Duration::from_secs(1) * workers / rate;
        let mut due = self.start + Duration::from_secs(1) * number / rate;
        while !self.is_over() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let begin = Instant::now();
            let answer = http::who(target, Source::ANY, timeout);
            self.report(|report| {
                report.requests += 1;
                match answer {
                    Ok(answer) => report.answered(answer.name, begin.elapsed()),
                    Err(error) => {
                        report.failed += 1;
                        report.error(self.start, "new", &error);
                    }
                }
            });
            due += step;
            // What was missed is not made up for: that would be another load.
            while due + step < Instant::now() {
                due += step;
            }
        }
    }

    /// One connection, and another one whenever it has ended.
    fn hold(&self) {
        let Load { target, timeout, .. } = self.load;
        while !self.is_over() {
            match http::Client::connect(target, Source::ANY, timeout) {
                Ok(client) => self.use_connection(client),
                Err(error) => {
                    self.report(|report| {
                        report.requests += 1;
                        report.failed += 1;
                        report.error(self.start, "another to stay", &error);
                    });
                    thread::sleep(HELD_EVERY);
                }
            }
        }
    }

    fn use_connection(&self, mut client: http::Client) {
        while !self.is_over() {
            let begin = Instant::now();
            let answer = client.who();
            let is_lost = answer.is_err();
            let has_ended = client.is_ending();
            self.report(|report| {
                report.held_requests += 1;
                match answer {
                    Ok(answer) => report.answered(answer.name, begin.elapsed()),
                    Err(error) => {
                        report.lost += 1;
                        report.error(self.start, "stays", &error);
                    }
                }
                report.ended += u32::from(has_ended && !is_lost);
            });
            if is_lost || has_ended {
                return;
            }
            thread::sleep(HELD_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_nobody_answers_has_failed_and_what_is_answered_has_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        thread::spawn(move || http::serve(&listener, "a"));
        let over = AtomicBool::new(false);
        let load = Load { target, rate: 100, held: 2, timeout: Duration::from_secs(5) };
        let (served, refused) = thread::scope(|scope| {
            let served = scope.spawn(|| load.run(&over));
            // Port 9 of the loopback address: nobody is there.
            let nobody = Load { target: ([127, 0, 0, 1], 9).into(), ..load };
            let over = &over;
            let refused = scope.spawn(move || nobody.run(over));
            thread::sleep(Duration::from_millis(500));
            over.store(true, Ordering::Relaxed);
            (served.join().unwrap(), refused.join().unwrap())
        });
        assert_eq!((served.failed, served.lost, served.ended), (0, 0, 0), "{served:?}");
        assert!(served.requests >= 10 && served.held_requests >= 4, "{served:?}");
        assert_eq!(served.backends["a"], served.requests + served.held_requests);
        assert!(refused.failed >= 10 && refused.failed == refused.requests, "{refused:?}");
        assert!(!refused.errors.is_empty());
    }
}

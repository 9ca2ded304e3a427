//! Bulk in both directions, every byte compared.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::PATIENCE;
use super::http::Client;
use super::socket::Source;
use crate::netns::Netns;

/// What to move.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// An `http` server, or something in front of one.
    pub target: SocketAddr,
    /// From where.
    pub source: Source,
    /// Bytes each way: first down, then up, on one connection.
    pub bytes: u64,
    /// At most so many bytes per second, to make it last.
    pub rate: Option<u64>,
    /// For each read and write.
    pub timeout: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Bytes that were moved and compared, both ways together.
    pub bytes: u64,
    /// What went wrong.
    pub errors: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Transfer {
    /// `bytes` each way, as fast as it goes.
    pub fn new(target: SocketAddr, bytes: u64) -> Self {
        Self { target, source: Source::ANY, bytes, rate: None, timeout: PATIENCE }
    }

    /// At most so many bytes per second.
    #[must_use]
    pub fn rate(mut self, rate: u64) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Moves it, in the calling thread's namespace.
    pub fn run(&self) -> Report {
        let Self { target, source, bytes, rate, timeout } = *self;
        let start = Instant::now();
        let mut report = Report { bytes: 0, errors: Vec::new(), seconds: 0.0 };
        let moved = (|| -> io::Result<()> {
            let mut client = Client::connect(target, source, timeout)?;
            client.download(bytes, rate)?;
            report.bytes += bytes;
            client.upload(bytes, rate)?;
            report.bytes += bytes;
            Ok(())
        })();
        if let Err(error) = moved {
            report.errors.push(error.to_string());
        }
        report.seconds = start.elapsed().as_secs_f64();
        report
    }
}

/// Transfers one after the other, each on a connection of its own: one is always under way.
#[derive(Debug)]
pub struct Transfers {
    transfer: Transfer,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Report>>,
}

impl Transfers {
    /// Begins, in a namespace.
    pub fn start(netns: &Netns, transfer: Transfer) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = netns.spawn(move || {
            let mut reports = Vec::new();
            while !until.load(Ordering::Relaxed) {
                reports.push(transfer.run());
            }
            reports
        });
        Self { transfer, is_over, thread }
    }

    /// Waits for the end of the last one. Panics if one of them lost a byte.
    #[track_caller]
    pub fn all_went_well(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for report in self.thread.join().expect("the thread does not panic") {
            assert_eq!(report.errors, Vec::<String>::new());
            assert_eq!(report.bytes, 2 * self.transfer.bytes);
        }
    }
}

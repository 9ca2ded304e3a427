//! Events that are told once, one after the other: of what was done, which a [`Board`](super::board::Board)
//! of what lasts knows nothing of.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::board::How;
use super::bucket::Bucket;
use super::send::{About, Outcome, namespace, of_error};
use super::{Counts, add};
use crate::source::ObjectId;
use crate::source::kube::backoff::{Backoff, Failure};

/// Events that wait. More are counted and not told.
pub(in crate::source::kube) const QUEUE: usize = 2_000;
/// So many at once,
const BURST: u32 = 500;
/// and then one each so often.
const EVERY: Duration = Duration::from_millis(200);
/// One request.
const ANSWER: Duration = Duration::from_secs(5);
/// What the API does not answer is tried again so often.
const ATTEMPTS: u32 = 10;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source::kube) struct Telling {
    /// Of the Event: what has the same one is told once.
    pub(in crate::source::kube) name: String,
    /// What it is about.
    pub(in crate::source::kube) object: ObjectId,
    /// Its `metadata.uid`.
    pub(in crate::source::kube) uid: String,
    /// For machines.
    pub(in crate::source::kube) reason: &'static str,
    /// For people.
    pub(in crate::source::kube) note: String,
    /// Whether something is not as it should be.
    pub(in crate::source::kube) is_warning: bool,
    /// What was done or not.
    pub(in crate::source::kube) action: &'static str,
}

/// Sends what there is to tell, for ever.
pub(in crate::source::kube) async fn run(
    mut queue: mpsc::Receiver<Telling>,
    client: Client,
    node: &str,
    counts: &Counts,
) {
    let mut bucket = Bucket::new(BURST, EVERY, Instant::now());
    let mut backoff = Backoff::default();
    loop {
        // The sender lives as long as this.
        let Some(telling) = queue.recv().await else { return std::future::pending().await };
        for attempt in 1..=ATTEMPTS {
            sleep_until(bucket.next(Instant::now())).await;
            bucket.take(Instant::now());
            let failure = match send(&client, node, &telling).await {
                Outcome::Created => {
                    add(&counts.created, 1);
                    break;
                }
                Outcome::Exists => {
                    add(&counts.existed, 1);
                    break;
                }
                Outcome::Unanswered(failure) if attempt < ATTEMPTS => failure,
                _ => {
                    add(&counts.refused, 1);
                    break;
                }
            };
            sleep(backoff.after(failure)).await;
        }
        backoff.reset();
    }
}

async fn send(client: &Client, node: &str, telling: &Telling) -> Outcome {
    let Telling { name, object, uid, reason, note, is_warning, action } = telling;
    let api = Api::<Event>::namespaced(client.clone(), namespace(object));
    let about = About { object, uid, reason, note, is_warning: *is_warning, action };
    let event = about.event(name, node, MicroTime(Timestamp::now()));
    match timeout(ANSWER, api.create(&PostParams::default(), &event)).await {
        Ok(Ok(_)) => Outcome::Created,
        Ok(Err(error)) => {
            let outcome = of_error(&error, How::Create);
            if outcome == Outcome::Refused {
                tracing::warn!(%object, "an Event is refused: {error}");
            }
            outcome
        }
        Err(_) => Outcome::Unanswered(Failure::Silence),
    }
}

//! The lease of this node, renewed, and those of others, looked at when it matters.
//!
//! Nobody watches leases: a thousand agents that did would be told of each of a thousand renewals. All are
//! listed at the start, to learn where the others are, and now and then; otherwise an agent asks for those of
//! nodes only that the members do not call alive.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Error};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::backoff::chance;
use super::watch::describe;
use crate::members::{Ask, LeaseLink, Record, Told};

/// What the names of leases begin with; the rest is the node's name.
const PREFIX: &str = "lbxdp-node-";
/// By which they are listed.
const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "member");
/// Where the holder hears the other agents.
const ADDRESS: &str = "lbxdp.io/members-address";
/// One question and one answer. More would let the own lease run out.
const ANSWER: Duration = Duration::from_secs(2);
/// After an attempt in vain. Sooner than the next renewal would be due, and a lease lasts for several.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
/// All leases are listed this often, half as long to half as long again.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// Until that worked once.
const LIST_AGAIN: Duration = Duration::from_secs(2);
/// With more of them to look at, they are listed instead,
const SEVERAL: usize = 8;
/// no more often than for each node so often.
const LIST_PER_NODE: Duration = Duration::from_millis(25);
const QUEUE: usize = 64;

/// The ends of the channels, and who keeps the leases. It lives as long as somebody asks.
pub(super) fn link(
    client: Client,
    namespace: &str,
    node: &str,
) -> (LeaseLink, impl Future<Output = ()> + use<>) {
    let (ask, asked) = watch::channel(Ask::default());
    let (tell, told) = mpsc::channel(QUEUE);
    let keeper = Keeper {
        api: Api::namespaced(client, namespace),
        node: node.to_owned(),
        asked,
        tell,
        error: None,
        known: 0,
    };
    (LeaseLink { ask, told }, keeper.run())
}

struct Keeper {
    api: Api<Lease>,
    node: String,
    asked: watch::Receiver<Ask>,
    tell: mpsc::Sender<Told>,
    /// What went wrong last, to say it once.
    error: Option<String>,
    /// Leases in the last list.
    known: usize,
}

impl Keeper {
    async fn run(mut self) {
        // Nothing is asked before the members have begun.
        if self.asked.changed().await.is_err() {
            return;
        }
        // When it was tried last, with which address, and whether it was done.
        let mut tried: Option<(Instant, _, bool)> = None;
        let mut list_due = Instant::now();
        loop {
            let ask = self.asked.borrow_and_update().clone();
            if ask.give_back {
                // Who has never had one has nothing to give back.
                if tried.is_some() {
                    self.renew(&ask).await;
                }
                return self.tell(Told::GivenBack).await;
            }
            let now = Instant::now();
            let renew_due = match tried {
                Some((when, at, true)) if at == ask.at => when + ask.renew_every,
                Some((when, at, false)) if at == ask.at => when + RENEW_AGAIN,
                _ => now,
            };
            let look = ask.look.iter().min_by_key(|(_, due)| **due);
            let several = ask.look.values().filter(|due| **due <= now).count() > SEVERAL;
            if renew_due <= now {
                if tried.is_none_or(|(_, at, _)| at != ask.at) {
                    // Who begins to hear looks for the others: they may have begun meanwhile.
                    list_due = now;
                }
                tried = Some((now, ask.at, self.renew(&ask).await));
            } else if list_due <= now || several {
                let pause = match self.list().await {
                    true if several => (LIST_PER_NODE * count(self.known)).max(LIST_AGAIN),
                    true => LIST_EVERY.mul_f64(0.5 + chance()),
                    false => LIST_AGAIN,
                };
                list_due = Instant::now() + pause;
            } else if let Some((node, due)) = look
                && *due <= now
            {
                self.look(node).await;
            } else {
                let wake = look.map(|(_, due)| *due).into_iter().chain([renew_due, list_due]).min();
                tokio::select! {
                    changed = self.asked.changed() => {
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = sleep_until(wake.unwrap_or(list_due)) => {}
                }
            }
        }
    }

    /// Or gives it back: without a holder it is nobody's. Whether that was done.
    async fn renew(&mut self, ask: &Ask) -> bool {
        let name = format!("{PREFIX}{}", self.node);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(
                    [COMPONENT, ("app.kubernetes.io/name", "lbxdp")]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                annotations: ask.at.map(|at| [(ADDRESS.to_owned(), at.to_string())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: (!ask.give_back).then(|| self.node.clone()),
                renew_time: (!ask.give_back).then(|| MicroTime(Timestamp::now())),
                lease_duration_seconds: i32::try_from(ask.lasts.as_secs()).ok(),
                ..LeaseSpec::default()
            }),
        };
        let params = PatchParams::apply("lbxdp").force();
        let patch = Patch::Apply(&lease);
        let asked = self.api.patch(&name, &params, &patch);
        let Some(_) = self.outcome("renewing", timeout(ANSWER, asked).await) else { return false };
        if !ask.give_back {
            self.tell(Told::Renewed).await;
        }
        true
    }

    async fn list(&mut self) -> bool {
        let selector = format!("{}={}", COMPONENT.0, COMPONENT.1);
        // From the server's memory, which may be a moment old: that is for everybody to afford.
        let params = ListParams::default().labels(&selector).match_any();
        let asked = self.api.list(&params);
        let Some(list) = self.outcome("listing", timeout(ANSWER, asked).await) else {
            return false;
        };
        let records: Vec<Record> = list.items.iter().filter_map(record).collect();
        self.known = records.len();
        self.tell(Told::All(records)).await;
        true
    }

    async fn look(&mut self, node: &str) {
        let name = format!("{PREFIX}{node}");
        let asked = self.api.get_opt(&name);
        if let Some(lease) = self.outcome("looking at", timeout(ANSWER, asked).await) {
            let record = lease.as_ref().and_then(record);
            self.tell(Told::Looked(node.to_owned(), record)).await;
        } else {
            // The members ask for it until they are told.
            sleep_until(Instant::now() + LIST_AGAIN.mul_f64(chance())).await;
        }
    }

    async fn tell(&self, told: Told) {
        // Nobody listens when the agent ends.
        let _ = self.tell.send(told).await;
    }

    fn outcome<T, E>(&mut self, what: &str, result: Result<Result<T, Error>, E>) -> Option<T> {
        let error = match result {
            Ok(Ok(value)) => {
                self.error = None;
                return Some(value);
            }
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("no answer within {ANSWER:?}"),
        };
        let text = format!("{what} the leases of nodes: {error}");
        if self.error.as_ref() != Some(&text) {
            tracing::warn!("{text}");
        }
        self.error = Some(text);
        None
    }
}

fn count(known: usize) -> u32 {
    u32::try_from(known).unwrap_or(u32::MAX)
}

/// What a lease says; `None` if it is not a node's.
fn record(lease: &Lease) -> Option<Record> {
    let node = lease.metadata.name.as_deref()?.strip_prefix(PREFIX)?;
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
    let annotations = lease.metadata.annotations.as_ref();
    Some(Record {
        node: node.to_owned(),
        at: annotations.and_then(|all| all.get(ADDRESS)?.parse().ok()),
        renewed: renewed.filter(|_| holder == Some(node)).map(|time| time.0.to_string()),
        lasts: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(name: &str, holder: &str) -> Option<Record> {
        let lease = json!({
            "metadata": {"name": name, "annotations": {ADDRESS: "192.0.2.7:10470"}},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": 10,
                "renewTime": "2026-01-02T03:04:05.000000Z",
            },
        });
        record(&serde_json::from_value(lease).unwrap())
    }

    #[test]
    fn a_lease_says_whose_it_is_where_that_hears_and_whether_it_is_held() {
        let held = read("lbxdp-node-a.example", "a.example").unwrap();
        assert_eq!(held.node, "a.example");
        assert_eq!(held.at, Some("192.0.2.7:10470".parse().unwrap()));
        assert_eq!(held.lasts, Duration::from_secs(10));
        assert!(held.renewed.is_some());
        assert_eq!(read("lbxdp-node-a", "").unwrap().renewed, None);
        assert_eq!(read("lbxdp", "a"), None);
    }
}

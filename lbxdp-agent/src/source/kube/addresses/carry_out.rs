//! Decisions on their way into the API.
//!
//! Each patch names the version of the object that it was decided for. A refusal because of that is no
//! failure: the new version is on its way, and is decided about anew. Nothing is written that the lease
//! does not cover to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::inputs::Inputs;
use super::lease::RENEW_EVERY;
use super::raw::Raw;
use super::states::States;
use crate::source::kube::backoff::{Backoff, Failure};
use crate::source::kube::watch::{Watched, describe, failure};
use crate::source::{Kind, ObjectId};
use crate::vip::resources::{IpAddressPool, L2Advertisement};
use crate::vip::{self, Decided, Fate, Tally};

/// One request. Whoever holds the lease next does not begin before it is over.
const ANSWER: Duration = Duration::from_secs(4);
/// Requests at the same time.
const AT_ONCE: usize = 8;
const GONE: u16 = 404;
const CONFLICT: u16 = 409;

/// A version of a Service that needs no (other) write.
type Version = (Option<String>, Option<String>);

/// Writes what is decided.
pub(super) struct Writer {
    client: Client,
    /// Versions that were written to, or that the API does not have any more. What comes of it the
    /// watch will say.
    settled: BTreeMap<ObjectId, Version>,
    states: States,
    /// What the API has against a write, to say it once.
    errors: BTreeMap<ObjectId, String>,
    backoff: Backoff,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Services that have what was decided.
    pub written: BTreeSet<ObjectId>,
    /// When to try again.
    pub retry: Option<Instant>,
}

struct Write {
    id: ObjectId,
    version: Version,
    patch: Value,
}

impl Writer {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            settled: BTreeMap::new(),
            states: States::default(),
            errors: BTreeMap::new(),
            backoff: Backoff::default(),
        }
    }

    /// Writes what the objects do not show yet. `until` is when the lease ends.
    pub(super) async fn carry_out(
        &mut self,
        decided: &Decided,
        inputs: &Inputs,
        until: Instant,
        tally: &Tally,
    ) -> Done {
        let now = Time(Timestamp::now());
        let mut writes = self.services(decided, inputs, &now);
        writes.extend(
            self.states.due(decided, inputs, &now).into_iter().map(|(id, patch)| Write {
                id,
                version: Version::default(),
                patch,
            }),
        );
        let client = &self.client;
        let sent = stream::iter(writes).map(|write| async move {
            if Instant::now() + ANSWER > until {
                return (write, None);
            }
            let outcome = timeout(ANSWER, send(client, &write)).await;
            (write, Some(outcome))
        });
        let mut sent = sent.buffer_unordered(AT_ONCE);
        let mut result = Done::default();
        let mut failed = None;
        // The lease is renewed every few seconds.
        let mut is_too_late = false;
        let mut errors = BTreeMap::new();
        let mut done = Vec::new();
        while let Some((write, outcome)) = sent.next().await {
            let what = match write.id.kind {
                Kind::Service => vip::Written::Service,
                _ => vip::Written::Pool,
            };
            let fate = match outcome {
                None => {
                    is_too_late = true;
                    continue;
                }
                Some(Ok(Ok(()))) => Fate::Done,
                Some(Ok(Err(Error::Api(status)))) if [GONE, CONFLICT].contains(&status.code) => {
                    Fate::Conflict
                }
                Some(Ok(Err(error))) => {
                    errors.insert(write.id.clone(), describe(&error));
                    failed = Some(failure(&error));
                    Fate::Failed
                }
                Some(Err(_)) => {
                    errors.insert(write.id.clone(), format!("no answer within {ANSWER:?}"));
                    failed = Some(Failure::Silence);
                    Fate::Failed
                }
            };
            tally.wrote(what, fate);
            done.push((write, fate));
        }
        drop(sent);
        for (id, error) in &errors {
            if self.errors.get(id) != Some(error) {
                tracing::warn!(object = %id, "writing its status: {error}");
            }
        }
        self.errors = errors;
        for (Write { id, version, patch }, fate) in done {
            match (id.kind, fate) {
                (_, Fate::Failed) => {}
                (Kind::Service, fate) => {
                    if fate == Fate::Done {
                        result.written.insert(id.clone());
                    }
                    self.settled.insert(id, version);
                }
                (_, _) => self.states.written(id, patch),
            }
        }
        match failed {
            Some(failure) => result.retry = Some(Instant::now() + self.backoff.after(failure)),
            None => self.backoff.reset(),
        }
        if is_too_late {
            let soon = Instant::now() + RENEW_EVERY / 2;
            result.retry = Some(result.retry.map_or(soon, |retry| retry.min(soon)));
        }
        result
    }

    fn services(&mut self, decided: &Decided, inputs: &Inputs, now: &Time) -> Vec<Write> {
        let mut writes = Vec::new();
        for (id, decision) in &decided.outcome.services {
            let Some(service) = inputs.service(id) else { continue };
            let version = version(service);
            if self.settled.get(id) == Some(&version) {
                continue;
            }
            let is_ours = vip::is_load_balancer(service);
            if let Some(patch) = vip::patch(service, decision, is_ours, now) {
                writes.push(Write { id: id.clone(), version, patch });
            }
        }
        self.settled.retain(|id, version| {
            inputs.service(id).is_some_and(|service| self::version(service) == *version)
        });
        writes
    }
}

fn version(service: &Service) -> Version {
    (service.metadata.uid.clone(), service.metadata.resource_version.clone())
}

async fn send(client: &Client, Write { id, patch, .. }: &Write) -> Result<(), Error> {
    match id.kind {
        Kind::Service => patch_status::<Service>(client, id, patch).await,
        Kind::IpAddressPool => patch_status::<Raw<IpAddressPool>>(client, id, patch).await,
        _ => patch_status::<Raw<L2Advertisement>>(client, id, patch).await,
    }
}

async fn patch_status<K>(client: &Client, id: &ObjectId, patch: &Value) -> Result<(), Error>
where
    K: Watched + DeserializeOwned + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let api = Api::<K>::namespaced(client.clone(), &id.namespace);
    api.patch_status(&id.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

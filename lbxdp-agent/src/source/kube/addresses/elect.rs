//! The lease at the API.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Error};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::lease::{Candidate, DURATION, RENEW_EVERY, Record, Step, held_until};
use crate::source::kube::backoff::{Backoff, chance};
use crate::source::kube::watch::{describe, failure};

/// Name of the lease.
pub(super) const NAME: &str = "lbxdp";
/// One question and one answer.
const ANSWER: Duration = Duration::from_secs(3);
const CONFLICT: u16 = 409;

/// One who would hold the lease.
pub(super) struct Elector {
    api: Api<Lease>,
    candidate: Candidate,
    backoff: Backoff,
    /// Until when it is held, if it is.
    held: watch::Sender<Option<Instant>>,
    /// What is wrong, to say it once.
    error: Option<String>,
}

impl Elector {
    /// The lease of this namespace, for somebody of this name.
    pub(super) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            candidate: Candidate::new(identity),
            backoff: Backoff::default(),
            held: watch::Sender::new(None),
            error: None,
        }
    }

    /// Until when the lease is held.
    pub(super) fn held(&self) -> watch::Receiver<Option<Instant>> {
        self.held.subscribe()
    }

    /// Tries to get the lease and to keep it, for ever.
    pub(super) async fn run(&mut self) {
        loop {
            let pause = self.turn().await;
            // A pause must not outlast what is believed.
            let end = self.held.borrow().unwrap_or_else(|| Instant::now() + pause);
            sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
            if self.held.borrow().is_some_and(|until| until <= Instant::now()) {
                tracing::warn!("the lease of the address controller could not be renewed in time");
                self.held.send_replace(None);
            }
        }
    }

    /// Lets others have it at once.
    pub(super) async fn release(&mut self) {
        if self.held.send_replace(None).is_none() {
            return;
        }
        let released = timeout(ANSWER, async {
            let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.candidate.identity()) {
                spec.holder_identity = Some(String::new());
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, Error>(())
        });
        if let Ok(Err(error)) = released.await {
            tracing::warn!("releasing the lease: {}", describe(&error));
        }
    }

    /// One look, and what follows from it; when to look again.
    async fn turn(&mut self) -> Duration {
        let asked = Instant::now();
        match timeout(ANSWER, self.once()).await {
            Ok(Ok(Step::Wait(pause))) => {
                self.answered();
                self.held.send_replace(None);
                pause
            }
            Ok(Ok(Step::Create | Step::Take | Step::Renew)) => {
                self.answered();
                if self.held.send_replace(Some(held_until(asked))).is_none() {
                    tracing::info!("this agent gives addresses to Services now");
                }
                RENEW_EVERY
            }
            // Somebody was faster. What it says now is a matter of another look.
            Ok(Err(Error::Api(status))) if status.code == CONFLICT => {
                Duration::from_millis(500).mul_f64(chance())
            }
            Ok(Err(error)) => {
                self.failed(describe(&error));
                self.backoff.after(failure(&error))
            }
            Err(_) => {
                self.failed(format!("no answer within {ANSWER:?}"));
                self.backoff.after(crate::source::kube::backoff::Failure::Silence)
            }
        }
    }

    async fn once(&mut self) -> Result<Step, Error> {
        let lease = self.api.get_opt(NAME).await?;
        let record = lease.as_ref().map(record);
        let step = self.candidate.look(record, Instant::now(), chance());
        let params = PostParams::default();
        match (step, lease) {
            (Step::Wait(_), _) => {}
            // The version of the object makes it fail if it is another one by now.
            (_, Some(lease)) => {
                let lease = self.held_by_us(lease);
                self.api.replace(NAME, &params, &lease).await?;
            }
            (_, None) => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let lease = self.held_by_us(Lease { metadata, spec: None });
                self.api.create(&params, &lease).await?;
            }
        }
        Ok(step)
    }

    fn held_by_us(&self, mut lease: Lease) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let old = lease.spec.take().unwrap_or_default();
        let is_ours = old.holder_identity.as_deref() == Some(self.candidate.identity());
        let transitions = old.lease_transitions.unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.candidate.identity().to_owned()),
            acquire_time: if is_ours { old.acquire_time } else { now.clone() },
            renew_time: now,
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(if is_ours { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        });
        lease
    }

    fn answered(&mut self) {
        self.backoff.reset();
        self.error = None;
    }

    fn failed(&mut self, text: String) {
        if self.error.as_ref() != Some(&text) {
            tracing::warn!(lease = NAME, "nobody may be giving addresses to Services: {text}");
        }
        self.error = Some(text);
    }
}

fn record(lease: &Lease) -> Record {
    let none = LeaseSpec::default();
    let spec = lease.spec.as_ref().unwrap_or(&none);
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.clone(),
        duration: seconds.map_or(DURATION, Duration::from_secs),
        renewed: spec.renew_time.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
    }
}

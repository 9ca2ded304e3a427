//! From where which addresses are announced: followed by every agent, lease or not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::inputs::Inputs;
use super::metallb::MetalLb;
use super::remember::{Known, Memory};
use super::{QUEUE, SETTLE, hear};
use crate::layer2::{NodeFacts, Resources, Written};
use crate::source::kube::{PATIENCE, sleep_until_if};

/// What it tells: `None` until everything is known.
pub(super) type Told = watch::Sender<Option<Arc<Resources>>>;

/// This is known.
fn tell(told: &Told, known: &Known) {
    told.send_replace(Some(Arc::new(Resources::from(known.written.clone()))));
}

/// Follows it, for ever.
pub(super) async fn run(
    client: Client,
    pool_namespaces: BTreeSet<String>,
    adopt_classless: bool,
    hold: Duration,
    told: Told,
    memory: Memory,
) {
    let (sender, mut heard) = mpsc::channel(QUEUE);
    let _watches = hear::follow_announcing(&client, &sender);
    let mut inputs = Inputs::new(hold, Instant::now());
    let mut metallb = MetalLb::default();
    let mut last = None;
    // Used when the API has not listed everything by then.
    let mut patience = Some(Instant::now() + PATIENCE);
    loop {
        let now = Instant::now();
        inputs.tick(now);
        metallb.look(inputs.metallb(), now);
        if patience.is_some_and(|due| due <= now) {
            patience = None;
            last = memory.read();
            if let Some(known) = &last {
                tracing::info!("no API server has answered: announcing by what was known last");
                tell(&told, known);
            }
        }
        if inputs.are_announced(now) {
            patience = None;
            let nodes: Vec<NodeFacts> = inputs.nodes().cloned().collect();
            let (facts, _) = inputs.facts(&pool_namespaces, &[]);
            // Whose Services they are is whose speakers announce them.
            let adopts = adopt_classless && !metallb.is_alive();
            // Nodes say all the time that they are there.
            let known = Known::new(Written::new(&facts, nodes, adopts));
            if last.as_ref() != Some(&known) {
                tell(&told, &known);
                memory.write(&known);
                last = Some(known);
            }
        }
        let now = Instant::now();
        let doubts = [inputs.due(now), metallb.due().filter(|due| *due > now)];
        let wake = doubts.into_iter().flatten().chain(patience).min();
        tokio::select! {
            Some(first) = heard.recv() => {
                inputs.take(first, Instant::now());
                // What belongs together comes together.
                let settled = Instant::now() + SETTLE;
                while let Ok(Some(more)) = timeout_at(settled, heard.recv()).await {
                    inputs.take(more, Instant::now());
                }
            }
            () = sleep_until_if(wake) => {}
        }
    }
}

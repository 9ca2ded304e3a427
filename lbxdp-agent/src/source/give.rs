//! Addresses for Services where no API remembers them: pools are in the files, and who has what is in a
//! file of the state directory.
//!
//! A decision is written before anything of it is served. What cannot be read is not overwritten: nobody
//! gets or loses an address until it can.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::write::write_atomically;
use super::{Object, Sourced};
use crate::layer2::{NodeFacts, Resources};
use crate::lock::Lock;
use crate::model::Reason;
use crate::problem::Problems;
use crate::vip::manifest::Document;
use crate::vip::{Allocator, Decided, Facts, Fate, State, Tally, View, Written, is_ours};

const FILE: &str = "addresses.json";
/// Of the file's content. Another one is not read.
const FORMAT: u32 = 1;
/// An address that somebody gives up is free in the next pass; after so many nothing is left to do.
const PASSES: u32 = 10;

/// What is given to whom.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where who has what is kept.
    pub state_dir: PathBuf,
    /// Whether Services without a class get addresses.
    pub adopt_classless: bool,
    /// Where pools have to be; anywhere, if empty.
    pub pool_namespaces: Vec<String>,
    /// Ranges of ClusterIPs.
    pub service_cidrs: Vec<IpNet>,
}

/// Gives addresses.
#[derive(Debug)]
pub struct Giver {
    options: Options,
    /// Who has what; `None` until it was read.
    state: Option<State>,
    lock: Option<Lock>,
    tally: Arc<Tally>,
    resources: watch::Sender<Option<Arc<Resources>>>,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(flatten)]
    state: State,
}

impl Giver {
    /// Reads nothing yet.
    pub fn new(options: Options) -> Self {
        let (resources, _) = watch::channel(None);
        Self { options, state: None, lock: None, tally: Arc::default(), resources }
    }

    /// From where which addresses are announced.
    pub fn resources(&self) -> watch::Receiver<Option<Arc<Resources>>> {
        self.resources.subscribe()
    }

    /// What there is to see of it.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Makes Services show the addresses that they have.
    pub(super) fn give(
        &mut self,
        objects: &mut [Sourced<Object>],
        given: Vec<Sourced<Document>>,
        problems: &mut Problems,
    ) {
        let facts = self.facts(objects, given);
        let nodes = objects.iter().filter_map(|sourced| match &sourced.object {
            Object::Node(node) => Some(NodeFacts::read(node)),
            _ => None,
        });
        let resources = Resources::new(&facts, nodes.collect(), self.options.adopt_classless);
        self.resources.send_replace(Some(Arc::new(resources.alone())));
        // Without pools Services without a class are none of ours, unless they have something of ours.
        let adopts = self.options.adopt_classless
            && (!facts.pools.is_empty() || self.state.as_ref().is_some_and(|it| !it.is_empty()));
        let mut services: Vec<Service> = objects
            .iter()
            .filter_map(|sourced| match &sourced.object {
                Object::Service(service) => Some(service.as_ref().clone()),
                _ => None,
            })
            .collect();
        let is_needed = !facts.pools.is_empty()
            || self.path().exists()
            || services.iter().any(|service| is_ours(service, adopts));
        if !is_needed {
            return self.tally.show(View::default());
        }
        let is_ours = |service: &Service| is_ours(service, adopts);
        let state = match self.read() {
            Ok(state) => state,
            Err(error) => {
                let message = format!("{error:#}: no address is given or taken until it is mended");
                let path = self.path().display().to_string();
                problems.about(&path, "state").error("", message);
                State::default()
            }
        };
        let Some(known) = self.state.clone() else {
            return show(objects, &state, is_ours);
        };
        let (decided, state) = settle(&facts, &mut services, known.clone(), adopts, is_ours);
        problems.extend(decided.problems.iter().cloned());
        for sourced in objects.iter() {
            let failure = decided.outcome.services.get(&sourced.object.id());
            if let Some(failure) = failure.and_then(|decision| decision.failure.as_ref()) {
                let about = sourced.object.id().to_string();
                let mut report = problems.about(&sourced.origin, &about);
                report.because(Reason::NotServedAsWritten).warning("", &failure.message);
            }
        }
        self.tally.show(View {
            is_giving: true,
            is_adoption_refused: false,
            pools: decided.counts(),
            pending: decided.pending(),
        });
        if state == known {
            return show(objects, &known, is_ours);
        }
        match self.write(&state) {
            Ok(()) => {
                self.tally.wrote(Written::File, Fate::Done);
                show(objects, &state, is_ours);
                self.state = Some(state);
            }
            Err(error) => {
                self.tally.wrote(Written::File, Fate::Failed);
                let message = format!("{error:#}: who has which address stays as it was");
                problems.about(&self.path().display().to_string(), "state").error("", message);
                show(objects, &known, is_ours);
            }
        }
    }

    fn facts(&self, objects: &[Sourced<Object>], given: Vec<Sourced<Document>>) -> Facts {
        let Options { pool_namespaces, service_cidrs, .. } = &self.options;
        let mut facts = Facts {
            pool_namespaces: pool_namespaces.iter().cloned().collect(),
            ..Facts::default()
        };
        facts.reserved.service_cidrs.clone_from(service_cidrs);
        for sourced in objects {
            if let Object::Node(node) = &sourced.object {
                facts.reserved.nodes.extend(addresses(node));
            }
        }
        for Sourced { origin, object } in given {
            match object {
                Document::Pool(pool) => facts.pools.push(Sourced::new(origin, *pool)),
                Document::Advertisement(it) => {
                    facts.advertisements.push(Sourced::new(origin, *it));
                }
                Document::Namespace(namespace) => {
                    let metadata = namespace.metadata;
                    let name = metadata.name.unwrap_or_default();
                    facts.namespaces.insert(name, metadata.labels.unwrap_or_default());
                }
            }
        }
        // A file that has no namespaces has no labels of them, rather than not yet.
        for sourced in objects {
            let namespace = sourced.object.id().namespace.to_string();
            facts.namespaces.entry(namespace).or_default();
        }
        facts
    }

    fn path(&self) -> PathBuf {
        self.options.state_dir.join(FILE)
    }

    /// Who has what, from the file if it was not read yet.
    fn read(&mut self) -> anyhow::Result<State> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        let state = match fs::read(self.path()) {
            Ok(text) => {
                let Stored { format, state } = serde_json::from_slice(&text)?;
                ensure!(format == FORMAT, "format {format} instead of {FORMAT}");
                state
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error.into()),
        };
        Ok(self.state.insert(state).clone())
    }

    fn write(&mut self, state: &State) -> anyhow::Result<()> {
        let dir = &self.options.state_dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| dir.display().to_string())?;
        if self.lock.is_none() {
            self.lock = Lock::take_state(dir)?;
        }
        let stored = Stored { format: FORMAT, state: state.clone() };
        write_atomically(&self.path(), |file| Ok(serde_json::to_writer_pretty(file, &stored)?))
    }
}

/// Decides until nothing is left to do.
fn settle(
    facts: &Facts,
    services: &mut [Service],
    mut state: State,
    adopts: bool,
    is_ours: impl Fn(&Service) -> bool,
) -> (Decided, State) {
    let mut decided = Decided::default();
    for _ in 0..PASSES {
        for service in services.iter_mut().filter(|service| is_ours(service)) {
            state.show(service);
        }
        let all: Vec<Arc<Service>> = services.iter().cloned().map(Arc::new).collect();
        // What is decided shows at once: there is nothing to remember from pass to pass.
        decided = facts.decide(&all, adopts, &mut Allocator::default());
        if !state.update(&decided.outcome) {
            break;
        }
    }
    (decided, state)
}

fn show(objects: &mut [Sourced<Object>], state: &State, is_ours: impl Fn(&Service) -> bool) {
    for sourced in objects {
        if let Object::Service(service) = &mut sourced.object
            && is_ours(service)
        {
            state.show(Arc::make_mut(service));
        }
    }
}

/// A node's addresses, and whose they are.
fn addresses(node: &Node) -> Vec<(std::net::IpAddr, String)> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref());
    let addresses = addresses.unwrap_or_default().iter();
    addresses.filter_map(|it| Some((it.address.parse().ok()?, name.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{Problem, Severity};
    use crate::source::manifests::Manifests;
    use crate::source::{ObjectId, Snapshot};
    use crate::vip::Assignment;

    struct World {
        files: tempfile::TempDir,
        state: tempfile::TempDir,
        manifests: Manifests,
    }

    fn manifests(files: &Path, state: &Path) -> Manifests {
        let options = Options {
            state_dir: state.join("made"),
            adopt_classless: true,
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            ..Options::default()
        };
        Manifests::open(files).unwrap().giving(Giver::new(options))
    }

    impl World {
        fn new() -> Self {
            let (files, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let manifests = manifests(files.path(), state.path());
            Self { files, state, manifests }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.files.path().join(name), text).unwrap();
        }

        fn pool(&self, addresses: &str) {
            self.write(
                "pool.yaml",
                &format!(
                    "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\n\
                     metadata: {{name: a, namespace: lb}}\nspec: {{addresses: [{addresses}]}}\n---\n\
                     apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\n\
                     metadata: {{name: a, namespace: lb}}\n"
                ),
            );
        }

        fn service(&self, name: &str) {
            // A status of elsewhere is none of this one's.
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
                 spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n\
                 status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.77}}]}}}}\n"
            );
            self.write(&format!("{name}.yaml"), &text);
        }

        fn restart(&mut self) {
            self.manifests = manifests(self.files.path(), self.state.path());
        }

        fn file(&self) -> PathBuf {
            self.state.path().join("made").join(FILE)
        }

        /// `name address` of every Service, and the problems.
        fn load(&mut self) -> (Vec<String>, Vec<Problem>) {
            let Snapshot { objects, problems } = self.manifests.load();
            let objects = objects.iter().filter_map(|Sourced { object, .. }| {
                let Object::Service(service) = object else { return None };
                let ObjectId { name, .. } = object.id();
                let shown = Assignment::shown(service).addresses;
                Some(format!(
                    "{name} {}",
                    shown.iter().map(|it| format!("{it}")).collect::<String>()
                ))
            });
            (objects.collect(), problems)
        }
    }

    #[test]
    fn services_show_what_they_have_and_a_restart_changes_nothing() {
        let mut world = World::new();
        world.pool("192.0.2.1-192.0.2.2");
        world.service("x");
        world.service("y");
        let expected = ["x 192.0.2.1", "y 192.0.2.2"];
        assert_eq!(world.load(), (expected.map(str::to_owned).into(), vec![]));
        let written = fs::read_to_string(world.file()).unwrap();
        assert!(written.contains("\"format\": 1") && written.contains("default/x"), "{written}");
        // One more, first by name.
        world.service("a");
        world.restart();
        let (services, problems) = world.load();
        assert_eq!(services, ["a ", "x 192.0.2.1", "y 192.0.2.2"]);
        assert!(problems[0].to_string().contains("Service default/a: Failed to allocate"));
        assert_eq!(problems[0].severity, Severity::Warning);
        fs::remove_file(world.files.path().join("x.yaml")).unwrap();
        assert_eq!(world.load().0, ["a 192.0.2.1", "y 192.0.2.2"]);
    }

    #[test]
    fn an_address_that_is_given_up_and_wanted_is_had_at_once() {
        let mut world = World::new();
        world.pool("192.0.2.1/32");
        world.service("x");
        world.load();
        world.pool("192.0.2.1-192.0.2.2");
        let wanting = "apiVersion: v1\nkind: Service\nmetadata: {name: b}\n\
            spec: {type: LoadBalancer, loadBalancerIP: 192.0.2.1, clusterIP: 10.96.0.2, \
            ports: [{port: 80}]}\n";
        world.write("b.yaml", wanting);
        assert_eq!(world.load().0, ["b ", "x 192.0.2.1"]);
        fs::remove_file(world.files.path().join("x.yaml")).unwrap();
        assert_eq!(world.load().0, ["b 192.0.2.1"]);
    }

    #[test]
    fn without_pools_the_files_say_it_all_and_nothing_is_written() {
        let mut world = World::new();
        world.service("x");
        assert_eq!(world.load(), (vec!["x 203.0.113.77".to_owned()], vec![]));
        assert!(!world.state.path().join("made").exists());
    }

    #[test]
    fn what_is_reserved_is_not_given() {
        let mut world = World::new();
        world.pool("192.0.2.1-192.0.2.3, 10.96.7.0/30");
        world.write(
            "node.yaml",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n\
             status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n",
        );
        world.service("x");
        let (services, problems) = world.load();
        assert_eq!(services, ["x 192.0.2.2"]);
        let all: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        assert!(all.contains("the address of node n1") && all.contains("ClusterIPs"), "{all}");
    }

    #[test]
    fn a_broken_state_file_is_named_and_left_as_it_is() {
        let mut world = World::new();
        world.pool("192.0.2.1-192.0.2.2");
        world.service("x");
        world.load();
        let good = fs::read(world.file()).unwrap();
        for bad in ["{\"format\": 1, \"serv", "{\"format\": 7, \"services\": {}}"] {
            fs::write(world.file(), bad).unwrap();
            world.restart();
            world.service("a");
            let (services, problems) = world.load();
            // An error: what the maps have stays.
            assert_eq!(services, ["a ", "x "]);
            let text = problems[0].to_string();
            assert_eq!(problems[0].severity, Severity::Error, "{text}");
            assert!(
                text.contains("addresses.json") && text.contains("until it is mended"),
                "{text}"
            );
            assert_eq!(fs::read_to_string(world.file()).unwrap(), bad);
            // Mended, it is used without a restart.
            fs::write(world.file(), &good).unwrap();
            assert_eq!(world.load().0, ["a 192.0.2.2", "x 192.0.2.1"]);
            fs::remove_file(world.files.path().join("a.yaml")).unwrap();
        }
    }

    #[test]
    fn nothing_is_shown_that_could_not_be_written() {
        let mut world = World::new();
        world.pool("192.0.2.1/32");
        world.service("x");
        fs::write(world.state.path().join("made"), "a file in the way").unwrap();
        let (services, problems) = world.load();
        assert_eq!(services, ["x "]);
        assert!(problems.iter().any(|it| it.severity == Severity::Error), "{problems:?}");
        fs::remove_file(world.state.path().join("made")).unwrap();
        assert_eq!(world.load(), (vec!["x 192.0.2.1".to_owned()], vec![]));
    }
}

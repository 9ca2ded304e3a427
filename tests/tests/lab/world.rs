//! One cluster for all tests. `LBXDP_LAB` names the directory of one that is up already, which is
//! used instead and stays.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use lbxdp_tests::lab::images::TEST;
use lbxdp_tests::lab::{Lab, Origin, Place, Proxy};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::spread::Outcome;
use lbxdp_tests::{go, sweep};
use serde_json::{Value, json};

const NODES: usize = 3;
/// A change at the API, until it is in the dataplane of every node.
pub const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// The cluster. Who only uses it shares it; who stops parts of it has it alone.
static LAB: OnceLock<Option<RwLock<Lab>>> = OnceLock::new();

fn lab() -> Option<&'static RwLock<Lab>> {
    // Every test that cannot run says so, so this is asked for each of them.
    if !go::is_possible() {
        return None;
    }
    let lab = LAB.get_or_init(|| {
        if let Some(dir) = std::env::var_os("LBXDP_LAB") {
            let place = Place::read(dir.as_ref()).expect("LBXDP_LAB is the directory of a lab");
            return Some(RwLock::new(Lab::open(&place)));
        }
        sweep::stale();
        sweep::on_signal();
        // SAFETY: the function has the type that is wanted, and may do what it likes.
        let registered = unsafe { nix::libc::atexit(remove_at_exit) };
        assert_eq!(registered, 0, "atexit");
        let name = sweep::unique("lab");
        let place = Place::named(&std::env::temp_dir().join(&name), &name, NODES, Proxy::Lbxdp);
        // A failed start fails this test, and those after it say why.
        let lab = catch_unwind(|| Lab::up(&place));
        lab.ok().map(RwLock::new)
    });
    Some(lab.as_ref().expect("the cluster came up"))
}

/// Tests end by `exit`, whether they passed or not.
extern "C" fn remove_at_exit() {
    sweep::own();
}

/// The cluster, beside other tests; `None` if there is nothing to build it with.
#[track_caller]
pub fn share() -> Option<RwLockReadGuard<'static, Lab>> {
    Some(lab()?.read().unwrap_or_else(PoisonError::into_inner))
}

/// The cluster, with no other test in it.
pub type Alone = RwLockWriteGuard<'static, Lab>;

/// The cluster, for a test that stops parts of it; `None` if there is nothing to build it with.
#[track_caller]
pub fn alone() -> Option<Alone> {
    Some(lab()?.write().unwrap_or_else(PoisonError::into_inner))
}

/// A Deployment of test servers on port 8080, spread over the nodes.
pub fn web(name: &str, replicas: u32) -> Value {
    let labels = json!({ "app": name });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": { "matchLabels": labels },
                    }],
                    "containers": [{
                        "name": "web",
                        "image": TEST,
                        "imagePullPolicy": "Never",
                        // Without, a busy machine leaves them no processor time at all.
                        "resources": { "requests": { "cpu": "200m" } },
                        "args": ["http", "--name", "$(POD)", "--listen", "[::]:8080"],
                        "env": [{
                            "name": "POD",
                            "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } },
                        }],
                        "readinessProbe": {
                            "httpGet": { "path": "/", "port": 8080 },
                            "periodSeconds": 1,
                        },
                    }],
                },
            },
        },
    })
}

/// A Service of type LoadBalancer for a Deployment of [`web`], in both families. Nobody allocates
/// addresses yet, so it is given some here: the last parts of all of its addresses are this number,
/// and its node port is 30000 above it.
pub fn service(name: &str, number: u8) -> Value {
    let [v4, v6] = ["10.96.0.", "fd00:10:96::"].map(|net| format!("{net}{number}"));
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "type": "LoadBalancer",
            "selector": { "app": name },
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": v4,
            "clusterIPs": [v4, v6],
            "ports": [{
                "name": "http", "port": 80, "targetPort": 8080, "nodePort": 30000 + u32::from(number),
            }],
        },
        "status": { "loadBalancer": { "ingress": [
            { "ip": format!("203.0.113.{number}") }, { "ip": format!("2001:db8:ff::{number}") },
        ] } },
    })
}

/// An address and a port.
pub fn target(address: impl AsRef<str>, port: u16) -> SocketAddr {
    let address: IpAddr = address.as_ref().parse().expect("an address");
    SocketAddr::new(address, port)
}

/// Objects that are deleted at the end of a test, its failure included.
pub struct Applied<'a> {
    lab: &'a Lab,
    objects: Vec<Value>,
}

impl<'a> Applied<'a> {
    /// Creates them, and waits for the Deployments and DaemonSets among them.
    #[track_caller]
    pub fn new(lab: &'a Lab, objects: Vec<Value>) -> Self {
        lab.api().apply(&objects);
        let applied = Self { lab, objects };
        for object in &applied.objects {
            if let Some(kind @ ("Deployment" | "DaemonSet")) = object["kind"].as_str() {
                let name = object["metadata"]["name"].as_str().expect("a name");
                let name = format!("{kind}/{name}");
                lab.kubectl(&["rollout", "status", &name, "--timeout=120s"]);
            }
        }
        applied
    }
}

impl<'a> Applied<'a> {
    /// Those that the test creates itself, if it comes to that.
    pub fn later(lab: &'a Lab, objects: Vec<Value>) -> Self {
        Self { lab, objects }
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        // Also while a test fails: a second panic would hide the first.
        for object in &self.objects {
            let text =
                |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let mut kubectl = self.lab.kubectl_command();
            kubectl.args(["delete", text("/kind"), text("/metadata/name"), "--wait=false"]);
            let _ = kubectl.output();
        }
    }
}

/// What is done at the end of a test, its failure included.
pub struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Finally<F> {
    /// This is, when the value is dropped.
    pub fn new(end: F) -> Self {
        Self(end)
    }
}

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        // A second panic would end the process, and leave the cluster behind.
        let done = catch_unwind(AssertUnwindSafe(&mut self.0));
        assert!(done.is_ok() || thread::panicking(), "the end of the test failed, as said above");
    }
}

/// The pods of a Deployment that are ready: names, addresses, nodes.
pub fn pods(lab: &Lab, app: &str) -> Vec<Pod> {
    let path = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}");
    let list = lab.get(&path).expect("a list of pods");
    let pods = list["items"].as_array().expect("items").iter().map(|pod| Pod {
        name: pod["metadata"]["name"].as_str().expect("a name").to_owned(),
        node: pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
        ips: pod["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
            .collect(),
    });
    pods.collect()
}

/// A pod of a Deployment.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, by which it also answers.
    pub name: String,
    /// The node that it is on; empty while it is on none.
    pub node: String,
    /// Its addresses.
    pub ips: BTreeSet<IpAddr>,
}

impl Pod {
    /// Requests from it.
    pub fn origin(&self) -> Origin {
        Origin::Pod(self.name.clone())
    }
}

/// Those pods of a Deployment, one for each node and in their order.
#[track_caller]
pub fn pods_by_node(lab: &Lab, app: &str) -> Vec<Pod> {
    let mut pods = pods(lab, app);
    pods.sort_by(|a, b| a.node.cmp(&b.node));
    let nodes: Vec<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
    let expected: Vec<_> = lab.nodes.iter().map(|node| node.name()).collect();
    assert_eq!(nodes, expected, "nodes of the pods of {app}");
    pods
}

/// Waits until a request is answered from everywhere.
#[track_caller]
pub fn wait_served(lab: &Lab, origins: &[Origin], target: SocketAddr) {
    from_each(origins, |origin| {
        wait_until(&format!("{target} answers {origin}"), SERVED_WITHIN, || {
            lab.spread(origin, target, 1).failed == 0
        });
    });
}

/// Waits until no request from there has an answer any more, and asks once more.
#[track_caller]
pub fn wait_silent(lab: &Lab, origins: &[Origin], target: SocketAddr) {
    from_each(origins, |origin| {
        let is_silent = || lab.spread(origin, target, 1).failed == 1;
        wait_until(&format!("{target} does not answer {origin}"), SERVED_WITHIN, is_silent);
        assert!(is_silent(), "{origin} to {target}: was silent, and answers again");
    });
}

/// Does something from everywhere at once.
#[track_caller]
fn from_each(origins: &[Origin], f: impl Fn(&Origin) + Sync) {
    at_once(origins.iter().map(|origin| || f(origin)));
}

/// Does several things at once; the panic of one is ours.
#[track_caller]
pub fn at_once<F: FnOnce() + Send>(all: impl IntoIterator<Item = F>) {
    thread::scope(|scope| {
        let threads: Vec<_> = all.into_iter().map(|one| scope.spawn(one)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Waits until requests from there are answered by these pods and no others. Each of them is asked for
/// long enough that the silence of another one is no accident.
#[track_caller]
pub fn wait_answered_by(lab: &Lab, origin: &Origin, target: SocketAddr, names: &BTreeSet<String>) {
    // One of n is not among 20·n by chance with a probability of e⁻²⁰.
    let count = 20 * u32::try_from(names.len()).expect("a few");
    let mut last = Outcome::default();
    let deadline = Instant::now() + SERVED_WITHIN;
    loop {
        if last.failed == 0 && last.backends.keys().eq(names) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{origin} to {target}: not within {SERVED_WITHIN:?} by {names:?}: {last:?}"
        );
        last = lab.spread(origin, target, count);
    }
}

//! A Kubernetes cluster on this machine, with nothing simulated but the wires: etcd, API server,
//! controllers and scheduler on one host, and nodes with containerd, a kubelet and runc each, whose
//! pods are containers. lbxdp is the DaemonSet that users get.
//!
//! * [`place`]: a lab's directory and the names of what it makes.
//! * [`host`], [`cgroups`] and [`daemon`]: machines as namespaces, and what runs on them.
//! * [`wires`]: the network between them.
//! * [`control_plane`], [`node`], [`images`], [`dns`], [`proxies`]: the cluster.
//! * [`traffic`]: requests from outside, from nodes and from pods.
//!
//! A lab outlives the process that brought it up, so that commands can use it. Several may be up at
//! the same time: their names differ, and their addresses are in namespaces.

pub mod cgroups;
pub mod control_plane;
pub mod daemon;
pub mod dns;
pub mod host;
pub mod images;
pub mod node;
pub mod place;
pub mod proxies;
pub mod traffic;
pub mod wires;

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

pub use control_plane::ControlPlane;
pub use daemon::Daemon;
pub use host::Host;
pub use images::agent_image;
pub use node::Node;
pub use place::Place;
pub use proxies::Proxy;
pub use traffic::Origin;

use crate::go::say;
use crate::kube::api::Api;
use crate::kube::binaries::{CONTROL_PLANE, LAB};
use crate::process::run;

/// How long the cluster may take to become ready, on a machine that does other things too.
const READY: &str = "--timeout=180s";

/// A cluster.
#[derive(Debug)]
pub struct Lab {
    /// Where it is.
    pub place: Place,
    /// etcd, API server, controllers, scheduler.
    pub control_plane: ControlPlane,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Somebody outside the cluster.
    pub client: Host,
}

impl Lab {
    /// Brings it up, and says how far it is. What is left of an earlier one in the same directory is
    /// removed first.
    #[track_caller]
    pub fn up(place: &Place) -> Self {
        place.clear();
        let (programs, archives) = (programs(), agent_image());
        assert!(archives.is_file(), "{}: make it by cargo xtask image", archives.display());
        let mut place = place.clone();
        let start = Instant::now();
        let step = |text: &str| say(&format!("[{:4.1} s] {text}", start.elapsed().as_secs_f64()));
        step(&format!("network of {}, {} nodes", place.name, place.nodes));
        place.write();
        place.make("logs");
        link_programs(&place, &programs);

        let lab = Self::make_hosts(&place);
        step("etcd, API server, containerd");
        thread::scope(|scope| {
            let images = scope.spawn(|| {
                let mut images = images::make(&place.join("images"));
                images.push(agent_image());
                images
            });
            let runtimes: Vec<_> =
                lab.nodes.iter().map(|node| scope.spawn(|| node.start_containerd())).collect();
            let control_plane = scope.spawn(|| {
                lab.control_plane.start();
                step("the API server is ready");
            });
            let images = join(images);
            runtimes.into_iter().for_each(join);
            step("containerd is ready; images, kubelets");
            let imports = lab.nodes.iter().map(|node| {
                let images = images.clone();
                scope.spawn(move || images.iter().for_each(|image| node.import(image)))
            });
            let imports: Vec<_> = imports.collect();
            join(control_plane);
            let kubelets = scope.spawn(|| lab.nodes.iter().for_each(Node::start_kubelet));
            lab.api().apply(&dns::objects());
            match place.proxy {
                Proxy::Lbxdp => lab.install_lbxdp(&json!({})),
                Proxy::KubeProxy => lab.start_kube_proxy(),
                Proxy::None => {}
            }
            join(kubelets);
            imports.into_iter().for_each(join);
        });
        step("the nodes have all images");
        lab.wait_nodes();
        step("the nodes are ready");
        if place.proxy == Proxy::Lbxdp {
            lab.wait_lbxdp();
            step("lbxdp is ready");
        }
        lab.kubectl(&["rollout", "status", "deployment/coredns", "-n", "kube-system", READY]);
        step("all is ready");
        place.is_complete = true;
        place.write();
        Self { place, ..lab }
    }

    #[track_caller]
    fn make_hosts(place: &Place) -> Self {
        let switch = wires::make_switch(place);
        let client = Host::make(place, "client");
        wires::connect_client(place, &switch, &client);
        let control_plane = ControlPlane::make(place, &switch);
        let nodes: Vec<_> =
            (0..place.nodes).map(|index| Node::make(place, &switch, index)).collect();
        switch.wait_links_up();
        Self { place: place.clone(), control_plane, nodes, client }
    }

    /// The one that is up.
    #[track_caller]
    pub fn open(place: &Place) -> Self {
        Self {
            place: place.clone(),
            control_plane: ControlPlane::get(place),
            nodes: (0..place.nodes).map(|index| Node::get(place, index)).collect(),
            client: Host::get(place, "client", false),
        }
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        let others = [&self.client, &self.control_plane.host];
        others.into_iter().chain(self.nodes.iter().map(|node| &node.host))
    }

    /// Every program that should run, pods aside.
    pub fn daemons(&self) -> Vec<Daemon> {
        let control = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
        let mut all = control.map(|name| self.control_plane.host.daemon(name)).to_vec();
        for node in &self.nodes {
            all.extend([node.host.daemon("containerd"), node.kubelet()]);
            if self.place.proxy == Proxy::KubeProxy {
                all.push(node.kube_proxy());
            }
        }
        all
    }

    /// The API, as an administrator.
    pub fn api(&self) -> &Api {
        &self.control_plane.api
    }

    /// kubectl as an administrator, as a child of the calling process.
    pub fn kubectl_command(&self) -> std::process::Command {
        let mut command = self.control_plane.host.command("kubectl");
        command.env("KUBECACHEDIR", self.place.join("kubectl"));
        command
    }

    /// What kubectl says; panics if it fails.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(self.kubectl_command().args(arguments))
    }

    /// Creates the objects of a YAML text, or makes them what it says.
    #[track_caller]
    pub fn apply_yaml(&self, yaml: &str) {
        match crate::chart::objects(yaml) {
            Ok(objects) => self.api().apply(&objects),
            Err(error) => panic!("{error:#}\n{yaml}"),
        }
    }

    /// A program in a pod's first container. `pod` is `NAME` or `deployment/NAME`, in the namespace
    /// `default`.
    #[track_caller]
    pub fn exec(&self, pod: &str, words: &[&str]) -> Output {
        let mut command = self.kubectl_command();
        command.args(["exec", pod, "--"]).args(words);
        command.output().expect("kubectl")
    }

    /// Waits until every node is Ready.
    #[track_caller]
    pub fn wait_nodes(&self) {
        crate::process::wait_until(
            "every node is known",
            std::time::Duration::from_secs(60),
            || {
                self.nodes
                    .iter()
                    .all(|node| self.get(&format!("/api/v1/nodes/{}", node.name())).is_some())
            },
        );
        self.kubectl(&["wait", "node", "--all", "--for=condition=Ready", READY]);
    }

    /// The object or list at a path of the API; none if it is not there.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.api().get(path)
    }
}

/// The path of every program, and the name by which others look for it.
#[track_caller]
fn programs() -> Vec<(&'static str, PathBuf)> {
    let all = CONTROL_PLANE.iter().chain(&LAB).map(|program| match program.find() {
        Ok(path) => (program.name, path),
        Err(error) => panic!("{error:#}"),
    });
    all.collect()
}

#[track_caller]
fn link_programs(place: &Place, programs: &[(&str, PathBuf)]) {
    let bin = place.make("bin");
    for (name, path) in programs {
        let path = fs::canonicalize(path).expect("a program");
        std::os::unix::fs::symlink(path, bin.join(name)).expect("a link");
    }
}

/// What a thread returns; its panic is ours.
fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

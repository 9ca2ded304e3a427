//! nginx as an ingress on every node, behind an announced address: what backends log of a client.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::lab::Lab;
use lbxdp_tests::lab::images::NGINX;
use lbxdp_tests::nginx as debian;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use serde_json::{Value, json};

use super::layer2::{NAME, addresses, is_owner, pools, service, without_owner};
use super::world::{Applied, SERVED_WITHIN, alone};

/// What is behind the ingress.
const SHOP: &str = "shop";
/// Its ClusterIP.
const SHOP_IP: &str = "10.96.0.210";
const PORT: u16 = 8080;
/// Of one request.
const PATIENCE: Duration = Duration::from_secs(2);

#[test]
#[ignore = "needs root and Go"]
fn backends_of_an_ingress_log_the_client_before_and_after_its_node_is_lost() {
    let Some(lab) = alone() else { return };
    let lab: &Lab = &lab;
    let _pools = pools(lab);
    let objects = vec![configuration(), shop(), shop_service(), ingress(), service("Local")];
    let _applied = Applied::new(lab, objects);
    for address in addresses(lab) {
        let family = if address.is_ipv4() { "v4" } else { "v6" };
        wait_until(&format!("{address} answers"), SERVED_WITHIN, || {
            get(lab, address, &format!("/before-{family}"))
        });
        without_owner(lab, address, |lost| {
            wait_until(&format!("{address} answers elsewhere"), SERVED_WITHIN, || {
                get(lab, address, &format!("/after-{family}"))
            });
            assert!(!is_owner(lab, address, lost));
        });
    }
    let log = lab.kubectl(&["logs", "-l", &format!("app={SHOP}"), "--tail=-1"]);
    let lines: Vec<_> = log.lines().filter_map(|line| line.split_once(" /")).collect();
    for (family, client) in [("v4", CLIENT_V4.to_string()), ("v6", CLIENT_V6.to_string())] {
        for when in ["before", "after"] {
            let path = format!("{when}-{family}");
            let clients: Vec<_> =
                lines.iter().filter(|(_, to)| *to == path).map(|(client, _)| *client).collect();
            assert!(!clients.is_empty(), "/{path} is in no log: {log}");
            assert!(clients.iter().all(|seen| *seen == client), "/{path}: {clients:?}");
        }
    }
}

/// Whether a request of the client's is answered.
fn get(lab: &Lab, address: SocketAddr, path: &str) -> bool {
    let get = || http::get(address, Source::ANY, path, PATIENCE);
    lab.client.netns.run(get).is_ok_and(|(status, _)| status == 200)
}

fn configuration() -> Value {
    let listen = format!("listen {PORT}; listen [::]:{PORT} ipv6only=on;");
    let ready = "location = /ready { access_log off; return 200; }";
    let of = |http: String| debian::config(Path::new("/tmp"), &http);
    let ingress = of(format!(
        "server {{ {listen} {ready} location / {{
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_pass http://{SHOP_IP};
        }} }}"
    ));
    let shop = of(format!(
        "log_format forwarded '$http_x_forwarded_for $request_uri';
        server {{ {listen} {ready} access_log /dev/stdout forwarded; location / {{
            return 200 'name=$hostname peer=$http_x_forwarded_for port=0';
        }} }}"
    ));
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "nginx" },
        "data": { format!("{NAME}.conf"): ingress, format!("{SHOP}.conf"): shop },
    })
}

/// On every node.
fn ingress() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": NAME },
        "spec": { "selector": { "matchLabels": { "app": NAME } }, "template": template(NAME) },
    })
}

fn shop() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": SHOP },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": SHOP } },
            "template": template(SHOP),
        },
    })
}

fn shop_service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": SHOP },
        "spec": {
            "selector": { "app": SHOP },
            "clusterIP": SHOP_IP,
            "ports": [{ "port": 80, "targetPort": PORT }],
        },
    })
}

/// A pod of nginx with the configuration of that name.
fn template(name: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": name } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "nginx",
                "image": NGINX,
                "imagePullPolicy": "Never",
                "args": ["-c", format!("/conf/{name}.conf")],
                "resources": { "requests": { "cpu": "100m" } },
                "readinessProbe": {
                    "httpGet": { "path": "/ready", "port": PORT }, "periodSeconds": 1,
                },
                "volumeMounts": [{ "name": "conf", "mountPath": "/conf" }],
            }],
            "volumes": [{ "name": "conf", "configMap": { "name": "nginx" } }],
        },
    })
}

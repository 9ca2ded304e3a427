//! An unmodified nginx as reverse proxy behind a load balancer's address.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::{run, wait_until};
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Process, Scratch, Spec, nginx};

const PORT: u16 = 8080;
const VIPS: [&str; 2] = ["203.0.113.30", "2001:db8:ff::30"];
const SECOND: Duration = Duration::from_secs(1);

/// A site of its own, which trusts pods to say whom they ask for and writes that down.
fn site(name: &str) -> String {
    format!(
        "    log_format seen '$remote_addr $host';\n\
         \x20   set_real_ip_from 10.244.0.0/16;\n    set_real_ip_from fd00:10:244::/48;\n\
         \x20   real_ip_header X-Real-IP;\n\
         \x20   server {{\n        listen {PORT};\n        listen [::]:{PORT} ipv6only=on;\n\
         \x20       access_log access.log seen;\n\
         \x20       location / {{ return 200 \"the site {name}\\n\"; }}\n    }}\n"
    )
}

/// Sends each host to its Service, of the family that the client used or not: nginx decides.
fn routes(sites: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (host, upstream) in sites {
        text += &format!(
            "    server {{\n        listen {PORT};\n        listen [::]:{PORT};\n\
             \x20       server_name {host};\n        location / {{\n\
             \x20           proxy_pass http://{upstream};\n\
             \x20           proxy_set_header Host $host;\n\
             \x20           proxy_set_header X-Real-IP $remote_addr;\n        }}\n    }}\n"
        );
    }
    text
}

#[test]
fn an_unmodified_nginx_routes_hosts_to_services_and_its_backends_log_the_client() {
    let cluster = Cluster::new(&Spec::default());
    let manifests = Manifests::of(&cluster);
    let (node_a, node_b) = (cluster.node(0), cluster.node(1));
    let (proxy, shop, blog) = (&node_a.pods[0], &node_a.pods[1], &node_b.pods[0]);
    let ingress = Service::new("ingress")
        .cluster_ip("10.96.0.30")
        .cluster_ip("fd00:10:96::30")
        .vip(VIPS[0])
        .vip(VIPS[1])
        .external_local()
        .port(Port::tcp("http", 80, PORT));
    let endpoints = |pod: &lbxdp_tests::Pod, node: &str| {
        [Endpoint::new(pod.v4, node), Endpoint::new(pod.v6, node)]
    };
    manifests.write("ingress.yaml", &ingress.with(&endpoints(proxy, &node_a.name)));
    for (name, v4, v6, pod, node) in [
        ("shop", "10.96.0.31", "fd00:10:96::31", shop, node_a),
        ("blog", "10.96.0.32", "fd00:10:96::32", blog, node_b),
    ] {
        let service =
            Service::new(name).cluster_ip(v4).cluster_ip(v6).port(Port::tcp("http", 80, PORT));
        manifests.write(&format!("{name}.yaml"), &service.with(&endpoints(pod, &node.name)));
    }
    let agent = Agent::start(node_a, &manifests.path(), AgentOptions::default());

    let files = ["shop", "blog", "proxy"].map(Scratch::new);
    let start = |pod: &lbxdp_tests::Pod, files: &Scratch, http: &str| -> Process {
        let target = (IpAddr::from([127, 0, 0, 1]), PORT).into();
        let answers = || http::get(target, Source::ANY, "/", SECOND).is_ok();
        let command = agent.pod_command(&pod.netns, "nginx");
        nginx::start(command, files, http, || pod.netns.run(answers))
    };
    let _sites = [start(shop, &files[0], &site("shop")), start(blog, &files[1], &site("blog"))];
    let upstreams = [("shop.test", "10.96.0.31"), ("blog.test", "[fd00:10:96::32]")];
    let _proxy = start(proxy, &files[2], &routes(&upstreams));

    for (vip, client) in VIPS.into_iter().zip([IpAddr::from(CLIENT_V4), IpAddr::from(CLIENT_V6)]) {
        let host = if client.is_ipv6() { format!("[{vip}]") } else { vip.to_owned() };
        for (name, files) in [("shop", &files[0]), ("blog", &files[1])] {
            let mut curl = cluster.client.command("curl");
            curl.args(["-sS", "--fail", "--max-time", "5", "-H", &format!("Host: {name}.test")]);
            let page = run(curl.arg(format!("http://{host}/")));
            assert_eq!(page, format!("the site {name}\n"), "{name} at {vip}");
            let line = format!("{client} {name}.test");
            let log = || fs::read_to_string(files.join("access.log")).unwrap_or_default();
            wait_until(&format!("{line:?} in the log of {name}"), SECOND, || {
                log().lines().any(|logged| logged == line)
            });
        }
    }
}

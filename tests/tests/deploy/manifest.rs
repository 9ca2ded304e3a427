//! The committed flat manifest, which is the chart with its defaults.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use lbxdp_tests::chart::{FLAT, NAMESPACE, objects};
use lbxdp_tests::go::workspace;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::settings::{assert_known, settings};

pub fn text() -> String {
    std::fs::read_to_string(workspace().join(FLAT)).expect(FLAT)
}

fn flat() -> Vec<Value> {
    objects(&text()).expect("YAML")
}

/// An object as its type, which must have every field: serialised again it is what it was.
#[track_caller]
fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let typed: T = serde_json::from_value(object.clone()).expect("the fields of the kind");
    assert_eq!(serde_json::to_value(&typed).expect("JSON"), *object, "fields that are not known");
    typed
}

/// Panics unless every object is of a known kind and has no other fields than the kind.
#[track_caller]
pub fn assert_typed(objects: &[Value]) {
    for object in objects {
        match object["kind"].as_str().expect("kind") {
            "ConfigMap" => drop(typed::<ConfigMap>(object)),
            "ServiceAccount" => drop(typed::<ServiceAccount>(object)),
            "ClusterRole" => drop(typed::<ClusterRole>(object)),
            "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(object)),
            "Role" => drop(typed::<Role>(object)),
            "RoleBinding" => drop(typed::<RoleBinding>(object)),
            "DaemonSet" => drop(typed::<DaemonSet>(object)),
            "Secret" => drop(typed::<Secret>(object)),
            // Of the Prometheus operator; no type here knows them.
            "PodMonitor" | "PrometheusRule" => {}
            kind => panic!("nobody expects a {kind}"),
        }
    }
}

fn pod() -> PodSpec {
    let flat = flat();
    let object = flat.iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    typed::<DaemonSet>(object).spec.expect("spec").template.spec.expect("pod")
}

fn agent() -> Container {
    let mut containers = pod().containers;
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

#[test]
fn objects_are_complete_known_and_begin_with_what_a_cluster_must_say() {
    let flat = flat();
    assert_typed(&flat);
    let kinds: Vec<_> = flat.iter().map(|object| object["kind"].as_str().expect("kind")).collect();
    let expected = [
        "ConfigMap",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "DaemonSet",
    ];
    assert_eq!(kinds, expected);
    for object in &flat {
        let is_of_the_cluster = object["kind"].as_str().expect("kind").starts_with("ClusterRole");
        let namespace = object["metadata"]["namespace"].as_str();
        assert_eq!(namespace, (!is_of_the_cluster).then_some(NAMESPACE), "{object}");
        assert_eq!(object["metadata"]["name"], "lbxdp", "{object}");
    }
    let first = text().lines().find(|line| line.contains("REPLACE-ME")).map(str::to_owned);
    assert!(first.is_some_and(|line| line.contains("LBXDP_API_SERVERS")), "no place to edit");
    assert_eq!(text().matches("REPLACE-ME").count(), 1);
}

#[test]
fn the_agent_knows_every_setting() {
    assert_known(&settings(&flat()));
}

/// What rules allow: `verb group/resource`, and the name of the object if it is restricted to one.
fn allowed(rules: Option<Vec<PolicyRule>>) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for rule in rules.expect("rules") {
        assert_eq!(rule.non_resource_urls, None);
        let names = rule.resource_names.unwrap_or_default().join(" ");
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    let what = format!("{verb} {group}/{resource} {names}");
                    allowed.insert(what.trim_end().to_owned());
                }
            }
        }
    }
    allowed
}

#[test]
fn the_roles_allow_no_more_than_what_is_watched_and_addresses_and_events() {
    let flat = flat();
    let role = |kind: &str| flat.iter().find(|object| object["kind"] == kind).expect("a role");
    let mut expected = BTreeSet::new();
    for resource in [
        "/namespaces",
        "/nodes",
        "/services",
        "discovery.k8s.io/endpointslices",
        "metallb.io/ipaddresspools",
        "metallb.io/l2advertisements",
        "networking.k8s.io/servicecidrs",
    ] {
        expected.extend(["get", "list", "watch"].map(|verb| format!("{verb} {resource}")));
    }
    expected.extend(["create", "patch"].map(|verb| format!("{verb} events.k8s.io/events")));
    // Nothing but the status of anything.
    for resource in ["/services", "metallb.io/ipaddresspools", "metallb.io/l2advertisements"] {
        expected.insert(format!("patch {resource}/status"));
    }
    assert_eq!(allowed(typed::<ClusterRole>(role("ClusterRole")).rules), expected);
    let lease = ["create", "get", "list", "patch", "update"];
    let mut expected: BTreeSet<_> =
        lease.map(|verb| format!("{verb} coordination.k8s.io/leases")).into();
    let status = ["create", "delete", "list", "patch"];
    expected.extend(status.map(|verb| format!("{verb} metallb.io/servicel2statuses")));
    expected.insert("patch metallb.io/servicel2statuses/status".to_owned());
    assert_eq!(allowed(typed::<Role>(role("Role")).rules), expected);
}

#[test]
fn the_agent_has_three_capabilities_and_nothing_else() {
    let context = agent().security_context.expect("a security context");
    let capabilities = context.capabilities.expect("capabilities");
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    let add = capabilities.add.expect("capabilities");
    assert_eq!(add, ["BPF", "NET_ADMIN", "PERFMON", "NET_RAW"]);
    assert_eq!(context.privileged, Some(false));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert_eq!(context.seccomp_profile.expect("seccomp").type_, "RuntimeDefault");
    assert_eq!(context.app_armor_profile.expect("AppArmor").type_, "Unconfined");
    assert_eq!(context.se_linux_options.expect("SELinux").type_.as_deref(), Some("spc_t"));

    let PodSpec { host_pid, host_ipc, share_process_namespace, init_containers, .. } = pod();
    let more = (host_pid, host_ipc, share_process_namespace, init_containers.map(|all| all.len()));
    assert_eq!(more, (None, None, None, None));
}

#[test]
fn probes_ask_the_loopback_address_where_the_agent_listens() {
    let agent = agent();
    let settings = settings(&flat());
    let (_, port) = settings["LBXDP_LISTEN"].rsplit_once(':').expect("a port");
    let probes = [
        (agent.startup_probe, "/livez"),
        (agent.liveness_probe, "/livez"),
        (agent.readiness_probe, "/readyz"),
    ];
    for (probe, path) in probes {
        let get = probe.expect("a probe").http_get.expect("over HTTP");
        assert_eq!(get.host.as_deref(), Some("127.0.0.1"));
        assert_eq!(get.path.as_deref(), Some(path));
        assert_eq!(serde_json::to_value(get.port).expect("JSON").to_string(), port);
    }
}

#[test]
fn only_the_bpf_file_system_and_the_state_are_written() {
    let volumes = pod().volumes.expect("volumes");
    let mut found = BTreeSet::new();
    for mount in agent().volume_mounts.expect("mounts") {
        let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("a volume");
        if let Some(secret) = &volume.secret {
            assert_eq!(secret.secret_name.as_deref(), Some("lbxdp-members"));
            assert_eq!((secret.optional, mount.read_only), (Some(true), Some(true)));
            continue;
        }
        let host = volume.host_path.as_ref().expect("a host path");
        found.insert((
            host.path.clone(),
            host.type_.clone().expect("a type"),
            mount.mount_path,
            mount.mount_propagation,
            mount.read_only.unwrap_or(false),
        ));
    }
    assert_eq!(found.len() + 1, volumes.len(), "a volume that nobody mounts");
    let entry = |host: &str, kind: &str, path: &str, propagation: Option<&str>, read_only| {
        let propagation = propagation.map(str::to_owned);
        (host.to_owned(), kind.to_owned(), path.to_owned(), propagation, read_only)
    };
    let expected = [
        entry("/sys/fs/bpf", "Directory", "/sys/fs/bpf", Some("HostToContainer"), false),
        entry("/sys/fs/cgroup", "Directory", "/host/cgroup", None, true),
        entry("/var/lib/lbxdp", "DirectoryOrCreate", "/var/lib/lbxdp", None, false),
    ];
    assert_eq!(found, expected.into());
}

#[test]
fn every_node_gets_an_agent_that_needs_no_service() {
    let pod = pod();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.dns_policy.as_deref(), Some("Default"));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let tolerations = serde_json::to_value(pod.tolerations).expect("JSON");
    assert_eq!(tolerations, serde_json::json!([{ "operator": "Exists" }]));
}

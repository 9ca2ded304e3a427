use std::collections::BTreeSet;

use lbxdp_common::Device;

use super::*;
use crate::netlink::{Vlan, XdpAttachment};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn link(ifindex: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        mac: Some(MAC),
        mtu: 1_500,
        ethernet: true,
        up: true,
        xdp_features: Some(XDP_BASIC | XDP_NDO_XMIT),
        ..Link::default()
    }
}

fn network(links: impl IntoIterator<Item = Link>) -> Network {
    Network {
        links: links.into_iter().map(|link| (link.ifindex, link)).collect(),
        ..Network::default()
    }
}

fn names(selection: &Selection) -> Vec<(&str, Why)> {
    selection.wanted.iter().map(|wanted| (wanted.name.as_str(), wanted.why)).collect()
}

fn node() -> IpAddr {
    IpAddr::from([192, 0, 2, 10])
}

fn rules() -> Rules {
    Rules { node_addresses: [node()].into(), ..Rules::default() }
}

#[test]
fn detection_takes_what_faces_outwards() {
    let nothing = BTreeSet::new();
    let network = network([
        Link { loopback: true, ethernet: false, addresses: [node()].into(), ..link(1, "lo", None) },
        Link { default_route: true, ..link(2, "eth0", None) },
        Link { addresses: [node()].into(), ..link(3, "eth1", None) },
        link(4, "eth2", None),
        Link { port_of: Some("bridge".into()), default_route: true, ..link(5, "eth3", None) },
        Link {
            addresses: [IpAddr::from([10, 244, 0, 1])].into(),
            ..link(6, "cni0", Some("bridge"))
        },
        link(7, "veth1234", Some("veth")),
        Link { default_route: true, ..link(8, "uplink", Some("veth")) },
        link(9, "flannel.1", Some("vxlan")),
        link(10, "vxlan.calico", None),
        link(11, "gnv", Some("geneve")),
        Link { addresses: [node()].into(), ..link(12, "kube-ipvs0", Some("dummy")) },
        Link { port_of: Some("bond".into()), ..link(13, "eth4", None) },
    ]);
    let selection = select(&network, &rules(), &nothing);
    assert_eq!(
        names(&selection),
        [
            ("eth0", Why::DefaultRoute),
            ("eth1", Why::NodeAddress),
            ("uplink", Why::DefaultRoute),
            ("flannel.1", Why::Overlay),
            ("vxlan.calico", Why::Overlay),
            ("gnv", Why::Overlay),
        ]
    );
    assert_eq!(selection.rejected, []);
}

#[test]
fn names_switch_detection_off() {
    let network = network([
        Link { default_route: true, ..link(2, "eth0", None) },
        link(4, "eth2", None),
        Link { loopback: true, ..link(1, "lo", None) },
    ]);
    let rules = Rules { named: vec!["eth2".into(), "eth9".into(), "lo".into()], ..rules() };
    let selection = select(&network, &rules, &BTreeSet::new());
    assert_eq!(names(&selection), [("eth2", Why::Named)]);
    assert_eq!(
        selection.rejected,
        [
            Rejected { name: "eth9".into(), ifindex: 0, reason: NO_SUCH_DEVICE },
            Rejected { name: "lo".into(), ifindex: 1, reason: LOOPBACK },
        ]
    );
}

#[test]
fn a_device_without_ethernet_is_reported() {
    let network = network([Link {
        ethernet: false,
        mac: None,
        default_route: true,
        ..link(2, "wg0", Some("wireguard"))
    }]);
    let selection = select(&network, &rules(), &BTreeSet::new());
    assert_eq!(selection.wanted, []);
    assert_eq!(
        selection.rejected,
        [Rejected { name: "wg0".into(), ifindex: 2, reason: LINK_TYPE }]
    );
}

#[test]
fn pods_devices_have_tc_alone_and_what_leads_outwards_is_none() {
    let network = network([
        Link { loopback: true, ethernet: false, ..link(1, "lo", None) },
        Link { default_route: true, ..link(2, "veth0", Some("veth")) },
        link(3, "veth1", Some("veth")),
        Link { port_of: Some("bridge".into()), ..link(4, "veth2", Some("veth")) },
        link(5, "cali1", Some("veth")),
    ]);
    let pods = vec!["veth*".parse().unwrap()];
    let rules = Rules { pods, ..rules() };
    let selection = select(&network, &rules, &BTreeSet::new());
    assert_eq!(
        names(&selection),
        [("veth0", Why::DefaultRoute), ("veth1", Why::Pod), ("veth2", Why::Pod)]
    );
    assert_eq!(selection.rejected, []);
    let outwards = &selection.wanted[0];
    assert!(outwards.is_pod_name);
    assert_eq!(outwards.tc_points(), [Point::Ingress, Point::Egress]);
    for pod in &selection.wanted[1..] {
        assert_eq!((&pod.xdp, pod.is_pod_name), (&Err(NoXdp::Pod), false));
        let runs: Vec<_> = Point::ALL.into_iter().filter(|point| pod.runs(*point)).collect();
        assert_eq!(runs, [Point::PodIngress, Point::PodEgress]);
    }
    let known = entries(&network, &selection.wanted, &BTreeSet::from([2]));
    assert_eq!(known.keys().collect::<Vec<_>>(), [&2], "a pod's device needs no entry");

    // Nor does detection being off make it one.
    let rules = Rules { named: vec!["cali1".into()], ..rules };
    let selection = select(&network, &rules, &BTreeSet::new());
    assert_eq!(
        names(&selection),
        [("veth1", Why::Pod), ("veth2", Why::Pod), ("cali1", Why::Named)]
    );
    assert_eq!(
        selection.rejected,
        [Rejected { name: "veth0".into(), ifindex: 2, reason: OUTWARDS }]
    );
}

#[test]
fn the_mode_says_why_there_is_no_xdp() {
    let ours = BTreeSet::from([3]);
    let with = |prog_id| Some(XdpAttachment { prog_id });
    let table = [
        (link(2, "eth0", None), Ok(())),
        (Link { xdp: with(7), ..link(3, "eth0", None) }, Ok(())),
        (Link { xdp: with(8), ..link(2, "eth0", None) }, Err(NoXdp::Foreign { prog_id: 8 })),
        (Link { xdp_features: Some(0), ..link(2, "eth0", None) }, Err(NoXdp::Driver)),
        (Link { xdp_features: None, ..link(2, "eth0", None) }, Ok(())),
        (link(2, "eth0", Some("veth")), Ok(())),
        (link(2, "eth0", Some("bond")), Ok(())),
        (link(2, "v", Some("vlan")), Err(NoXdp::Kind("vlan".into()))),
        (link(2, "v", Some("vxlan")), Err(NoXdp::Kind("vxlan".into()))),
        (link(2, "br0", Some("bridge")), Err(NoXdp::Kind("bridge".into()))),
    ];
    for (link, expected) in table {
        assert_eq!(xdp_mode(&link, &rules(), &ours), expected, "{link:?}");
    }
    let off = Rules { without_xdp: true, ..rules() };
    assert_eq!(xdp_mode(&link(2, "eth0", None), &off, &ours), Err(NoXdp::Disabled));
}

#[test]
fn a_vlan_device_brings_the_device_below_for_xdp_only() {
    let vlan = |ifindex, name, parent, id| Link {
        parent: Some(parent),
        vlan: Some(Vlan { id, service: false }),
        ..link(ifindex, name, Some("vlan"))
    };
    let network = network([
        link(2, "eth0", None),
        vlan(3, "eth0.100", 2, 100),
        Link { default_route: true, ..vlan(4, "eth0.100.200", 3, 200) },
    ]);
    let selection = select(&network, &rules(), &BTreeSet::new());
    assert_eq!(names(&selection), [("eth0", Why::VlanParent), ("eth0.100.200", Why::DefaultRoute)]);
    assert_eq!(selection.wanted.iter().map(|wanted| wanted.tc).collect::<Vec<_>>(), [false, true]);

    let entries = entries(&network, &selection.wanted, &BTreeSet::from([2]));
    assert_eq!((entries[&4].parent, entries[&4].vlan), (2, [100, 200]));
    assert_eq!((entries[&2].parent, entries[&2].vlan), (0, [0, 0]));
}

#[test]
fn a_bridge_below_a_vlan_device_is_left_alone() {
    let network = network([
        link(2, "br0", Some("bridge")),
        Link {
            parent: Some(2),
            vlan: Some(Vlan { id: 100, service: false }),
            default_route: true,
            ..link(3, "br0.100", Some("vlan"))
        },
    ]);
    let selection = select(&network, &rules(), &BTreeSet::new());
    assert_eq!(names(&selection), [("br0.100", Why::DefaultRoute)]);
}

#[test]
fn flags_follow_the_features_and_the_program() {
    let (tx, xmit) = (Device::TX, Device::XMIT);
    let taking = Some(XDP_BASIC | XDP_NDO_XMIT);
    let table = [
        // kind, features, native, flags
        (None, taking, true, tx | xmit),
        (None, taking, false, xmit),
        (None, Some(XDP_BASIC), true, tx),
        (None, Some(0), false, 0),
        (None, None, true, tx | xmit),
        (None, None, false, 0),
        (Some("veth"), taking, true, tx | xmit),
        (Some("veth"), Some(XDP_BASIC), true, 0),
        (Some("veth"), None, true, 0),
    ];
    for (kind, xdp_features, native, flags) in table {
        let network =
            network([Link { xdp_features, default_route: true, ..link(2, "eth0", kind) }]);
        let wanted = select(&network, &rules(), &BTreeSet::new()).wanted;
        let native = if native { BTreeSet::from([2]) } else { BTreeSet::new() };
        let device = entries(&network, &wanted, &native)[&2];
        assert_eq!((device.mac, device.flags), (MAC, flags), "{kind:?} {xdp_features:?}");
    }
}

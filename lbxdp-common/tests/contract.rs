//! What may never change, and what nodes must agree on.

use lbxdp_common::{
    Counter, DropReason, Flow, FlowKey, FrontendInfo, FrontendKind, IPPROTO_TCP, TablePolicy,
    TableRef, flow_hash,
};

/// Append here; never change a line, dashboards and runbooks have them.
#[test]
fn numbers_and_names_of_drop_reasons_are_for_ever() {
    let listed: Vec<_> =
        DropReason::ALL.iter().map(|reason| (*reason as u32, reason.as_str())).collect();
    let expected = [
        (1, "malformed"),
        (2, "no_endpoint"),
        (3, "no_local_endpoint"),
        (4, "unknown_port"),
        (5, "fragment"),
        (6, "ttl_exceeded"),
        (7, "too_big"),
        (8, "snat_ports_exhausted"),
        (9, "flow_table_full"),
        (10, "no_route"),
        (11, "backend_missing"),
        (12, "forwarding_disabled"),
        (13, "rewrite_failed"),
        (14, "loopback_source"),
        (15, "multicast_source"),
        (16, "service_source"),
        (17, "icmp_rationed"),
        (18, "unknown_protocol"),
        (19, "unknown_address"),
        (20, "source_range"),
        (21, "sctp_fragment"),
    ];
    assert_eq!(listed, expected);
}

/// Append here; never change a line.
#[test]
fn numbers_and_names_of_counters_are_for_ever() {
    let listed: Vec<_> =
        Counter::ALL.iter().map(|counter| (*counter as u32, counter.as_str())).collect();
    let expected = [
        (0, "flow_hit"),
        (1, "flow_new"),
        (2, "flow_expired"),
        (3, "flow_restored"),
        (4, "flow_broken"),
        (5, "port_changed"),
        (6, "passed_local"),
        (7, "transmitted"),
        (8, "redirected"),
        (9, "deferred"),
        (10, "redirected_neigh"),
        (11, "reply_translated"),
        (12, "foreign_mac"),
        (13, "icmp_sent"),
        (14, "icmp_suppressed"),
        (15, "echo_answered"),
        (16, "icmp_translated"),
        (17, "fragment_followed"),
        (18, "affinity_kept"),
        (19, "socket_connected"),
        (20, "socket_sent"),
        (21, "socket_refused"),
        (22, "socket_stale"),
        (23, "flow_midstream"),
        (24, "foreign_hit"),
        (25, "left_to_stack"),
        (26, "neighbour_told"),
        (27, "handed_back"),
    ];
    assert_eq!(listed, expected);
}

fn key(src: [u8; 4], src_port: u16) -> FlowKey<[u8; 4]> {
    let (dst, dst_port) = ([203, 0, 113, 10], 80);
    FlowKey { src, dst, src_port, dst_port, protocol: IPPROTO_TCP, _pad: [0; 3] }
}

/// Agents and programs of different versions on different nodes must choose alike.
#[test]
fn the_hash_of_a_flow_never_changes() {
    assert_eq!(flow_hash(&key([192, 0, 2, 7], 40_000)), 2_867_788_091);
    let v6 = FlowKey {
        src: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
        dst: [0x20, 1, 0xd, 0xb8, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        src_port: 40_000,
        dst_port: 80,
        protocol: IPPROTO_TCP,
        _pad: [0; 3],
    };
    assert_eq!(flow_hash(&v6), 848_666_642);
}

#[test]
fn ports_and_addresses_of_clients_spread_evenly_over_slots() {
    const SLOTS: usize = 2_048;
    const FLOWS: usize = 200 * SLOTS;
    let by_port = (0..FLOWS).map(|n| {
        let port = u16::try_from(n % 50_000).expect("small");
        key([192, 0, 2, u8::try_from(n / 50_000).expect("small")], port)
    });
    let by_address = (0..FLOWS).map(|n| {
        let [a, b, c, _] = u32::try_from(n).expect("small").to_le_bytes();
        key([10, c, b, a], 40_000)
    });
    for keys in [by_port.collect::<Vec<_>>(), by_address.collect()] {
        let mut slots = vec![0_u32; SLOTS];
        for key in &keys {
            slots[flow_hash(key) as usize % SLOTS] += 1;
        }
        // Of 2,048 binomial counts around 200, the outermost are about 3.5 σ = 50 away.
        let (least, most) = (slots.iter().min(), slots.iter().max());
        assert!(least >= Some(&125) && most <= Some(&280), "{least:?} to {most:?}");
    }
}

#[test]
fn a_table_reference_is_read_back() {
    let table = TableRef::serve(0xdead_beef, 17);
    assert_eq!((table.first_block(), table.log2_slots(), table.serves()), (0xdead_beef, 17, true));
    for policy in [TablePolicy::None, TablePolicy::Reject, TablePolicy::Drop] {
        let table = TableRef::verdict(policy);
        assert_eq!((table.policy(), table.serves()), (policy as u8, false));
    }
    assert_eq!(TableRef::default(), TableRef::verdict(TablePolicy::None));
}

#[test]
fn names_are_read_back_and_cut_at_the_end() {
    let longest = format!("{}/{}:{}", "n".repeat(63), "s".repeat(63), "p".repeat(15));
    assert_eq!(FrontendInfo::new(&longest, FrontendKind::NodePort).name(), longest);
    assert_eq!(FrontendInfo::new(&"é".repeat(80), FrontendKind::NodePort).name(), "é".repeat(72));
    assert_eq!(FrontendInfo::UNUSED.name(), "");
    for kind in [1, 2, 3, 4] {
        assert_eq!(FrontendKind::from_number(kind).map(|kind| kind as u8), Some(kind));
    }
    assert_eq!(FrontendKind::from_number(0), None);
}

#[test]
fn a_sibling_undoes_what_its_flow_does() {
    let request = key([192, 0, 2, 7], 40_000);
    let flow = Flow {
        src: [10, 0, 0, 1],
        dst: [10, 0, 0, 2],
        src_port: 61_000,
        dst_port: 8_080,
        frontend: 1,
        check: 0,
        state: 1,
        hook: 1,
        flags: 0,
        _pad: 0,
        last_seen: 1_000_000_000,
        backend: 1,
        _pad2: 0,
    };
    let reply_key = flow.sibling_key(&request);
    assert_eq!((reply_key.src, reply_key.src_port), (flow.dst, flow.dst_port));
    let reply = Flow {
        src: request.dst,
        dst: request.src,
        src_port: request.dst_port,
        dst_port: request.src_port,
        ..flow
    };
    assert!(reply.undoes(&request));
    assert_eq!(reply.sibling_key(&reply_key), request);
    assert!(!Flow { dst_port: 1, ..reply }.undoes(&request));
    assert!(!flow.expired(61_000_000_000));
    assert!(flow.expired(61_000_000_001));
    assert!(!flow.expired(0), "another CPU's clock may be ahead");
}

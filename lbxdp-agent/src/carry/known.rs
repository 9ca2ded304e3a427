//! The layouts of versions that wrote no description beside their maps.

use super::shape::Described;

/// What the maps of a version consist of; `None` if nobody knows.
pub(super) fn describe(version: u32, map: &str) -> Option<Described> {
    let table = (version == 2).then_some(V2)?;
    table.iter().find(|(name, _)| *name == map)?.1.parse().ok()
}

/// Version 2.
const V2: &[(&str, &str)] = &[
    ("addresses_v4", "key 4 addr@0+4 value 4 flags@0+4"),
    ("addresses_v6", "key 16 addr@0+16 value 4 flags@0+4"),
    (
        "affinity",
        "key 24 client@0+16 service@16+4 family@20+1 kind@21+1 value 16 last_used@0+8 \
         backend@8+4",
    ),
    ("backends_v4", "key 4 value@0+4 value 16 addr@0+4 snat_addr@4+4 port@8+2 flags@10+2"),
    ("backends_v6", "key 4 value@0+4 value 40 addr@0+16 snat_addr@16+16 port@32+2 flags@34+2"),
    ("counters", "key 4 value@0+4 value 8 value@0+8"),
    (
        "descriptors_v4",
        "key 4 value@0+4 value 32 external@0+8 internal@8+8 affinity@16+4 service@20+4 \
         flags@24+4",
    ),
    (
        "descriptors_v6",
        "key 4 value@0+4 value 32 external@0+8 internal@8+8 affinity@16+4 service@20+4 \
         flags@24+4",
    ),
    ("devices", "key 4 value@0+4 value 16 mac@0+6 flags@6+2 parent@8+4 vlan@12+4"),
    ("drops", "key 4 value@0+4 value 8 value@0+8"),
    (
        "flows_v4",
        "key 16 src@0+4 dst@4+4 src_port@8+2 dst_port@10+2 protocol@12+1 value 32 src@0+4 \
         dst@4+4 src_port@8+2 dst_port@10+2 frontend@12+4 backend@16+4 state@20+1 hook@21+1 \
         flags@22+1 last_seen@24+8",
    ),
    (
        "flows_v6",
        "key 40 src@0+16 dst@16+16 src_port@32+2 dst_port@34+2 protocol@36+1 value 56 \
         src@0+16 dst@16+16 src_port@32+2 dst_port@34+2 frontend@36+4 backend@40+4 state@44+1 \
         hook@45+1 flags@46+1 last_seen@48+8",
    ),
    (
        "fragments_v4",
        "key 16 src@0+4 dst@4+4 id@8+4 protocol@12+1 value 4 src_port@0+2 dst_port@2+2",
    ),
    (
        "fragments_v6",
        "key 40 src@0+16 dst@16+16 id@32+4 protocol@36+1 value 4 src_port@0+2 dst_port@2+2",
    ),
    ("frontends_v4", "key 8 addr@0+4 port@4+2 protocol@6+1 value 4 value@0+4"),
    ("frontends_v6", "key 20 addr@0+16 port@16+2 protocol@18+1 value 4 value@0+4"),
    ("members", "key 8 first_block@0+4 backend@4+4 value 4 value@0+4"),
    ("names_v4", "key 4 value@0+4 value 152 name@0+144 kind@144+1"),
    ("names_v6", "key 4 value@0+4 value 152 name@0+144 kind@144+1"),
    ("ranges_v4", "key 12 prefix_len@0+4 service@4+4 addr@8+4 value 4 value@0+4"),
    ("ranges_v6", "key 24 prefix_len@0+4 service@4+4 addr@8+16 value 4 value@0+4"),
    (
        "sockets_v4",
        "key 16 cookie@0+8 addr@8+4 port@12+2 protocol@14+1 way@15+1 value 12 addr@0+4 \
         port@4+2 flags@6+2 frontend@8+4",
    ),
    (
        "sockets_v6",
        "key 28 cookie@0+8 addr@8+16 port@24+2 protocol@26+1 way@27+1 value 24 addr@0+16 \
         port@16+2 flags@18+2 frontend@20+4",
    ),
    (
        "stats_v4",
        "key 4 value@0+4 value 32 packets@0+8 bytes@8+8 reply_packets@16+8 reply_bytes@24+8",
    ),
    (
        "stats_v6",
        "key 4 value@0+4 value 32 packets@0+8 bytes@8+8 reply_packets@16+8 reply_bytes@24+8",
    ),
    ("tables", "key 4 value@0+4 value 64 slots@0+64"),
];

#[cfg(test)]
mod tests {
    use lbxdp_common::ABI_VERSION;
    use lbxdp_common::layout::MAPS;

    use super::*;

    #[test]
    fn each_map_of_version_2_is_known() {
        for (map, _) in V2 {
            assert!(describe(2, map).is_some(), "{map}");
        }
        assert_eq!(describe(1, "flows_v4"), None);
        if ABI_VERSION == 2 {
            assert_eq!(V2.len(), MAPS.len());
            for map in &MAPS {
                assert_eq!(describe(2, map.name), Some(Described::new(map)), "{}", map.name);
            }
        }
    }
}

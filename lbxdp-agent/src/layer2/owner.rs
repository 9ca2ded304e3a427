//! The order of nodes for an address: each has a place that follows from its name and the address alone, so
//! every node knows the owner and the next one without asking, and where one node goes only its own
//! addresses move (rendezvous hashing).

use std::cmp::Reverse;
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

/// Sorts nodes for an address, the owner first: by preference, then by the SHA-256 of
/// `<node>#<address>`. That is how MetalLB sorts (`speaker/layer2_controller.go`), so nothing moves when
/// a cluster changes over.
pub(super) fn sort<T>(
    nodes: &mut [T],
    address: IpAddr,
    preference: impl Fn(&T) -> i32,
    name: impl Fn(&T) -> &str,
) {
    nodes.sort_by_cached_key(|node| (Reverse(preference(node)), place(name(node), address)));
}

fn place(node: &str, address: IpAddr) -> [u8; 32] {
    Sha256::digest(format!("{node}#{address}")).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn order(nodes: &[&str], address: IpAddr) -> Vec<String> {
        let mut nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
        sort(&mut nodes, address, |_| 0, |node| node);
        nodes
    }

    fn addresses(count: u8) -> impl Iterator<Item = IpAddr> {
        (0..=1).flat_map(move |net| (0..count).map(move |host| [192, 0, net, host].into()))
    }

    /// Made by `printf %s 'node-a#192.0.2.1' | sha256sum`.
    #[test]
    fn a_place_is_the_hash_of_name_and_address() {
        let hex = |node, address: &str| {
            let place = place(node, address.parse().unwrap());
            place[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex("node-a", "192.0.2.1"), "9028b03e");
        assert_eq!(hex("node-a", "2001:db8::1"), "3c9f88a7");
    }

    #[test]
    fn a_preferred_node_comes_first_whatever_its_place() {
        for address in addresses(20) {
            let mut nodes = ["a", "b", "c"];
            sort(&mut nodes, address, |node| if *node == "b" { 10 } else { 0 }, |node| node);
            assert_eq!(nodes[0], "b");
        }
    }

    #[test]
    fn nodes_have_equal_shares() {
        let mut shares = BTreeMap::<String, usize>::new();
        for address in addresses(250) {
            *shares.entry(order(&["n1", "n2", "n3"], address).remove(0)).or_default() += 1;
        }
        for (node, share) in &shares {
            assert!((133..=200).contains(share), "{node}: {share} of 500");
        }
    }

    #[test]
    fn what_a_lost_node_had_goes_to_the_next_and_nothing_else_moves() {
        for address in addresses(100) {
            let all = order(&["n1", "n2", "n3", "n4"], address);
            let lost = all[0].clone();
            let rest: Vec<_> =
                ["n4", "n3", "n2", "n1"].into_iter().filter(|n| *n != lost).collect();
            assert_eq!(order(&rest, address), all[1..]);
        }
    }
}

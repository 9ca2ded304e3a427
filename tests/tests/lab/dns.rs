//! Names of Services, as pods look them up: through the Service kube-dns.

use lbxdp_tests::lab::Origin;

use super::world::{Applied, service, share, target, wait_served, web};

#[test]
#[ignore = "needs root and Go"]
fn a_pod_finds_a_service_by_its_name() {
    let Some(lab) = share() else { return };
    let _applied = Applied::new(&lab, vec![web("names", 3), service("names", 23)]);
    let pod = Origin::Pod("deployment/names".to_owned());
    let expected = ["10.96.0.23", "fd00:10:96::23"].map(|ip| ip.parse().expect("an address"));
    for name in ["names", "names.default", "names.default.svc.cluster.local"] {
        assert_eq!(lab.lookup(&pod, name), expected.into(), "{name}");
    }
    for address in expected {
        wait_served(&lab, std::slice::from_ref(&pod), target(address.to_string(), 80));
    }
}

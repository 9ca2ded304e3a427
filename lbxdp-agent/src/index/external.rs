//! `spec.externalIPs`: addresses that the author of a Service takes without asking anybody.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::config::Config;
use super::service::{Address, addresses};
use crate::model::Reason;
use crate::problem::Reporter;

/// Those that the operator allows. A Service of any type may have them.
///
/// Whoever may write a Service in some namespace could take the address of a resolver or of
/// somebody else's service with them, from every client that passes this node (CVE-2020-8554).
/// Kubernetes deprecates them for that (KEP-5707).
pub(super) fn allowed_ips(
    spec: &ServiceSpec,
    config: &Config,
    report: &mut Reporter<'_>,
) -> Vec<Address> {
    let field = "spec.externalIPs";
    let written = spec.external_ips.as_deref().unwrap_or_default();
    if written.is_empty() {
        return Vec::new();
    }
    if config.allow_external_ips.is_empty() {
        report.because(Reason::ExternalIpNotAllowed).warning(
            field,
            "external addresses are not served: whoever may write a Service could take any \
             address with them (CVE-2020-8554); --allow-external-ips says which they may take",
        );
        return Vec::new();
    }
    let written = written.iter().enumerate();
    let written = written.map(|(index, ip)| (ip.as_str(), format!("{field}[{index}]"))).collect();
    let mut addresses = addresses(written, "external address", report);
    addresses.retain(|Address { addr, field }| {
        let is_allowed = config.allows_external(*addr);
        if !is_allowed {
            let message = format!(
                "{addr} is in no range of --allow-external-ips: this external address is not \
                 served (CVE-2020-8554)"
            );
            report.because(Reason::ExternalIpNotAllowed).warning(field, message);
        }
        is_allowed
    });
    addresses
}

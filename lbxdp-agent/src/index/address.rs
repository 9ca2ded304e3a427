//! Addresses as objects write them, and those that can never be a frontend or a backend.

use std::net::IpAddr;

/// Why an address is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    /// Not an address.
    #[error("is not an IP address")]
    Syntax,
    /// `0.0.0.0`, `::`.
    #[error("is the unspecified address")]
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    #[error("is a loopback address")]
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`.
    #[error("is a link-local address")]
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    #[error("is a multicast address")]
    Multicast,
    /// `255.255.255.255`.
    #[error("is the broadcast address")]
    Broadcast,
    /// `::ffff:0:0/96`: not clear which family is meant, and never seen in a packet.
    #[error("is an IPv4 address written as IPv6")]
    Mapped,
}

/// Reads an address and refuses those which Kubernetes' own validation refuses for endpoints
/// (`ValidateNonSpecialIP`): they would let a Service reach into the node itself or its
/// neighbours' links. A frontend on such an address would be as bad.
pub(super) fn parse(text: &str) -> Result<IpAddr, AddressError> {
    check(text.parse().map_err(|_| AddressError::Syntax)?)
}

/// Refuses the same addresses.
pub(super) fn check(addr: IpAddr) -> Result<IpAddr, AddressError> {
    let (link_local, broadcast, mapped) = match addr {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast(), false),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false, v6.to_ipv4_mapped().is_some()),
    };
    let refused = [
        (addr.is_unspecified(), AddressError::Unspecified),
        (addr.is_loopback(), AddressError::Loopback),
        (link_local, AddressError::LinkLocal),
        (addr.is_multicast(), AddressError::Multicast),
        (broadcast, AddressError::Broadcast),
        (mapped, AddressError::Mapped),
    ];
    match refused.into_iter().find(|(is, _)| *is) {
        Some((_, error)) => Err(error),
        None => Ok(addr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_addresses_are_read() {
        for text in ["10.96.0.1", "192.0.2.1", "2001:db8::1", "fd00::1", "100.64.0.1"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn special_addresses_are_refused() {
        use AddressError::*;
        for (text, error) in [
            ("", Syntax),
            ("010.0.0.1", Syntax),
            ("10.0.0.1/24", Syntax),
            (" 10.0.0.1", Syntax),
            ("fe80::1%eth0", Syntax),
            ("0.0.0.0", Unspecified),
            ("::", Unspecified),
            ("127.8.0.1", Loopback),
            ("::1", Loopback),
            ("169.254.169.254", LinkLocal),
            ("fe80::1", LinkLocal),
            ("224.0.0.1", Multicast),
            ("ff02::1", Multicast),
            ("255.255.255.255", Broadcast),
            ("::ffff:10.0.0.1", Mapped),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}

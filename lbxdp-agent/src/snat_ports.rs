//! The source ports of translated flows: which ranges would take ports from somebody else.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

/// A range of ports.
pub type Ports = RangeInclusive<u16>;

/// Above what a host uses for its own connections.
pub const DEFAULT: Ports = 61_000..=65_535;
/// What `kube-apiserver --service-node-port-range` is by default.
const NODE_PORTS: Ports = 30_000..=32_767;

/// Parses `LO-HI`.
pub fn parse(text: &str) -> Result<Ports, String> {
    let (low, high) = text.split_once('-').ok_or("expected LO-HI, such as 61000-65535")?;
    let port = |text: &str| text.trim().parse::<u16>().map_err(|error| format!("{text}: {error}"));
    let (low, high) = (port(low)?, port(high)?);
    if low < 1_024 {
        return Err(format!("{low}: ports below 1024 belong to servers"));
    }
    if low > high {
        return Err(format!("{low} is above {high}"));
    }
    Ok(low..=high)
}

/// The host's own ports, as `net.ipv4` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// `ip_local_port_range`: what the host gives to its own connections.
    pub local: Ports,
    /// `ip_local_reserved_ports`: what it never gives to them.
    pub reserved: Vec<Ports>,
}

impl HostPorts {
    /// Reads the sysctls of this network namespace.
    pub fn read() -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = Path::new("/proc/sys/net/ipv4").join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        Self::from_text(&read("ip_local_port_range")?, &read("ip_local_reserved_ports")?)
    }

    fn from_text(local: &str, reserved: &str) -> anyhow::Result<Self> {
        let mut words = local.split_whitespace().map(str::parse::<u16>);
        let (Some(Ok(low)), Some(Ok(high))) = (words.next(), words.next()) else {
            bail!("net.ipv4.ip_local_port_range is {local:?}");
        };
        let reserved = reserved
            .trim()
            .split(',')
            .filter(|range| !range.is_empty())
            .map(|range| {
                let (low, high) = range.split_once('-').unwrap_or((range, range));
                Ok(low.parse()?..=high.parse()?)
            })
            .collect::<anyhow::Result<_>>()
            .with_context(|| format!("net.ipv4.ip_local_reserved_ports is {reserved:?}"))?;
        Ok(Self { local: low..=high, reserved })
    }

    fn reserves(&self, port: u16) -> bool {
        self.reserved.iter().any(|range| range.contains(&port))
    }
}

/// Refuses a range in which the host itself, or a NodePort, uses a port.
pub fn check(ports: &Ports, host: &HostPorts) -> anyhow::Result<()> {
    let taken =
        |other: &Ports| ports.clone().find(|port| other.contains(port) && !host.reserves(*port));
    if let Some(port) = taken(&host.local) {
        bail!(
            "--snat-ports {}-{}: the host gives port {port} to its own connections \
             (net.ipv4.ip_local_port_range is {}-{}); choose another range or add it to \
             net.ipv4.ip_local_reserved_ports",
            ports.start(),
            ports.end(),
            host.local.start(),
            host.local.end()
        );
    }
    ensure!(
        taken(&NODE_PORTS).is_none(),
        "--snat-ports {}-{} overlaps the NodePort range {}-{}",
        ports.start(),
        ports.end(),
        NODE_PORTS.start(),
        NODE_PORTS.end()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(reserved: &str) -> HostPorts {
        HostPorts::from_text("32768\t60999\n", reserved).unwrap()
    }

    #[test]
    fn the_default_range_is_free_on_a_default_host() {
        check(&DEFAULT, &host("\n")).unwrap();
    }

    #[test]
    fn a_range_of_the_hosts_own_is_refused_unless_it_is_reserved() {
        let range = parse("60000-60009").unwrap();
        let error = check(&range, &host("\n")).unwrap_err().to_string();
        assert!(error.contains("port 60000") && error.contains("32768-60999"), "{error}");
        let error = check(&range, &host("60000-60008\n")).unwrap_err().to_string();
        assert!(error.contains("port 60009"), "{error}");
        check(&range, &host("8080,60000-60008,60009\n")).unwrap();
    }

    #[test]
    fn a_range_with_node_ports_is_refused() {
        let error = check(&(32_000..=32_100), &host("\n")).unwrap_err().to_string();
        assert!(error.contains("30000-32767"), "{error}");
    }

    #[test]
    fn ranges_are_parsed_or_refused_with_a_reason() {
        assert_eq!(parse("61000-61003"), Ok(61_000..=61_003));
        for (text, reason) in [
            ("61000", "LO-HI"),
            ("x-61000", "x: invalid digit"),
            ("61000-99999", "99999"),
            ("80-90", "below 1024"),
            ("61003-61000", "above"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}

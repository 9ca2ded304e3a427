//! Names that may reach maps and tables of the CLI.

/// Whether Kubernetes would take `name` for a namespace, a Service or a port. Objects from files
/// have met no API server; a name with a slash or a line break would be somebody else's name in
/// the output.
pub(super) fn is_valid(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.len() <= 253
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        for name in ["a", "0", "web-1", "a.b", &"x".repeat(253)] {
            assert!(is_valid(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a/b", "a:b", "a\n", "ä", "a b", &"x".repeat(254)] {
            assert!(!is_valid(name), "{name}");
        }
    }
}

//! Names of devices with wildcards.

use std::fmt;
use std::str::FromStr;

/// `*` stands for any characters, `?` for one, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<char>);

impl Pattern {
    /// Whether all of `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        let Self(pattern) = self;
        // Which of the pattern's beginnings the name's beginning fits, one character at a time.
        let mut fits = vec![false; pattern.len() + 1];
        fits[0] = true;
        skip_stars(pattern, &mut fits);
        for c in name.chars() {
            let mut next = vec![false; fits.len()];
            for (i, wanted) in pattern.iter().enumerate().filter(|(i, _)| fits[*i]) {
                match wanted {
                    '*' => next[i] = true,
                    '?' => next[i + 1] = true,
                    wanted if *wanted == c => next[i + 1] = true,
                    _ => {}
                }
            }
            skip_stars(pattern, &mut next);
            fits = next;
        }
        fits[pattern.len()]
    }
}

/// A star may stand for nothing.
fn skip_stars(pattern: &[char], fits: &mut [bool]) {
    for (i, c) in pattern.iter().enumerate() {
        if *c == '*' && fits[i] {
            fits[i + 1] = true;
        }
    }
}

/// What is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPattern {
    /// It is empty.
    Empty,
    /// No device's name has this character (white space, `/`, `:`), or a shell gives it a meaning
    /// that it does not have here (`[`, `]`, `{`, `}`).
    Character(char),
}

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an empty pattern fits no device"),
            Self::Character(c) => {
                write!(f, "{c:?} fits no device; only * and ? have a meaning of their own")
            }
        }
    }
}

impl std::error::Error for BadPattern {}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let is_bad = |c: &char| c.is_whitespace() || "/:[]{}".contains(*c);
        match text.chars().find(is_bad) {
            Some(c) => Err(BadPattern::Character(c)),
            None if text.is_empty() => Err(BadPattern::Empty),
            None => Ok(Self(text.chars().collect())),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|c| write!(f, "{c}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_characters() {
        for (pattern, name, fits) in [
            ("veth*", "veth", true),
            ("veth*", "veth1234", true),
            ("veth*", "eth0", false),
            ("veth*", "xveth0", false),
            ("*", "anything", true),
            ("cali?", "cali", false),
            ("cali?", "cali1", true),
            ("cali?", "cali12", false),
            ("*-pod-*", "a-pod-b", true),
            ("*-pod-*", "a-pod-pod-b", true),
            ("*-pod-*", "a-pod", false),
            ("a*b*c", "abbbcbc", true),
            ("a*b*c", "abbbcb", false),
            ("**", "", true),
            ("lxc0", "lxc0", true),
            ("lxc0", "lxc00", false),
            ("eth0.100", "eth0x100", false),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn what_fits_no_device_is_refused() {
        assert_eq!("".parse::<Pattern>(), Err(BadPattern::Empty));
        for (pattern, c) in [("veth[0-9]", '['), ("veth{a,b}", '{'), ("a b", ' '), ("a/b", '/')] {
            assert_eq!(pattern.parse::<Pattern>(), Err(BadPattern::Character(c)));
        }
    }
}

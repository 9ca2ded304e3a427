//! Making [`Problem`]s: the one place where text from objects is made safe to print.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::model::{Problem, Reason, Severity};

/// Longest value that a message repeats.
const VALUE_CHARS: usize = 80;
/// Longest part of a problem. Objects may be megabytes; a log line may not.
const PART_CHARS: usize = 500;

/// Problems found so far, without repetitions.
#[derive(Clone, Debug, Default)]
pub struct Problems(BTreeSet<Problem>);

impl Problems {
    /// Everything reported about one object goes through the reporter this returns.
    pub fn about<'a>(&'a mut self, origin: &str, object: &str) -> Reporter<'a> {
        Reporter { problems: self, origin: escaped(origin), object: escaped(object), reason: None }
    }

    /// Adds problems found elsewhere.
    pub fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.0.extend(problems);
    }

    /// The problems by file, object and field: the order in which somebody would repair them.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut problems: Vec<_> = self.0.into_iter().collect();
        problems.sort_by(|a, b| {
            let key = |p: &Problem| (p.origin.clone(), p.object.clone(), p.field.clone());
            key(a).cmp(&key(b)).then_with(|| a.cmp(b))
        });
        problems
    }
}

/// Logs what has changed: each problem once while it lasts, and its end.
pub fn log_changes(before: &BTreeSet<Problem>, now: &BTreeSet<Problem>) {
    for problem in now.difference(before) {
        match problem.severity {
            Severity::Warning => tracing::warn!("{problem}"),
            Severity::Error => tracing::error!("{problem}"),
        }
    }
    for problem in before.difference(now) {
        tracing::info!("no longer: {problem}");
    }
}

/// Collects the problems of one object.
#[derive(Debug)]
pub struct Reporter<'a> {
    problems: &'a mut Problems,
    origin: String,
    object: String,
    reason: Option<Reason>,
}

impl Reporter<'_> {
    /// The same for problems of one kind, instead of those that the severity stands for.
    pub fn because(&mut self, reason: Reason) -> Reporter<'_> {
        Reporter {
            problems: self.problems,
            origin: self.origin.clone(),
            object: self.object.clone(),
            reason: Some(reason),
        }
    }

    /// What is named is ignored.
    pub fn error(&mut self, field: impl AsRef<str>, message: impl AsRef<str>) {
        self.report(Severity::Error, field.as_ref(), message.as_ref());
    }

    /// What is named is not served as written.
    pub fn warning(&mut self, field: impl AsRef<str>, message: impl AsRef<str>) {
        self.report(Severity::Warning, field.as_ref(), message.as_ref());
    }

    fn report(&mut self, severity: Severity, field: &str, message: &str) {
        self.problems.0.insert(Problem {
            severity,
            origin: self.origin.clone(),
            object: self.object.clone(),
            field: escaped(field),
            message: escaped(message),
            reason: self.reason.unwrap_or(match severity {
                Severity::Error => Reason::InvalidField,
                Severity::Warning => Reason::NotServedAsWritten,
            }),
        });
    }
}

/// A value of an object as a message repeats it: in quotes and not too long.
pub fn quoted(value: &str) -> String {
    format!("\"{}\"", clipped(value, VALUE_CHARS))
}

/// Makes text from an object harmless for terminals and logs: whoever may write a Service must
/// not be able to forge log lines or drive the terminal of the person reading them
/// (CVE-2026-25996 was this mistake in another tool). Line breaks, escape sequences, invisible
/// characters and those that reverse the reading direction become `\u{..}`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(PART_CHARS));
    for c in clipped(text, PART_CHARS).chars() {
        if is_harmless(c) {
            out.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "{}", c.escape_unicode());
        }
    }
    out
}

fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

fn clipped(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(origin: &str, object: &str, field: &str, message: &str) -> Problem {
        let mut problems = Problems::default();
        problems.about(origin, object).error(field, message);
        problems.into_sorted().remove(0)
    }

    #[test]
    fn control_characters_are_escaped_in_every_part() {
        let evil = "a\x1b[2Jb\r\nc\u{202e}d\u{9b}";
        let problem = one(evil, evil, evil, evil);
        let expected = r"a\u{1b}[2Jb\u{d}\u{a}c\u{202e}d\u{9b}";
        let Problem { severity: _, reason: _, origin, object, field, message } = problem;
        for part in [origin, object, field, message] {
            assert_eq!(part, expected);
        }
    }

    #[test]
    fn the_reason_is_said_or_follows_from_the_severity() {
        let mut problems = Problems::default();
        let mut about = problems.about("", "Service default/a");
        about.because(Reason::AddressConflict).error("a", "x");
        about.error("b", "x");
        about.warning("c", "x");
        let reasons: Vec<_> = problems.into_sorted().iter().map(|p| p.reason).collect();
        let [a, b, c] = [Reason::AddressConflict, Reason::InvalidField, Reason::NotServedAsWritten];
        assert_eq!(reasons, [a, b, c]);
    }

    #[test]
    fn ordinary_text_of_any_language_stays_readable() {
        assert_eq!(one("", "o", "", "für Ёлка 日本 \\ \"x\"").message, "für Ёлка 日本 \\ \"x\"");
    }

    #[test]
    fn long_values_are_clipped() {
        let long = "ü".repeat(100_000);
        assert_eq!(quoted(&long).chars().count(), VALUE_CHARS + 3);
        assert_eq!(one("", "o", "", &long).message.chars().count(), PART_CHARS + 1);
    }

    #[test]
    fn problems_come_once_and_by_file_object_and_field() {
        let mut problems = Problems::default();
        problems.about("b.yaml", "Service default/a").error("spec", "x");
        problems.about("a.yaml", "Service default/b").error("spec", "x");
        problems.about("a.yaml", "Service default/b").warning("kind", "y");
        problems.about("a.yaml", "Service default/b").error("spec", "x");
        let order: Vec<_> =
            problems.into_sorted().into_iter().map(|p| (p.origin, p.field)).collect();
        let expected = [("a.yaml", "kind"), ("a.yaml", "spec"), ("b.yaml", "spec")];
        assert_eq!(order, expected.map(|(o, f)| (o.to_owned(), f.to_owned())));
    }
}

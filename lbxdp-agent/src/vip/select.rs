//! Lists of label selectors, as the custom resources have them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};

use crate::problem::Reporter;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Label selectors one of which must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Selectors(Vec<Selector>);

impl Selectors {
    /// Reads the list in a field. What cannot be read selects nothing and is reported, and `false`
    /// says so.
    pub(super) fn read(
        written: Option<&[LabelSelector]>,
        field: &str,
        report: &mut Reporter<'_>,
    ) -> (Self, bool) {
        let mut selectors = Vec::new();
        let mut is_readable = true;
        for (index, selector) in written.unwrap_or_default().iter().enumerate() {
            match check(selector) {
                Ok(selector) => selectors.push(selector),
                Err(why) => {
                    is_readable = false;
                    report.error(format!("{field}[{index}]"), format!("{why}: it selects nothing"));
                }
            }
        }
        (Self(selectors), is_readable)
    }

    /// Whether one of them matches.
    pub(super) fn select(&self, labels: &Labels) -> bool {
        self.0.iter().any(|selector| selector.matches(labels))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads one selector. What the API server refuses is refused.
pub(super) fn check(selector: &LabelSelector) -> Result<Selector, String> {
    for requirement in selector.match_expressions.iter().flatten() {
        let has_values = requirement.values.as_ref().is_some_and(|values| !values.is_empty());
        let wants_values = matches!(requirement.operator.as_str(), "In" | "NotIn");
        if wants_values && !has_values {
            return Err(format!("operator {} has no values", requirement.operator));
        }
    }
    Selector::try_from(selector.clone()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::problem::Problems;
    use crate::vip::tests::labels;

    #[test]
    fn one_of_the_list_must_match() {
        let list: Vec<LabelSelector> = serde_json::from_value(json!([
            {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]},
            {"matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["1", "2"]}]},
        ]))
        .unwrap();
        let mut problems = Problems::default();
        let read = Selectors::read(Some(&list), "f", &mut problems.about("", "x"));
        let (selectors, true) = read else { panic!("{read:?}") };
        for (pairs, expected) in [
            (&[("a", "1"), ("b", ""), ("c", "1")][..], true),
            (&[("a", "1"), ("c", "1")], false),
            (&[("c", "3")], true),
            (&[], true),
        ] {
            assert_eq!(selectors.select(&labels(pairs)), expected, "{pairs:?}");
        }
        assert!(problems.into_sorted().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let list: Vec<LabelSelector> = serde_json::from_value(json!([
            {},
            {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]},
            {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]},
        ]))
        .unwrap();
        let mut problems = Problems::default();
        let read = Selectors::read(Some(&list), "f", &mut problems.about("", "x"));
        let (selectors, false) = read else { panic!("{read:?}") };
        assert!(selectors.select(&labels(&[])));
        let fields: Vec<_> = problems.into_sorted().into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["f[1]", "f[2]"]);
    }
}

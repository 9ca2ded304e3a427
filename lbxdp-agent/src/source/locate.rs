//! Finds the field that makes an object undecodable: serde says what is wrong, not where.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Path of the first field of `object` that does not decode as part of a `T`; empty when only
/// the whole does not.
///
/// Decodes the object again with one branch left at a time. That needs no second decoder, and
/// works because k8s-openapi lets absent fields be absent; it costs time only for broken objects.
pub(crate) fn faulty_field<T: DeserializeOwned>(object: &Value) -> String {
    let mut path = String::new();
    let mut branch = Vec::new();
    let mut at = object;
    loop {
        let Some((step, child)) = children(at).find(|(step, child)| {
            branch.push(step.clone());
            let broken = serde_json::from_value::<T>(only(&branch, child)).is_err();
            branch.pop();
            broken
        }) else {
            return path;
        };
        match &step {
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => {
                path.push('.');
                path.push_str(key);
            }
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
        branch.push(step);
        at = child;
    }
}

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

fn children(value: &Value) -> Box<dyn Iterator<Item = (Step, &Value)> + '_> {
    match value {
        Value::Object(map) => Box::new(map.iter().map(|(key, v)| (Step::Key(key.clone()), v))),
        Value::Array(items) => {
            Box::new(items.iter().enumerate().map(|(index, v)| (Step::Index(index), v)))
        }
        _ => Box::new(std::iter::empty()),
    }
}

/// `leaf` under `branch`, and nothing else.
fn only(branch: &[Step], leaf: &Value) -> Value {
    branch.iter().rev().fold(leaf.clone(), |inner, step| match step {
        Step::Key(key) => Value::Object(Map::from_iter([(key.clone(), inner)])),
        Step::Index(_) => Value::Array(vec![inner]),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_path_names_the_innermost_faulty_field() {
        for (object, path) in [
            (json!({"spec": {"ports": [{"port": 1}, {"port": "x"}]}}), "spec.ports[1].port"),
            (json!({"metadata": {"labels": {"a": 1}}, "spec": 3}), "metadata.labels.a"),
            (json!({"spec": {"clusterIPs": "10.0.0.1"}}), "spec.clusterIPs"),
            (json!({"kind": "Pod"}), "kind"),
            (json!([]), ""),
            (json!({}), ""),
        ] {
            assert_eq!(faulty_field::<Service>(&object), path, "{object}");
        }
    }
}

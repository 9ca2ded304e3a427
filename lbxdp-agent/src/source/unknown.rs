//! Finds fields that decoding passed over: a misspelt `adresses` is no error to serde, but to the
//! author it is.

use serde_json::Value;

/// More than these are not worth naming.
const MOST: usize = 20;

/// Paths of fields that were `written` and are not among those `read`.
pub(crate) fn unknown_fields(written: &Value, read: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(written, read, "", &mut found);
    found
}

fn compare(written: &Value, read: &Value, path: &str, found: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{key}");
                match read.get(key) {
                    Some(read) => compare(value, read, &path, found),
                    // Nothing was said with it.
                    None if value.is_null() => {}
                    None if found.len() < MOST => found.push(path),
                    None => return,
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                compare(written, read, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_fields_that_say_something_and_are_not_known_are_found() {
        let written = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "a", "labels": {"x": "y"}, "creationTimestamp": null, "clusterName": null,
                "managedFields": [{"fieldsV1": {"f:spec": {"f:x": {}}}}],
            },
            "spec": {
                "ports": [{"port": 80, "targetPort": "web"}, {"port": 81, "targetport": 1}],
                "clusterIp": "10.0.0.1", "selector": {"any": "thing"}, "externalIPs": [],
            },
            "status": {"loadBalancer": {"ingres": []}},
        });
        let read = serde_json::to_value(Service::deserialize(&written).unwrap()).unwrap();
        let expected = ["spec.clusterIp", "spec.ports[1].targetport", "status.loadBalancer.ingres"];
        assert_eq!(unknown_fields(&written, &read), expected);
    }

    #[test]
    fn garbage_is_not_named_without_end() {
        let garbage: serde_json::Map<_, _> = (0..1000).map(|n| (n.to_string(), json!(n))).collect();
        assert_eq!(unknown_fields(&Value::Object(garbage), &json!({})).len(), MOST);
    }
}

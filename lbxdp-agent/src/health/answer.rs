//! What is answered, in kube-proxy's words (`service_health.go`, `proxy_health.go`): load balancers
//! and people have programs that read them.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::checks::Check;

/// How many endpoints a load balancer finds behind this node (kube-proxy 1.29).
pub const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckBody<'a> {
    service: ServiceName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// The answer to a health check: yes if there is an endpoint to send to and its rules are kept.
pub fn check(check: &Check, is_live: bool) -> Response {
    let Check { namespace, name, local_endpoints } = check;
    let body = CheckBody {
        service: ServiceName { namespace, name },
        local_endpoints: *local_endpoints,
        service_proxy_healthy: is_live,
    };
    let mut response = json(*local_endpoints != 0 && is_live, &body);
    response.headers_mut().insert(WEIGHT, HeaderValue::from(*local_endpoints));
    response
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SelfBody {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

/// The answer of `/livez`, or with the node of `/healthz`. The maps are `behind_seconds` old.
pub fn about_self(is_live: bool, node_eligible: Option<bool>, behind_seconds: u64) -> Response {
    let current_time = now();
    let behind = SignedDuration::from_secs(i64::try_from(behind_seconds).unwrap_or(i64::MAX));
    let last_updated = current_time.checked_sub(behind).unwrap_or(Timestamp::MIN);
    let body = SelfBody { last_updated, current_time, node_eligible };
    json(is_live && node_eligible != Some(false), &body)
}

/// The wall clock; a clock before 1970 is one that nobody has set.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = SignedDuration::try_from(since).unwrap_or_default();
    Timestamp::from_duration(since).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn json(is_yes: bool, body: &impl Serialize) -> Response {
    let status = if is_yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    match serde_json::to_vec(body) {
        Ok(body) => (status, headers, body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    fn read(response: Response) -> (u16, Vec<(String, String)>, Value) {
        let status = response.status().as_u16();
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), text(value))).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(to_bytes(response.into_body(), 1 << 16)).unwrap();
        (status, headers, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn a_check_says_yes_if_there_is_an_endpoint_and_the_agent_is_live() {
        for (local_endpoints, is_live, expected) in
            [(2, true, 200), (1, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)]
        {
            let service = Check { namespace: "shop".into(), name: "web".into(), local_endpoints };
            let (status, headers, body) = read(check(&service, is_live));
            assert_eq!(status, expected, "{local_endpoints} {is_live}");
            let weight = local_endpoints.to_string();
            for (name, value) in [
                ("content-type", "application/json"),
                ("x-content-type-options", "nosniff"),
                ("x-load-balancing-endpoint-weight", weight.as_str()),
            ] {
                assert!(headers.contains(&(name.to_owned(), value.to_owned())), "{headers:?}");
            }
            let expected = json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": local_endpoints,
                "serviceProxyHealthy": is_live,
            });
            assert_eq!(body, expected);
        }
    }

    #[test]
    fn healthz_is_livez_and_the_node() {
        for (is_live, node, expected) in [
            (true, None, 200),
            (false, None, 503),
            (true, Some(true), 200),
            (true, Some(false), 503),
            (false, Some(true), 503),
        ] {
            let (status, headers, body) = read(about_self(is_live, node, 0));
            assert_eq!(status, expected, "{is_live} {node:?}");
            let content = ("content-type".to_owned(), "application/json".to_owned());
            assert!(headers.contains(&content), "{headers:?}");
            assert_eq!(body.get("nodeEligible").and_then(Value::as_bool), node);
            assert_eq!(body["lastUpdated"], body["currentTime"], "up to date is now");
        }
    }

    #[test]
    fn what_is_behind_says_since_when() {
        let (_, _, body) = read(about_self(false, None, 100));
        let time = |field: &str| body[field].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert_eq!(time("currentTime").duration_since(time("lastUpdated")).as_secs(), 100);
    }
}

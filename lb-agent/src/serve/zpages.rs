//! `/statusz` and `/flagz` (KEP-4827, KEP-4828): pages for people, and objects of `config.k8s.io` for
//! those who ask for them by the `Accept` header. Pure.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Who is asked.
const COMPONENT: &str = "lb-agent";
/// The Kubernetes release whose kube-proxy is stood in for.
const EMULATED: &str = "1.36";
/// Everything that is served beside.
pub(super) const PATHS: [&str; 6] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/metrics",
    "/proxyMode",
    "/statusz",
];

/// A page in the form that was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Page {
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

/// What a client takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    Text,
    /// The object of this version.
    Json(&'static str),
}

impl Form {
    /// Of an `Accept` header; `None` if nothing in it can be had.
    fn accepted(accept: &str, kind: &str) -> Option<Self> {
        if accept.trim().is_empty() {
            return Some(Self::Text);
        }
        accept.split(',').find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            match parts.next()? {
                "text/plain" | "text/*" | "*/*" => Some(Self::Text),
                "application/json" => {
                    let parameters: Vec<&str> = parts.collect();
                    let has = |name: &str, value: &str| {
                        let wanted = (name, value);
                        parameters
                            .iter()
                            .any(|part| part.split_once('=') == Some(wanted))
                    };
                    let versions = ["v1beta1", "v1alpha1"];
                    let version = versions.into_iter().find(|version| has("v", version))?;
                    (has("as", kind) && has("g", "config.k8s.io")).then_some(Self::Json(version))
                }
                _ => None,
            }
        })
    }

    fn page(self, kind: &str, text: impl FnOnce() -> String, mut object: Value) -> Page {
        match self {
            Self::Text => Page {
                content_type: "text/plain; charset=utf-8",
                body: format!(
                    "\n{COMPONENT} {}\nWarning: This endpoint is not meant to be machine parseable, \
                     has no formatting compatibility guarantees and is for debugging purposes only.\n\
                     {}",
                    kind.to_lowercase(),
                    text()
                ),
            },
            Self::Json(version) => {
                object["kind"] = json!(kind);
                object["apiVersion"] = json!(format!("config.k8s.io/{version}"));
                object["metadata"] = json!({"name": COMPONENT});
                Page {
                    content_type: "application/json",
                    body: object.to_string(),
                }
            }
        }
    }
}

/// The page of an agent that started at the Unix time `start`; `None` if `accept` takes none.
pub(super) fn statusz(accept: &str, start: Duration, now: SystemTime) -> Option<Page> {
    let form = Form::accepted(accept, "Statusz")?;
    let up = now
        .duration_since(UNIX_EPOCH + start)
        .unwrap_or_default()
        .as_secs();
    let version = env!("CARGO_PKG_VERSION");
    let started = i64::try_from(start.as_secs())
        .ok()
        .and_then(|seconds| k8s_openapi::jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or_default();
    let text = || {
        format!(
            "\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {version}\n\
             Emulation version: {EMULATED}\nPaths: {}\n",
            started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            up / 3600,
            up / 60 % 60,
            up % 60,
            PATHS.join(" ")
        )
    };
    let object = json!({
        "startTime": started.to_string(),
        "uptimeSeconds": up,
        "goVersion": "",
        "binaryVersion": version,
        "emulationVersion": EMULATED,
        "paths": PATHS,
    });
    Some(form.page("Statusz", text, object))
}

/// The page of an agent with these flags; `None` if `accept` takes none.
pub(super) fn flagz(accept: &str, flags: &BTreeMap<String, String>) -> Option<Page> {
    let form = Form::accepted(accept, "Flagz")?;
    let text = || {
        flags.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}={value}");
            text
        })
    };
    Some(form.page("Flagz", text, json!({"flags": flags})))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_729_112_623);

    fn status(accept: &str) -> Option<Page> {
        statusz(
            accept,
            START,
            UNIX_EPOCH + START + Duration::from_secs(3_725),
        )
    }

    #[test]
    fn people_and_curl_get_text() {
        for accept in ["", "*/*", "text/html, text/plain;q=0.5"] {
            let page = status(accept).unwrap();
            assert_eq!(page.content_type, "text/plain; charset=utf-8");
            assert!(
                page.body.starts_with("\nlb-agent statusz\nWarning: "),
                "{}",
                page.body
            );
            for line in [
                "Started: Wed Oct 16 21:03:43 UTC 2024",
                "Up: 1 hr 02 min 05 sec",
                "Emulation version: 1.36",
            ] {
                assert!(
                    page.body.lines().any(|found| found == line),
                    "{}",
                    page.body
                );
            }
        }
        let flags = BTreeMap::from([("node".to_owned(), "a".to_owned())]);
        assert!(flagz("", &flags).unwrap().body.ends_with("only.\nnode=a\n"));
    }

    #[test]
    fn who_asks_for_an_object_gets_it_in_its_version_and_nobody_gets_another() {
        let accept = "application/json;as=Statusz;v=v1beta1;g=config.k8s.io";
        let page = status(accept).unwrap();
        assert_eq!(page.content_type, "application/json");
        let object: Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(object["apiVersion"], "config.k8s.io/v1beta1");
        assert_eq!(object["kind"], "Statusz");
        assert_eq!(object["startTime"], "2024-10-16T21:03:43Z");
        assert_eq!(object["uptimeSeconds"], 3_725);
        let flags = BTreeMap::from([("node".to_owned(), "a".to_owned())]);
        assert_eq!(flagz(accept, &flags), None);
        let page = flagz(&accept.replace("Statusz", "Flagz"), &flags).unwrap();
        let object: Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(object["flags"], json!({"node": "a"}));
        for accept in ["application/json", "application/yaml", "text/html"] {
            assert_eq!(status(accept), None, "{accept}");
        }
    }
}

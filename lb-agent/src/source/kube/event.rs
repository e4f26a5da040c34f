//! Events: what the cluster's people should see without reading this node's log. Written once each
//! and given up after a while: nothing depends on them.

use super::client::Servers;
use crate::model::desired::ObjectName;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Who writes them.
const CONTROLLER: &str = "lb-agent";
/// Pauses between tries, and how many there are, as kube-proxy's recorder has them.
const PAUSE: Duration = Duration::from_secs(10);
const TRIES: u32 = 12;

/// What an Event is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum About {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// Something that deserves an Event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// What it is about.
    pub about: About,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// Why, in one word for machines.
    pub reason: &'static str,
    /// What was done or tried.
    pub action: &'static str,
    /// What happened, for people.
    pub note: String,
}

impl Notice {
    /// The Event, as kube-proxy on `node` would write it at `now`.
    fn event(&self, node: &str, now: SystemTime) -> serde_json::Value {
        let (kind, namespace, name, uid) = match &self.about {
            About::Node => ("Node", "", node, node.to_owned()),
            About::Service(service) => {
                let (namespace, name) = (&*service.namespace, &*service.name);
                ("Service", namespace, name, service.to_string())
            }
        };
        let nanos = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let at = k8s_openapi::jiff::Timestamp::try_from(now).unwrap_or_default();
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": format!("{name}.{nanos:x}"), "namespace": self.namespace()},
            "eventTime": format!("{at:.6}"),
            "reportingController": CONTROLLER,
            "reportingInstance": format!("{CONTROLLER}-{node}"),
            "action": self.action,
            "reason": self.reason,
            "regarding": {"kind": kind, "namespace": namespace, "name": name, "uid": uid},
            "note": self.note,
            "type": if self.warning { "Warning" } else { "Normal" },
        })
    }

    /// Events about objects without a namespace stand in `default`.
    fn namespace(&self) -> &str {
        match &self.about {
            About::Node => "default",
            About::Service(service) => &service.namespace,
        }
    }
}

/// Writes what comes until `shutdown`.
pub async fn post(
    servers: Servers,
    node: String,
    mut notices: mpsc::Receiver<Notice>,
    shutdown: CancellationToken,
) {
    let work = async {
        while let Some(notice) = notices.recv().await {
            one(&servers, &node, &notice).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

async fn one(servers: &Servers, node: &str, notice: &Notice) {
    let event = serde_json::from_value::<Event>(notice.event(node, SystemTime::now()));
    let event = match event {
        Ok(event) => event,
        Err(error) => return tracing::warn!(%error, "an Event cannot be made"),
    };
    for attempt in 1..=TRIES {
        let Some((number, _, client)) = servers.current() else {
            return;
        };
        let events: Api<Event> = Api::namespaced(client.clone(), notice.namespace());
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => return,
            // The server's own answer does not change by asking again.
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
                return tracing::info!(
                    reason = notice.reason,
                    error = status.message,
                    "the API server takes no Event; rbac.yaml allows it"
                );
            }
            Err(error) if attempt == TRIES => {
                tracing::info!(reason = notice.reason, %error, "an Event could not be written");
            }
            Err(_) => {
                servers.fail_over(number);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_what_the_api_takes() {
        let notice = Notice {
            about: About::Service(ObjectName {
                namespace: "ns".into(),
                name: "web".into(),
            }),
            warning: true,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: "a sentence".to_owned(),
        };
        let now = UNIX_EPOCH + Duration::from_millis(1_000_000_000_500);
        let written = notice.event("n", now);
        let event: Event = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(event.metadata.namespace.as_deref(), Some("ns"));
        assert_eq!(written["eventTime"], "2001-09-09T01:46:40.500000Z");
        assert_eq!(written["regarding"]["uid"], "ns/web");
        let about_node = Notice {
            about: About::Node,
            ..notice
        };
        let written = about_node.event("n", now);
        assert_eq!(written["metadata"]["namespace"], "default");
        assert_eq!(written["regarding"]["name"], "n");
    }
}

//! Is this node's service path working? Decided from the agent's [`Snapshot`] alone, so that every
//! answer can be tested.

use crate::app::{Snapshot, Updates};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// A change that waits longer makes the node unhealthy: twice kube-proxy's default `syncPeriod`.
pub const LATE: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// `/healthz`: should load balancers send new connections to this node?
    Healthz,
    /// `/livez`: does the agent work?
    Livez,
}

/// The answer of `/healthz` and `/livez`; its JSON has kube-proxy's fields and `reason`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// While the answer is 200 now, else the time of the last complete sync; absent before the
    /// first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<String>,
    /// Now.
    pub current_time: String,
    /// Whether the node is to get new connections; `/healthz` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// The verdict on the agent.
    pub healthy: bool,
    /// Each family by itself.
    pub status: Families,
    /// Why the status is not 200, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The verdict on each IP family.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Families {
    /// IPv4.
    #[serde(rename = "IPv4")]
    pub v4: FamilyHealth,
    /// IPv6.
    #[serde(rename = "IPv6")]
    pub v6: FamilyHealth,
}

/// The verdict on one IP family.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyHealth {
    /// The last time everything known was served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<String>,
    /// No change has been waiting for too long.
    pub healthy: bool,
}

impl Health {
    /// Healthy only after the first complete sync, while the packet path is attached and gives a
    /// synthetic packet the right answer, and while no change waits for `late`.
    pub fn of(question: Question, snapshot: &Snapshot, now: SystemTime, late: Duration) -> Self {
        let family = |updates: &Updates| FamilyHealth {
            last_updated: updates.served_at().map(timestamp),
            healthy: !updates.is_late(now, late),
        };
        let [v4, v6] = &snapshot.updates;
        let status = Families {
            v4: family(v4),
            v6: family(v6),
        };
        let trouble = trouble(snapshot, status.v4.healthy && status.v6.healthy);
        let healthy = trouble.is_none();
        let node_eligible = match question {
            Question::Healthz => Some(snapshot.node_eligible),
            Question::Livez => None,
        };
        let reason = trouble.or_else(|| {
            (node_eligible == Some(false)).then(|| {
                "the node is about to be removed: new connections belong on another one".to_owned()
            })
        });
        Self {
            last_updated: if reason.is_none() {
                Some(timestamp(now))
            } else {
                v4.served_at().max(v6.served_at()).map(timestamp)
            },
            current_time: timestamp(now),
            node_eligible,
            healthy,
            status,
            reason,
        }
    }

    /// The HTTP status that says the same.
    pub const fn status(&self) -> u16 {
        if self.reason.is_none() { 200 } else { 503 }
    }
}

/// What keeps the agent from being healthy.
fn trouble(snapshot: &Snapshot, in_time: bool) -> Option<String> {
    let error = snapshot.last_error.as_deref();
    let with_error = |sentence: &str| match error {
        Some(error) => format!("{sentence}: {error}"),
        None => sentence.to_owned(),
    };
    if !snapshot.synced {
        return Some(with_error("the first sync is not complete"));
    }
    if !snapshot.attached {
        return Some("the packet path is not attached to the node's devices".to_owned());
    }
    match &snapshot.probe {
        Some(Ok(())) if in_time => None,
        Some(Ok(())) => Some(with_error("changes could not be served for too long")),
        Some(Err(wrong)) => Some(format!(
            "the loaded programs do not treat a synthetic packet rightly: {wrong}"
        )),
        None => Some("the loaded programs have not been probed yet".to_owned()),
    }
}

/// RFC 3339, UTC.
fn timestamp(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn served() -> Snapshot {
        let mut updates = Updates::default();
        updates.served(at(1_000_000_000));
        Snapshot {
            synced: true,
            attached: true,
            node_eligible: true,
            updates: [updates; 2],
            probe: Some(Ok(())),
            ..Snapshot::default()
        }
    }

    fn health(snapshot: &Snapshot, seconds: u64) -> Health {
        Health::of(Question::Healthz, snapshot, at(seconds), LATE)
    }

    #[test]
    fn before_the_first_complete_sync_the_answer_is_503() {
        let mut snapshot = Snapshot::default();
        assert_eq!(health(&snapshot, 1).status(), 503);
        snapshot.probe = Some(Ok(()));
        let health = health(&snapshot, 1);
        assert_eq!(health.status(), 503);
        assert_eq!(health.last_updated, None);
    }

    #[test]
    fn after_the_first_complete_sync_and_with_a_right_probe_the_answer_is_200() {
        let health = health(&served(), 1_000_000_007);
        assert_eq!(health.status(), 200);
        assert_eq!(
            serde_json::to_string(&health).unwrap(),
            r#"{"lastUpdated":"2001-09-09T01:46:47Z","currentTime":"2001-09-09T01:46:47Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2001-09-09T01:46:40Z","healthy":true},"IPv6":{"lastUpdated":"2001-09-09T01:46:40Z","healthy":true}}}"#
        );
    }

    #[test]
    fn a_wrong_answer_to_the_synthetic_packet_makes_it_503_and_says_why() {
        let mut snapshot = served();
        snapshot.probe = Some(Err("destination was not translated".to_owned()));
        let health = health(&snapshot, 1_000_000_007);
        assert_eq!(health.status(), 503);
        assert_eq!(health.last_updated.as_deref(), Some("2001-09-09T01:46:40Z"));
        let reason = health.reason.unwrap();
        assert!(reason.contains("destination was not translated"));
    }

    #[test]
    fn programs_that_were_never_probed_or_attached_are_not_healthy() {
        let mut snapshot = served();
        snapshot.probe = None;
        assert!(!health(&snapshot, 2).healthy);
        let mut snapshot = served();
        snapshot.attached = false;
        assert!(!health(&snapshot, 2).healthy);
    }

    #[test]
    fn a_change_that_waits_too_long_makes_its_family_unhealthy_until_it_is_served() {
        let mut snapshot = served();
        snapshot.updates[1].queued(at(1_000_000_100));
        snapshot.updates[1].queued(at(1_000_000_130));
        assert_eq!(health(&snapshot, 1_000_000_159).status(), 200);
        let late = health(&snapshot, 1_000_000_160);
        assert_eq!(late.status(), 503);
        assert!(late.status.v4.healthy && !late.status.v6.healthy);
        snapshot.updates[1].served(at(1_000_000_161));
        assert_eq!(health(&snapshot, 1_000_000_161).status(), 200);
    }

    #[test]
    fn a_node_that_is_about_to_go_is_alive_but_gets_no_new_connections() {
        let mut snapshot = served();
        snapshot.node_eligible = false;
        let health = health(&snapshot, 1_000_000_007);
        assert_eq!((health.status(), health.healthy), (503, true));
        assert_eq!(health.last_updated.as_deref(), Some("2001-09-09T01:46:40Z"));
        let live = Health::of(Question::Livez, &snapshot, at(1_000_000_007), LATE);
        assert_eq!((live.status(), live.node_eligible), (200, None));
    }
}

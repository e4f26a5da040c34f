//! Is this node's service path working? Decided from the agent's [`Snapshot`] alone, so that every
//! answer can be tested.

use crate::app::Snapshot;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::time::SystemTime;

/// The answer of `/healthz` and `/livez`; its JSON has kube-proxy's fields and `reason`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// While healthy now, else the time of the last complete sync; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<String>,
    /// Now.
    pub current_time: String,
    /// The verdict.
    pub healthy: bool,
    /// Why not, if not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Health {
    /// Healthy only after the first complete sync and while the loaded programs give a synthetic
    /// packet the right answer.
    pub fn of(snapshot: &Snapshot, now: SystemTime) -> Self {
        let reason = if snapshot.synced {
            match &snapshot.probe {
                Some(Ok(())) => None,
                Some(Err(wrong)) => Some(format!(
                    "the loaded programs do not treat a synthetic packet rightly: {wrong}"
                )),
                None => Some("the loaded programs have not been probed yet".to_owned()),
            }
        } else {
            Some(match &snapshot.last_error {
                Some(error) => format!("the first sync is not complete: {error}"),
                None => "the first sync is not complete".to_owned(),
            })
        };
        let healthy = reason.is_none();
        Self {
            last_updated: if healthy {
                Some(timestamp(now))
            } else {
                snapshot.last_sync.map(timestamp)
            },
            current_time: timestamp(now),
            healthy,
            reason,
        }
    }

    /// The HTTP status that says the same.
    pub const fn status(&self) -> u16 {
        if self.healthy { 200 } else { 503 }
    }
}

/// RFC 3339, UTC.
fn timestamp(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn served() -> Snapshot {
        Snapshot {
            synced: true,
            last_sync: Some(at(1_000_000_000)),
            probe: Some(Ok(())),
            ..Snapshot::default()
        }
    }

    #[test]
    fn before_the_first_complete_sync_the_answer_is_503() {
        let mut snapshot = Snapshot::default();
        assert_eq!(Health::of(&snapshot, at(1)).status(), 503);
        snapshot.probe = Some(Ok(()));
        let health = Health::of(&snapshot, at(1));
        assert_eq!(health.status(), 503);
        assert_eq!(health.last_updated, None);
    }

    #[test]
    fn after_the_first_complete_sync_and_with_a_right_probe_the_answer_is_200() {
        let health = Health::of(&served(), at(1_000_000_007));
        assert_eq!(health.status(), 200);
        assert_eq!(
            serde_json::to_string(&health).unwrap(),
            r#"{"lastUpdated":"2001-09-09T01:46:47Z","currentTime":"2001-09-09T01:46:47Z","healthy":true}"#
        );
    }

    #[test]
    fn a_wrong_answer_to_the_synthetic_packet_makes_it_503_and_says_why() {
        let mut snapshot = served();
        snapshot.probe = Some(Err("destination was not translated".to_owned()));
        let health = Health::of(&snapshot, at(1_000_000_007));
        assert_eq!(health.status(), 503);
        assert_eq!(health.last_updated.as_deref(), Some("2001-09-09T01:46:40Z"));
        assert!(
            health
                .reason
                .unwrap()
                .contains("destination was not translated")
        );
    }

    #[test]
    fn programs_that_were_never_probed_are_not_healthy() {
        let mut snapshot = served();
        snapshot.probe = None;
        assert!(!Health::of(&snapshot, at(2)).healthy);
    }
}

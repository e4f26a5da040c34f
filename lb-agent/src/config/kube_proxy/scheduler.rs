//! Which algorithm stands for which scheduler of IPVS.

use super::meaning::{Remark, Translated};

/// How IPVS calls its schedulers, and the algorithm that does the same or comes closest.
pub(super) const SCHEDULERS: &[(&str, &str)] = &[
    ("rr", "round-robin"),
    ("wrr", "round-robin"),
    ("lc", "least-connections"),
    ("wlc", "least-connections"),
    ("sed", "least-connections"),
    ("nq", "least-connections"),
    ("sh", "source-hash"),
    ("mh", "maglev"),
];

impl Translated {
    /// Takes the algorithm of a scheduler; `None`: IPVS's own default.
    pub(super) fn scheduler(&mut self, scheduler: Option<&str>) {
        let named = scheduler.unwrap_or("rr");
        let meant = SCHEDULERS.iter().find(|(ipvs, _)| *ipvs == named);
        let known = meant.and_then(|(_, ours)| {
            let known = lb_common::balance::Algorithm::named(ours)?;
            Some((*ours, known))
        });
        if let Some((ours, _)) = known {
            self.kube_proxy.algorithm = Some(ours);
            return;
        }
        let sentence = match meant {
            Some((_, ours)) => format!(
                "ipvs.scheduler `{named}` would be {ours}, which this version does not have: \
                 services are balanced by random"
            ),
            None => format!(
                "ipvs.scheduler `{named}` has no counterpart here: services are balanced by random"
            ),
        };
        // What nobody asked for deserves no Event.
        self.remarks.push(Remark {
            sentence,
            event: scheduler.map(|_| "UnsupportedScheduler"),
        });
    }
}

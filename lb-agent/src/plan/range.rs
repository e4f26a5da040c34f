//! Source ranges: written before the frontends they guard, removed after them.

use super::op::{Op, Refused, Resource, Steps};
use super::{Planner, Served};
use crate::model::desired::DesiredService;
use lb_common::addr::{Prefix, ServiceId};
use lb_common::table::SourceRange;
use std::collections::HashSet;

/// The ranges of a service port, sorted.
pub(super) fn ranges_of(id: ServiceId, desired: &DesiredService) -> Vec<SourceRange> {
    let prefixes = desired.source_ranges.iter();
    let mut ranges: Vec<SourceRange> = prefixes
        .map(|net| SourceRange::new(id, &Prefix::new(net.addr(), net.prefix_len())))
        .collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

impl Planner {
    pub(super) fn check_ranges(&self, ranges: &[SourceRange]) -> Result<(), Refused> {
        let more = ranges
            .iter()
            .filter(|range| !self.ranges.contains(range))
            .count();
        if self.ranges.len() + more > self.limits.ranges as usize {
            return Err(Refused::new(Resource::Ranges, more));
        }
        Ok(())
    }

    /// From the ranges of `old` to those of `next`.
    pub(super) fn switch_ranges(
        &mut self,
        old: Option<&Served>,
        next: Option<&Served>,
        steps: &mut Steps,
    ) {
        let of = |served: Option<&Served>| -> Vec<SourceRange> {
            served
                .map(|served| served.ranges.clone())
                .unwrap_or_default()
        };
        let (before, after) = (of(old), of(next));
        for range in &after {
            if self.ranges.insert(*range) {
                steps.ranges.push(Op::Range(*range));
            }
        }
        for range in before.iter().filter(|range| !after.contains(range)) {
            if self.ranges.remove(range) {
                steps.ranges_removed.push(Op::RemoveRange(*range));
            }
        }
    }

    /// Ranges found in the table whose service is gone.
    pub(super) fn remove_ranges_of_nobody(
        &mut self,
        served: &HashSet<ServiceId>,
        steps: &mut Steps,
    ) {
        self.ranges.retain(|range| {
            let kept = served.contains(&range.who.service);
            if !kept {
                steps.ranges_removed.push(Op::RemoveRange(*range));
            }
            kept
        });
    }
}

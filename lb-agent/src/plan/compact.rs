//! Compaction: windows move towards the start of the slot table until the free slots are one run
//! again. Only needed when a window finds no run that is long enough although slots are free.

use super::op::{Plan, Resource, Steps};
use super::record::ranges;
use super::{Planner, Retired, Served};
use crate::model::desired::ServicePortName;
use lb_common::table::Window;

impl Planner {
    /// True if a refused service port would fit were the free slots in one run.
    pub fn is_fragmented(&self) -> bool {
        self.refused.values().any(|refused| {
            refused.resource == Resource::Slots && refused.wanted <= self.slots.free()
        })
    }

    /// Moves up to `budget` windows down, the highest first. Run it again after the grace period
    /// while [`is_fragmented`](Self::is_fragmented) says so; nothing moves once all is compact.
    pub fn compact(&mut self, budget: usize) -> Plan {
        self.fence.0 += 1;
        let mut highest: Vec<(u32, u32, ServicePortName)> = self
            .services
            .iter()
            .flat_map(|(name, served)| {
                ranges(served)
                    .into_iter()
                    .map(|(start, count)| (start, count, name.clone()))
            })
            .collect();
        highest.sort_unstable_by_key(|(start, _, _)| std::cmp::Reverse(*start));
        let mut steps = Steps::default();
        for (start, count, name) in highest.into_iter().take(budget) {
            self.move_down(start, count, &name, &mut steps);
        }
        self.plan(steps)
    }

    fn move_down(&mut self, start: u32, count: u32, name: &ServicePortName, steps: &mut Steps) {
        let Some(target) = self.slots.take_below(count, start) else {
            return;
        };
        let Some(old) = self.services.remove(name) else {
            self.slots.give(target, count);
            return;
        };
        let generation = old.generation.wrapping_add(1);
        let moved = |window: Window| {
            if window.count > 0 && window.start == start {
                Window {
                    start: target,
                    generation,
                    ..window
                }
            } else {
                window
            }
        };
        let next = Served {
            id: old.id,
            protocol: old.protocol,
            flags: old.flags,
            affinity_seconds: old.affinity_seconds,
            algorithm: old.algorithm,
            frontends: old.frontends.clone(),
            ranges: old.ranges.clone(),
            members: old.members.clone(),
            cluster: moved(old.cluster),
            local: moved(old.local),
            generation,
            torn: old.torn,
        };
        Self::write_windows(Some(&old), &next, steps);
        Self::publish(Some(&old), &next, steps);
        self.retire(Retired::Slots { start, count });
        self.services.insert(name.clone(), next);
    }
}

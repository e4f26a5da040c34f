//! Who owns which slots: an allocator of windows. Best fit, neighbours are joined when freed, so
//! that free space falls apart slowly; compaction (see [`super::compact`]) mends the rest.

use std::collections::{BTreeMap, BTreeSet};

/// Free runs of slots.
#[derive(Debug)]
pub(super) struct Extents {
    /// Start → length.
    by_start: BTreeMap<u32, u32>,
    /// (length, start).
    by_length: BTreeSet<(u32, u32)>,
    free: u32,
    total: u32,
}

impl Extents {
    /// All of `total` slots are free.
    pub(super) fn new(total: u32) -> Self {
        let mut extents = Self {
            by_start: BTreeMap::new(),
            by_length: BTreeSet::new(),
            free: 0,
            total,
        };
        extents.give(0, total);
        extents
    }

    /// Takes the shortest free run that holds `count` slots, the lowest of these.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        let &(length, start) = self.by_length.range((count, 0)..).next()?;
        self.cut(start, length, start, count);
        Some(start)
    }

    /// Takes the lowest run of `count` slots that ends at or before `limit`.
    pub(super) fn take_below(&mut self, count: u32, limit: u32) -> Option<u32> {
        let (&start, &length) = self
            .by_start
            .range(..limit)
            .find(|&(&start, &length)| length >= count && start + count <= limit)?;
        self.cut(start, length, start, count);
        Some(start)
    }

    /// Takes exactly this run. False if any of it is taken already.
    pub(super) fn adopt(&mut self, start: u32, count: u32) -> bool {
        let Some((&free, &length)) = self.by_start.range(..=start).next_back() else {
            return false;
        };
        let fits = start
            .checked_add(count)
            .is_some_and(|end| end <= free + length);
        if fits {
            self.cut(free, length, start, count);
        }
        fits
    }

    /// Frees a run, joining it with free neighbours.
    pub(super) fn give(&mut self, start: u32, count: u32) {
        if count == 0 {
            return;
        }
        self.free += count;
        let (mut start, mut count) = (start, count);
        if let Some((&before, &length)) = self.by_start.range(..start).next_back()
            && before + length == start
        {
            self.remove(before, length);
            start = before;
            count += length;
        }
        if let Some(&length) = self.by_start.get(&(start + count)) {
            self.remove(start + count, length);
            count += length;
        }
        self.insert(start, count);
    }

    /// Number of free slots, however scattered.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Number of slots in use.
    pub(super) fn used(&self) -> u32 {
        self.total - self.free
    }

    /// Cuts `count` slots at `start` out of the free run at `free`.
    fn cut(&mut self, free: u32, length: u32, start: u32, count: u32) {
        self.remove(free, length);
        if start > free {
            self.insert(free, start - free);
        }
        let end = free + length;
        if start + count < end {
            self.insert(start + count, end - start - count);
        }
        self.free -= count;
    }

    fn insert(&mut self, start: u32, length: u32) {
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_become_one_run_again() {
        let mut extents = Extents::new(10);
        let (a, b) = (extents.take(4).unwrap(), extents.take(4).unwrap());
        assert_eq!(extents.take(3), None);
        extents.give(a, 4);
        extents.give(b, 4);
        assert_eq!(extents.take(10), Some(0));
    }

    proptest! {
        #[test]
        fn no_slot_is_handed_out_twice(sizes in proptest::collection::vec((1u32..20, any::<bool>()), 1..200)) {
            let mut extents = Extents::new(256);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (size, free_one) in sizes {
                if free_one && !held.is_empty() {
                    let (start, count) = held.remove(size as usize % held.len());
                    extents.give(start, count);
                } else if let Some(start) = extents.take(size) {
                    prop_assert!(start + size <= 256);
                    for &(other, count) in &held {
                        prop_assert!(start + size <= other || other + count <= start);
                    }
                    held.push((start, size));
                }
                prop_assert_eq!(extents.used(), held.iter().map(|h| h.1).sum::<u32>());
            }
        }
    }
}

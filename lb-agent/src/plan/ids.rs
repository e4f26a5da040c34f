//! Ids handed out in a cycle: a freed id comes round again as late as possible, so that whatever
//! still remembers it (a log line, an affinity entry) has long been forgotten.

/// A set of ids from `1` to a limit.
#[derive(Debug)]
pub(super) struct Ids {
    taken: Vec<bool>,
    next: usize,
    used: usize,
}

impl Ids {
    /// No id is taken; ids run from 1 to `entries - 1`, as table entry 0 is never used.
    pub(super) fn new(entries: u32) -> Self {
        let mut taken = vec![false; entries.max(1) as usize];
        taken[0] = true;
        Self {
            taken,
            next: 1,
            used: 0,
        }
    }

    /// Takes an id; `None` if all are taken.
    pub(super) fn take(&mut self) -> Option<u32> {
        let count = self.taken.len();
        let start = self.next.min(count);
        let id = (start..count)
            .chain(0..start)
            .find(|&candidate| !self.taken[candidate])?;
        self.taken[id] = true;
        self.used += 1;
        self.next = id + 1;
        u32::try_from(id).ok()
    }

    /// Takes this id, which a table was found to hold. False if it is out of range or taken.
    pub(super) fn adopt(&mut self, id: u32) -> bool {
        match self.taken.get_mut(id as usize) {
            Some(taken) if !*taken => {
                *taken = true;
                self.used += 1;
                self.next = self.next.max(id as usize + 1);
                true
            }
            _ => false,
        }
    }

    /// Gives an id back.
    pub(super) fn release(&mut self, id: u32) {
        if let Some(taken) = self.taken.get_mut(id as usize)
            && id != 0
            && *taken
        {
            *taken = false;
            self.used -= 1;
        }
    }

    /// Takes back the last [`take`](Self::take) as if it had not been.
    pub(super) fn undo(&mut self, id: u32) {
        self.release(id);
        self.next = id as usize;
    }

    /// How many are taken.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_round_again_only_after_all_others() {
        let mut ids = Ids::new(4);
        assert_eq!(ids.take(), Some(1));
        ids.release(1);
        assert_eq!(
            [ids.take(), ids.take(), ids.take()],
            [Some(2), Some(3), Some(1)]
        );
        assert_eq!(ids.take(), None);
        assert_eq!(ids.used(), 3);
    }

    #[test]
    fn adopted_ids_are_not_handed_out() {
        let mut ids = Ids::new(4);
        assert!(ids.adopt(2));
        assert!(!ids.adopt(2));
        assert!(!ids.adopt(9));
        assert_eq!(
            [ids.take(), ids.take(), ids.take()],
            [Some(3), Some(1), None]
        );
    }
}

//! When changes came and were served.

use std::time::{Duration, SystemTime};

/// When changes of one IP family came and were served (`SERVICE-SEMANTICS` 12).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Updates {
    /// The last time everything known was served.
    served: Option<SystemTime>,
    /// Since when the oldest change waits.
    waiting: Option<SystemTime>,
}

impl Updates {
    /// A change came. Later ones do not restart the clock.
    pub fn queued(&mut self, at: SystemTime) {
        self.waiting.get_or_insert(at);
    }

    /// Everything that came is served.
    pub fn served(&mut self, at: SystemTime) {
        *self = Self {
            served: Some(at),
            waiting: None,
        };
    }

    /// The last time everything known was served.
    pub const fn served_at(&self) -> Option<SystemTime> {
        self.served
    }

    /// True if a change has been waiting for too long. What came before anything was ever served
    /// counts from no moment: the first sync is asked for by itself.
    pub fn is_late(&self, now: SystemTime, late: Duration) -> bool {
        let waits = |since| now.duration_since(since).unwrap_or_default() >= late;
        self.served.is_some() && self.waiting.is_some_and(waits)
    }
}

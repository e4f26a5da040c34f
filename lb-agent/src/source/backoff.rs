//! Waiting between attempts at the API server: longer each time, never in step with other nodes.
//!
//! kube's own backoff is reset by `Init`, which each attempt of a list begins with, so it never
//! grows against a server that refuses lists. This one is reset by its owner, at proof of success.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first wait, before jitter.
const FIRST: Duration = Duration::from_millis(800);
/// The longest wait, before jitter.
const LONGEST: Duration = Duration::from_secs(30);

/// Grows from 0.8 to 30 seconds by doubling, each wait spread over 0.5 to 1.5 of that.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    random: RandomState,
}

impl Backoff {
    /// Failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Something worked.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Something failed: how long to wait now.
    pub fn next_wait(&mut self) -> Duration {
        let wait = LONGEST.min(FIRST * (1 << self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        // 0..=999, from std's keyed hash: enough for jitter.
        let share = self.random.hash_one(self.failures) % 1000;
        wait / 2 + wait.mul_f64(f64::from(u32::try_from(share).unwrap_or_default()) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        for expected in [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0] {
            let wait = backoff.next_wait().as_secs_f64();
            assert!(
                (expected * 0.5..expected * 1.5).contains(&wait),
                "{wait} for {expected}"
            );
        }
        backoff.reset();
        assert!(backoff.next_wait() < Duration::from_millis(1200));
    }

    #[test]
    fn two_agents_do_not_wait_in_step() {
        let (mut one, mut two) = (Backoff::default(), Backoff::default());
        let waits = |backoff: &mut Backoff| (0..4).map(|_| backoff.next_wait()).collect::<Vec<_>>();
        assert_ne!(waits(&mut one), waits(&mut two));
    }
}

//! Waiting between attempts at the API server: longer each time, never in step with other nodes.
//!
//! kube's own backoff is reset by `Init`, which each attempt of a list begins with, so it never
//! grows against a server that refuses lists. This one is reset by its owner, at proof of success.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first wait, before jitter.
const FIRST: Duration = Duration::from_millis(800);

/// What an attempt met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Nobody there. Asking costs a server that is away nothing, and when it is back, nodes must
    /// hear of what they missed within seconds, however long that took.
    Silence,
    /// A server that answers with an error: it may have more to do than it can.
    Answer,
}

impl Failure {
    /// The longest wait, before jitter; for an answer that of client-go's reflectors.
    const fn longest(self) -> Duration {
        match self {
            Self::Silence => Duration::from_secs(5),
            Self::Answer => Duration::from_secs(30),
        }
    }
}

/// Grows from 0.8 seconds by doubling, each wait spread over 0.5 to 1.5 of that.
#[derive(Debug, Default)]
pub struct Backoff {
    /// What the last attempts met, and how many.
    met: Option<(Failure, u32)>,
    random: RandomState,
}

impl Backoff {
    /// Whether something failed since the last success.
    pub const fn has_failed(&self) -> bool {
        self.met.is_some()
    }

    /// Something worked.
    pub const fn reset(&mut self) {
        self.met = None;
    }

    /// Something failed: how long to wait now. A server that begins to answer is asked anew soon.
    pub fn next_wait(&mut self, failure: Failure) -> Duration {
        let before = match self.met {
            Some((same, count)) if same == failure => count,
            _ => 0,
        };
        self.met = Some((failure, before.saturating_add(1)));
        let wait = failure.longest().min(FIRST * (1 << before.min(16)));
        // 0..=999, from std's keyed hash: enough for jitter.
        let share = self.random.hash_one(before) % 1000;
        wait / 2 + wait.mul_f64(f64::from(u32::try_from(share).unwrap_or_default()) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_waits(backoff: &mut Backoff, failure: Failure, seconds: &[f64]) {
        for expected in seconds {
            let wait = backoff.next_wait(failure).as_secs_f64();
            assert!(
                (expected * 0.5..expected * 1.5).contains(&wait),
                "{wait} for {expected}"
            );
        }
    }

    #[test]
    fn waits_grow_to_a_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        let growing = [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0];
        assert_waits(&mut backoff, Failure::Answer, &growing);
        backoff.reset();
        assert_waits(&mut backoff, Failure::Answer, &growing[..1]);
    }

    #[test]
    fn a_server_that_is_away_is_looked_for_every_few_seconds_and_asked_soon_when_it_answers() {
        let mut backoff = Backoff::default();
        assert_waits(
            &mut backoff,
            Failure::Silence,
            &[0.8, 1.6, 3.2, 5.0, 5.0, 5.0],
        );
        assert_waits(&mut backoff, Failure::Answer, &[0.8, 1.6]);
        assert_waits(&mut backoff, Failure::Silence, &[0.8]);
    }

    #[test]
    fn two_agents_do_not_wait_in_step() {
        let (mut one, mut two) = (Backoff::default(), Backoff::default());
        let waits = |backoff: &mut Backoff| {
            let next = |_| backoff.next_wait(Failure::Answer);
            (0..4).map(next).collect::<Vec<_>>()
        };
        assert_ne!(waits(&mut one), waits(&mut two));
    }
}

//! How long things took: a histogram for the metrics page.

use std::time::Duration;

/// Upper bounds of the buckets in seconds: a microsecond's work and a minute's outage are both told
/// apart.
const BOUNDS: [f64; 19] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0,
    60.0, 120.0, 300.0,
];

/// Observed durations by size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Durations {
    /// Observations by bucket; the last one is for everything above the bounds.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Durations {
    /// Adds one.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, in seconds.
    pub const fn sum(&self) -> f64 {
        self.sum
    }

    /// Upper bound in seconds and number of observations of each bucket, not cumulative; the last
    /// bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        BOUNDS
            .into_iter()
            .chain([f64::INFINITY])
            .zip(self.counts.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_the_first_bucket_that_holds_them() {
        let mut durations = Durations::default();
        for millis in [1, 2, 400_000] {
            durations.observe(Duration::from_millis(millis));
        }
        let filled: Vec<(f64, u64)> = durations
            .buckets()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(filled, [(0.001, 1), (0.002, 1), (f64::INFINITY, 1)]);
        assert_eq!(durations.count(), 3);
        assert!((durations.sum() - 400.003).abs() < 1e-9);
    }
}

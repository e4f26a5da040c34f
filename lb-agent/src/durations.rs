//! How long things took: histograms for the metrics page. Whoever measures something keeps one; how
//! it is shown is `serve`'s.

use std::time::Duration;

/// Upper bounds of syncs in seconds: kube-proxy's, which double from a millisecond on, and two
/// finer ones for what usually happens here.
const SYNCS: [f64; 17] = [
    0.0005, 0.001, 0.002, 0.004, 0.005, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024,
    2.048, 4.096, 8.192, 16.384,
];

/// kube-proxy's bounds of the programming latency: by the second to a minute, by five seconds to
/// two, by thirty to five.
const PROGRAMMING: [f64; 80] = {
    let mut bounds = [0.25; 80];
    bounds[1] = 0.5;
    let (mut at, mut bound) = (2, 1.0);
    while at < 80 {
        bounds[at] = bound;
        bound += if bound < 60.0 {
            1.0
        } else if bound < 120.0 {
            5.0
        } else {
            30.0
        };
        at += 1;
    }
    bounds
};

/// client-go's bounds of requests to the API server.
const REQUESTS: [f64; 12] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0,
];

/// Observed durations by size.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    bounds: &'static [f64],
    /// Observations by bucket; the last one is for everything above the bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Durations {
    /// None yet, with the bounds of syncs.
    pub fn of_syncs() -> Self {
        Self::with(&SYNCS)
    }

    /// None yet, with the bounds of programming latencies.
    pub fn of_programming() -> Self {
        Self::with(&PROGRAMMING)
    }

    /// None yet, with the bounds of requests to the API server.
    pub fn of_requests() -> Self {
        Self::with(&REQUESTS)
    }

    fn with(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    /// Adds one.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
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
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_the_first_bucket_that_holds_them() {
        let mut durations = Durations::of_syncs();
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

    #[test]
    fn the_bounds_of_the_programming_latency_are_kube_proxy_s() {
        let bounds: Vec<f64> = Durations::of_programming().buckets().map(|b| b.0).collect();
        assert_eq!(bounds[..4], [0.25, 0.5, 1.0, 2.0]);
        for bound in [59.0, 60.0, 65.0, 115.0, 120.0, 150.0] {
            assert!(bounds.contains(&bound), "{bound}");
        }
        assert_eq!(bounds[bounds.len() - 2..], [300.0, f64::INFINITY]);
    }

    #[test]
    fn requests_land_between_the_bounds_of_client_go() {
        let mut durations = Durations::of_requests();
        for millis in [5, 6, 90_000] {
            durations.observe(Duration::from_millis(millis));
        }
        let buckets: Vec<(f64, u64)> = durations.buckets().collect();
        assert_eq!(buckets[..3], [(0.005, 1), (0.025, 1), (0.1, 0)]);
        assert_eq!(buckets[11..], [(60.0, 0), (f64::INFINITY, 1)]);
    }
}

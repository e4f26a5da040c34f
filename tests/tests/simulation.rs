//! The simulation, seed by seed. `LB_SEED=N` runs one seed and tells what happens; `LB_SEEDS=N`
//! runs as many.

use lb_tests::simulation::{Failure, Outcome, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many seeds are run unless told otherwise.
const SEEDS: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Runs seeds on every processor, and returns what came of all of them, or the first that failed.
fn run_all(seeds: impl Fn(u64) -> bool + Sync) -> Result<Outcome, Box<Failure>> {
    let next = AtomicU64::new(0);
    let total = Mutex::new(Outcome::default());
    let failed: Mutex<Option<(u64, Box<Failure>)>> = Mutex::new(None);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = failed.lock().expect("nobody panics with it").is_some();
            if over || !seeds(seed) {
                return;
            }
            match run(seed) {
                Ok(outcome) => total.lock().expect("nobody panics with it").add(&outcome),
                Err(failure) => {
                    let mut failed = failed.lock().expect("nobody panics with it");
                    if failed.as_ref().is_none_or(|(other, _)| seed < *other) {
                        *failed = Some((seed, failure));
                    }
                }
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(work);
        }
    });
    match failed.into_inner().expect("nobody panics with it") {
        Some((_, failure)) => Err(failure),
        None => Ok(total.into_inner().expect("nobody panics with it")),
    }
}

#[test]
fn ten_thousand_seeds_of_trouble_keep_every_promise() {
    if let Some(seed) = number("LB_SEED") {
        let outcome = run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {outcome:?}");
        return;
    }
    let seeds = number("LB_SEEDS").unwrap_or(SEEDS);
    let outcome = run_all(|seed| seed < seeds).unwrap_or_else(|failure| {
        panic!("{failure}\nrun this one again: LB_SEED=N cargo test -p lb-tests --test simulation")
    });
    println!("{seeds} seeds: {outcome:?}");
    // There was something to see.
    let seen = outcome.clients;
    assert!(
        outcome.lives > seeds && outcome.failures > seeds,
        "{outcome:?}"
    );
    assert!(
        seen.served > 10 * seeds && seen.refused > seeds,
        "{outcome:?}"
    );
    assert!(
        seen.packets > 10 * seeds && seen.moved > seeds / 10,
        "{outcome:?}"
    );
    assert!(
        seen.races > seeds && seen.remembered > seeds / 10,
        "{outcome:?}"
    );
    assert!(outcome.refused > 0, "{outcome:?}");
}

#[test]
fn a_seed_tells_everything_that_happens() {
    for seed in 0..5 {
        let told = || format!("{:?}", run(seed).map_err(|failure| failure.to_string()));
        assert_eq!(told(), told(), "seed {seed}");
    }
}

//! A node from end to end in one thread, with a clock and a chance of its own: the cluster's history
//! → watches → model → plan → stores → tables → core → clients. Things go wrong at random: events
//! come late, twice, out of order or not at all, writes fail, the agent dies between any two stores.
//! A seed tells everything that happens, so a run that goes wrong can be looked at again.
//!
//! What must hold at any moment: no client is sent to a backend of another service, or to one that
//! was removed before; none is refused while somebody serves; a connection stays where it is; the
//! tables fit together. And in the end they are what a fresh start would have made.
//!
//! No rule of load balancing may live here: what should be served is the model's to say
//! ([`beliefs`]); who can serve is compared with the cluster's own truth in the end ([`end`]).

mod beliefs;
mod clients;
mod cluster;
mod end;
mod feed;
mod history;
mod life;
mod node;
mod race;
mod stores;
mod world;

pub use clients::Seen;

use std::collections::VecDeque;
use std::fmt;
use world::World;

/// What came of a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// What clients have seen.
    pub clients: Seen,
    /// Lives of agents.
    pub lives: u64,
    /// Stores done.
    pub stores: u64,
    /// Writes that failed.
    pub failures: u64,
    /// Service ports that were refused for want of room, at some time.
    pub refused: u64,
}

impl Outcome {
    /// Adds another seed's.
    pub fn add(&mut self, other: &Self) {
        self.clients.add(&other.clients);
        self.lives += other.lives;
        self.stores += other.stores;
        self.failures += other.failures;
        self.refused += other.refused;
    }
}

/// What went wrong, and what came before.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    what: String,
    trace: VecDeque<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}
/// Runs one seed.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed);
    // What does not fit together is found by assertions, in the tables and in the reconciler.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    let what = match ended {
        Ok(Ok(())) => return Ok(world.outcome),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            text.unwrap_or_else(|| "a panic".to_owned())
        }
    };
    let trace = std::mem::take(&mut world.trace);
    Err(Box::new(Failure { seed, what, trace }))
}

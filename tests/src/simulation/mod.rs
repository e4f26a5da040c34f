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
//! ([`beliefs`]), and what it says is compared with the cluster's own truth by the case files.

mod beliefs;
mod clients;
mod cluster;
mod feed;
mod life;
mod race;
mod stores;

pub use clients::Seen;

use crate::host_path::tables_of;
use beliefs::Beliefs;
use clients::Clients;
use cluster::Cluster;
use fastrand::Rng;
use lb_agent::model::State;
use lb_agent::model::frontend::local_addresses;
use lb_agent::model::node::NodeFacts;
use lb_agent::plan::{Fence, Limits, Used, memory};
use lb_common::addr::{Addr, ServiceId, Tick};
use lb_common::host::{HostTables, PacketWorld};
use lb_common::table::{SocketMode, Window};
use life::{Life, Stored, options};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::net::IpAddr;

/// How long things go wrong, milliseconds.
const TROUBLE: u64 = 12_000;
/// The first moment: flows and clients' affinities are not from before the world began.
const BEGIN: u64 = 100_000;
/// Time after which no flow is left, milliseconds.
const FORGOTTEN: u64 = 90_000_000;
/// What is remembered for the message of a failure.
const TRACE: usize = 60;

/// Something that is going to happen. Numbers are those of lives: what was meant for an agent that
/// is dead does not happen.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Next {
    Change,
    Connect,
    Talk,
    Begin,
    Die(u64),
    Hear(u64),
    Plan(u64),
    Store(u64),
    Retry(u64),
    Grace(u64, Fence),
    Sweep(u64),
}

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

struct World {
    rng: Rng,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Next)>>,
    /// Orders what happens at the same moment.
    count: u64,
    limits: Limits,
    cluster: Cluster,
    packets: PacketWorld,
    names: memory::Names,
    beliefs: Beliefs,
    clients: Clients,
    life: Option<Life>,
    /// Number of the agent's life.
    number: u64,
    /// Things go wrong.
    trouble: bool,
    trace: VecDeque<String>,
    outcome: Outcome,
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

/// Empty tables of the node.
fn empty_tables(limits: &Limits) -> HostTables {
    let mut config = HostTables::of_node().config;
    let node = node_facts();
    options().configure(&node, &mut config);
    config.socket_mode = SocketMode::All as u32;
    config.host_namespace = 1;
    let mut tables = tables_of(&config);
    memory::allocate(&mut tables, limits);
    let own: [IpAddr; 2] = [false, true].map(cluster::node_ip);
    tables.local = local_addresses(&options(), &node, &own)
        .into_iter()
        .map(|(address, flags)| (Addr::from(address), flags))
        .collect();
    tables
}

fn node_facts() -> NodeFacts {
    NodeFacts::named(cluster::NODES[0])
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        // One in four has little room.
        let tight = rng.u8(..4) == 0;
        let limits = if tight {
            Limits {
                services: 10,
                backends: 24,
                slots: 32,
                frontends: 20,
                ranges: 4,
            }
        } else {
            Limits {
                services: 64,
                backends: 256,
                slots: 512,
                frontends: 128,
                ranges: 4,
            }
        };
        Self {
            packets: PacketWorld::new(empty_tables(&limits), rng.u64(..)),
            rng,
            now: BEGIN,
            queue: BinaryHeap::new(),
            count: 0,
            limits,
            cluster: Cluster::new(),
            names: memory::Names::new(),
            beliefs: Beliefs::default(),
            clients: Clients::default(),
            life: None,
            number: 0,
            trouble: true,
            trace: VecDeque::new(),
            outcome: Outcome::default(),
        }
    }

    fn after(&mut self, milliseconds: u64, next: Next) {
        self.count += 1;
        self.queue
            .push(Reverse((self.now + milliseconds, self.count, next)));
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        if what.is_empty() {
            return;
        }
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace
            .push_back(format!("{:>6} {what}", self.now - BEGIN));
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            let told = self.cluster.change(&mut self.rng);
            self.note(|| told);
        }
        for next in [Next::Begin, Next::Change, Next::Connect, Next::Talk] {
            self.after(0, next);
        }
        while let Some(Reverse((at, _, next))) = self.queue.pop() {
            self.set_clock(at);
            if self.trouble && self.now > BEGIN + TROUBLE {
                self.trouble = false;
                self.cluster.settle();
                self.note(|| "nothing goes wrong any more".to_owned());
                if self.life.is_none() {
                    self.after(0, Next::Begin);
                }
            }
            if !self.trouble
                && let Some(life) = &mut self.life
                && life.is_idle(&self.cluster)
            {
                self.after(0, next);
                break;
            }
            self.happen(next)?;
        }
        self.end()
    }

    fn set_clock(&mut self, now: u64) {
        self.now = now;
        self.packets.env.now.set(Tick::from_nanos(now * 1_000_000));
    }

    fn happen(&mut self, next: Next) -> Result<(), String> {
        match next {
            Next::Change => self.change(),
            Next::Connect => return self.connect(),
            Next::Talk => {
                let told =
                    (self.clients).talk(&self.packets, &self.beliefs, &mut self.rng, self.now)?;
                self.note(|| told);
                let pause = self.rng.u64(50..600);
                self.after(pause, Next::Talk);
            }
            Next::Begin => self.begin(),
            Next::Die(life) if life == self.number => self.die(),
            Next::Hear(life) if life == self.number => self.hear(),
            Next::Plan(life) if life == self.number => self.plan(),
            Next::Store(life) if life == self.number => return self.store(),
            Next::Retry(life) if life == self.number => self.retry(),
            Next::Grace(life, fence) if life == self.number => self.grace(fence),
            Next::Sweep(life) if life == self.number => self.sweep(),
            _ => {}
        }
        Ok(())
    }

    fn change(&mut self) {
        if !self.trouble {
            return;
        }
        let told = self.cluster.change(&mut self.rng);
        self.note(|| told);
        let pause = self.rng.u64(10..800);
        self.after(pause, Next::Change);
    }

    fn connect(&mut self) -> Result<(), String> {
        let told = if self.rng.u8(..5) == 0 {
            (self.clients).connect_socket(
                &self.packets,
                (&self.cluster, &self.beliefs),
                &mut self.rng,
            )?
        } else {
            (self.clients).connect(
                &self.packets,
                (&self.cluster, &self.beliefs),
                &mut self.rng,
                self.now,
            )?
        };
        self.note(|| told);
        let pause = self.rng.u64(20..300);
        self.after(pause, Next::Connect);
        Ok(())
    }

    fn begin(&mut self) {
        if self.life.is_some() {
            return;
        }
        self.number += 1;
        self.outcome.lives += 1;
        self.life = Some(Life::begin(&self.packets, &self.names, self.limits));
        let number = self.number;
        self.note(|| format!("agent {number} begins"));
        self.after(0, Next::Hear(number));
        self.after(5_000, Next::Sweep(number));
        if self.trouble {
            let age = self.rng.u64(50..8_000);
            self.after(age, Next::Die(number));
        }
    }

    fn die(&mut self) {
        if !self.trouble {
            return;
        }
        self.life = None;
        let number = self.number;
        self.note(|| format!("agent {number} dies"));
        let pause = self.rng.u64(1..3_000);
        self.after(pause, Next::Begin);
    }

    fn hear(&mut self) {
        let Some(life) = &mut self.life else { return };
        let smooth = !self.trouble;
        life.hear(&self.cluster, &mut self.rng, smooth);
        let number = self.number;
        // The agent takes what comes together at once, or after its pause.
        let pause = if self.rng.bool() {
            0
        } else {
            self.rng.u64(1..100)
        };
        self.after(pause, Next::Plan(number));
        let pause = self.rng.u64(0..150);
        self.after(pause, Next::Hear(number));
    }

    fn plan(&mut self) {
        let Some(life) = &mut self.life else { return };
        let Some(planned) = life.plan(&mut self.beliefs) else {
            return;
        };
        let (writing, writes) = (life.writing, life.reconciler.writes().len());
        self.outcome.refused += life.reconciler.planner().refused().len() as u64;
        self.note(|| format!("planned {planned:?}: {writes} writes"));
        if writing {
            self.after(0, Next::Store(self.number));
        }
    }

    fn store(&mut self) -> Result<(), String> {
        let Some(life) = &mut self.life else {
            return Ok(());
        };
        if !life.writing {
            return Ok(());
        }
        // The agent writes far faster than clients come: so one comes now and then, just here.
        if self.rng.u8(..12) == 0 {
            let count = self.rng.usize(1..5);
            let coming = life.coming(&self.packets, count);
            let told = (self.clients).race(
                &self.packets,
                (&self.cluster, &self.beliefs),
                &mut self.rng,
                &coming,
            )?;
            self.note(|| told);
        } else if self.rng.u8(..8) == 0 {
            let told = (self.clients).connect(
                &self.packets,
                (&self.cluster, &self.beliefs),
                &mut self.rng,
                self.now,
            )?;
            self.note(|| told);
        }
        let Some(life) = &mut self.life else {
            return Ok(());
        };
        let (trouble, rng) = (self.trouble, &mut self.rng);
        let fails = || trouble && rng.u8(..100) == 0;
        let stored = life.store(&mut self.packets, &mut self.names, fails);
        let number = self.number;
        match stored {
            Stored::More => {
                self.outcome.stores += 1;
                if self.rng.u8(..8) == 0 {
                    memory::check(&self.packets.tables, &self.names);
                }
                if self.trouble && self.rng.u16(..400) == 0 {
                    self.die();
                } else {
                    self.after(0, Next::Store(number));
                }
            }
            Stored::Failed => {
                self.outcome.failures += 1;
                let pause = self.rng.u64(100..2_000);
                life.retry = Some(self.now + pause);
                self.note(|| "a write fails".to_owned());
                self.after(pause, Next::Retry(number));
            }
            Stored::Last(fence) => {
                let refused = life.reconciler.planner().refused();
                // What a dead agent meant is not what is written, whatever this one swept up.
                if life.reconciler.has_planned() {
                    self.beliefs.settle(refused);
                }
                self.note(|| "everything is written".to_owned());
                if let Some(fence) = fence {
                    let pause = self.rng.u64(1..80);
                    self.after(pause, Next::Grace(number, fence));
                }
            }
        }
        Ok(())
    }

    fn retry(&mut self) {
        let Some(life) = &mut self.life else { return };
        life.retry = None;
        life.writing = true;
        self.after(0, Next::Store(self.number));
    }

    /// The agent does one thing at a time: what comes while it writes waits.
    fn busy(&mut self, next: Next) -> bool {
        let busy = self.life.as_ref().is_some_and(|life| life.writing);
        if busy {
            self.after(1, next);
        }
        busy
    }

    fn grace(&mut self, fence: Fence) {
        if self.busy(Next::Grace(self.number, fence)) {
            return;
        }
        let Some(life) = &mut self.life else { return };
        if self.trouble && self.rng.u8(..20) == 0 {
            life.reconciler.not_graced(fence);
            self.note(|| "a grace period cannot be waited for".to_owned());
            return;
        }
        life.graced(fence, &mut self.beliefs);
        self.note(|| format!("graced {fence:?}"));
        self.go_on();
    }

    fn sweep(&mut self) {
        if self.busy(Next::Sweep(self.number)) {
            return;
        }
        let Some(life) = &mut self.life else { return };
        life.sweep(&self.packets, &mut self.beliefs);
        self.note(|| "sweep".to_owned());
        self.go_on();
        self.after(10_000, Next::Sweep(self.number));
    }

    fn go_on(&mut self) {
        if self.life.as_ref().is_some_and(|life| life.writing) {
            self.after(0, Next::Store(self.number));
        }
    }

    /// Everything has been heard and written. Once nobody talks any more, nothing may be left of
    /// what was.
    fn end(&mut self) -> Result<(), String> {
        self.clients.hang_up();
        // A grace period that is being waited for ends.
        let graces = std::mem::take(&mut self.queue);
        for Reverse((_, _, next)) in graces.into_sorted_vec().into_iter().rev() {
            if let (Next::Grace(life, fence), Some(alive)) = (next, &mut self.life)
                && life == self.number
            {
                alive.graced(fence, &mut self.beliefs);
            }
        }
        self.set_clock(self.now + FORGOTTEN);
        for _ in 0..6 {
            let Some(life) = &mut self.life else {
                return Err("no agent lives in the end".to_owned());
            };
            life.sweep(&self.packets, &mut self.beliefs);
            loop {
                match life.store(&mut self.packets, &mut self.names, || false) {
                    Stored::More => {}
                    Stored::Failed => return Err("a write failed in the end".to_owned()),
                    Stored::Last(None) => break,
                    Stored::Last(Some(fence)) => life.graced(fence, &mut self.beliefs),
                }
            }
            self.beliefs.settle(life.reconciler.planner().refused());
        }
        self.outcome.clients = self.clients.seen;
        self.compare()
    }

    /// Compares with what an agent makes that begins now, on empty tables.
    fn compare(&mut self) -> Result<(), String> {
        let Some(life) = &mut self.life else {
            return Err("no agent lives in the end".to_owned());
        };
        let fresh = World::fresh(&self.cluster, self.limits)?;
        let desired = life.reconciler.state().desired_all();
        let wanted = fresh.state().desired_all();
        if desired != wanted {
            return Err(format!(
                "the model is not what a fresh start makes of the cluster: {desired:#?} instead \
                 of {wanted:#?}"
            ));
        }
        let (planner, other) = (life.reconciler.planner(), fresh.planner());
        if !planner.refused().is_empty() || !other.refused().is_empty() {
            // Who is refused depends on who came first.
            return Ok(());
        }
        let served = memory::served(&self.packets.tables, &self.names);
        let expected = memory::served(&fresh.tables, &fresh.names);
        if served != expected {
            return Err(format!("{served:#?} is served instead of {expected:#?}"));
        }
        // Equal sets share a window if they are published together: history decides about slots.
        let used = planner.used();
        let slots = used_slots(&self.packets.tables, &self.names);
        let expected = Used {
            slots,
            ..other.used()
        };
        if used != expected {
            return Err(format!("{used:?} is in use instead of {expected:?}"));
        }
        if self.packets.tables.bits != fresh.tables.bits {
            let words = self
                .packets
                .tables
                .bits
                .words
                .iter()
                .zip(&fresh.tables.bits.words);
            let differ: Vec<_> = words
                .enumerate()
                .filter(|(_, (is, due))| is != due)
                .collect();
            return Err(format!(
                "the filter should be another, {}stale: {differ:x?}",
                if planner.bits_stale() { "" } else { "not " }
            ));
        }
        if self.names.len() != fresh.names.len() {
            return Err(format!("{:?} are the names that are left", self.names));
        }
        Ok(())
    }
}

/// How many slots the windows of all services take.
fn used_slots(tables: &HostTables, names: &memory::Names) -> u32 {
    let of = |id: &ServiceId| {
        let service = &tables.services[id.0 as usize];
        let windows = [service.cluster, service.local].map(Window::from_word);
        let taken = windows.iter().filter(|window| window.count > 0);
        let windows: BTreeMap<u32, u16> =
            taken.map(|window| (window.start, window.count)).collect();
        windows.into_values().map(u32::from).sum::<u32>()
    };
    names.keys().map(of).sum()
}

/// An agent that has begun on empty tables when everything was over.
struct Fresh {
    life: Life,
    tables: HostTables,
    names: memory::Names,
}

impl Fresh {
    fn state(&self) -> &State {
        self.life.reconciler.state()
    }

    fn planner(&self) -> &lb_agent::plan::Planner {
        self.life.reconciler.planner()
    }
}

impl World {
    fn fresh(cluster: &Cluster, limits: Limits) -> Result<Fresh, String> {
        let mut packets = PacketWorld::new(empty_tables(&limits), 1);
        let mut names = memory::Names::new();
        let mut life = Life::begin(&packets, &names, limits);
        let (mut rng, mut beliefs) = (Rng::with_seed(0), Beliefs::default());
        for _ in 0..10_000 {
            life.hear(cluster, &mut rng, true);
            life.plan(&mut beliefs);
            while life.writing {
                if let Stored::Last(Some(fence)) = life.store(&mut packets, &mut names, || false) {
                    life.graced(fence, &mut beliefs);
                }
            }
            if life.is_idle(cluster) {
                let tables = packets.tables;
                return Ok(Fresh {
                    life,
                    tables,
                    names,
                });
            }
        }
        Err("a fresh agent does not come to an end".to_owned())
    }
}

//! The loop: what happens next, to whom, and what follows from it.

use super::Outcome;
use super::beliefs::Beliefs;
use super::clients::Clients;
use super::cluster::Cluster;
use super::life::{Life, Stored};
use super::node::empty_tables;
use fastrand::Rng;
use lb_agent::plan::{Fence, Limits, memory};
use lb_common::addr::Tick;
use lb_common::host::PacketWorld;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How long things go wrong, milliseconds.
const TROUBLE: u64 = 12_000;
/// The first moment: flows and clients' affinities are not from before the world began.
const BEGIN: u64 = 100_000;
/// What is remembered for the message of a failure.
const TRACE: usize = 60;

/// Something that is going to happen. Numbers are those of lives: what was meant for an agent that
/// is dead does not happen.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Next {
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

/// Everything there is, and what is going to happen.
pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: u64,
    pub(super) queue: BinaryHeap<Reverse<(u64, u64, Next)>>,
    /// Orders what happens at the same moment.
    pub(super) count: u64,
    pub(super) limits: Limits,
    pub(super) cluster: Cluster,
    pub(super) packets: PacketWorld,
    pub(super) names: memory::Names,
    pub(super) beliefs: Beliefs,
    pub(super) clients: Clients,
    pub(super) life: Option<Life>,
    /// Number of the agent's life.
    pub(super) number: u64,
    /// Things go wrong.
    pub(super) trouble: bool,
    pub(super) trace: VecDeque<String>,
    pub(super) outcome: Outcome,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
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

    /// From the first moment to the end.
    pub(super) fn run(&mut self) -> Result<(), String> {
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

    pub(super) fn set_clock(&mut self, now: u64) {
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
}

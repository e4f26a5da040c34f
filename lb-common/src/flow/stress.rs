//! A stress of the flow table: each worker knows what its own flows must look like, and all fight for
//! a few shared ones and for the SNAT ends. Host threads and kernel test runs execute the same steps.

#![expect(
    clippy::cast_possible_truncation,
    reason = "a stress has few workers, flows and buckets"
)]

use super::script::{Answer, Op, Step};
use super::{Control, Entry, Kind, Record};
use crate::addr::{Addr, BackendId, Endpoint, Port, Protocol, Tick};
use std::collections::HashSet;

/// The time of every step: nothing ages, so every refusal and every loss is the table's own doing.
pub const NOW: Tick = Tick(1000);
/// Backends a stress needs; backend `id` must have the end [`backend_end`]`(id)`.
pub const BACKENDS: u32 = 64;
/// A backend's id says in its lower bits which clients may have it: a torn record shows.
const KINDS: u32 = 16;
/// SNAT ends all workers fight for.
const SNAT_PORTS: u32 = 24;
/// Clients that every worker inserts and removes.
const SHARED: u32 = 8;

/// What must never happen, counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Failures {
    /// A flow that must be there was not found, or not by its SNAT end.
    pub lost: u64,
    /// A flow that was removed is there again.
    pub resurrected: u64,
    /// A record whose parts do not fit together.
    pub torn: u64,
    /// A flow that is there twice.
    pub duplicates: u64,
    /// A flow in the table that no lookup finds.
    pub unreachable: u64,
    /// A lock or a BUSY bucket that stayed behind.
    pub stuck: u64,
}

impl Failures {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            resurrected: self.resurrected + other.resurrected,
            torn: self.torn + other.torn,
            duplicates: self.duplicates + other.duplicates,
            unreachable: self.unreachable + other.unreachable,
            stuck: self.stuck + other.stuck,
        }
    }
}

/// The end of a backend.
pub fn backend_end(id: u32) -> Endpoint {
    Endpoint {
        addr: Addr::from_v6_words([0xfd, 0, 0, id]),
        port: Port::new(8080),
    }
}

fn client_end(number: u32) -> Endpoint {
    Endpoint {
        addr: Addr::from_v6_words([0xfc, 0, 0, number]),
        port: Port::new(40_000),
    }
}

fn frontend_end(client: u32) -> Endpoint {
    Endpoint {
        addr: Addr::from_v6_words([0xfe, 0, 0, client]),
        port: Port::new(80),
    }
}

fn snat_end(number: u32) -> Endpoint {
    Endpoint {
        addr: Addr::from_v4_word(1),
        port: Port::new(60_000 + number as u16),
    }
}

/// What a worker knows of one of its own flows.
#[derive(Clone, Copy, Debug)]
struct Owned {
    record: Record,
    snat: Option<u32>,
}

/// One CPU's part.
#[derive(Debug)]
pub struct Worker {
    id: u32,
    seed: u64,
    own: Vec<Option<Owned>>,
    plan: Vec<Plan>,
    /// What went wrong.
    pub failures: Failures,
    /// Inserts and attachments that were refused: no room, no lock, SNAT end taken.
    pub refused: u64,
}

/// What a step of the running batch is about.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Own(usize, Option<u32>),
    Shared(u32),
}

impl Worker {
    /// Worker `id`, with `flows` clients of its own.
    pub fn new(id: u32, flows: usize) -> Self {
        Self {
            id,
            seed: u64::from(id) * 0x9e37_79b9_7f4a_7c15 + 88_172_645_463_325_252,
            own: vec![None; flows],
            plan: Vec::new(),
            failures: Failures::default(),
            refused: 0,
        }
    }

    fn random(&mut self, below: u32) -> u32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        ((self.seed >> 16) % u64::from(below)) as u32
    }

    /// Steps that do not depend on each other.
    pub fn batch(&mut self, steps: usize) -> Vec<Step> {
        self.plan.clear();
        let mut used = HashSet::new();
        let mut batch = Vec::with_capacity(steps);
        while batch.len() < steps {
            if self.random(4) == 0 {
                let client = self.random(SHARED);
                if used.insert(u32::MAX - client) {
                    batch.push(self.shared_step(client));
                    self.plan.push(Plan::Shared(client));
                }
                continue;
            }
            let index = self.random(self.own.len() as u32);
            if used.insert(index) {
                let (step, snat) = self.own_step(index as usize);
                batch.push(step);
                self.plan.push(Plan::Own(index as usize, snat));
            } else if used.len() >= self.own.len() {
                break;
            }
        }
        batch
    }

    /// A flow of this client to a random backend of its kind.
    fn some_flow(&mut self, client: u32) -> Record {
        let backend = self.random(BACKENDS / KINDS) * KINDS + client % KINDS;
        Record::of_flow(
            &client_end(client),
            &frontend_end(client),
            Protocol::TCP,
            BackendId(backend),
        )
    }

    fn client(&self, index: usize) -> u32 {
        1000 + self.id * 100_000 + index as u32
    }

    fn own_step(&mut self, index: usize) -> (Step, Option<u32>) {
        let wanted = self.some_flow(self.client(index));
        let Some(owned) = self.own[index] else {
            let op = [Op::INSERT, Op::INSERT, Op::BY_FRONTEND][self.random(3) as usize];
            return (Step::new(op, wanted, NOW), None);
        };
        let backend = owned.record.backend();
        let by_ends = |op, client: &Endpoint| {
            let end = backend_end(backend.0);
            let record = Record::of_flow(client, &end, Protocol::TCP, backend);
            Step::new(op, record, NOW)
        };
        let client = owned.record.client();
        match (self.random(12), owned.snat) {
            (0 | 1, _) => (Step::new(Op::REMOVE, owned.record, NOW), None),
            (2, _) => (Step::new(Op::INSERT, wanted, NOW), None),
            (3 | 4, _) => (by_ends(Op::BY_BACKEND, &client), None),
            (5 | 6, _) => {
                let mut step = Step::new(Op::NOTE, owned.record, Tick(NOW.0 + 1));
                step.state = 1;
                (step, None)
            }
            (7..=9, Some(snat)) => (by_ends(Op::BY_ALIAS, &snat_end(snat)), None),
            (7 | 8, None) => {
                let number = self.random(SNAT_PORTS);
                let (snat, end) = (snat_end(number), backend_end(backend.0));
                let ends = Record::of_flow(&snat, &end, Protocol::TCP, backend).words;
                let mut step = Step::new(Op::ATTACH, owned.record, NOW);
                step.other = [ends[2], ends[3], ends[4], ends[5], ends[6] & 0xffff_ffff];
                step.address = 1;
                step.state = u16::from(self.random(2) == 1);
                (step, Some(number))
            }
            _ => (Step::new(Op::BY_FRONTEND, wanted, NOW), None),
        }
    }

    fn shared_step(&mut self, client: u32) -> Step {
        let wanted = self.some_flow(client);
        let op = [Op::INSERT, Op::BY_FRONTEND][self.random(2) as usize];
        Step::new(op, wanted, NOW)
    }

    /// Compares the answers with what this worker knows. Shared flows that were found are removed by
    /// the steps that are returned.
    pub fn judge(&mut self, answers: &[Step]) -> Vec<Step> {
        let mut removals = Vec::new();
        let plan = std::mem::take(&mut self.plan);
        for (plan, answer) in plan.iter().zip(answers) {
            let found = (answer.answer == Answer::FLOW).then_some(Record {
                words: answer.words,
            });
            match *plan {
                Plan::Own(index, snat) => self.judge_own(index, snat, answer, found),
                Plan::Shared(client) => {
                    if let Some(found) = found {
                        self.failures.torn += u64::from(!fits(&found, client));
                        if self.random(2) == 0 {
                            removals.push(Step::new(Op::REMOVE, found, NOW));
                        }
                    }
                }
            }
        }
        removals
    }

    fn judge_own(&mut self, index: usize, snat: Option<u32>, answer: &Step, found: Option<Record>) {
        let client = self.client(index);
        if let Some(found) = found
            && !fits(&found, client)
        {
            self.failures.torn += 1;
        }
        let refused = [Answer::FULL, Answer::BUSY, Answer::TAKEN].contains(&answer.answer);
        self.refused += u64::from(refused);
        match (self.own[index], answer.op) {
            (None, Op::INSERT) => {
                self.own[index] = found.map(|record| Owned { record, snat: None });
            }
            (None, _) => self.failures.resurrected += u64::from(found.is_some()),
            (Some(_), Op::REMOVE) => self.own[index] = None,
            (Some(_), Op::NOTE) => {}
            (Some(mut owned), Op::ATTACH) => {
                if let Some(found) = found {
                    owned.snat = snat;
                    let expected = snat.map(|number| snat_end(number).port);
                    self.failures.torn += u64::from(Some(found.snat_port()) != expected);
                    self.own[index] = Some(owned);
                }
            }
            (Some(owned), _) => {
                // A second insert may be refused a lock; lookups must find what is there.
                let is_there = found.is_some_and(|found| {
                    found.bucket() == owned.record.bucket()
                        && found.backend() == owned.record.backend()
                        && (found.snat_port().0 != 0) == owned.snat.is_some()
                });
                self.failures.lost += u64::from(!is_there && !refused);
            }
        }
    }
}

/// True if the record's parts belong together and to this client.
fn fits(record: &Record, client: u32) -> bool {
    record.client() == client_end(client)
        && record.frontend() == frontend_end(client)
        && record.backend().0 % KINDS == client % KINDS
}

/// Looks at a table that nobody works on any more: `words` are its buckets, `find` looks a record up
/// by frontend and returns its bucket.
pub fn inspect(buckets: &[[u64; 8]], find: impl Fn(&Record) -> Option<u32>) -> Failures {
    let mut failures = Failures::default();
    let mut seen = HashSet::new();
    for (index, words) in buckets.iter().enumerate() {
        let kind = Control(words[0]).kind();
        failures.stuck += u64::from(kind == Kind::BUSY) + (words[1] >> 63);
        let entry = super::read(index as u32, |word| words[word]);
        if let Entry::Flow(flow, protocol) = entry {
            let record = Record::of_flow(&flow.client, &flow.frontend, protocol, flow.backend);
            failures.duplicates += u64::from(!seen.insert((flow.client, flow.frontend)));
            failures.unreachable += u64::from(find(&record) != Some(index as u32));
        }
    }
    failures
}

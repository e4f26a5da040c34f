//! The tables as the agent writes them, and how it finds them at a start.

use super::directory::Directory;
use super::error::StartError;
use super::grace::Grace;
use super::load::Schema;
use super::mapping::Words;
use super::names;
use super::read::{backend_of, read_backend_counters, read_frontends};
use super::sys;
use crate::plan::{Held, Limits, Op};
use lb_common::addr::{Addr, BackendId, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::table::{
    AddressBits, Backend, BackendCounters, BackendState, Config, Service, ServiceCounters,
    ServiceName, Slot, SourceRange, name,
};
use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, IntoBytes};

const CONFIG_WORDS: usize = size_of::<Config>() / 8;
const BITS_WORDS: usize = size_of::<AddressBits>() / 8;
/// Frontends stored by one system call.
const BATCH: usize = 4096;

/// A write that failed: which, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the table {table}")]
pub struct WriteError {
    /// The table.
    pub table: &'static str,
    /// Why.
    pub source: io::Error,
}

/// The tables, writable.
#[derive(Debug)]
pub(super) struct Tables {
    config: Words<CONFIG_WORDS>,
    bits: Words<BITS_WORDS>,
    services: Words<8>,
    slots: Words<4>,
    backends: Words<4>,
    pool: Words<2>,
    frontends: OwnedFd,
    ranges: OwnedFd,
    names: OwnedFd,
    service_counters: OwnedFd,
    backend_counters: OwnedFd,
    grace: OwnedFd,
    flow_buckets: u32,
    limits: Limits,
    cpus: usize,
}

impl Tables {
    /// Opens the pinned tables, whose schema has been checked.
    pub(super) fn open(directory: &Directory, schema: &Schema) -> Result<Self, StartError> {
        let open = |name: &'static str| {
            let entries = schema.get(name).map_or(0, |geometry| geometry.max_entries);
            sys::object_get(&directory.map(name))
                .map(|fd| (fd, entries))
                .map_err(|source| StartError::Step {
                    attempt: "open the table",
                    object: directory.map(name).display().to_string(),
                    source,
                })
        };
        let (config, bits) = (open(name::CONFIG)?, open(name::ADDRESS_BITS)?);
        let (services, slots) = (open(name::SERVICES)?, open(name::SLOTS)?);
        let (backends, pool) = (open(name::BACKENDS)?, open(name::SNAT_POOL)?);
        let frontends = open(name::FRONTENDS)?;
        let ranges = open(name::RANGES)?;
        let cpus = sys::possible_cpus().map_err(|source| StartError::Step {
            attempt: "count the CPUs",
            object: "of this machine".to_owned(),
            source,
        })?;
        Ok(Self {
            limits: Limits {
                services: services.1,
                backends: backends.1,
                slots: slots.1,
                frontends: frontends.1,
                ranges: ranges.1,
            },
            config: Words::new(config.0, config.1, true),
            bits: Words::new(bits.0, bits.1, true),
            services: Words::new(services.0, services.1, true),
            slots: Words::new(slots.0, slots.1, true),
            backends: Words::new(backends.0, backends.1, true),
            pool: Words::new(pool.0, pool.1, true),
            frontends: frontends.0,
            ranges: ranges.0,
            names: open(name::NAMES)?.0,
            service_counters: open(name::SERVICE_COUNTERS)?.0,
            backend_counters: open(name::BACKEND_COUNTERS)?.0,
            grace: open(name::GRACE)?.0,
            flow_buckets: schema.get(name::FLOWS).map_or(0, |flows| flows.max_entries),
            cpus,
        })
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Number of buckets of the flow table, 0 if the object has none.
    pub(super) fn flow_buckets(&self) -> u32 {
        self.flow_buckets
    }

    /// The configuration as it is.
    pub(super) fn config(&mut self) -> io::Result<Config> {
        let words: [u64; CONFIG_WORDS] = self.config.read(0)?;
        Ok(zerocopy::transmute!(words))
    }

    /// Stores the configuration, word by word: each field is whole at any moment.
    pub(super) fn write_config(&mut self, config: &Config) -> io::Result<()> {
        let words: [u64; CONFIG_WORDS] = zerocopy::transmute!(*config);
        store(self.config.get(0)?, &words);
        Ok(())
    }

    /// The addresses flows are SNATed to.
    pub(super) fn pool(&mut self) -> io::Result<Vec<Addr>> {
        (0..self.pool.entries())
            .map(|index| self.pool.read(index).map(Addr))
            .collect()
    }

    /// Puts an address into the pool.
    pub(super) fn write_pool(&mut self, index: u32, addr: Addr) -> io::Result<()> {
        store(self.pool.get(index)?, &addr.0);
        Ok(())
    }

    /// Everything the planner needs to know of the tables.
    pub(super) fn held(&mut self, keys: HashKeys) -> io::Result<Held> {
        let mut bits = Box::new(AddressBits::EMPTY);
        for (to, from) in bits.words.iter_mut().zip(self.bits.get(0)?) {
            *to = from.load(Ordering::Acquire);
        }
        let mut names = Vec::new();
        sys::map_each(
            self.names.as_fd(),
            4,
            size_of::<ServiceName>(),
            |id, record| {
                let id = ServiceId::read_from_bytes(id);
                let name = ServiceName::read_from_bytes(record);
                if let (Ok(id), Some(name)) = (id, name.ok().as_ref().and_then(names::from_record))
                {
                    names.push((id, name));
                }
            },
        )?;
        names.sort_unstable_by_key(|(id, _)| *id);
        let services = names
            .iter()
            .map(|(id, _)| self.service(*id))
            .collect::<io::Result<_>>()?;
        let mut backends = Vec::new();
        self.backends.each(|index, words| {
            let backend = backend_of(words);
            if backend.state != BackendState::Free as u8 {
                backends.push((BackendId(index), backend));
            }
        })?;
        Ok(Held {
            keys,
            bits,
            names,
            services,
            backends,
            frontends: read_frontends(self.frontends.as_fd())?,
            ranges: self.read_ranges()?,
        })
    }

    fn read_ranges(&self) -> io::Result<Vec<SourceRange>> {
        let mut ranges = Vec::new();
        sys::map_each(
            self.ranges.as_fd(),
            size_of::<SourceRange>(),
            size_of::<u32>(),
            |key, _| ranges.extend(SourceRange::read_from_bytes(key)),
        )?;
        Ok(ranges)
    }

    fn service(&mut self, id: ServiceId) -> io::Result<Service> {
        let words: [u64; 8] = self.services.read(id.0)?;
        Ok(zerocopy::transmute!(words))
    }

    /// One slot.
    pub(super) fn slot(&mut self, index: u32) -> Option<Slot> {
        let words: [u64; 4] = self.slots.read(index).ok()?;
        Some(zerocopy::transmute!(words))
    }

    /// Does the writes at the front of `ops` and removes what is done. What failed stays in front.
    pub(super) fn write(&mut self, ops: &mut VecDeque<Op>) -> Result<u64, WriteError> {
        let mut done = 0;
        while let Some(op) = ops.front() {
            if matches!(op, Op::Frontend(..)) {
                let count = self.write_frontends(ops)?;
                ops.drain(..count);
                done += count as u64;
            } else {
                self.write_one(op)?;
                ops.pop_front();
                done += 1;
            }
        }
        Ok(done)
    }

    /// The frontends at the front of `ops`, together.
    fn write_frontends(&self, ops: &VecDeque<Op>) -> Result<usize, WriteError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut count = 0;
        for op in ops.iter().take(BATCH) {
            let Op::Frontend(key, value) = op else { break };
            keys.extend_from_slice(key.as_bytes());
            values.extend_from_slice(value.as_bytes());
            count += 1;
        }
        let entries = u32::try_from(count).unwrap_or(0);
        let fd = self.frontends.as_fd();
        let result = if count == 1 {
            sys::map_update(fd, &keys, &values)
        } else {
            sys::map_update_batch(fd, &keys, &values, entries)
        };
        result.map(|()| count).map_err(at(name::FRONTENDS))
    }

    fn write_one(&mut self, op: &Op) -> Result<(), WriteError> {
        match op {
            Op::Backend(id, backend) => {
                self.write_backend(*id, backend).map_err(at(name::BACKENDS))
            }
            Op::Bits { index, value } => self
                .bits
                .get(0)
                .map(|words| words[*index].store(*value, Ordering::Release))
                .map_err(at(name::ADDRESS_BITS)),
            Op::Slots { start, slots } => self.write_slots(*start, slots).map_err(at(name::SLOTS)),
            Op::Name(id, name) => {
                let record = names::to_record(name);
                sys::map_update(self.names.as_fd(), id.as_bytes(), record.as_bytes())
                    .map_err(at(name::NAMES))
            }
            Op::RemoveName(id) => {
                sys::map_delete(self.names.as_fd(), id.as_bytes()).map_err(at(name::NAMES))
            }
            Op::ResetCounters(id) => {
                let zeros = vec![0; size_of::<ServiceCounters>() * self.cpus];
                sys::map_update(self.service_counters.as_fd(), id.as_bytes(), &zeros)
                    .map_err(at(name::SERVICE_COUNTERS))
            }
            Op::Window {
                service,
                local,
                word,
            } => self
                .services
                .get(service.0)
                .map(|words| words[usize::from(*local)].store(*word, Ordering::Release))
                .map_err(at(name::SERVICES)),
            Op::Policy {
                service,
                flags,
                affinity_seconds,
                algorithm,
            } => {
                let flags_and_affinity: u64 = zerocopy::transmute!([*flags, *affinity_seconds]);
                let algorithm: u64 = zerocopy::transmute!([*algorithm, 0]);
                self.services
                    .get(service.0)
                    .map(|words| store(&words[2..4], &[flags_and_affinity, algorithm]))
                    .map_err(at(name::SERVICES))
            }
            Op::ClearService(id) => self
                .services
                .get(id.0)
                .map(|words| store(words, &[0; 8]))
                .map_err(at(name::SERVICES)),
            Op::Range(range) => {
                let fd = self.ranges.as_fd();
                sys::map_update(fd, range.as_bytes(), &1_u32.to_ne_bytes())
                    .map_err(at(name::RANGES))
            }
            Op::RemoveRange(range) => {
                sys::map_delete(self.ranges.as_fd(), range.as_bytes()).map_err(at(name::RANGES))
            }
            Op::Frontend(key, value) => {
                sys::map_update(self.frontends.as_fd(), key.as_bytes(), value.as_bytes())
                    .map_err(at(name::FRONTENDS))
            }
            Op::RemoveFrontend(key) => {
                sys::map_delete(self.frontends.as_fd(), key.as_bytes()).map_err(at(name::FRONTENDS))
            }
        }
    }

    /// The word that programs check comes last: whoever sees the new state sees the new address.
    fn write_backend(&mut self, id: BackendId, backend: &Backend) -> io::Result<()> {
        const CHECKED: usize = 2;
        let words: [u64; 4] = zerocopy::transmute!(*backend);
        let target = self.backends.get(id.0)?;
        for (index, (to, from)) in target.iter().zip(words).enumerate() {
            if index != CHECKED {
                to.store(from, Ordering::Relaxed);
            }
        }
        target[CHECKED].store(words[CHECKED], Ordering::Release);
        Ok(())
    }

    fn write_slots(&mut self, start: u32, slots: &[Slot]) -> io::Result<()> {
        for (index, slot) in (start..).zip(slots) {
            let words: [u64; 4] = zerocopy::transmute!(*slot);
            store(self.slots.get(index)?, &words);
        }
        Ok(())
    }

    /// A backend's record, if it is in use.
    pub(super) fn backend(&mut self, id: BackendId) -> Option<Backend> {
        let backend = self.backends.get(id.0).ok().map(backend_of)?;
        (backend.state != BackendState::Free as u8).then_some(backend)
    }

    /// How many sockets have been opened to and closed from a backend, and both over all CPUs.
    pub(super) fn backend_sockets(&self, id: BackendId) -> io::Result<BackendCounters> {
        read_backend_counters(self.backend_counters.as_fd(), id, self.cpus)
    }

    /// What waits for a grace period, to be used away from the thread that writes.
    pub(super) fn grace(&self) -> io::Result<Grace> {
        self.grace.try_clone().map(Grace)
    }
}

fn at(table: &'static str) -> impl Fn(io::Error) -> WriteError {
    move |source| WriteError { table, source }
}

/// Word after word; the fields that matter together share one.
fn store(words: &[AtomicU64], values: &[u64]) {
    for (to, from) in words.iter().zip(values) {
        to.store(*from, Ordering::Release);
    }
}

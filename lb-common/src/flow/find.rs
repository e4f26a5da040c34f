//! Finding records in the flow table: at home first, then where the home's word says. Nothing is
//! changed here.

use super::record::{CLIENT, CONTROL, Control, ENDS, FRONTEND, HOME, Kind, MEMBERS, Record, TAIL};
use super::{Buckets, Flow, FlowTable, GROUP};
use crate::addr::{BackendId, Endpoint, Protocol};
use crate::env::Tables;

/// What the other end of a wanted record is compared with.
#[derive(Clone, Copy)]
enum Other<'a> {
    /// The end in the record itself.
    Written(&'a Endpoint),
    /// The backend's end, which the backend table knows.
    Backend(&'a Endpoint),
}

impl Other<'_> {
    /// Both ports of a search as [`Record::ports`] has them. One number instead of two: what is kept
    /// over the search must fit on the stack of the BPF machine, 512 bytes for a whole chain of calls.
    #[inline(always)]
    const fn ports(&self, client: &Endpoint) -> u32 {
        match self {
            Self::Written(end) => client.port.0 as u32 | (end.port.0 as u32) << 16,
            Self::Backend(_) => client.port.0 as u32,
        }
    }
}

/// What a look at a record's home has found.
enum Found {
    /// The record.
    Here(Record),
    /// There is no such record.
    Nowhere,
    /// The home has records in other buckets, one of which it may be.
    Elsewhere { home: u32, members: u64 },
}

/// The result of the quick half of a lookup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Quick {
    /// The flow.
    Here(Flow),
    /// There is no such flow.
    Nowhere,
    /// The whole lookup must tell.
    Unknown,
}

impl Quick {
    #[inline(always)]
    fn of(found: &Found) -> Self {
        match found {
            Found::Here(record) => Self::Here(record.flow()),
            Found::Nowhere => Self::Nowhere,
            Found::Elsewhere { .. } => Self::Unknown,
        }
    }
}

impl<B: Buckets, T: Tables> FlowTable<'_, B, T> {
    /// The quick half of [`Flows::by_frontend`](super::Flows::by_frontend): one line of memory.
    #[inline(always)]
    pub fn quick_by_frontend(
        &self,
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
    ) -> Quick {
        Quick::of(&self.find_at_home(Kind::LIVE, client, Other::Written(frontend), protocol))
    }

    /// The quick half of [`Flows::by_backend`](super::Flows::by_backend).
    #[inline(always)]
    pub fn quick_by_backend(
        &self,
        client: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Quick {
        Quick::of(&self.find_at_home(Kind::LIVE, client, Other::Backend(backend), protocol))
    }

    /// [`Flows::by_frontend`](super::Flows::by_frontend), as a record.
    #[inline(always)]
    pub fn find_by_frontend(
        &self,
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Record> {
        self.find(Kind::LIVE, client, Other::Written(frontend), protocol)
    }

    /// [`Flows::by_backend`](super::Flows::by_backend), as a record.
    #[inline(always)]
    pub fn find_by_backend(
        &self,
        client: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Record> {
        self.find(Kind::LIVE, client, Other::Backend(backend), protocol)
    }

    /// [`Flows::by_alias`](super::Flows::by_alias), as a record.
    #[inline(always)]
    pub fn find_by_alias(
        &self,
        snat: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Record> {
        let alias = self.find_alias(snat, backend, protocol)?;
        let record = self.flow_at(alias.primary())?;
        // An alias that lost the race for its flow may be left for a moment.
        (record.snat_port() == snat.port).then_some(record)
    }

    /// The record of `kind` between `client` and the other end.
    #[inline(always)]
    fn find(
        &self,
        kind: Kind,
        client: &Endpoint,
        other: Other<'_>,
        protocol: Protocol,
    ) -> Option<Record> {
        match self.find_at_home(kind, client, other, protocol) {
            Found::Here(record) => Some(record),
            Found::Nowhere => None,
            Found::Elsewhere { home, members } => {
                self.find_elsewhere(home, members, kind, client, other, protocol)
            }
        }
    }

    /// Looks at the home only, which is enough for most: this part melts into the hot path.
    #[inline(always)]
    fn find_at_home(
        &self,
        kind: Kind,
        client: &Endpoint,
        other: Other<'_>,
        protocol: Protocol,
    ) -> Found {
        let home = self.home(client, protocol);
        let Some(bucket) = self.buckets.bucket(home) else {
            return Found::Nowhere;
        };
        let ports = other.ports(client);
        if let Some(record) = self.probe(bucket, home, kind, client, other, ports, protocol) {
            return Found::Here(record);
        }
        match self.buckets.load(bucket, HOME) & MEMBERS {
            0 => Found::Nowhere,
            members => Found::Elsewhere { home, members },
        }
    }

    #[inline(always)]
    fn find_elsewhere(
        &self,
        home: u32,
        members: u64,
        kind: Kind,
        client: &Endpoint,
        other: Other<'_>,
        protocol: Protocol,
    ) -> Option<Record> {
        let ports = other.ports(client);
        let mut members = members >> 1;
        let mut distance = 1;
        while members != 0 && distance < GROUP {
            let index = home ^ distance;
            if members & 1 != 0
                && let Some(bucket) = self.buckets.bucket(index)
                && let Some(record) =
                    self.probe(bucket, index, kind, client, other, ports, protocol)
            {
                return Some(record);
            }
            members >>= 1;
            distance += 1;
        }
        None
    }

    /// The alias from {`snat`, `backend`}, wherever it leads.
    #[inline(always)]
    pub(super) fn find_alias(
        &self,
        snat: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Record> {
        self.find(Kind::ALIAS, snat, Other::Written(backend), protocol)
    }

    /// A consistent copy of the bucket if it holds the wanted record.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "the bucket and its number, so that neither is derived again; inlined"
    )]
    fn probe(
        &self,
        bucket: B::Bucket,
        index: u32,
        kind: Kind,
        client: &Endpoint,
        other: Other<'_>,
        ports: u32,
        protocol: Protocol,
    ) -> Option<Record> {
        let load = |word| self.buckets.load(bucket, word);
        let before = Control(load(CONTROL));
        let (client_0, client_1) = (load(CLIENT), load(CLIENT + 1));
        let mut record = Record {
            words: [0, u64::from(index), client_0, client_1, 0, 0, load(ENDS), 0],
        };
        let mask = match other {
            Other::Written(_) => u32::MAX,
            Other::Backend(_) => u32::from(u16::MAX),
        };
        if before.kind() != kind
            || record.client().addr != client.addr
            || record.ports() & mask != ports
        {
            return None;
        }
        record.words[TAIL] = load(TAIL);
        record.words[FRONTEND] = load(FRONTEND);
        record.words[FRONTEND + 1] = load(FRONTEND + 1);
        let matches = match other {
            Other::Written(end) => record.frontend().addr == end.addr,
            Other::Backend(end) => self.is_backend(record.backend(), end),
        };
        if !matches || record.protocol() != protocol {
            return None;
        }
        let after = Control(load(CONTROL));
        record.words[CONTROL] = after.0;
        after.is_same_record(before).then_some(record)
    }

    /// True if the backend has this end.
    #[inline(always)]
    pub(super) fn is_backend(&self, id: BackendId, end: &Endpoint) -> bool {
        self.tables
            .backend(id)
            .is_some_and(|backend| backend.addr == end.addr && backend.port == end.port)
    }
}

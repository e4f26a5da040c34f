//! Insertion: the home's lock, the second look, the claim of a bucket.

use super::record::{
    CLIENT, CONTROL, Control, ENDS, FRONTEND, HOME, Kind, LOCK, MEMBERS, Record, TAIL, tail_snat,
    tail_version,
};
use super::table::{Buckets, FlowTable};
use super::{FlowHandle, GROUP, Lifetime, Refused, SnatAddressIndex};
use crate::addr::Tick;
use crate::env::Tables;

/// How often a home's lock is tried: about 2 µs.
const LOCK_TRIES: u32 = 64;

/// A home whose lock is held.
struct Home<B> {
    index: u32,
    bucket: B,
    /// Bit `d`: the bucket at distance `d` holds records of this home.
    members: u64,
}

/// A bucket that this CPU has made BUSY.
struct Claim<B> {
    bucket: B,
    index: u32,
    version: u16,
}

/// What is to be inserted.
struct Wanted<'a> {
    kind: Kind,
    record: &'a Record,
    /// Of an alias: whether a closed flow may lose its end to it.
    pressure: bool,
}

/// What the second look found.
enum Present {
    /// Nothing in the way.
    Nothing,
    /// The wanted record, at this index.
    At(u32),
    /// The wanted record, whose time is over: to be written over.
    Expired(u32),
    /// Another flow's claim to the same end.
    Conflict,
}

impl<B: Buckets, T: Tables> FlowTable<'_, B, T> {
    /// [`Flows::insert`](super::Flows::insert) of a record made by [`Record::of_flow`].
    #[inline(always)]
    pub fn insert_flow(&self, flow: &Record, state: u16, now: Tick) -> Result<Record, Refused> {
        let wanted = Wanted {
            kind: Kind::LIVE,
            record: flow,
            pressure: false,
        };
        let index = self.insert_record(&wanted, state, now)?;
        // Read back: it may be the flow that was there before.
        let record = self.read(index).ok_or(Refused::Full)?;
        if record.control().kind() == Kind::LIVE && is_same_flow(&record, flow) {
            Ok(record)
        } else {
            Err(Refused::Busy)
        }
    }

    /// [`Flows::attach_snat`](super::Flows::attach_snat) of a record made by [`Record::of_alias`]:
    /// reserves its ends, then writes the SNAT end into the flow, unless another packet was quicker:
    /// then gives the reservation back. Under `pressure` a closed flow loses its end to this one.
    #[inline(always)]
    pub fn attach(
        &self,
        alias: &Record,
        address: SnatAddressIndex,
        pressure: bool,
        now: Tick,
    ) -> Result<Record, Refused> {
        let wanted = Wanted {
            kind: Kind::ALIAS,
            record: alias,
            pressure,
        };
        self.insert_record(&wanted, 0, now)?;
        let handle = alias.primary();
        let bucket = self.buckets.bucket(handle.bucket).ok_or(Refused::Busy)?;
        let unset = u64::from(alias.protocol().0) | tail_version(handle.version);
        let set = unset | tail_snat(alias.client().port, address);
        self.buckets.swap_if(bucket, TAIL, unset, set);
        let flow = self.flow_at(handle);
        if flow.is_none_or(|flow| flow.words[TAIL] != set) {
            self.release_alias(alias);
        }
        flow.ok_or(Refused::Busy)
    }

    /// Frees the bucket if it still holds this flow.
    #[inline(always)]
    pub(super) fn release(&self, handle: FlowHandle) -> bool {
        /// How often a packet of the flow on another CPU may be quicker with its note.
        const TRIES: u32 = 4;
        let Some(bucket) = self.buckets.bucket(handle.bucket) else {
            return false;
        };
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let control = Control(self.buckets.load(bucket, CONTROL));
            if control.kind() != Kind::LIVE || control.version() != handle.version {
                return false;
            }
            let free = Control::new(Kind::FREE, 0, handle.version, Tick(0));
            if self.buckets.swap_if(bucket, CONTROL, control.0, free.0) {
                return true;
            }
        }
        false
    }

    /// Frees the alias if it still leads to the same flow.
    #[inline(always)]
    fn release_alias(&self, alias: &Record) {
        if let Some(found) = self.find_alias(&alias.client(), &alias.frontend(), alias.protocol())
            && found.primary() == alias.primary()
            && let Some(bucket) = self.buckets.bucket(found.bucket())
        {
            let control = found.control();
            let free = Control::new(Kind::FREE, 0, control.version(), Tick(0));
            self.buckets.swap_if(bucket, CONTROL, control.0, free.0);
        }
    }

    /// Under the home's lock: second look, claim, write. Returns where the wanted record lies.
    #[inline(always)]
    fn insert_record(&self, wanted: &Wanted<'_>, state: u16, now: Tick) -> Result<u32, Refused> {
        let Wanted { kind, record, .. } = *wanted;
        let home = self.home(&record.client(), record.protocol());
        let mut home = self.lock(home)?;
        let result = match self.look(&mut home, wanted, now) {
            Present::At(index) => Ok(index),
            Present::Conflict => Err(Refused::Taken),
            Present::Expired(index) => match self.claim(index, true, now) {
                Some(claim) => Ok(self.write(&claim, record, kind, state, now)),
                // Somebody noted a packet or claimed it this very moment.
                None => Err(Refused::Busy),
            },
            Present::Nothing => match self.place(&mut home, now) {
                Some(claim) => Ok(self.write(&claim, record, kind, state, now)),
                None => Err(Refused::Full),
            },
        };
        self.buckets.store(home.bucket, HOME, home.members);
        result
    }

    #[inline(always)]
    fn lock(&self, index: u32) -> Result<Home<B::Bucket>, Refused> {
        let bucket = self.buckets.bucket(index).ok_or(Refused::Full)?;
        let mut tries = 0;
        while tries < LOCK_TRIES {
            tries += 1;
            let word = self.buckets.load(bucket, HOME);
            if word & LOCK == 0 && self.buckets.swap_if(bucket, HOME, word, word | LOCK) {
                return Ok(Home {
                    index,
                    bucket,
                    members: word & MEMBERS,
                });
            }
        }
        Err(Refused::Busy)
    }

    /// Looks at every record of the home and drops the bits nobody needs any more.
    #[inline(always)]
    fn look(&self, home: &mut Home<B::Bucket>, wanted: &Wanted<'_>, now: Tick) -> Present {
        // Bit by bit: most homes have no members but themselves.
        let mut left = home.members | 1;
        let mut distance = 0;
        while left != 0 && distance < GROUP {
            let bit = 1u64 << distance;
            let here = distance;
            let is_named = left & 1 != 0;
            distance += 1;
            left >>= 1;
            if !is_named {
                continue;
            }
            let Some(record) = self.read(home.index ^ here) else {
                break;
            };
            let found = record.control().kind();
            if found == Kind::BUSY {
                continue;
            }
            let is_ours =
                found != Kind::FREE && self.home(&record.client(), record.protocol()) == home.index;
            if !is_ours {
                home.members &= !bit;
                continue;
            }
            let present = if wanted.kind == Kind::LIVE {
                Self::compare_flow(&record, wanted.record, now)
            } else {
                self.compare_alias(&record, wanted.record, wanted.pressure, now)
            };
            match present {
                Present::Nothing => {}
                found => return found,
            }
        }
        Present::Nothing
    }

    #[inline(always)]
    fn compare_flow(record: &Record, wanted: &Record, now: Tick) -> Present {
        if record.control().kind() != Kind::LIVE || !is_same_flow(record, wanted) {
            Present::Nothing
        } else if is_over(record, false, now) {
            Present::Expired(record.bucket())
        } else {
            Present::At(record.bucket())
        }
    }

    #[inline(always)]
    fn compare_alias(
        &self,
        record: &Record,
        wanted: &Record,
        pressure: bool,
        now: Tick,
    ) -> Present {
        if record.client() != wanted.client() || record.protocol() != wanted.protocol() {
            return Present::Nothing;
        }
        if record.control().kind() == Kind::LIVE {
            // A client that really has this end may talk to the same backend.
            return if self.is_backend(record.backend(), &wanted.frontend())
                && !is_over(record, false, now)
            {
                Present::Conflict
            } else {
                Present::Nothing
            };
        }
        if record.frontend() != wanted.frontend() {
            Present::Nothing
        } else if record.primary() == wanted.primary() {
            Present::At(record.bucket())
        } else if self.is_stale(record, pressure, now) {
            Present::Expired(record.bucket())
        } else {
            Present::Conflict
        }
    }

    /// Claims a bucket of the group: first what this home already names, then the rest; first what
    /// is free or over, then what may be pushed out.
    #[inline(always)]
    fn place(&self, home: &mut Home<B::Bucket>, now: Tick) -> Option<Claim<B::Bucket>> {
        let named = home.members | 1;
        let mut step = 0;
        while step < 4 * GROUP {
            let distance = step % GROUP;
            let bit = 1u64 << distance;
            let wants_named = (step / GROUP).is_multiple_of(2);
            let pressure = step / GROUP >= 2;
            step += 1;
            if (named & bit != 0) != wants_named {
                continue;
            }
            if let Some(claim) = self.claim(home.index ^ distance, pressure, now) {
                home.members |= bit & MEMBERS;
                return Some(claim);
            }
        }
        None
    }

    /// Makes the bucket BUSY if its record is free or over, or, under pressure, may be pushed out.
    #[inline(always)]
    fn claim(&self, index: u32, pressure: bool, now: Tick) -> Option<Claim<B::Bucket>> {
        let record = self.read(index)?;
        let control = record.control();
        let usable = match control.kind() {
            Kind::FREE => true,
            Kind::LIVE => is_over(&record, pressure, now),
            Kind::ALIAS => self.is_stale(&record, pressure, now),
            _ => false,
        };
        if !usable {
            return None;
        }
        let bucket = self.buckets.bucket(index)?;
        let version = control.version().wrapping_add(1);
        let busy = Control::new(Kind::BUSY, 0, version, now);
        self.buckets
            .swap_if(bucket, CONTROL, control.0, busy.0)
            .then_some(Claim {
                bucket,
                index,
                version,
            })
    }

    /// True if the alias leads nowhere. A flow that is over is released first, so that it never
    /// lives on without its alias.
    #[inline(always)]
    fn is_stale(&self, alias: &Record, pressure: bool, now: Tick) -> bool {
        let primary = alias.primary();
        let Some(record) = self.read(primary.bucket) else {
            return true;
        };
        let control = record.control();
        if control.kind() == Kind::BUSY {
            // Changing this very moment: the next newcomer will see what it became.
            return false;
        }
        if control.kind() != Kind::LIVE || control.version() != primary.version {
            return true;
        }
        let chosen = record.snat_port();
        if chosen.0 != 0 && chosen != alias.client().port {
            // Left by a packet that lost the race for its flow.
            return true;
        }
        is_over(&record, pressure, now) && self.release(primary)
    }

    /// Fills a claimed bucket and opens it to readers.
    #[inline(always)]
    fn write(
        &self,
        claim: &Claim<B::Bucket>,
        record: &Record,
        kind: Kind,
        state: u16,
        now: Tick,
    ) -> u32 {
        let store = |word, value| self.buckets.store(claim.bucket, word, value);
        store(CLIENT, record.words[CLIENT]);
        store(CLIENT + 1, record.words[CLIENT + 1]);
        store(FRONTEND, record.words[FRONTEND]);
        store(FRONTEND + 1, record.words[FRONTEND + 1]);
        store(ENDS, record.words[ENDS]);
        store(TAIL, record.words[TAIL] | tail_version(claim.version));
        store(CONTROL, Control::new(kind, state, claim.version, now).0);
        claim.index
    }
}

/// True if both are flows of one client to one frontend.
#[inline(always)]
fn is_same_flow(a: &Record, b: &Record) -> bool {
    a.client() == b.client() && a.frontend() == b.frontend() && a.protocol() == b.protocol()
}

/// True if the flow's time is over or, under pressure, if it may be pushed out.
#[inline(always)]
fn is_over(record: &Record, pressure: bool, now: Tick) -> bool {
    let (protocol, control) = (record.protocol(), record.control());
    let (state, seen) = (control.state(), control.seen());
    Lifetime::is_expired(protocol, state, seen, now)
        || (pressure && Lifetime::is_reclaimable(protocol, state, seen, now))
}

//! The flow table in the kernel, as the core uses it.
//!
//! Two stores, one of which is built: our own table where the kernel has compare-and-swap (5.12), the
//! kernel's hash below. Either takes and returns a record: the only form that crosses function calls
//! without padding, which old verifiers do not accept.

#[cfg(feature = "atomics")]
mod array;
#[cfg(not(feature = "atomics"))]
mod hash;

#[cfg(feature = "atomics")]
use array as store;
#[cfg(not(feature = "atomics"))]
use hash as store;

use lb_common::addr::{BackendId, Endpoint, Protocol, Tick};
use lb_common::flow::{Flow, Flows, NewFlow, Quick, Record, Refused, SnatEnd};
use lb_common::table::Config;

const OK: u32 = 0;
const FULL: u32 = 1;
const BUSY: u32 = 2;
const TAKEN: u32 = 3;

/// Fills `record` with the result, or says why there is none.
#[cfg(feature = "atomics")]
#[inline(always)]
fn answer(record: &mut Record, result: Result<Record, Refused>) -> u32 {
    match result {
        Ok(found) => {
            *record = found;
            OK
        }
        Err(Refused::Full) => FULL,
        Err(Refused::Busy) => BUSY,
        Err(Refused::Taken) => TAKEN,
    }
}

/// What a global function answered.
#[inline(always)]
fn result(code: u32, record: &Record) -> Result<Flow, Refused> {
    match code {
        OK => Ok(record.flow()),
        FULL => Err(Refused::Full),
        TAKEN => Err(Refused::Taken),
        _ => Err(Refused::Busy),
    }
}

/// The flow table as the core uses it.
#[derive(Clone, Copy)]
pub struct KernelFlows<'a, const QUICK: bool> {
    /// The hash keys and the size of the table.
    pub config: &'a Config,
}

/// A record that only says what is looked for.
#[inline(always)]
fn wanted(client: &Endpoint, other: &Endpoint, protocol: Protocol) -> Record {
    Record::of_flow(client, other, protocol, BackendId(0))
}

impl<const QUICK: bool> Flows for KernelFlows<'_, QUICK> {
    #[inline(always)]
    fn by_frontend(
        &self,
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow> {
        if QUICK {
            match store::quick_by_frontend(self.config, client, frontend, protocol) {
                Quick::Here(flow) => return Some(flow),
                Quick::Nowhere => return None,
                Quick::Unknown => {}
            }
        }
        let mut record = wanted(client, frontend, protocol);
        let code = store::by_frontend(&mut record);
        result(code, &record).ok()
    }

    #[inline(always)]
    fn by_backend(
        &self,
        client: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow> {
        if QUICK {
            match store::quick_by_backend(self.config, client, backend, protocol) {
                Quick::Here(flow) => return Some(flow),
                Quick::Nowhere => return None,
                Quick::Unknown => {}
            }
        }
        let mut record = wanted(client, backend, protocol);
        let code = store::by_backend(&mut record);
        result(code, &record).ok()
    }

    #[inline(always)]
    fn by_alias(&self, snat: &Endpoint, backend: &Endpoint, protocol: Protocol) -> Option<Flow> {
        let mut record = wanted(snat, backend, protocol);
        let code = store::by_alias(&mut record);
        result(code, &record).ok()
    }

    #[inline(always)]
    fn insert(&self, flow: &NewFlow, now: Tick) -> Result<Flow, Refused> {
        let mut record = Record::of_flow(&flow.client, &flow.frontend, flow.protocol, flow.backend);
        let code = store::insert(&mut record, u32::from(flow.state), now.0);
        result(code, &record)
    }

    #[inline(always)]
    fn attach_snat(
        &self,
        flow: &Flow,
        snat: &SnatEnd,
        backend: &Endpoint,
        protocol: Protocol,
        now: Tick,
    ) -> Result<Flow, Refused> {
        let mut record = Record::of_alias(&snat.end, backend, protocol, flow.handle);
        let code = store::attach(&mut record, flow, snat, now.0);
        result(code, &record)
    }

    #[inline(always)]
    fn note(&self, flow: &Flow, state: u16, now: Tick) {
        store::note(self.config, flow, state, now);
    }

    #[inline(always)]
    fn remove(&self, flow: &Flow) {
        store::remove(self.config, flow);
    }
}

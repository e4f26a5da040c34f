//! A write as the single stores it is made of, in the order the agent does them: programs run, and
//! agents die, between any two of them.

use lb_agent::plan::Op;
use lb_common::host::HostTables;
use lb_common::table::Backend;
use zerocopy::{FromBytes, IntoBytes};

/// Where the word begins that programs check of a backend, and where it ends.
const CHECKED: std::ops::Range<usize> = 16..24;

/// The stores of a write.
pub(super) fn stores(op: &Op, tables: &HostTables) -> Vec<Op> {
    match op {
        Op::Slots { start, slots } => (*start..)
            .zip(slots)
            .map(|(start, slot)| Op::Slots {
                start,
                slots: vec![*slot],
            })
            .collect(),
        Op::Backend(id, backend) => {
            // Everything but the word that is checked comes first.
            let before = &tables.backends[id.0 as usize];
            let mut torn = *backend;
            torn.as_mut_bytes()[CHECKED].copy_from_slice(&before.as_bytes()[CHECKED]);
            let torn = Backend::read_from_bytes(torn.as_bytes());
            let torn = torn.expect("a backend's own bytes");
            vec![Op::Backend(*id, torn), op.clone()]
        }
        Op::Policy {
            service,
            flags,
            affinity_seconds,
            ..
        } => {
            let algorithm = tables.services[service.0 as usize].algorithm;
            let first = Op::Policy {
                service: *service,
                flags: *flags,
                affinity_seconds: *affinity_seconds,
                algorithm,
            };
            vec![first, op.clone()]
        }
        Op::ClearService(id) => {
            let window = |local| Op::Window {
                service: *id,
                local,
                word: 0,
            };
            vec![window(false), window(true), op.clone()]
        }
        _ => vec![op.clone()],
    }
}

//! Fragments follow their datagram's first one, which has the ports.

use super::{Headers, Part};
use crate::env::PacketTables;
use crate::table::{FragmentKey, FragmentPorts};

/// Where a fragment was seen: the hooks see different ends of one datagram.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Hook {
    /// Before translation by `ingress`.
    Ingress = 0,
    /// After it.
    Egress = 1,
}

/// Fills in the ports of a later fragment and remembers those of a first one; false if the first
/// one has not been seen.
#[inline(always)]
pub(super) fn complete(tables: &impl PacketTables, headers: &mut Headers, hook: Hook) -> bool {
    let key = FragmentKey {
        source: headers.source.addr,
        destination: headers.destination.addr,
        identification: headers.identification,
        protocol: headers.protocol,
        hook: hook as u8,
        reserved: [0; 2],
    };
    match headers.part {
        Part::Whole => true,
        Part::First => {
            tables.remember_fragment(
                &key,
                FragmentPorts {
                    source: headers.source.port,
                    destination: headers.destination.port,
                },
            );
            true
        }
        Part::Later => {
            let Some(ports) = tables.fragment(&key) else {
                return false;
            };
            headers.source.port = ports.source;
            headers.destination.port = ports.destination;
            true
        }
    }
}

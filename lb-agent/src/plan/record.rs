//! What the tables say of a service port: desired values in, records and keys out.

use super::op::{Refused, Resource};
use super::{Member, Served};
use crate::model::desired::{
    DesiredEndpoint, DesiredFrontend, DesiredService, Family, FrontendAddress,
};
use lb_common::addr::{Addr, Port, Protocol};
use lb_common::table::{
    Backend, BackendState, Frontend, FrontendKey, FrontendKind, Membership, ServiceFlags,
};

/// What its service record says of its policies.
pub(super) fn flags_of(desired: &DesiredService) -> u32 {
    let mut flags = ServiceFlags::LIVE;
    if desired.internal_local {
        flags |= ServiceFlags::INTERNAL_LOCAL;
    }
    if desired.external_local {
        flags |= ServiceFlags::EXTERNAL_LOCAL;
    }
    flags
}

/// The windows it is in.
pub(super) fn sets_of(endpoint: DesiredEndpoint) -> u8 {
    let mut sets = 0;
    if endpoint.cluster {
        sets |= Membership::CLUSTER;
    }
    if endpoint.local {
        sets |= Membership::LOCAL;
    }
    sets
}

/// What the table says of a frontend.
pub(super) fn frontend_of(served: &Served, frontend: &DesiredFrontend) -> Frontend {
    let value = Frontend::new(served.id, frontend.kind);
    if frontend.kind == FrontendKind::LoadBalancer && !served.ranges.is_empty() {
        value.guarded()
    } else {
        value
    }
}

/// The keys of a service port's frontends.
pub(super) fn keys_of(
    desired: &DesiredService,
    protocol: Protocol,
) -> impl Iterator<Item = (FrontendKey, &DesiredFrontend)> {
    desired.frontends.iter().map(move |frontend| {
        let port = Port::new(frontend.port);
        let key = match frontend.address {
            FrontendAddress::Exact(ip) => FrontendKey::exact(Addr::from(ip), port, protocol),
            FrontendAddress::NodePort(family) => {
                let of = match family {
                    Family::V4 => Addr::from_v4_word(0),
                    Family::V6 => Addr::UNSPECIFIED,
                };
                FrontendKey::node_port(&of, port, protocol)
            }
        };
        (key, frontend)
    })
}

/// What the table says of a backend.
pub(super) fn record(service: &Served, member: &Member) -> Backend {
    let state = if member.draining {
        BackendState::Draining
    } else {
        BackendState::Active
    };
    Backend {
        addr: member.addr,
        port: member.port,
        state: state as u8,
        member: member.sets,
        service: service.id,
        protocol: service.protocol,
        flags: if member.on_this_node {
            Backend::LOCAL
        } else {
            0
        },
        reserved: [0; 6],
    }
}

/// Whether a set has the same backends in the same order.
pub(super) fn same_set(old: &[Member], next: &[Member], set: u8) -> bool {
    let ids = |members: &[Member]| {
        members
            .iter()
            .filter(move |member| member.sets & set != 0)
            .map(|member| member.id)
            .collect::<Vec<_>>()
    };
    ids(old) == ids(next)
}

/// How many backends a set has.
pub(super) fn count_in(members: &[Member], set: u8) -> Result<u16, Refused> {
    let count = members.iter().filter(|m| m.sets & set != 0).count();
    u16::try_from(count).map_err(|_| Refused::new(Resource::WindowSize, count))
}

/// The runs of slots a service port occupies; one if both windows share it.
pub(super) fn ranges(served: &Served) -> Vec<(u32, u32)> {
    let mut ranges = Vec::with_capacity(2);
    for window in [served.cluster, served.local] {
        let range = (window.start, u32::from(window.count));
        if window.count > 0 && !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    ranges
}

/// The windows whose slots are written, as words.
pub(super) fn ranges_with_generation(served: &Served) -> Vec<u64> {
    if served.torn {
        return Vec::new();
    }
    [served.cluster, served.local]
        .iter()
        .filter(|window| window.count > 0)
        .map(|window| window.to_word())
        .collect()
}

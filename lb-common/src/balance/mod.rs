//! From a frontend and a client to a backend: policy, affinity, choice.
//!
//! Socket path and packet path ask the same question here and get the same answer. An algorithm is
//! one file beside this one and one line in [`choose_slot`].

mod random;
#[cfg(test)]
mod tests;

use crate::addr::{Addr, BackendId, Endpoint, Protocol, ServiceId, Tick};
use crate::env::{Env, Tables};
use crate::table::{
    Affinity, AffinityKey, Backend, Config, ConfigFlags, Filter, Frontend, FrontendKey, Membership,
    Service, ServiceFlags, SourceOf, Window,
};

/// Numbers of the algorithms in [`Service::algorithm`].
pub struct Algorithm;

impl Algorithm {
    /// Uniform random per connection, as kube-proxy's iptables and nftables modes do.
    pub const RANDOM: u32 = 0;

    /// The number of an algorithm by the name that people write.
    #[must_use]
    pub fn named(name: &str) -> Option<u32> {
        match name {
            "random" => Some(Self::RANDOM),
            _ => None,
        }
    }
}

/// Which slot of a window of `count` (> 0) slots a new connection gets.
#[inline(always)]
#[expect(clippy::match_same_arms, reason = "one line registers one algorithm")]
fn choose_slot(algorithm: u32, count: u16, env: &impl Env) -> u16 {
    match algorithm {
        Algorithm::RANDOM => random::choose(count, env),
        // A newer agent's algorithm on older programs: still balance.
        _ => random::choose(count, env),
    }
}

/// Who asks. Decides which endpoints may be used and whether the source is replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A process in the host's own namespace, or a packet from one of the node's addresses.
    Node,
    /// The local detector's "pod here".
    Pod,
    /// Anybody else, and pods where no local detector works.
    Other,
}

impl Origin {
    /// The origin of a packet with this source address that came in by `device`, which is asked only
    /// where it matters; `None`: the node itself has made it.
    #[inline(always)]
    pub fn of_packet(
        tables: &impl Tables,
        config: &Config,
        source: &Addr,
        device: impl FnOnce() -> Option<u32>,
    ) -> Self {
        let by_device = || device().is_some_and(|device| tables.is_pod_device(device));
        if config.is_pod(source) && (!config.has(ConfigFlags::PODS_BY_DEVICE) || by_device()) {
            Self::Pod
        } else if tables.local_address(source).is_some() {
            Self::Node
        } else {
            Self::Other
        }
    }
}

/// The identity affinity remembers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Client {
    /// A client whose address is known.
    Address(Addr),
    /// A socket whose source is not chosen yet, in the network namespace with this cookie.
    Namespace(u64),
}

impl Client {
    #[inline(always)]
    const fn affinity_key(self, service: ServiceId) -> AffinityKey {
        match self {
            Self::Address(addr) => AffinityKey::for_address(service, addr),
            Self::Namespace(cookie) => AffinityKey::for_namespace(service, cookie),
        }
    }
}

/// Who asks, as far as it is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asker {
    /// Where the connection begins.
    pub origin: Origin,
    /// Whom affinity remembers.
    pub client: Option<Client>,
    /// The source address, unspecified if it is not known (which no source range holds).
    pub source: Addr,
}

/// A chosen backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Choice {
    /// Its id.
    pub backend: BackendId,
    /// Its address and port.
    pub endpoint: Endpoint,
    /// The service port it serves.
    pub service: ServiceId,
    /// The policy of the path demands that the source is replaced (hairpins come on top, see
    /// [`is_hairpin`]).
    pub masquerade: bool,
}

/// The answer to a new connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Send it to this backend.
    Forward(Choice),
    /// Refuse it.
    Reject(ServiceId),
    /// Be silent.
    Drop(ServiceId),
    /// Be silent: the source may not use this frontend.
    Forbid(ServiceId),
    /// The tables were changing too fast or do not fit together; nothing was chosen.
    Unstable,
}

/// The frontend that {address, port, protocol} is, if any: an address of its own, or a node port
/// on an address of this node that serves node ports.
#[inline(always)]
pub fn find_frontend(
    tables: &impl Tables,
    config: &Config,
    to: &Endpoint,
    protocol: Protocol,
) -> Option<Frontend> {
    let filter = tables.filter(config)?;
    if filter.may_be_frontend(&to.addr, to.port, protocol) {
        let key = FrontendKey::exact(to.addr, to.port, protocol);
        if let Some(frontend) = look_up(tables, config, &key) {
            return Some(frontend);
        }
    }
    if filter.may_be_node_port(to.port) {
        let local = tables.local_address(&to.addr)?;
        if local.flags & crate::table::LocalAddress::NODE_PORTS == 0 {
            return None;
        }
        let key = FrontendKey::node_port(&to.addr, to.port, protocol);
        return look_up(tables, config, &key);
    }
    None
}

/// The frontend under `key`, if its value is of that key. What was not found, or was replaced under
/// our eyes, is looked up again: the kernel's hash puts the new value of a key at the head of a
/// chain before it takes the old one out, and a lookup that is past the head may meet neither.
#[inline(always)]
pub(crate) fn look_up(
    tables: &impl Tables,
    config: &Config,
    key: &FrontendKey,
) -> Option<Frontend> {
    let is_its = |frontend: &Frontend| frontend.is_of(&config.hash_keys, key);
    match tables.frontend(key).filter(is_its) {
        None => tables.frontend(key).filter(is_its),
        found => found,
    }
}

/// What becomes of a first packet to an address of services that is nobody's frontend
/// (`SERVICE-SEMANTICS` 5.2, as nftables mode has it).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unserved {
    /// A port of a live `ClusterIP` that nobody defined: refuse it.
    Port,
    /// An address of a ServiceCIDR that no service has: be silent.
    Address,
}

/// False for addresses to which [`unserved`] certainly has no answer: cheap enough for every
/// packet.
#[inline(always)]
pub fn may_be_unserved(filter: &Filter<'_>, config: &Config, to: &Addr) -> bool {
    config.may_be_in_service_cidr(to) || filter.may_refuse(to)
}

/// What becomes of what [`find_frontend`] has no frontend for. An address that the node itself has
/// is left alone: somebody else serves it there (a node-local DNS cache, for one).
#[inline(always)]
pub fn unserved(tables: &impl Tables, config: &Config, to: &Addr) -> Option<Unserved> {
    let filter = tables.filter(config)?;
    let answer = if filter.may_refuse(to)
        && look_up(tables, config, &FrontendKey::any_port(*to)).is_some()
    {
        Unserved::Port
    } else if config.is_in_service_cidr(to) {
        Unserved::Address
    } else {
        return None;
    };
    if tables.local_address(to).is_some() {
        return None;
    }
    Some(answer)
}

/// Policy of `SERVICE-SEMANTICS` 5.2 and 7 in one place: which set, and is the source replaced?
#[inline(always)]
pub(crate) fn policy(
    config: &Config,
    frontend: &Frontend,
    service: &Service,
    origin: Origin,
    family_of: &Addr,
) -> (bool, bool) {
    if !frontend.is_external() {
        let local = service.flags & ServiceFlags::INTERNAL_LOCAL != 0;
        let masquerade = config.has(ConfigFlags::MASQUERADE_ALL)
            || (config.detects_pods(family_of) && !matches!(origin, Origin::Pod));
        return (local, masquerade);
    }
    if service.flags & ServiceFlags::EXTERNAL_LOCAL == 0 {
        return (false, true);
    }
    match origin {
        Origin::Pod => (false, false),
        Origin::Node => (false, true),
        Origin::Other => (true, false),
    }
}

/// How often a reader takes the window word again when it changes under its hands.
const WINDOW_TRIES: u32 = 4;

/// Chooses a backend for a new connection to `frontend`.
///
/// `asker.client` is who affinity remembers (`None`: nobody, affinity is not consulted).
/// `family_of` is any address of the connection's family.
#[inline(always)]
pub fn decide<T: Tables, E: Env>(
    tables: &T,
    env: &E,
    config: &Config,
    frontend: &Frontend,
    asker: &Asker,
    family_of: &Addr,
) -> Decision {
    let id = frontend.service;
    // Before the policy, and before it matters whether anybody serves (`SERVICE-SEMANTICS` 6).
    if frontend.is_guarded() && !tables.is_in_source_range(&SourceOf::new(id, &asker.source)) {
        return Decision::Forbid(id);
    }
    let Some(service) = tables.service(id) else {
        return Decision::Unstable;
    };
    let (local, masquerade) = policy(config, frontend, service, asker.origin, family_of);

    let affinity_seconds = service.affinity_seconds;
    let key = match asker.client {
        Some(client) if affinity_seconds != 0 => Some(client.affinity_key(id)),
        _ => None,
    };
    let now = env.now();
    let mut chosen = key.and_then(|key| remembered(tables, &key, id, local, affinity_seconds, now));

    if chosen.is_none() {
        let mut tries = 0;
        while tries < WINDOW_TRIES {
            tries += 1;
            let Some(word) = tables.service_window(id, local) else {
                break;
            };
            let window = Window::from_word(word);
            if window.count == 0 {
                return if window.drops() {
                    Decision::Drop(id)
                } else {
                    Decision::Reject(id)
                };
            }
            let index = choose_slot(service.algorithm, window.count, env);
            let Some(slot) = tables.slot(window.start.wrapping_add(u32::from(index))) else {
                break;
            };
            if slot.generation == window.generation && slot.service == id {
                chosen = Some((
                    slot.backend,
                    Endpoint {
                        addr: slot.addr,
                        port: slot.port,
                    },
                ));
                break;
            }
        }
    }

    let Some((backend, endpoint)) = chosen else {
        return Decision::Unstable;
    };
    if let Some(key) = key {
        tables.remember(
            &key,
            Affinity {
                backend,
                last_use: now,
            },
        );
    }
    Decision::Forward(Choice {
        backend,
        endpoint,
        service: id,
        masquerade,
    })
}

/// The slot `index` places after the first of the service's window, counted around it: how a caller
/// who cannot use what [`decide`] chose looks for another. `None` where there is no such slot, or
/// the tables are changing.
#[inline(always)]
pub(crate) fn slot_at(
    tables: &impl Tables,
    service: ServiceId,
    local: bool,
    index: u32,
) -> Option<(BackendId, Endpoint)> {
    let window = Window::from_word(tables.service_window(service, local)?);
    let place = index.checked_rem(u32::from(window.count))?;
    let slot = tables.slot(window.start.wrapping_add(place))?;
    if slot.generation != window.generation || slot.service != service {
        return None;
    }
    let endpoint = Endpoint {
        addr: slot.addr,
        port: slot.port,
    };
    Some((slot.backend, endpoint))
}

/// The backend a client was sent to last, if it is still in time and in the set of this path.
#[inline(always)]
fn remembered(
    tables: &impl Tables,
    key: &AffinityKey,
    service: ServiceId,
    local: bool,
    timeout_seconds: u32,
    now: Tick,
) -> Option<(BackendId, Endpoint)> {
    let entry = tables.affinity(key)?;
    if now.since(entry.last_use) >= Tick::seconds(timeout_seconds) {
        return None;
    }
    let backend = tables.backend(entry.backend)?;
    let wanted = if local {
        Membership::LOCAL
    } else {
        Membership::CLUSTER
    };
    // The hash element may have been recycled for another client under this read: believe it only
    // if the backend is this service's own.
    if backend.service != service || !backend.is_usable() || backend.member & wanted == 0 {
        return None;
    }
    Some((
        entry.backend,
        Endpoint {
            addr: backend.addr,
            port: backend.port,
        },
    ))
}

/// A client that was sent to itself: its source must be replaced, or the answer would never pass
/// us. nftables mode asks this of local endpoints only (`SERVICE-SEMANTICS` 7).
#[inline(always)]
pub fn is_hairpin(backend: &Backend, client: &Addr) -> bool {
    backend.flags & Backend::LOCAL != 0 && backend.addr == *client
}

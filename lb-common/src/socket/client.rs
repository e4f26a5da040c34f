//! Who is the client at a socket (`ARCHITECTURE` 3.1)? `connect` runs before routing has picked a
//! source address, so the answer is pieced together here.

use super::{Records, Request, Socket, SocketTables};
use crate::addr::Addr;
use crate::addr::ServiceId;
use crate::balance::{Client, Origin};
use crate::env::Env;
use crate::feature::Feature;
use crate::table::{AffinityKey, Config, ConnectedSocket, Frontend, ServiceFlags};
use crate::verdict::Reason;

/// Who asks.
pub(super) struct Caller {
    pub(super) origin: Origin,
    /// Whom affinity remembers, if the service has affinity.
    pub(super) client: Option<Client>,
    /// The source address if it is known, else unspecified.
    pub(super) source: Addr,
    /// Flags of the [`ConnectedSocket`] that a choice for this caller makes.
    pub(super) record_flags: u32,
}

/// True if the socket lives in the namespace this agent serves as the host.
#[inline(always)]
pub(super) fn is_host(config: &Config, socket: &impl Socket) -> bool {
    if config.host_namespace == 0 {
        socket.is_in_first_namespace()
    } else {
        socket.namespace() == config.host_namespace
    }
}

impl Caller {
    /// `None` if the choice depends on an address that cannot be known: the packet path decides.
    #[inline(always)]
    pub(super) fn identify<T: SocketTables, E: Env, S: Socket>(
        tables: &T,
        env: &E,
        socket: &S,
        request: &Request,
        config: &Config,
        frontend: Frontend,
        host: bool,
    ) -> Option<Self> {
        let Some(service) = tables.service(frontend.service) else {
            tables.count(Reason::TableInconsistent);
            return None;
        };
        let affinity = service.affinity_seconds != 0;
        let external_local =
            frontend.is_external() && service.flags & ServiceFlags::EXTERNAL_LOCAL != 0;
        let family_of = &request.to.addr;

        let mut source = request.source;
        if source.is_unspecified() {
            source = socket.source();
        }
        let bound = !source.is_unspecified();
        let guarded = frontend.is_guarded();
        if !bound
            && (affinity || external_local || guarded)
            && let Some(known) = tables.namespace_addresses(socket.namespace())
        {
            source = known.of_family(family_of);
        }

        if guarded && source.is_unspecified() {
            tables.count(Reason::SocketClientUnknown);
            return None;
        }
        let mut record_flags = 0;
        let client = if !affinity {
            None
        } else if !source.is_unspecified() {
            if !bound {
                inherit(tables, env, frontend.service, socket.namespace(), &source);
            }
            Some(Client::Address(source))
        } else if socket.kernel_has(Feature::NETNS_COOKIE_IN_SOCKOPS) {
            record_flags = ConnectedSocket::CHOSEN_FOR_NAMESPACE;
            Some(Client::Namespace(socket.namespace()))
        } else {
            // The namespace's address will never be learnt, so what is chosen here would be
            // remembered apart from what the packet path chooses for the same client.
            tables.count(Reason::SocketClientUnknown);
            return None;
        };

        Some(Self {
            origin: origin(config, host, &source, family_of),
            client,
            source,
            record_flags,
        })
    }
}

/// Where the local detector would place the packets of this socket. Sockets below the attached
/// cgroup live on this node: in a namespace of its own whose address is not known, one is a pod's.
#[inline(always)]
fn origin(config: &Config, host: bool, source: &Addr, family_of: &Addr) -> Origin {
    if host {
        Origin::Node
    } else if config.detects_pods(family_of) && (source.is_unspecified() || config.is_pod(source)) {
        Origin::Pod
    } else {
        Origin::Other
    }
}

/// Gives an address what its namespace was remembered with before the address was known. The
/// younger memory wins: the packet path may have chosen for the address meanwhile.
#[inline(always)]
fn inherit<T: SocketTables, E: Env>(
    tables: &T,
    env: &E,
    service: ServiceId,
    cookie: u64,
    source: &Addr,
) {
    let Some(namespace) = tables.affinity(&AffinityKey::for_namespace(service, cookie)) else {
        return;
    };
    let key = AffinityKey::for_address(service, *source);
    let now = env.now();
    let older = match tables.affinity(&key) {
        Some(own) => now.since(own.last_use) > now.since(namespace.last_use),
        None => true,
    };
    if older {
        tables.remember(&key, namespace);
    }
}

/// A socket whose choice is remembered under its namespace has an address now: the namespace is
/// known by it from here on, and the choice is the address's own.
#[inline(always)]
pub(super) fn adopt<T: SocketTables, E: Env, S: Records>(
    tables: &T,
    env: &E,
    socket: &S,
    record: &ConnectedSocket,
    source: &Addr,
    namespace: impl FnOnce() -> u64,
) {
    if record.flags & ConnectedSocket::CHOSEN_FOR_NAMESPACE == 0
        || record.backend.0 == 0
        || source.is_unspecified()
        || source.is_loopback()
    {
        return;
    }
    if let Some(mut record) = socket.record(false) {
        record.flags &= !ConnectedSocket::CHOSEN_FOR_NAMESPACE;
    }
    let cookie = namespace();
    let mut addresses = tables.namespace_addresses(cookie).unwrap_or_default();
    if source.is_v4() {
        addresses.v4 = *source;
    } else {
        addresses.v6 = *source;
    }
    tables.learn_namespace(cookie, &addresses);
    inherit(tables, env, record.service, cookie, source);
}

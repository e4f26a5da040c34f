//! The live tables for those who only look: commands and metrics.

use super::directory::Directory;
use super::error::ReadError;
use super::flows;
use super::load::{names_geometry, open_map};
use super::mapping::Words;
use super::names;
use super::probe;
use super::read::{backend_of, read_backend_counters, read_frontends, read_per_cpu};
use super::sys;
use super::view::{EndpointView, Fill, FrontendView, LinkView, ServiceView, StatusView};
use crate::model::desired::{Family, FrontendAddress, ServicePortName};
use crate::plan::FlowUse;
use aya_obj::generated::bpf_map_type;
use lb_common::addr::{BackendId, ServiceId};
use lb_common::table::{
    AddressBits, Backend, BackendCounters, BackendState, Config, EmptyAction, Frontend,
    FrontendKey, FrontendKind, LAYOUT_VERSION, Membership, Service, ServiceCounters, ServiceFlags,
    ServiceName, Slot, Window, name,
};
use lb_common::verdict::Reason;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use zerocopy::{FromBytes, IntoBytes};

/// Reads the live tables of a directory, with or without an agent running on it.
#[derive(Debug)]
pub struct Reader {
    directory: Directory,
    config: Mutex<Words<{ size_of::<Config>() / 8 }>>,
    services: Mutex<Words<8>>,
    slots: u32,
    backends: Words<4>,
    backend_entries: u32,
    frontends: (OwnedFd, u32),
    names: (OwnedFd, u32),
    service_counters: OwnedFd,
    backend_counters: OwnedFd,
    reasons: OwnedFd,
    cpus: usize,
}

impl Reader {
    /// Opens the tables in `directory` (the one given to the agent, see
    /// [`Options::directory`](super::Options::directory)).
    pub fn open(directory: &Path) -> Result<Self, ReadError> {
        use bpf_map_type::{
            BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_HASH as HASH,
            BPF_MAP_TYPE_PERCPU_ARRAY as PER_CPU,
        };
        let directory = Directory::new(directory);
        let open = |name, kind, key, value| open_map(&directory, name, kind, key, value);
        let names = open(name::NAMES, HASH, 4, size_of::<ServiceName>())?;
        debug_assert_eq!(
            names_geometry(1).value_size as usize,
            size_of::<ServiceName>()
        );
        let config = open(name::CONFIG, ARRAY, 4, size_of::<Config>())?;
        let services = open(name::SERVICES, ARRAY, 4, size_of::<Service>())?;
        let slots = open(name::SLOTS, ARRAY, 4, size_of::<Slot>())?;
        open(name::ADDRESS_BITS, ARRAY, 4, size_of::<AddressBits>())?;
        let backends = open(name::BACKENDS, ARRAY, 4, size_of::<Backend>())?;
        let frontends = open(
            name::FRONTENDS,
            HASH,
            size_of::<FrontendKey>(),
            size_of::<Frontend>(),
        )?;
        let service_counters = open(
            name::SERVICE_COUNTERS,
            PER_CPU,
            4,
            size_of::<ServiceCounters>(),
        )?;
        let backend_counters = open(
            name::BACKEND_COUNTERS,
            PER_CPU,
            4,
            size_of::<BackendCounters>(),
        )?;
        let reasons = open(name::REASONS, PER_CPU, 4, 8)?;
        Ok(Self {
            config: Mutex::new(Words::new(config.0, config.1, false)),
            services: Mutex::new(Words::new(services.0, services.1, false)),
            slots: slots.1,
            backends: Words::new(backends.0, backends.1, false),
            backend_entries: backends.1,
            frontends,
            names,
            service_counters: service_counters.0,
            backend_counters: backend_counters.0,
            reasons: reasons.0,
            cpus: sys::possible_cpus().map_err(step("count", "the CPUs of this machine"))?,
            directory,
        })
    }

    /// Every service port, sorted by name.
    pub fn services(&self) -> Result<Vec<ServiceView>, ReadError> {
        let names = self.names()?;
        let mut backends = self.backends_by_service()?;
        let mut frontends: HashMap<ServiceId, Vec<FrontendView>> = HashMap::new();
        let listed =
            read_frontends(self.frontends.0.as_fd()).map_err(step("read", name::FRONTENDS))?;
        for (key, frontend) in &listed {
            if let Some(view) = frontend_view(key, *frontend) {
                frontends.entry(frontend.service).or_default().push(view);
            }
        }
        let flows = self.active_flows()?;
        let mut views = Vec::with_capacity(names.len());
        for (id, name) in names {
            let service = self.service(id)?;
            // Made, but not yet published; or on its way out.
            if service.flags & ServiceFlags::LIVE == 0 {
                continue;
            }
            let mut endpoints = Vec::new();
            for (backend_id, backend) in backends.remove(&id).unwrap_or_default() {
                endpoints.push(self.endpoint_view(backend_id, &backend, &flows)?);
            }
            endpoints.sort_unstable_by_key(|endpoint| (endpoint.address, endpoint.id));
            let mut frontends = frontends.remove(&id).unwrap_or_default();
            frontends.sort_unstable();
            views.push(ServiceView {
                id,
                name,
                frontends,
                endpoints,
                internal_local: service.flags & ServiceFlags::INTERNAL_LOCAL != 0,
                external_local: service.flags & ServiceFlags::EXTERNAL_LOCAL != 0,
                affinity_seconds: service.affinity_seconds,
                algorithm: service.algorithm,
                cluster_empty: empty_action(service.cluster),
                local_empty: empty_action(service.local),
                counters: self.service_counters(id)?,
            });
        }
        views.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(views)
    }

    /// How often each reason was counted. The agent's own probes, which are refused by design, are
    /// left out.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, ReadError> {
        let probes = self.service_counters(probe::SERVICE)?.tc_rejected;
        Reason::ALL
            .iter()
            .map(|reason| {
                let mut sum = 0_u64;
                let key = (*reason as u32).to_ne_bytes();
                read_per_cpu(self.reasons.as_fd(), &key, self.cpus, |one: &u64| {
                    sum += one;
                })
                .map_err(step("read", name::REASONS))?;
                if *reason == Reason::RejectedNoEndpoint {
                    sum = sum.saturating_sub(probes);
                }
                Ok((*reason, sum))
            })
            .collect()
    }

    /// How full the tables are. Slots count as used while a published window covers them.
    pub fn fill(&self) -> Result<Vec<Fill>, ReadError> {
        let names = self.names()?;
        let mut slots = 0_u64;
        for id in names.keys() {
            let service = self.service(*id)?;
            let (cluster, local) = (
                Window::from_word(service.cluster),
                Window::from_word(service.local),
            );
            slots += u64::from(cluster.count);
            if local.start != cluster.start {
                slots += u64::from(local.count);
            }
        }
        let backends: usize = self.backends_by_service()?.values().map(Vec::len).sum();
        let frontends = read_frontends(self.frontends.0.as_fd())
            .map_err(step("read", name::FRONTENDS))?
            .len();
        let (flows, capacity) = self.flows()?;
        let fill = |table, used: u64, capacity: u64| Fill {
            table,
            used,
            capacity,
        };
        Ok(vec![
            fill(
                name::SERVICES,
                names.len() as u64,
                u64::from(self.names.1) - 1,
            ),
            fill(
                name::BACKENDS,
                backends as u64,
                u64::from(self.backend_entries) - 1,
            ),
            fill(name::SLOTS, slots, u64::from(self.slots)),
            fill(
                name::FRONTENDS,
                frontends as u64,
                u64::from(self.frontends.1),
            ),
            fill(name::FLOWS, flows.used, capacity),
        ])
    }

    /// The state of the directory.
    pub fn status(&self) -> Result<StatusView, ReadError> {
        let running = self
            .directory
            .try_lock()
            .map_err(step("lock", "the directory"))?
            .is_none();
        Ok(StatusView {
            layout: LAYOUT_VERSION,
            agent_running: running,
            links: self.links()?,
            fill: self.fill()?,
            reasons: self.reasons()?,
        })
    }

    fn links(&self) -> Result<Vec<LinkView>, ReadError> {
        let mut links = Vec::new();
        for place in [self.directory.cgroup_links(), self.directory.tcx_links()] {
            let entries = std::fs::read_dir(&place).map_err(step("list", "the pinned links"))?;
            for entry in entries.flatten() {
                let path = entry.path();
                let info = sys::object_get(&path)
                    .and_then(|link| sys::link_info(link.as_fd()))
                    .map_err(step("look at", &path.display().to_string()))?;
                links.push(LinkView {
                    path,
                    link_id: info.id,
                    program_id: info.prog_id,
                });
            }
        }
        links.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(links)
    }

    fn names(&self) -> Result<BTreeMap<ServiceId, ServicePortName>, ReadError> {
        let mut names = BTreeMap::new();
        sys::map_each(
            self.names.0.as_fd(),
            4,
            size_of::<ServiceName>(),
            |id, record| {
                if let (Ok(id), Ok(record)) = (
                    ServiceId::read_from_bytes(id),
                    ServiceName::read_from_bytes(record),
                ) && let Some(name) = names::from_record(&record)
                {
                    names.insert(id, name);
                }
            },
        )
        .map_err(step("read", name::NAMES))?;
        Ok(names)
    }

    fn service(&self, id: ServiceId) -> Result<Service, ReadError> {
        let mut services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let words = services.read(id.0).map_err(step("read", name::SERVICES))?;
        Ok(zerocopy::transmute!(words))
    }

    fn backends_by_service(
        &self,
    ) -> Result<HashMap<ServiceId, Vec<(BackendId, Backend)>>, ReadError> {
        let mut by_service: HashMap<ServiceId, Vec<(BackendId, Backend)>> = HashMap::new();
        self.backends
            .each(|index, words| {
                let backend = backend_of(words);
                if backend.state != BackendState::Free as u8 {
                    let list = by_service.entry(backend.service).or_default();
                    list.push((BackendId(index), backend));
                }
            })
            .map_err(step("read", name::BACKENDS))?;
        Ok(by_service)
    }

    fn flows(&self) -> Result<(FlowUse, u64), ReadError> {
        let words = self
            .config
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .read(0)
            .map_err(step("read", name::CONFIG))?;
        let config: Config = zerocopy::transmute!(words);
        flows::scan(&self.directory, &config.hash_keys, |_| None).map_err(step("read", name::FLOWS))
    }

    fn active_flows(&self) -> Result<HashMap<BackendId, u64>, ReadError> {
        self.flows().map(|(flows, _)| flows.active)
    }

    fn endpoint_view(
        &self,
        id: BackendId,
        backend: &Backend,
        flows: &HashMap<BackendId, u64>,
    ) -> Result<EndpointView, ReadError> {
        let sockets = read_backend_counters(self.backend_counters.as_fd(), id, self.cpus)
            .map_err(step("read", name::BACKEND_COUNTERS))?;
        let (opened, closed) = (sockets.socket_opened, sockets.socket_closed);
        Ok(EndpointView {
            address: SocketAddr::new(IpAddr::from(backend.addr), backend.port.number()),
            id,
            state: match backend.state {
                1 => BackendState::Active,
                2 => BackendState::Draining,
                _ => BackendState::Gone,
            },
            cluster: backend.member & Membership::CLUSTER != 0,
            local: backend.member & Membership::LOCAL != 0,
            on_this_node: backend.flags & Backend::LOCAL != 0,
            active_socket: opened.saturating_sub(closed),
            opened_socket: opened,
            active_tc: flows.get(&id).copied().unwrap_or(0),
        })
    }

    fn service_counters(&self, id: ServiceId) -> Result<ServiceCounters, ReadError> {
        let mut sum = ServiceCounters::default();
        read_per_cpu(
            self.service_counters.as_fd(),
            id.as_bytes(),
            self.cpus,
            |one: &ServiceCounters| {
                sum.socket_opened += one.socket_opened;
                sum.socket_closed += one.socket_closed;
                sum.socket_rejected += one.socket_rejected;
                sum.tc_opened += one.tc_opened;
                sum.tc_rejected += one.tc_rejected;
                sum.tc_dropped += one.tc_dropped;
                sum.packets_in += one.packets_in;
                sum.bytes_in += one.bytes_in;
                sum.packets_out += one.packets_out;
                sum.bytes_out += one.bytes_out;
            },
        )
        .map_err(step("read", name::SERVICE_COUNTERS))?;
        Ok(sum)
    }
}

fn step(attempt: &'static str, object: &str) -> impl FnOnce(io::Error) -> ReadError {
    move |source| ReadError::Step {
        attempt,
        object: object.to_owned(),
        source,
    }
}

fn empty_action(word: u64) -> Option<EmptyAction> {
    let window = Window::from_word(word);
    (window.count == 0).then(|| {
        if window.drops() {
            EmptyAction::Drop
        } else {
            EmptyAction::Reject
        }
    })
}

fn frontend_view(key: &FrontendKey, frontend: Frontend) -> Option<FrontendView> {
    let address = match key.family {
        0 => FrontendAddress::Exact(key.addr.into()),
        4 => FrontendAddress::NodePort(Family::V4),
        _ => FrontendAddress::NodePort(Family::V6),
    };
    let kind = match frontend.kind {
        1 => FrontendKind::ClusterIp,
        2 => FrontendKind::ExternalIp,
        3 => FrontendKind::LoadBalancer,
        4 => FrontendKind::NodePort,
        _ => return None,
    };
    Some(FrontendView {
        address,
        port: key.port.number(),
        kind,
    })
}

//! A pod whose sockets pass the programs, pods that answer, and tables written by hand.

use crate::kernel::{KernelObject, frontend_key};
use crate::raw;
use anyhow::Result;
use lb_common::addr::{Addr, BackendId, Endpoint, Port, Prefix, Protocol, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::table::{
    Backend, BackendState, Config, EmptyAction, Frontend, FrontendKey, FrontendKind, Membership,
    Service, Slot, Window,
};
use lb_common::verdict::Reason;
use lb_lab::client::PATIENCE;
use lb_lab::process::open_private;
use lb_lab::{Lab, Place, Pod, PodNetwork, Process, Server};
use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;
use zerocopy::FromZeros;

/// Where the servers listen.
pub const TARGET: u16 = 8080;

/// See the module. Fields are dropped in this order: processes before what they run in.
pub struct World {
    /// The loaded programs and their tables.
    pub kernel: KernelObject,
    _servers: Vec<Server>,
    /// The pods that answer, by name.
    pub pods: HashMap<String, Pod>,
    /// The pod whose sockets are balanced.
    pub client: Pod,
    /// The stage; its node is "the host".
    pub lab: Lab,
    services: u32,
    backends: u32,
    slots: u32,
    generation: u16,
}

/// An IPv4 socket address.
pub fn v4(address: &str, port: u16) -> SocketAddr {
    (address.parse::<std::net::Ipv4Addr>().unwrap(), port).into()
}

/// An IPv6 socket address.
pub fn v6(address: &str, port: u16) -> SocketAddr {
    (address.parse::<std::net::Ipv6Addr>().unwrap(), port).into()
}

impl World {
    /// A client pod, and one answering pod for each name.
    pub fn new(names: &[&str]) -> Self {
        Self::with_kernel(names, KernelObject::load().unwrap())
    }

    /// The same with an object that was loaded with certain features.
    pub fn with_kernel(names: &[&str], mut kernel: KernelObject) -> Self {
        lb_lab::require_root();
        let lab = Lab::single(PodNetwork::Routed).unwrap();
        let client = lab.node(0).add_pod("client").unwrap();
        let mut servers = Vec::new();
        let mut pods = HashMap::new();
        for name in names {
            let pod = lab.node(0).add_pod(name).unwrap();
            servers.push(Server::start(pod.place(), name, TARGET).unwrap());
            pods.insert((*name).to_owned(), pod);
        }
        let mut config = Config::new_zeroed();
        config.hash_keys = HashKeys::from_random([9, 8, 7, 6, 5, 4, 3, 2]);
        config.pods_v4 = Prefix::NONE;
        config.pods_v6 = Prefix::NONE;
        let cookie = lab.node(0).place().enter(namespace_cookie).unwrap();
        config.host_namespace = cookie.unwrap_or(0);
        kernel.config(&config).unwrap();
        let root = lab.node(0).cgroup_root().path();
        if let Err(error) = kernel.attach_socket_programs(root) {
            let text = format!("{error:#}");
            // A verifier log is long; its end says why.
            let end: String = text
                .chars()
                .rev()
                .take(1500)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            panic!("{text:.200} … {end}");
        }
        Self {
            kernel,
            _servers: servers,
            pods,
            client,
            lab,
            services: 1,
            backends: 1,
            slots: 1,
            generation: 0,
        }
    }

    /// Runs `work` as a process of the client pod.
    pub fn client(&self, work: impl FnOnce() -> Result<()>) {
        self.client_says(|| work().map(|()| String::new()));
    }

    /// The same with an answer.
    pub fn client_says(&self, work: impl FnOnce() -> Result<String>) -> String {
        match self.client.place().call(work) {
            Ok(text) => text,
            Err(error) => panic!("in the client pod: {error:#}"),
        }
    }

    /// Starts a process of the client pod that opens something and holds it open until the
    /// returned writer is dropped.
    pub fn hold(
        &self,
        open: impl FnOnce() -> Result<Box<dyn AsRawFd>>,
    ) -> (Process, std::io::PipeWriter) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let descriptor = writer.as_raw_fd();
        let process = Process::start(self.client.place(), move |ready| {
            let held = open()?;
            // SAFETY: the child's copy of the writer; nobody in the child uses it.
            unsafe { libc::close(descriptor) };
            ready.tell()?;
            reader.read_to_end(&mut Vec::new())?;
            drop(held);
            Ok(String::new())
        });
        (process.unwrap(), writer)
    }

    /// A socket of the client pod in the hands of the test: the hooks go by the cgroup and the
    /// namespace it was made in, whoever uses it.
    pub fn socket(&self, open: impl FnOnce() -> Result<OwnedFd>) -> OwnedFd {
        Self::socket_of(self.client.place(), open)
    }

    /// The same of any place.
    pub fn socket_of(place: &Place, open: impl FnOnce() -> Result<OwnedFd>) -> OwnedFd {
        const NUMBER: i32 = 200;
        let process = Process::start(place, |ready| {
            let socket = open()?;
            // SAFETY: plain system call; nothing else in the child has this number.
            if unsafe { libc::dup2(socket.as_raw_fd(), NUMBER) } != NUMBER {
                return Err(std::io::Error::last_os_error().into());
            }
            ready.tell()?;
            loop {
                std::thread::park();
            }
        });
        let process = process.unwrap();
        let pid = process.id().unwrap();
        open_private(|| Ok(raw::descriptor_of(pid, NUMBER)?)).unwrap()
    }

    /// The backends a service port has ever had.
    pub fn backends_of(&mut self, id: ServiceId) -> Vec<BackendId> {
        let all = (1..self.backends).map(BackendId);
        all.filter(|backend| self.kernel.read_backend(*backend).unwrap().service == id)
            .collect()
    }

    /// Takes a backend out of service, or brings it back.
    pub fn set_backend(&mut self, id: BackendId, state: BackendState) {
        let backend = self.kernel.read_backend(id).unwrap();
        let state = state as u8;
        self.kernel
            .backend(id, Backend { state, ..backend })
            .unwrap();
    }

    /// The backend that was made last.
    pub fn last_backend(&self) -> BackendId {
        BackendId(self.backends - 1)
    }

    /// The address of a pod's server, in the family of `like`.
    pub fn endpoint(&self, name: &str, like: SocketAddr) -> Endpoint {
        Endpoint {
            addr: Addr::from(self.pods[name].address_like(like.ip())),
            port: Port::new(TARGET),
        }
    }

    /// A ClusterIP service port with these pods as endpoints.
    pub fn serve(&mut self, asked: SocketAddr, protocol: Protocol, pods: &[&str]) -> ServiceId {
        let endpoints: Vec<Endpoint> = pods.iter().map(|pod| self.endpoint(pod, asked)).collect();
        self.serve_endpoints(asked, protocol, &endpoints)
    }

    /// The same with endpoints of any kind.
    pub fn serve_endpoints(
        &mut self,
        asked: SocketAddr,
        protocol: Protocol,
        endpoints: &[Endpoint],
    ) -> ServiceId {
        let id = ServiceId(self.services);
        self.services += 1;
        self.publish(id, protocol, endpoints, Service::default());
        self.kernel
            .frontend(
                frontend_key(asked, protocol),
                Frontend::new(id, FrontendKind::ClusterIp),
            )
            .unwrap();
        id
    }

    /// Adds a frontend to a service.
    pub fn frontend(&mut self, key: FrontendKey, id: ServiceId, kind: FrontendKind) {
        self.kernel.frontend(key, Frontend::new(id, kind)).unwrap();
    }

    /// Connections (or UDP conversations) of a service port: begun, and ended.
    pub fn connections(&self, id: ServiceId) -> (u64, u64) {
        let counters = self.kernel.service_counters(id).unwrap();
        (
            counters.iter().map(|cpu| cpu.socket_opened).sum(),
            counters.iter().map(|cpu| cpu.socket_closed).sum(),
        )
    }

    /// Waits until a service port has so many connections begun and ended. A socket of the test's
    /// own may have been copied into a program that a parallel test starts, until that is loaded.
    pub fn await_connections(&self, id: ServiceId, expected: (u64, u64)) {
        let end = Instant::now() + PATIENCE;
        while self.connections(id) != expected && Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(self.connections(id), expected, "begun and ended");
    }

    /// The same of a backend.
    pub fn backend_connections(&self, id: BackendId) -> (u64, u64) {
        let counters = self.kernel.backend_counters(id).unwrap();
        (
            counters.iter().map(|cpu| cpu.socket_opened).sum(),
            counters.iter().map(|cpu| cpu.socket_closed).sum(),
        )
    }

    /// Refusals of a service port.
    pub fn refusals(&self, id: ServiceId) -> u64 {
        let counters = self.kernel.service_counters(id).unwrap();
        counters.iter().map(|cpu| cpu.socket_rejected).sum()
    }

    /// How often `reason` was counted.
    pub fn reason(&self, reason: Reason) -> u64 {
        self.kernel.reason(reason).unwrap()
    }

    /// Changes the configuration.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.kernel.read_config().unwrap();
        change(&mut config);
        self.kernel.config(&config).unwrap();
    }

    /// The service's record as it stands.
    pub fn service(&mut self, id: ServiceId) -> Service {
        self.kernel.read_service(id).unwrap()
    }

    /// Publishes new windows for a service: both sets hold all endpoints. Returns the backends'
    /// ids.
    pub fn publish(
        &mut self,
        id: ServiceId,
        protocol: Protocol,
        endpoints: &[Endpoint],
        like: Service,
    ) -> Vec<BackendId> {
        self.generation += 1;
        let start = self.slots;
        let mut ids = Vec::new();
        for endpoint in endpoints {
            let backend = BackendId(self.backends);
            self.backends += 1;
            ids.push(backend);
            let record = Backend {
                addr: endpoint.addr,
                port: endpoint.port,
                state: BackendState::Active as u8,
                member: Membership::CLUSTER | Membership::LOCAL,
                service: id,
                protocol,
                flags: Backend::LOCAL,
                reserved: [0; 6],
            };
            self.kernel.backend(backend, record).unwrap();
            let slot = Slot {
                addr: endpoint.addr,
                backend,
                service: id,
                port: endpoint.port,
                generation: self.generation,
                reserved: [0; 4],
            };
            self.kernel.slot(self.slots, slot).unwrap();
            self.slots += 1;
        }
        let window = if endpoints.is_empty() {
            Window::empty(EmptyAction::Reject, self.generation)
        } else {
            Window {
                start,
                count: u16::try_from(endpoints.len()).unwrap(),
                generation: self.generation,
            }
        };
        let service = Service {
            cluster: window.to_word(),
            local: window.to_word(),
            ..like
        };
        self.kernel.service(id, service).unwrap();
        ids
    }
}

/// The cookie of the calling thread's network namespace; `None` if the kernel does not tell (below
/// 5.14). Then no namespace of a lab is the host's.
pub fn namespace_cookie() -> Option<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut cookie = 0_u64;
    let mut length = 8;
    // SAFETY: the option writes eight bytes into `cookie`.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    let error = std::io::Error::last_os_error();
    if result != 0 && error.raw_os_error() == Some(libc::ENOPROTOOPT) {
        return None;
    }
    assert_eq!(result, 0, "{error}");
    Some(cookie)
}

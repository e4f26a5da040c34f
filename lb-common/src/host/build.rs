//! Filling the tables by hand, as the agent would: for tests and measurements.

use super::HostTables;
use crate::addr::{Addr, BackendId, Endpoint, Port, Prefix, Protocol, ServiceId};
use crate::hash::HashKeys;
use crate::table::{
    AddressBits, Backend, BackendState, Config, EmptyAction, Frontend, FrontendKey, FrontendKind,
    LocalAddress, Membership, PACKET_PATH_UDP_PORTS, SERVICE_CIDRS, Service, ServiceFlags, Slot,
    SourceRange, Window,
};
use std::net::IpAddr;
use std::sync::Arc;

impl HostTables {
    /// Tables of a node that serves nothing yet, with SNAT ports 61000 to 65535, node ports 30000
    /// to 32767 and fixed hash keys.
    pub fn of_node() -> Self {
        let mut tables = Self::new(Config {
            flags: 0,
            socket_mode: 0,
            flow_mask: 0,
            snat_port_first: 61_000,
            snat_port_last: 65_535,
            node_port_first: 30_000,
            node_port_last: 32_767,
            masquerade_mark: 1 << 14,
            host_namespace: 0,
            // As spread as random ones: small keys put neighbouring ports into one bucket.
            hash_keys: HashKeys::from_random([
                0x9e37_79b9,
                0x7f4a_7c15,
                0xbf58_476d,
                0x1ce4_e5b9,
                0x94d0_49bb,
                0x1331_11eb,
                0xd6e8_feb8,
                0x6659_fd93,
            ]),
            pods_v4: Prefix::NONE,
            pods_v6: Prefix::NONE,
            services_v4: Prefix::NONE,
            services_v6: Prefix::NONE,
            service_cidrs: [Prefix::NONE; SERVICE_CIDRS],
            packet_path_udp_ports: [Port(0); PACKET_PATH_UDP_PORTS],
        });
        tables.services.push(Service::default());
        tables.backends.push(Backend::default());
        tables.snat_pool.push(Addr::UNSPECIFIED);
        tables
    }

    /// Adds a service port without endpoints: its clients are refused.
    pub fn add_service(&mut self, flags: u32, affinity_seconds: u32) -> ServiceId {
        let id = ServiceId(u32::try_from(self.services.len()).unwrap_or(u32::MAX));
        let empty = Window::empty(EmptyAction::Reject, 0).to_word();
        self.services.push(Service {
            cluster: empty,
            local: empty,
            flags: flags | ServiceFlags::LIVE,
            affinity_seconds,
            ..Service::default()
        });
        id
    }

    /// Adds a backend, here or elsewhere, and publishes the service's windows.
    pub fn add_backend(
        &mut self,
        service: ServiceId,
        end: &Endpoint,
        protocol: Protocol,
        local: bool,
    ) -> BackendId {
        let id = BackendId(u32::try_from(self.backends.len()).unwrap_or(u32::MAX));
        let (flags, member) = if local {
            (Backend::LOCAL, Membership::CLUSTER | Membership::LOCAL)
        } else {
            (0, Membership::CLUSTER)
        };
        self.backends.push(Backend {
            addr: end.addr,
            port: end.port,
            state: BackendState::Active as u8,
            member,
            service,
            protocol,
            flags,
            reserved: [0; 6],
        });
        let keys = &self.config.hash_keys;
        Arc::make_mut(&mut self.bits)
            .add(AddressBits::of_backend(keys, &end.addr, end.port, protocol));
        self.publish(service);
        id
    }

    /// Takes a backend out of its service: flows may still use it.
    pub fn remove_backend(&mut self, id: BackendId) {
        let backend = &mut self.backends[id.0 as usize];
        backend.state = BackendState::Gone as u8;
        backend.member = 0;
        let service = backend.service;
        self.publish(service);
    }

    /// Adds a frontend on an address of its own.
    pub fn add_frontend(
        &mut self,
        service: ServiceId,
        end: &Endpoint,
        protocol: Protocol,
        kind: FrontendKind,
    ) {
        let key = FrontendKey::exact(end.addr, end.port, protocol);
        let frontend = Frontend::new(service, kind).sealed(&self.config.hash_keys, &key);
        self.frontends.insert(key, frontend);
        self.add_frontend_bits(&key);
    }

    /// Adds a frontend of a load balancer that only these sources may use.
    pub fn add_guarded_frontend(
        &mut self,
        service: ServiceId,
        end: &Endpoint,
        protocol: Protocol,
        ranges: &[Prefix],
    ) {
        self.add_frontend(service, end, protocol, FrontendKind::LoadBalancer);
        let key = FrontendKey::exact(end.addr, end.port, protocol);
        let frontend = Frontend::new(service, FrontendKind::LoadBalancer).guarded();
        let frontend = frontend.sealed(&self.config.hash_keys, &key);
        self.frontends.insert(key, frontend);
        self.ranges.extend(
            ranges
                .iter()
                .map(|prefix| SourceRange::new(service, prefix)),
        );
    }

    /// Makes every undefined port of a `ClusterIP` be refused.
    pub fn add_any_port(&mut self, addr: Addr) {
        let key = FrontendKey::any_port(addr);
        let frontend = Frontend::ANY_PORT.sealed(&self.config.hash_keys, &key);
        self.frontends.insert(key, frontend);
        self.add_frontend_bits(&key);
    }

    /// Adds a node port, for the family of `of`.
    pub fn add_node_port(&mut self, service: ServiceId, of: &Addr, port: Port, protocol: Protocol) {
        let key = FrontendKey::node_port(of, port, protocol);
        let frontend = Frontend::new(service, FrontendKind::NodePort);
        let frontend = frontend.sealed(&self.config.hash_keys, &key);
        self.frontends.insert(key, frontend);
        self.add_frontend_bits(&key);
    }

    fn add_frontend_bits(&mut self, key: &FrontendKey) {
        Arc::make_mut(&mut self.bits).add(AddressBits::of_frontend(&self.config.hash_keys, key));
    }

    /// Makes `ip` an address of the node, good for node ports and for SNAT on every device.
    pub fn add_node_address(&mut self, ip: IpAddr) {
        let flags = LocalAddress::NODE_PORTS;
        self.local.insert(ip.into(), LocalAddress { flags });
        let index = u32::try_from(self.snat_pool.len()).unwrap_or(0);
        self.snat_pool.push(ip.into());
        let entry = self.snat.entry(0).or_default();
        match ip {
            IpAddr::V4(_) => entry.v4 = index,
            IpAddr::V6(_) => entry.v6 = index,
        }
    }

    /// Writes both windows of a service anew, from the membership of its backends.
    pub fn publish(&mut self, service: ServiceId) {
        let cluster = self.window(service, Membership::CLUSTER, EmptyAction::Reject);
        let local_empty = if Window::from_word(cluster).count == 0 {
            EmptyAction::Reject
        } else {
            EmptyAction::Drop
        };
        let local = self.window(service, Membership::LOCAL, local_empty);
        let record = &mut self.services[service.0 as usize];
        record.cluster = cluster;
        record.local = local;
    }

    fn window(&mut self, service: ServiceId, member: u8, empty: EmptyAction) -> u64 {
        let start = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        // Every window has other slots: the generation need not tell them apart.
        let generation = 1;
        for (id, backend) in self.backends.iter().enumerate() {
            if backend.service == service && backend.member & member != 0 {
                self.slots.push(Slot {
                    addr: backend.addr,
                    backend: BackendId(u32::try_from(id).unwrap_or(0)),
                    service,
                    port: backend.port,
                    generation,
                    reserved: [0; 4],
                });
            }
        }
        let count = self.slots.len() - start as usize;
        if count == 0 {
            return Window::empty(empty, generation).to_word();
        }
        Window {
            start,
            count: u16::try_from(count).unwrap_or(u16::MAX),
            generation,
        }
        .to_word()
    }
}

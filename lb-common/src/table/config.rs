//! Node-wide facts: switches, this node's own addresses.

use crate::addr::{Addr, Port, Prefix};
use crate::hash::HashKeys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which sockets are balanced at `connect` and `sendmsg`; the packet path serves the others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum SocketMode {
    /// Every socket below the attached cgroup.
    All = 0,
    /// Only sockets of the host's network namespace.
    HostOnly = 1,
    /// None.
    Off = 2,
}

/// Bits of [`Config::flags`].
pub struct ConfigFlags;

impl ConfigFlags {
    /// Source addresses inside [`Config::pods_v4`] are pods; without the bit the local detector is
    /// off for IPv4 and neither "pod" nor "not a pod" rules apply (`SERVICE-SEMANTICS` 7).
    pub const DETECT_PODS_V4: u32 = 1;
    /// The same for IPv6.
    pub const DETECT_PODS_V6: u32 = 1 << 1;
    /// kube-proxy's `masqueradeAll`: every `ClusterIP` connection is SNATed.
    pub const MASQUERADE_ALL: u32 = 1 << 2;
    /// Node ports answer on 127.0.0.0/8 too (kube-proxy's `localhostNodePorts`; IPv4 only).
    pub const LOCALHOST_NODE_PORTS: u32 = 1 << 3;
    /// [`Config::service_cidrs`] holds at least one range.
    pub const SERVICE_CIDRS: u32 = 1 << 4;
    /// Replies get [`Config::masquerade_mark`] as they arrive, for routing rules that must not send them
    /// elsewhere than the requests came from.
    pub const MARK_REPLIES: u32 = 1 << 5;
    /// `lb_optout` may hold the cgroups of processes whose sockets are not balanced.
    pub const OPT_OUT: u32 = 1 << 6;
    /// Of the addresses that are pods' by [`Config::pods_v4`] and [`Config::pods_v6`], those are that
    /// come in by a device in `lb_pod_devices` (kube-proxy's `BridgeInterface` and
    /// `InterfaceNamePrefix`).
    pub const PODS_BY_DEVICE: u32 = 1 << 7;
}

/// How many ServiceCIDRs fit into [`Config`]: as many as make its size a power of two.
pub const SERVICE_CIDRS: usize = 9;

/// How many levels below the root the cgroup of a pod may lie: three are kubelet's own tree, the rest
/// is for a container around the node. The agent looks for cgroups as deep as the programs ask.
pub const POD_CGROUP_DEPTH: u8 = 12;

/// How many ports fit into [`Config::packet_path_udp_ports`].
pub const PACKET_PATH_UDP_PORTS: usize = 16;

/// Runtime switches: what may change while programs stay loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// [`ConfigFlags`].
    pub flags: u32,
    /// A [`SocketMode`].
    pub socket_mode: u32,
    /// Number of buckets of the flow table minus one (a power of two minus one).
    pub flow_mask: u32,
    /// First SNAT source port, host order. The range lies outside the host's ephemeral range.
    pub snat_port_first: u16,
    /// Last SNAT source port, host order, inclusive.
    pub snat_port_last: u16,
    /// First and last port of the node port range, host order, inclusive: UDP to these asks for a
    /// host socket before a flow is begun.
    pub node_port_first: u16,
    /// See `node_port_first`.
    pub node_port_last: u16,
    /// Bits that are set in the mark of packets on their way to be masqueraded, and cleared once they
    /// are, as kube-proxy does with its masquerade bit: other people's rules know it. 0: none.
    pub masquerade_mark: u32,
    /// Secret keys of the flow and filter hashes, drawn once when the tables are created.
    pub hash_keys: HashKeys,
    /// Pods' addresses, if [`ConfigFlags::DETECT_PODS_V4`].
    pub pods_v4: Prefix,
    /// Pods' addresses, if [`ConfigFlags::DETECT_PODS_V6`].
    pub pods_v6: Prefix,
    /// `SO_NETNS_COOKIE` of the namespace this agent serves as "the host"; 0 = the kernel's first
    /// namespace (the only answer below 5.14, where the option does not exist).
    pub host_namespace: u64,
    /// The smallest prefix around the IPv4 ones of `service_cidrs`: asked of every packet.
    pub services_v4: Prefix,
    /// The same for IPv6.
    pub services_v6: Prefix,
    /// The ranges ClusterIPs come from: packets to an address of these that is no frontend's get
    /// silence (`SERVICE-SEMANTICS` 5.2).
    pub service_cidrs: [Prefix; SERVICE_CIDRS],
    /// Ports of UDP frontends that pods' sockets connect to untranslated: the packet path replaces an
    /// endpoint that is removed, a connected socket cannot. 0: no port.
    pub packet_path_udp_ports: [Port; PACKET_PATH_UDP_PORTS],
}

impl Config {
    /// True if `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears `flag`.
    pub const fn switch(&mut self, flag: u32, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// True if `port` lies in the node port range.
    #[inline(always)]
    pub const fn in_node_port_range(&self, port: Port) -> bool {
        let port = port.number();
        port >= self.node_port_first && port <= self.node_port_last
    }

    /// False for addresses that certainly lie outside of every ServiceCIDR.
    #[inline(always)]
    pub const fn may_be_in_service_cidr(&self, addr: &Addr) -> bool {
        self.has(ConfigFlags::SERVICE_CIDRS)
            && (self.services_v4.contains(addr) || self.services_v6.contains(addr))
    }

    /// True for addresses inside a ServiceCIDR.
    #[inline(always)]
    pub fn is_in_service_cidr(&self, addr: &Addr) -> bool {
        if !self.may_be_in_service_cidr(addr) {
            return false;
        }
        for cidr in &self.service_cidrs {
            if cidr.contains(addr) {
                return true;
            }
        }
        false
    }

    /// True if pods' connected UDP sockets to frontends with this port are the packet path's.
    #[inline(always)]
    pub fn leaves_udp(&self, port: Port) -> bool {
        for left in &self.packet_path_udp_ports {
            if left.0 == port.0 {
                return port.0 != 0;
            }
        }
        false
    }

    /// Sets the ports of UDP frontends that [`leaves_udp`](Self::leaves_udp) tells, of which the first
    /// [`PACKET_PATH_UDP_PORTS`] are taken.
    pub fn set_packet_path_udp_ports(&mut self, ports: &[u16]) {
        self.packet_path_udp_ports = [Port(0); PACKET_PATH_UDP_PORTS];
        for (place, port) in self.packet_path_udp_ports.iter_mut().zip(ports) {
            *place = Port::new(*port);
        }
    }

    /// Sets the ServiceCIDRs, of which the first [`SERVICE_CIDRS`] are taken.
    pub fn set_service_cidrs(&mut self, cidrs: &[Prefix]) {
        self.switch(ConfigFlags::SERVICE_CIDRS, !cidrs.is_empty());
        self.service_cidrs = [Prefix::NONE; SERVICE_CIDRS];
        (self.services_v4, self.services_v6) = (Prefix::NONE, Prefix::NONE);
        for (place, cidr) in self.service_cidrs.iter_mut().zip(cidrs) {
            *place = *cidr;
            let around = if cidr.value.is_v4() {
                &mut self.services_v4
            } else {
                &mut self.services_v6
            };
            *around = if *around == Prefix::NONE {
                *cidr
            } else {
                around.around(cidr)
            };
        }
    }

    /// True if the local detector works for the family of `addr`.
    #[inline(always)]
    pub const fn detects_pods(&self, addr: &Addr) -> bool {
        if addr.is_v4() {
            self.has(ConfigFlags::DETECT_PODS_V4)
        } else {
            self.has(ConfigFlags::DETECT_PODS_V6)
        }
    }

    /// True if the local detector works and says "pod".
    #[inline(always)]
    pub const fn is_pod(&self, addr: &Addr) -> bool {
        if addr.is_v4() {
            self.has(ConfigFlags::DETECT_PODS_V4) && self.pods_v4.contains(addr)
        } else {
            self.has(ConfigFlags::DETECT_PODS_V6) && self.pods_v6.contains(addr)
        }
    }
}

/// What an address of this node is good for.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LocalAddress {
    /// [`LocalAddress::NODE_PORTS`].
    pub flags: u32,
}

impl LocalAddress {
    /// Node ports are served on this address (`nodePortAddresses`, `SERVICE-SEMANTICS` 5.1).
    pub const NODE_PORTS: u32 = 1;
}

/// The source addresses used when a flow leaves by a device: "the address of the outgoing
/// interface" as the kernel's masquerade picks it, or the node's own where the device has none.
/// Both are indexes into `lb_snat_pool` (index → [`Addr`]), whose entries are never changed once
/// used: a flow keeps the index.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SnatAddresses {
    /// Index of the IPv4 address, 0 if the node has none.
    pub v4: u32,
    /// Index of the IPv6 address, 0 if the node has none.
    pub v6: u32,
}

const _: () = assert!(size_of::<Config>() == 512);

//! What the tables say about the machine itself: its addresses, the source addresses of SNATed
//! flows, and the namespace the agent calls the host.

use super::directory::Directory;
use super::error::StartError;
use super::key_set::KeySet;
use super::sys;
use super::tables::Tables;
use crate::model::{Options as ModelOptions, frontend::serves_node_ports, node::NodeFacts};
use crate::net::{Device, Facts, LocalAddress as NodeAddress};
use lb_common::addr::Addr;
use lb_common::table::{LocalAddress, NamespaceAddresses, SnatAddresses, name};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h` (since 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Keeps the tables about the machine in step with netlink.
#[derive(Debug)]
pub(super) struct Local {
    addresses: OwnedFd,
    snat: OwnedFd,
    /// Those that pods' packets come in by.
    pod_devices: KeySet<u32>,
    namespaces: Option<OwnedFd>,
    cookie: u64,
    known: HashMap<Addr, u32>,
    sources: HashMap<u32, SnatAddresses>,
    pool: Vec<Addr>,
}

impl Local {
    /// Opens the tables and learns what they hold.
    pub(super) fn open(directory: &Directory, tables: &mut Tables) -> Result<Self, StartError> {
        let open = |name: &str| {
            sys::object_get(&directory.map(name)).map_err(|source| StartError::Step {
                attempt: "open the table",
                object: directory.map(name).display().to_string(),
                source,
            })
        };
        let reading = |source| StartError::Step {
            attempt: "read the tables about",
            object: "this node's addresses".to_owned(),
            source,
        };
        let addresses = open(name::LOCAL)?;
        let snat = open(name::SNAT)?;
        let pod_devices = KeySet::open(open(name::POD_DEVICES)?).map_err(reading)?;
        let mut known = HashMap::new();
        sys::map_each(addresses.as_fd(), 16, 4, |key, value| {
            if let (Ok(key), Ok(value)) = (
                <[u64; 2]>::read_from_bytes(key),
                LocalAddress::read_from_bytes(value),
            ) {
                known.insert(Addr(key), value.flags);
            }
        })
        .map_err(reading)?;
        let mut sources = HashMap::new();
        sys::map_each(snat.as_fd(), 4, 8, |key, value| {
            if let (Ok(key), Ok(value)) = (
                u32::read_from_bytes(key),
                SnatAddresses::read_from_bytes(value),
            ) {
                sources.insert(key, value);
            }
        })
        .map_err(reading)?;
        Ok(Self {
            addresses,
            snat,
            pod_devices,
            // The socket path alone knows it.
            namespaces: open(name::NAMESPACES).ok(),
            cookie: namespace_cookie().unwrap_or(0),
            known,
            sources,
            pool: tables.pool().map_err(reading)?,
        })
    }

    /// Cookie of the namespace the agent runs in; 0 where the kernel does not tell (below 5.14).
    pub(super) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Brings the tables in step. `in_use` tells which pool indexes live flows use.
    pub(super) fn update(
        &mut self,
        tables: &mut Tables,
        facts: &Facts,
        options: &ModelOptions,
        node: &NodeFacts,
        in_use: &dyn Fn() -> io::Result<HashSet<u32>>,
    ) -> io::Result<()> {
        let own: Vec<&NodeAddress> = facts.own_addresses().collect();
        self.update_addresses(&own, options, node)?;
        self.update_sources(tables, facts, &own, in_use)?;
        self.update_pod_devices(facts, options)?;
        self.update_namespace(&own)
    }

    fn update_addresses(
        &mut self,
        own: &[&NodeAddress],
        options: &ModelOptions,
        node: &NodeFacts,
    ) -> io::Result<()> {
        let wanted: HashMap<Addr, u32> = own
            .iter()
            .map(|own| {
                let serves = serves_node_ports(options, node, own.address);
                let flags = if serves { LocalAddress::NODE_PORTS } else { 0 };
                (Addr::from(own.address), flags)
            })
            .collect();
        for (addr, flags) in &wanted {
            if self.known.get(addr) != Some(flags) {
                let value = LocalAddress { flags: *flags };
                sys::map_update(self.addresses.as_fd(), addr.as_bytes(), value.as_bytes())?;
                self.known.insert(*addr, *flags);
            }
        }
        let gone: Vec<Addr> = self
            .known
            .keys()
            .filter(|addr| !wanted.contains_key(addr))
            .copied()
            .collect();
        for addr in gone {
            sys::map_delete(self.addresses.as_fd(), addr.as_bytes())?;
            self.known.remove(&addr);
        }
        Ok(())
    }

    /// The devices that pods' packets come in by, where that is what tells them.
    fn update_pod_devices(&mut self, facts: &Facts, options: &ModelOptions) -> io::Result<()> {
        let is_pods = |device: &&Device| options.pods.is_device(&facts.seen_as(device).name);
        let wanted: BTreeSet<u32> = (facts.devices.iter())
            .filter(is_pods)
            .map(|device| device.index)
            .collect();
        self.pod_devices.set(&wanted)
    }

    fn update_sources(
        &mut self,
        tables: &mut Tables,
        facts: &Facts,
        own: &[&NodeAddress],
        in_use: &dyn Fn() -> io::Result<HashSet<u32>>,
    ) -> io::Result<()> {
        let default = (
            default_source(facts, own, true),
            default_source(facts, own, false),
        );
        let devices = std::iter::once((0, default)).chain(facts.devices.iter().map(|device| {
            let of = |v4| source_of(own, device.index, v4);
            (
                device.index,
                (of(true).or(default.0), of(false).or(default.1)),
            )
        }));
        let wanted: BTreeMap<u32, (Option<IpAddr>, Option<IpAddr>)> = devices.collect();
        let kept: HashSet<Addr> = wanted
            .values()
            .flat_map(|(v4, v6)| v4.iter().chain(v6))
            .map(|ip| Addr::from(*ip))
            .collect();
        for (device, (v4, v6)) in &wanted {
            let value = SnatAddresses {
                v4: self.pool_index(tables, *v4, &kept, in_use)?,
                v6: self.pool_index(tables, *v6, &kept, in_use)?,
            };
            if self.sources.get(device) != Some(&value) {
                sys::map_update(self.snat.as_fd(), device.as_bytes(), value.as_bytes())?;
                self.sources.insert(*device, value);
            }
        }
        let gone: Vec<u32> = self
            .sources
            .keys()
            .filter(|device| !wanted.contains_key(device))
            .copied()
            .collect();
        for device in gone {
            sys::map_delete(self.snat.as_fd(), device.as_bytes())?;
            self.sources.remove(&device);
        }
        Ok(())
    }

    /// The pool's index of an address: flows keep it, so an entry changes only when neither a
    /// device nor a live flow uses it.
    fn pool_index(
        &mut self,
        tables: &mut Tables,
        ip: Option<IpAddr>,
        kept: &HashSet<Addr>,
        in_use: &dyn Fn() -> io::Result<HashSet<u32>>,
    ) -> io::Result<u32> {
        let Some(ip) = ip else { return Ok(0) };
        let addr = Addr::from(ip);
        let position = |wanted: Addr, pool: &[Addr]| {
            pool.iter()
                .skip(1)
                .position(|entry| *entry == wanted)
                .map(|at| at + 1)
        };
        if let Some(index) = position(addr, &self.pool) {
            return Ok(u32::try_from(index).unwrap_or(0));
        }
        let free = if let Some(index) = position(Addr::UNSPECIFIED, &self.pool) {
            Some(index)
        } else {
            let used = in_use()?;
            (1..self.pool.len()).find(|&index| {
                !kept.contains(&self.pool[index])
                    && u32::try_from(index).is_ok_and(|index| !used.contains(&index))
            })
        };
        let Some(index) = free else {
            tracing::warn!(%ip, "no room in the SNAT address pool: flows by its device use another");
            return Ok(0);
        };
        let entry = u32::try_from(index).unwrap_or(0);
        tables.write_pool(entry, addr)?;
        self.pool[index] = addr;
        Ok(entry)
    }

    /// The host's own sockets, whose source address is not chosen yet at `connect`.
    fn update_namespace(&mut self, own: &[&NodeAddress]) -> io::Result<()> {
        let Some(namespaces) = &self.namespaces else {
            return Ok(());
        };
        if self.cookie == 0 {
            return Ok(());
        }
        let first = |v4: bool| {
            own.iter()
                .find(|own| is_source(own, v4))
                .map_or(Addr::UNSPECIFIED, |own| Addr::from(own.address))
        };
        let value = NamespaceAddresses {
            v4: first(true),
            v6: first(false),
        };
        sys::map_update(namespaces.as_fd(), self.cookie.as_bytes(), value.as_bytes())
    }
}

/// A good source: global, usable, of the family.
fn is_source(address: &NodeAddress, v4: bool) -> bool {
    address.global
        && address.usable
        && address.address.is_ipv4() == v4
        && !address.address.is_loopback()
}

/// The address the kernel's masquerade would take on a device: its first primary one.
fn source_of(own: &[&NodeAddress], device: u32, v4: bool) -> Option<IpAddr> {
    let mut good = own
        .iter()
        .filter(|own| own.device == device && is_source(own, v4));
    good.clone()
        .find(|own| !own.secondary)
        .or_else(|| good.next())
        .map(|own| own.address)
}

/// The address for devices that have none: that of the first device which has one.
fn default_source(facts: &Facts, own: &[&NodeAddress], v4: bool) -> Option<IpAddr> {
    facts
        .devices
        .iter()
        .filter(|device| !device.loopback)
        .find_map(|device| source_of(own, device.index, v4))
}

/// The cookie of the network namespace this thread is in.
fn namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes into `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

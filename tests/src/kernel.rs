//! The object in the kernel without the agent: load, attach, write tables by hand, read counters.
//!
//! Kernel tests use it to prove what the programs do with given tables; how the agent fills them is
//! proved elsewhere.

use anyhow::{Context, Result, anyhow};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage};
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, SchedClassifier, SockOps,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::addr::{Addr, BackendId, Port, Protocol, ServiceId};
use lb_common::feature::{self, Feature};
use lb_common::flow::WORDS;
use lb_common::table::{
    AddressBits, Affinity, AffinityKey, Backend, BackendCounters, Bit, Config, Frontend,
    FrontendKey, LocalAddress, NamespaceAddresses, Service, ServiceCounters, Slot, SourceOf,
    SourceRange, UnconnectedSocket, name,
};
use lb_common::verdict::Reason;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A table type as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: the bounds prove what `Pod` asks for: any bytes are a valid value, none are padding.
unsafe impl<T: Copy + FromBytes + IntoBytes + Immutable + 'static> Pod for Raw<T> {}

/// The record of an unconnected UDP socket, with the kernel's lock before it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LockedConversations {
    lock: u32,
    reserved: u32,
    /// The record.
    pub table: UnconnectedSocket,
}

/// The records of unconnected UDP sockets, by socket.
pub type Conversations = SkStorage<MapData, Raw<LockedConversations>>;

/// The socket programs, in no particular order.
pub const SOCKET_PROGRAMS: [&str; 10] = [
    "lb_connect4",
    "lb_connect6",
    "lb_sendmsg4",
    "lb_sendmsg6",
    "lb_recvmsg4",
    "lb_recvmsg6",
    "lb_getpeername4",
    "lb_getpeername6",
    "lb_sock_release",
    "lb_sockops",
];

/// The loaded object: its maps exist, its programs are loaded when first asked for.
pub struct KernelObject {
    ebpf: Ebpf,
}

/// Where the object is: `LB_EBPF_OBJECT`, else where `cargo xtask build` leaves it.
pub fn object_path() -> PathBuf {
    std::env::var_os("LB_EBPF_OBJECT").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../target/ebpf/bpfel-unknown-none/release/lb-ebpf")
        },
        PathBuf::from,
    )
}

/// Where the object with the programs for tests and measurements is: beside the real one.
pub fn bench_object_path() -> PathBuf {
    object_path().with_file_name("lb-bench")
}

/// The features of the running kernel by its version: mainline and Debian kernels backport none.
pub fn running_features() -> u32 {
    let running = KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0));
    [
        (5, 11, Feature::COARSE_CLOCK),
        (6, 1, Feature::SET_RETVAL),
        (5, 15, Feature::NETNS_COOKIE_IN_SOCKOPS),
    ]
    .iter()
    .filter(|(major, minor, _)| running >= KernelVersion::new(*major, *minor, 0))
    .fold(0, |features, (.., feature)| features | feature)
}

impl KernelObject {
    /// Creates the maps, with the features of the running kernel.
    pub fn load() -> Result<Self> {
        Self::load_with(running_features())
    }

    /// Creates the maps, with these [`Feature`]s.
    pub fn load_with(features: u32) -> Result<Self> {
        Self::load_from(&object_path(), features)
    }

    /// Creates the maps of the object at `path`.
    pub fn load_from(path: &Path, features: u32) -> Result<Self> {
        Self::load_sized(path, features, &[])
    }

    /// Creates the maps of the object at `path`, some of them with another number of elements.
    pub fn load_sized(path: &Path, features: u32, sizes: &[(&str, u32)]) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| {
            format!(
                "cannot read {}: `cargo xtask build` makes it",
                path.display()
            )
        })?;
        let mut loader = EbpfLoader::new();
        loader.override_global(feature::GLOBAL, &features, true);
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        let ebpf = loader
            .load(&bytes)
            .context("cannot create the maps of the eBPF object")?;
        Ok(Self { ebpf })
    }

    /// True if the running kernel's socket hooks can refuse with an errno of their own.
    pub fn refuses() -> bool {
        running_features() & Feature::SET_RETVAL != 0
    }

    /// The object itself, for what has no method here.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Loads a program of the packet path, without attaching it anywhere.
    pub fn load_classifier(&mut self, name: &str) -> Result<()> {
        let program = self.ebpf.program_mut(name);
        let program: &mut SchedClassifier = program
            .ok_or_else(|| anyhow!("no program {name}"))?
            .try_into()?;
        program
            .load()
            .with_context(|| format!("the kernel refuses program {name}"))
    }

    /// A loaded program of the packet path.
    pub fn classifier(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(name);
        Ok(program
            .ok_or_else(|| anyhow!("no program {name}"))?
            .try_into()?)
    }

    /// The first `count` buckets of the flow table.
    pub fn flow_buckets(&mut self, count: u32) -> Result<Vec<[u64; WORDS]>> {
        let flows = self.array::<[u64; WORDS]>(name::FLOWS)?;
        (0..count)
            .map(|index| Ok(flows.get(&index, 0)?.0))
            .collect()
    }

    /// Loads and attaches every socket program to the cgroup at `path`, until this is dropped.
    pub fn attach_socket_programs(&mut self, path: &Path) -> Result<()> {
        let cgroup =
            File::open(path).with_context(|| format!("cannot open cgroup {}", path.display()))?;
        for name in SOCKET_PROGRAMS {
            let program = self
                .ebpf
                .program_mut(name)
                .ok_or_else(|| anyhow!("no program {name}"))?;
            match program {
                Program::CgroupSockAddr(program) => attach_address(program, &cgroup),
                Program::CgroupSock(program) => attach_sock(program, &cgroup),
                Program::SockOps(program) => attach_ops(program, &cgroup),
                _ => Err(anyhow!("unexpected kind")),
            }
            .with_context(|| format!("program {name}"))?;
        }
        Ok(())
    }

    fn array<T>(&mut self, name: &str) -> Result<Array<&mut MapData, Raw<T>>>
    where
        T: Copy + FromBytes + IntoBytes + Immutable + 'static,
    {
        let map = self.ebpf.map_mut(name);
        let map = map.ok_or_else(|| anyhow!("no map {name}"))?;
        Array::try_from(map).with_context(|| format!("map {name}"))
    }

    fn put<T>(&mut self, name: &str, index: u32, value: T) -> Result<()>
    where
        T: Copy + FromBytes + IntoBytes + Immutable + 'static,
    {
        self.array(name)?
            .set(index, Raw(value), 0)
            .with_context(|| format!("cannot write element {index} of {name}"))
    }

    fn hash<K, V>(&mut self, name: &str) -> Result<HashMap<&mut MapData, Raw<K>, Raw<V>>>
    where
        K: Copy + FromBytes + IntoBytes + Immutable + 'static,
        V: Copy + FromBytes + IntoBytes + Immutable + 'static,
    {
        let map = self.ebpf.map_mut(name);
        let map = map.ok_or_else(|| anyhow!("no map {name}"))?;
        HashMap::try_from(map).with_context(|| format!("map {name}"))
    }

    /// Writes the configuration.
    pub fn config(&mut self, config: &Config) -> Result<()> {
        self.put(name::CONFIG, 0, *config)
    }

    /// The configuration as it stands.
    pub fn read_config(&mut self) -> Result<Config> {
        Ok(self.array::<Config>(name::CONFIG)?.get(&0, 0)?.0)
    }

    /// Inserts a frontend and sets its bit.
    pub fn frontend(&mut self, key: FrontendKey, frontend: Frontend) -> Result<()> {
        let keys = self.read_config()?.hash_keys;
        let frontend = frontend.sealed(&keys, &key);
        self.hash::<FrontendKey, Frontend>(name::FRONTENDS)?
            .insert(Raw(key), Raw(frontend), 0)?;
        self.set_bits(AddressBits::of_frontend(&keys, &key))
    }

    /// Lets these sources use a service's guarded frontends.
    pub fn range(&mut self, range: &SourceRange) -> Result<()> {
        let map = self.ebpf.map_mut(name::RANGES);
        let map = map.ok_or_else(|| anyhow!("no map {}", name::RANGES))?;
        let mut ranges: LpmTrie<_, Raw<SourceOf>, u32> = LpmTrie::try_from(map)?;
        Ok(ranges.insert(&Key::new(range.bits, Raw(range.who)), 1, 0)?)
    }

    /// Removes a frontend; its bit stays, as the agent leaves it.
    pub fn remove_frontend(&mut self, key: FrontendKey) -> Result<()> {
        Ok(self
            .hash::<FrontendKey, Frontend>(name::FRONTENDS)?
            .remove(&Raw(key))?)
    }

    /// Writes a service's record.
    pub fn service(&mut self, id: ServiceId, service: Service) -> Result<()> {
        self.put(name::SERVICES, id.0, service)
    }

    /// A service's record as it stands.
    pub fn read_service(&mut self, id: ServiceId) -> Result<Service> {
        Ok(self.array::<Service>(name::SERVICES)?.get(&id.0, 0)?.0)
    }

    /// A backend's record as it stands.
    pub fn read_backend(&mut self, id: BackendId) -> Result<Backend> {
        Ok(self.array::<Backend>(name::BACKENDS)?.get(&id.0, 0)?.0)
    }

    /// What is known of the namespace with this cookie.
    pub fn namespace(&mut self, cookie: u64) -> Result<Option<NamespaceAddresses>> {
        get(&self.hash(name::NAMESPACES)?, cookie)
    }

    /// The records of unconnected UDP sockets.
    pub fn conversations(&self) -> Result<Conversations> {
        let Some(Map::SkStorage(map)) = self.ebpf.map(name::UDP_SOCKETS) else {
            return Err(anyhow!("no socket storage {}", name::UDP_SOCKETS));
        };
        let map = MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?;
        Ok(SkStorage::try_from(Map::SkStorage(map))?)
    }

    /// Teaches the programs the addresses of a namespace.
    pub fn learn_namespace(&mut self, cookie: u64, addresses: NamespaceAddresses) -> Result<()> {
        Ok(self
            .hash::<u64, NamespaceAddresses>(name::NAMESPACES)?
            .insert(Raw(cookie), Raw(addresses), 0)?)
    }

    /// Remembers a client's backend.
    pub fn remember(&mut self, key: AffinityKey, value: Affinity) -> Result<()> {
        Ok(self
            .hash::<AffinityKey, Affinity>(name::AFFINITY)?
            .insert(Raw(key), Raw(value), 0)?)
    }

    /// What is remembered of a client.
    pub fn affinity(&mut self, key: AffinityKey) -> Result<Option<Affinity>> {
        get(&self.hash(name::AFFINITY)?, key)
    }

    /// Writes a slot.
    pub fn slot(&mut self, index: u32, slot: Slot) -> Result<()> {
        self.put(name::SLOTS, index, slot)
    }

    /// Writes a backend's record and sets its bit.
    pub fn backend(&mut self, id: BackendId, backend: Backend) -> Result<()> {
        self.put(name::BACKENDS, id.0, backend)?;
        let keys = self.read_config()?.hash_keys;
        self.set_bits(AddressBits::of_backend(
            &keys,
            &backend.addr,
            backend.port,
            backend.protocol,
        ))
    }

    fn set_bits(&mut self, bits: [Bit; 2]) -> Result<()> {
        let map = self.ebpf.map(name::ADDRESS_BITS);
        let map = map.ok_or_else(|| anyhow!("no map {}", name::ADDRESS_BITS))?;
        with_bits(map, |words| {
            for (word, mask) in bits {
                words[word] |= mask;
            }
        })
    }

    /// Declares an address of this node.
    pub fn local_address(&mut self, addr: Addr, local: LocalAddress) -> Result<()> {
        Ok(self
            .hash::<Addr, LocalAddress>(name::LOCAL)?
            .insert(Raw(addr), Raw(local), 0)?)
    }

    fn per_cpu<T>(&self, name: &str, index: u32) -> Result<Vec<T>>
    where
        T: Copy + FromBytes + IntoBytes + Immutable + 'static,
    {
        let map = self.ebpf.map(name);
        let map = map.ok_or_else(|| anyhow!("no map {name}"))?;
        let array: PerCpuArray<_, Raw<T>> = PerCpuArray::try_from(map)?;
        Ok(array.get(&index, 0)?.iter().map(|value| value.0).collect())
    }

    /// How often `reason` was counted.
    pub fn reason(&self, reason: Reason) -> Result<u64> {
        Ok(self
            .per_cpu::<u64>(name::REASONS, reason as u32)?
            .iter()
            .sum())
    }

    /// A service port's counters, one for each CPU.
    pub fn service_counters(&self, id: ServiceId) -> Result<Vec<ServiceCounters>> {
        self.per_cpu(name::SERVICE_COUNTERS, id.0)
    }

    /// A backend's counters, one for each CPU.
    pub fn backend_counters(&self, id: BackendId) -> Result<Vec<BackendCounters>> {
        self.per_cpu(name::BACKEND_COUNTERS, id.0)
    }
}

/// Hands the words of the address filter, mapped into memory, to `change`: it is too large to be
/// written whole for every bit.
pub fn with_bits(map: &aya::maps::Map, change: impl FnOnce(&mut [u64])) -> Result<()> {
    let aya::maps::Map::Array(map) = map else {
        return Err(anyhow!("the address filter is no array"));
    };
    let (length, fd) = (size_of::<AddressBits>(), map.fd().as_fd().as_raw_fd());
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("cannot map the address filter");
    }
    // SAFETY: the mapping is `length` bytes, page-aligned, and programs only read it.
    change(unsafe { std::slice::from_raw_parts_mut(start.cast(), length / 8) });
    // SAFETY: the mapping made above, of which no reference is left.
    if unsafe { libc::munmap(start, length) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot unmap the address filter");
    }
    Ok(())
}

/// Looks `key` up.
fn get<K, V>(map: &HashMap<&mut MapData, Raw<K>, Raw<V>>, key: K) -> Result<Option<V>>
where
    K: Copy + FromBytes + IntoBytes + Immutable + 'static,
    V: Copy + FromBytes + IntoBytes + Immutable + 'static,
{
    match map.get(&Raw(key), 0) {
        Ok(value) => Ok(Some(value.0)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn attach_address(program: &mut CgroupSockAddr, cgroup: &File) -> Result<()> {
    program.load().context("cannot load")?;
    program
        .attach(cgroup, CgroupAttachMode::Single)
        .context("cannot attach")?;
    Ok(())
}

fn attach_sock(program: &mut CgroupSock, cgroup: &File) -> Result<()> {
    program.load().context("cannot load")?;
    program
        .attach(cgroup, CgroupAttachMode::Single)
        .context("cannot attach")?;
    Ok(())
}

fn attach_ops(program: &mut SockOps, cgroup: &File) -> Result<()> {
    program.load().context("cannot load")?;
    program
        .attach(cgroup, CgroupAttachMode::Single)
        .context("cannot attach")?;
    Ok(())
}

/// The key of a frontend as people write it.
pub fn frontend_key(address: std::net::SocketAddr, protocol: Protocol) -> FrontendKey {
    FrontendKey::exact(address.ip().into(), Port::new(address.port()), protocol)
}

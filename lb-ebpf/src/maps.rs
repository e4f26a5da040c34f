//! Every map of the packet path and of both paths together, as `lb_common::table` describes them.
//! Maps that only one hook knows are declared beside it (`flows.rs`, `socket.rs`).
//!
//! The sizes here are those of a small node: the agent sets its own when it loads the object.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::addr::Addr;
use lb_common::table::{
    AddressBits, Affinity, AffinityKey, Backend, BackendCounters, Config, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, LocalAddress, Service, ServiceCounters, Slot,
    SnatAddresses, SourceOf,
};
use lb_common::verdict::Reason;

/// Mapped by the agent; also makes elements begin on a page, so that none straddles a cache line.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "lb_config")]
pub static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();

#[btf_map(name = "lb_bits")]
pub static ADDRESS_BITS: Array<AddressBits, 1, MMAPABLE> = Array::new();

#[btf_map(name = "lb_frontends")]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, 16_384> = HashMap::new();

/// Memory is taken as ranges come.
#[btf_map(name = "lb_ranges")]
pub static RANGES: LpmTrie<SourceOf, u32, 65_536> = LpmTrie::new();

#[btf_map(name = "lb_services")]
pub static SERVICES: Array<Service, 4_096, MMAPABLE> = Array::new();

#[btf_map(name = "lb_slots")]
pub static SLOTS: Array<Slot, 65_536, MMAPABLE> = Array::new();

#[btf_map(name = "lb_backends")]
pub static BACKENDS: Array<Backend, 16_384, MMAPABLE> = Array::new();

#[btf_map(name = "lb_local")]
pub static LOCAL: HashMap<Addr, LocalAddress, 1_024> = HashMap::new();

#[btf_map(name = "lb_snat")]
pub static SNAT: HashMap<u32, SnatAddresses, 4_096> = HashMap::new();

#[btf_map(name = "lb_pod_devices")]
pub static POD_DEVICES: HashMap<u32, u32, 4_096> = HashMap::new();

#[btf_map(name = "lb_snat_pool")]
pub static SNAT_POOL: Array<Addr, 256, MMAPABLE> = Array::new();

#[btf_map(name = "lb_affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, 16_384> = LruHashMap::new();

#[btf_map(name = "lb_fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 4_096> = LruHashMap::new();

#[btf_map(name = "lb_svc_count")]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, 4_096> = PerCpuArray::new();

#[btf_map(name = "lb_bck_count")]
pub static BACKEND_COUNTERS: PerCpuArray<BackendCounters, 16_384> = PerCpuArray::new();

#[btf_map(name = "lb_reasons")]
pub static REASONS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();

/// No program reads it. The agent's update of its only element returns when every program that ran
/// before has ended: the grace period of windows and ids.
#[btf_map(name = "lb_grace")]
pub static GRACE: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

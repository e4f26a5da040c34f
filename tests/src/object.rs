//! The real programs in the kernel, fed by hand: tables written from a host world, packets pushed
//! through `BPF_PROG_TEST_RUN`. Nothing is attached or pinned.

use crate::kernel::with_bits;
use anyhow::{Context, Result, anyhow};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use lb_common::feature::{self, Feature};
use lb_common::host::HostTables;
use lb_common::table::name;
use lb_common::verdict::Reason;
use std::path::PathBuf;
use std::time::Duration;
use zerocopy::IntoBytes;

/// The programs of the packet path.
pub const PROGRAMS: [&str; 4] = ["tc_ingress", "tc_egress", "tc_ingress_l3", "tc_egress_l3"];

/// Where the object lies: `LB_EBPF_OBJECT`, else where the build puts it.
pub fn object_path() -> PathBuf {
    std::env::var_os("LB_EBPF_OBJECT").map_or_else(
        || {
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../target/ebpf/bpfel-unknown-none/release/lb-ebpf")
        },
        PathBuf::from,
    )
}

/// What the kernel did with one packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// The program's return value.
    pub code: i32,
    /// The packet afterwards, with its Ethernet header.
    pub frame: Vec<u8>,
    /// Mean time of a run.
    pub duration: Duration,
}

/// The loaded object with tables of its own.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads the object with tables of `buckets` flows (a power of two) and all programs of
    /// the packet path.
    pub fn load(buckets: u32) -> Result<Self> {
        let path = object_path();
        let bytes = std::fs::read(&path)
            .with_context(|| format!("read the eBPF object {}: build it first", path.display()))?;
        let features = Feature::COARSE_CLOCK;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, buckets)
            .override_global(feature::GLOBAL, &features, true)
            .load(&bytes)
            .context("create the maps and relocate the programs")?;
        for program in PROGRAMS {
            Self::classifier(&mut ebpf, program)?
                .load()
                .map_err(|error| anyhow!(error))
                .with_context(|| format!("load the program {program}"))?;
        }
        Ok(Self { ebpf })
    }

    fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
        ebpf.program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()
            .with_context(|| format!("{name} is not a classifier"))
    }

    /// Number of instructions the verifier walked for a program.
    pub fn verified_instructions(&mut self, program: &str) -> Result<u32> {
        Self::classifier(&mut self.ebpf, program)?
            .info()?
            .verified_instruction_count()
            .context("the kernel does not tell the number of verified instructions")
    }

    /// Writes the tables as the host has them; `flow_mask` must fit the size given to `load`.
    pub fn write(&mut self, tables: &HostTables) -> Result<()> {
        self.write_array(name::CONFIG, std::iter::once(tables.config.as_bytes()))?;
        let bits = self.ebpf.map(name::ADDRESS_BITS);
        let bits = bits.context("the object has no address filter")?;
        with_bits(bits, |words| words.copy_from_slice(&tables.bits.words))?;
        self.write_array(
            name::SERVICES,
            tables.services.iter().map(IntoBytes::as_bytes),
        )?;
        self.write_array(name::SLOTS, tables.slots.iter().map(IntoBytes::as_bytes))?;
        self.write_array(
            name::BACKENDS,
            tables.backends.iter().map(IntoBytes::as_bytes),
        )?;
        self.write_array(
            name::SNAT_POOL,
            tables.snat_pool.iter().map(IntoBytes::as_bytes),
        )?;
        let mut frontends: HashMap<_, [u8; 24], [u8; 8]> = self.hash(name::FRONTENDS)?;
        for (key, value) in &tables.frontends {
            frontends.insert(bytes(key), bytes(value), 0)?;
        }
        let map = self.ebpf.map_mut(name::RANGES);
        let map = map.context("the object has no map of source ranges")?;
        let mut ranges: LpmTrie<_, [u8; 20], u32> = LpmTrie::try_from(map)?;
        for range in &tables.ranges {
            ranges.insert(&Key::new(range.bits, bytes(&range.who)), 1, 0)?;
        }
        let mut local: HashMap<_, [u8; 16], [u8; 4]> = self.hash(name::LOCAL)?;
        for (key, value) in &tables.local {
            local.insert(bytes(key), bytes(value), 0)?;
        }
        let mut devices: HashMap<_, [u8; 4], u32> = self.hash(name::POD_DEVICES)?;
        for device in &tables.pod_devices {
            devices.insert(device.to_ne_bytes(), 1, 0)?;
        }
        let mut snat: HashMap<_, [u8; 4], [u8; 8]> = self.hash(name::SNAT)?;
        for (key, value) in &tables.snat {
            snat.insert(bytes(key), bytes(value), 0)?;
        }
        Ok(())
    }

    fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))?;
        HashMap::try_from(map).with_context(|| format!("open the map {name}"))
    }

    fn write_array<'b>(
        &mut self,
        name: &str,
        values: impl Iterator<Item = &'b [u8]>,
    ) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))?;
        for (index, value) in values.enumerate() {
            let index = u32::try_from(index)?;
            let result = match value.len() {
                16 => Array::<_, [u8; 16]>::try_from(&mut *map)?.set(index, bytes(value), 0),
                32 => Array::<_, [u8; 32]>::try_from(&mut *map)?.set(index, bytes(value), 0),
                64 => Array::<_, [u8; 64]>::try_from(&mut *map)?.set(index, bytes(value), 0),
                CONFIG => {
                    Array::<_, [u8; CONFIG]>::try_from(&mut *map)?.set(index, bytes(value), 0)
                }
                other => return Err(anyhow!("no table has values of {other} bytes")),
            };
            result.with_context(|| format!("write element {index} of {name}"))?;
        }
        Ok(())
    }

    /// Runs a program over an IP packet (an Ethernet header is put before it), `repeat` times over
    /// the same buffer.
    pub fn run(&mut self, program: &str, packet: &[u8], repeat: u32) -> Result<Outcome> {
        let ethertype = if packet.first().is_some_and(|first| first >> 4 == 6) {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(ethertype);
        frame.extend(packet);
        let mut out = vec![0; frame.len() + 256];
        let program = Self::classifier(&mut self.ebpf, program)?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&arrived()),
            repeat,
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Outcome {
            code: result.return_value.cast_signed(),
            frame: out,
            duration: result.duration,
        })
    }

    /// How often a reason was counted.
    pub fn reason(&mut self, reason: Reason) -> Result<u64> {
        let map = self
            .ebpf
            .map_mut(name::REASONS)
            .context("the object has no map of reasons")?;
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(counters.get(&(reason as u32), 0)?.iter().sum())
    }
}

/// The context (`struct __sk_buff`, as far as it is not zero) of a packet that has arrived by the
/// loopback device: without, a packet that leaves would be one that the node itself has made.
pub fn arrived() -> [u8; 44] {
    let mut context = [0; 44];
    context[36..40].copy_from_slice(&1_u32.to_ne_bytes());
    context
}

const CONFIG: usize = size_of::<lb_common::table::Config>();

/// A table's key or value as the array of bytes that aya takes.
fn bytes<const N: usize, T: IntoBytes + zerocopy::Immutable + ?Sized>(value: &T) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(value.as_bytes());
    array
}

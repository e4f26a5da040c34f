//! From the embedded object to loaded programs over pinned tables.
//!
//! aya 0.14 takes whatever map it finds at a pin for the one it would have made, even with other
//! key sizes (which crashes safe code later). So every pin is compared with the object first, and
//! nothing that differs is ever adopted.

use super::directory::Directory;
use super::error::{ReadError, StartError};
use super::flows::FLOW_HASH;
use super::memory;
use super::options::{Capacity, Options};
use super::sys::{self, Geometry};
use aya::programs::{Program, ProgramError, ProgramType};
use aya::sys::is_helper_supported;
use aya::util::KernelVersion;
use aya::{EbpfLoader, VerifierLogLevel};
use aya_obj::generated::{bpf_func_id, bpf_map_type};
use lb_common::feature::{self, Feature};
use lb_common::table::{NAME_TEXT, ServiceName, name};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Only so many buckets let every wanted flow find one near its home (`flow::table`).
const BUCKETS_A_FLOW: u32 = 4;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));
static LEGACY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf-legacy"));

/// The object for this kernel: below 5.12 there are no atomic operations with a result.
pub(super) fn object() -> Result<&'static [u8], StartError> {
    let old = KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 12, 0));
    let object = if old { LEGACY } else { OBJECT };
    if object.is_empty() {
        return Err(StartError::NoObject);
    }
    Ok(object)
}

/// Finds the flows of the kernel hash by their other ends, two for each flow.
const FLOW_ENDS: &str = "lb_flow_ends";

/// What to do about tables that are not ours to read.
pub(super) const OTHER_AGENTS: &str = "use the agent that made it, give this one a directory of \
                                       its own (--bpffs), or remove the old tables with \
                                       `lb-agent cleanup`, which ends the connections they carry";

/// What the stages of one packet leave to each other.
const SCRATCH: &str = "lb_scratch";

/// Every map and what it is to be like.
pub(super) type Schema = BTreeMap<String, Geometry>;

/// The schema of the object with the sizes wanted; `lb_names`, which no program knows, included.
pub(super) fn schema(object: &[u8], capacity: &Capacity) -> Result<Schema, StartError> {
    let parsed = aya_obj::Object::parse(object).map_err(|source| StartError::Load {
        what: "the embedded object".to_owned(),
        source: Box::new(source),
    })?;
    let mut schema: Schema = parsed
        .maps
        .iter()
        // Read-only data and what programs leave to themselves within one packet belong to one load
        // of the programs and are never pinned.
        .filter(|(name, _)| !name.starts_with('.') && *name != SCRATCH)
        .map(|(name, map)| {
            let geometry = Geometry {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: entries(name, capacity).unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            (name.clone(), geometry)
        })
        .collect();
    schema.insert(name::NAMES.to_owned(), names_geometry(capacity.services));
    Ok(schema)
}

/// The geometry of `lb_names`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the record's size is asserted beside it"
)]
pub(super) fn names_geometry(services: u32) -> Geometry {
    const { assert!(size_of::<ServiceName>() == NAME_TEXT + 8) }
    Geometry {
        map_type: bpf_map_type::BPF_MAP_TYPE_HASH as u32,
        key_size: 4,
        value_size: size_of::<ServiceName>() as u32,
        max_entries: services,
        flags: aya_obj::generated::BPF_F_NO_PREALLOC,
    }
}

/// The wanted size of a map, if it is not the object's own.
fn entries(map: &str, capacity: &Capacity) -> Option<u32> {
    match map {
        name::FRONTENDS => Some(capacity.frontends),
        name::SERVICES | name::SERVICE_COUNTERS => Some(capacity.services),
        name::SLOTS => Some(capacity.slots),
        name::BACKENDS | name::BACKEND_COUNTERS => Some(capacity.backends),
        name::AFFINITY => Some(capacity.affinity),
        FLOW_HASH => Some(capacity.flows),
        FLOW_ENDS => Some(capacity.flows.saturating_mul(2)),
        name::FLOWS => Some(
            capacity
                .flows
                .saturating_mul(BUCKETS_A_FLOW)
                .clamp(1 << 10, 1 << 31)
                .next_power_of_two(),
        ),
        _ => None,
    }
}

/// Compares every map that is pinned with the schema.
pub(super) fn check_pins(directory: &Directory, schema: &Schema) -> Result<(), StartError> {
    for (name, wanted) in schema {
        let path = directory.map(name);
        let fd = match sys::object_get(&path) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(StartError::Step {
                    attempt: "open the pinned table",
                    object: path.display().to_string(),
                    source,
                });
            }
        };
        // What the kernel says of a link or a program would be taken for a table's sizes.
        let difference = match sys::map_info(fd.as_fd()) {
            Ok(found) if sys::is_map(fd.as_fd()) => difference(&found, wanted),
            _ => Some(("it is not a table at all".to_owned(), false)),
        };
        if let Some((difference, only_size)) = difference {
            return Err(StartError::Schema {
                path,
                difference,
                remedy: if only_size {
                    "start with the sizes it was made with (--max-flows), or remove the old tables \
                     with `lb-agent cleanup`, which ends the connections they carry"
                } else {
                    OTHER_AGENTS
                },
            });
        }
    }
    Ok(())
}

/// What differs, in words, and whether only the size does.
fn difference(
    found: &aya_obj::generated::bpf_map_info,
    wanted: &Geometry,
) -> Option<(String, bool)> {
    let pairs = [
        ("type", found.type_, wanted.map_type),
        ("key size", found.key_size, wanted.key_size),
        ("value size", found.value_size, wanted.value_size),
        ("flags", found.map_flags, wanted.flags),
        ("number of entries", found.max_entries, wanted.max_entries),
    ];
    pairs
        .iter()
        .find(|(_, found, wanted)| found != wanted)
        .map(|(what, found, wanted)| {
            (
                format!("its {what} is {found}, this agent's is {wanted}"),
                *what == "number of entries",
            )
        })
}

/// Opens a pinned map that a reader wants, checking what its type relies on.
pub(super) fn open_map(
    directory: &Directory,
    name: &str,
    map_type: bpf_map_type,
    key_size: usize,
    value_size: usize,
) -> Result<(OwnedFd, u32), ReadError> {
    let path = directory.map(name);
    let fd = sys::object_get(&path).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            ReadError::Absent {
                directory: directory.root().to_path_buf(),
            }
        } else {
            ReadError::Step {
                attempt: "open the pinned table",
                object: path.display().to_string(),
                source,
            }
        }
    })?;
    let found = sys::map_info(fd.as_fd()).map_err(|source| ReadError::Step {
        attempt: "ask for the geometry of",
        object: path.display().to_string(),
        source,
    })?;
    let wanted = Geometry {
        map_type: map_type as u32,
        key_size: u32::try_from(key_size).unwrap_or(0),
        value_size: u32::try_from(value_size).unwrap_or(0),
        max_entries: found.max_entries,
        flags: found.map_flags,
    };
    match difference(&found, &wanted) {
        Some((difference, _)) => Err(ReadError::Schema { path, difference }),
        None => Ok((fd, found.max_entries)),
    }
}

/// How many programs are loaded side by side: so many take long to verify.
const LOADERS: usize = 4;

/// The loaded programs, by name.
#[derive(Debug)]
pub(super) struct Programs(HashMap<String, OwnedFd>);

impl Programs {
    /// The program of this name, if the object has it.
    pub(super) fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.get(name).map(AsFd::as_fd)
    }
}

/// Loads every program over the pinned tables, which are created where they are missing.
pub(super) fn load(
    object: &'static [u8],
    schema: &Schema,
    directory: &Directory,
    options: &Options,
) -> Result<Programs, StartError> {
    sys::unlimit_locked_memory();
    let features = features();
    let names = directory.map(name::NAMES);
    if !names.exists() {
        sys::map_create(name::NAMES, names_geometry(options.capacity.services))
            .and_then(|fd| sys::object_pin(fd.as_fd(), &names))
            .map_err(|source| StartError::Step {
                attempt: "create the table",
                object: names.display().to_string(),
                source,
            })?;
    }
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .override_global(feature::GLOBAL, &features, false)
        .verifier_log_level(VerifierLogLevel::STATS);
    for (name, geometry) in schema {
        loader
            .map_max_entries(name, geometry.max_entries)
            .map_pin_path(name, directory.map(name));
    }
    let mut ebpf = loader.load(object).map_err(|source| StartError::Load {
        what: "the tables and programs".to_owned(),
        source: Box::new(source),
    })?;
    let programs = load_all(ebpf.programs_mut())?;
    drop(ebpf);
    // Parsing the kernel's own BTF, which aya does whether it is wanted or not, takes tens of megabytes
    // that are free again.
    memory::give_back();
    memory::unread(object);
    Ok(Programs(programs))
}

/// Loads programs side by side: the kernel takes seconds to verify them one after another.
fn load_all<'a>(
    programs: impl Iterator<Item = (&'a str, &'a mut Program)> + Send,
) -> Result<HashMap<String, OwnedFd>, StartError> {
    let queue = Mutex::new(programs);
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next()
    };
    let work = || {
        let mut loaded = Vec::new();
        while let Some((name, program)) = next() {
            let fd = load_program(program).map_err(|source| StartError::Load {
                what: format!("the program {name}"),
                source: Box::new(source),
            })?;
            loaded.extend(fd.map(|fd| (name.to_owned(), fd)));
        }
        Ok(loaded)
    };
    let beside = thread::available_parallelism().map_or(1, usize::from) - 1;
    thread::scope(|scope| {
        let others: Vec<_> = (0..beside.min(LOADERS - 1))
            .map(|_| scope.spawn(work))
            .collect();
        let own: Result<Vec<_>, _> = work();
        let mut all = HashMap::from_iter(own?);
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Loads one program and returns a descriptor of ours. `None`: of a kind we do not use.
fn load_program(program: &mut Program) -> Result<Option<OwnedFd>, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        _ => return Ok(None),
    }
    let fd = program.fd()?.as_fd().try_clone_to_owned();
    fd.map(Some).map_err(ProgramError::IOError)
}

/// What the running kernel can do.
fn features() -> u32 {
    let probes = [
        (
            Feature::COARSE_CLOCK,
            ProgramType::SchedClassifier,
            bpf_func_id::BPF_FUNC_ktime_get_coarse_ns,
        ),
        (
            Feature::SET_RETVAL,
            ProgramType::CgroupSockAddr,
            bpf_func_id::BPF_FUNC_set_retval,
        ),
        (
            Feature::NETNS_COOKIE_IN_SOCKOPS,
            ProgramType::SockOps,
            bpf_func_id::BPF_FUNC_get_netns_cookie,
        ),
    ];
    probes
        .into_iter()
        .filter(|(_, kind, helper)| {
            is_helper_supported(*kind, *helper).unwrap_or_else(|error| {
                tracing::warn!(?kind, %error, "a kernel feature could not be probed; it is not used");
                false
            })
        })
        .fold(0, |features, (bit, _, _)| features | bit)
}

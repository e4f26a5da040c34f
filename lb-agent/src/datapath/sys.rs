//! `bpf(2)` where aya 0.14 has no word for it. Everything here is a thin, typed wrapper around one
//! system call.
//!
//! * links by descriptor and by interface index: aya attaches by name only (a rename races) and has
//!   no `attach_to_link` for cgroup links before 0.16;
//! * batches of map entries (aya #1124);
//! * creating a hash map with a name, and pinning any descriptor.

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info, bpf_prog_info,
};
use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One call of `bpf(2)`.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes at most `size_of::<bpf_attr>()` bytes of `attr`, and
    // whatever the pointers inside refer to, which the callers below keep alive and sized.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn empty_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zeros is what the kernel expects of
    // fields that are not set.
    unsafe { zeroed() }
}

fn owned(result: i64) -> OwnedFd {
    let fd = RawFd::try_from(result).unwrap_or(-1);
    // SAFETY: the kernel just returned this descriptor to us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[expect(clippy::cast_sign_loss, reason = "an open descriptor is not negative")]
fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Lets this process lock as much memory as it likes: below kernel 5.11 tables and programs count
/// as locked. Where that is not allowed (`CAP_SYS_RESOURCE`), what no longer fits fails with EPERM.
pub(super) fn unlimit_locked_memory() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the kernel reads one `rlimit`, which outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "locked memory stays limited");
    }
}

/// Opens a pinned object of any kind.
pub(super) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_text(path)?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attr).map(owned)
}

/// Pins an object under a path that must not exist.
pub(super) fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_text(path)?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(fd);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// What a link is attached to.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// A cgroup directory.
    Cgroup(BorrowedFd<'a>),
    /// A device.
    Device(u32),
}

/// Attaches a program and returns the link.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    match target {
        Target::Cgroup(fd) => attr.link_create.__bindgen_anon_2.target_fd = raw(fd),
        Target::Device(index) => attr.link_create.__bindgen_anon_2.target_ifindex = index,
    }
    attr.link_create.attach_type = attach_type as u32;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Puts another program behind a link, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty_attr();
    attr.link_update.link_fd = raw(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// What the kernel knows of an object, as the structure of its kind.
fn info<T: Copy>(fd: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: only called with the plain integer structures of the functions below.
    let mut info: T = unsafe { zeroed() };
    let mut attr = empty_attr();
    attr.info.bpf_fd = raw(fd);
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    attr.info.info_len = u32::try_from(size_of::<T>()).unwrap_or(0);
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Type and geometry of a map.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    info(map)
}

/// Link and program ids of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    info(link)
}

/// The id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info::<bpf_prog_info>(program).map(|info| info.id)
}

/// The device a TCX link is on; 0 once the device is gone.
pub(super) fn link_device(link: BorrowedFd<'_>) -> io::Result<u32> {
    let info = link_info(link)?;
    // SAFETY: every variant of the union is plain integers; for a TCX link it is this one.
    Ok(unsafe { info.__bindgen_anon_1.tcx.ifindex })
}

/// The id of the cgroup a link is on, which is its inode; 0 once the cgroup is gone.
pub(super) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let info = link_info(link)?;
    // SAFETY: every variant of the union is plain integers; for a cgroup link it is this one.
    Ok(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id })
}

/// What a map is to be like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Geometry {
    pub(super) map_type: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// Creates a map.
pub(super) fn map_create(name: &str, geometry: Geometry) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: the fields of this variant are plain integers.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = geometry.map_type;
    create.key_size = geometry.key_size;
    create.value_size = geometry.value_size;
    create.max_entries = geometry.max_entries;
    create.map_flags = geometry.flags;
    for (to, from) in create.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr).map(owned)
}

/// Stores one entry. `key` and `value` must be as long as the map's (per-CPU maps: the rounded
/// value times the number of possible CPUs).
pub(super) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Reads one entry into `value`; false if there is none.
pub(super) fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes one entry; it may be gone already.
pub(super) fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

/// Stores `count` entries laid end to end; true if the kernel took them all. On failure some may
/// have been stored.
pub(super) fn map_update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> io::Result<()> {
    let mut attr = empty_attr();
    attr.batch.map_fd = raw(map);
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = count;
    bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Reads a whole map in batches, each entry handed to `each`. Entries that come or go meanwhile may
/// be missed or seen; the cursor of a hash is a bucket's, so it never starts over.
pub(super) fn map_each(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    // A batch must hold the fullest bucket (ENOSPC else).
    const BATCH: u32 = 4096;
    let entries = BATCH as usize;
    let mut keys = vec![0_u8; entries * key_size];
    let mut values = vec![0_u8; entries * value_size];
    let (mut cursor, mut next) = (0_u64, 0_u64);
    let mut first = true;
    loop {
        let mut attr = empty_attr();
        attr.batch.map_fd = raw(map);
        attr.batch.in_batch = if first {
            0
        } else {
            std::ptr::from_ref(&cursor) as u64
        };
        attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = BATCH;
        let last = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if first && error.raw_os_error() == Some(NO_BATCHES) => {
                return map_each_singly(map, key_size, value_size, each);
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel has written the number of entries into this field of the variant.
        let count = unsafe { attr.batch.count } as usize;
        for (key, value) in keys
            .chunks_exact(key_size)
            .zip(values.chunks_exact(value_size))
            .take(count)
        {
            each(key, value);
        }
        if last {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}

/// `ENOTSUPP`, the kernel's own: a map of this type has no batches (an LPM trie on 5.10).
const NO_BATCHES: i32 = 524;

/// [`map_each`] one entry after the other. If the entry just read is removed meanwhile, reading
/// starts over, and `each` sees entries again.
fn map_each_singly(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut key = vec![0_u8; key_size];
    let mut next = vec![0_u8; key_size];
    let mut value = vec![0_u8; value_size];
    let mut first = true;
    loop {
        let mut attr = empty_attr();
        attr.__bindgen_anon_2.map_fd = raw(map);
        attr.__bindgen_anon_2.key = if first { 0 } else { key.as_ptr() as u64 };
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        if map_lookup(map, &next, &mut value)? {
            each(&next, &value);
        }
        std::mem::swap(&mut key, &mut next);
        first = false;
    }
}

/// Number of CPUs there can ever be: how many values a per-CPU entry has.
pub(super) fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    // "0-3,6": the last number is the highest.
    let last = text.trim().rsplit([',', '-']).next().unwrap_or("0");
    last.parse::<usize>()
        .map(|last| last + 1)
        .map_err(|_| io::Error::other(format!("unreadable list of possible CPUs: {text:?}")))
}

/// True if the descriptor is a map's, as the kernel names the file behind it.
pub(super) fn is_map(fd: BorrowedFd<'_>) -> bool {
    let file = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    file.is_ok_and(|file| file.as_os_str().as_bytes().ends_with(b"bpf-map"))
}

/// A program's answer to a packet.
pub(super) struct TestRun {
    pub(super) verdict: u32,
    pub(super) packet: Vec<u8>,
}

/// Runs a tc program on a packet that exists nowhere else. `ifindex` is the device it seems to
/// arrive on.
pub(super) fn program_test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    context: &mut [u8],
) -> io::Result<TestRun> {
    let mut out = vec![0_u8; packet.len() + 256];
    let mut attr = empty_attr();
    attr.test.prog_fd = raw(program);
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = u32::try_from(packet.len()).unwrap_or(0);
    attr.test.data_out = out.as_mut_ptr() as u64;
    attr.test.data_size_out = u32::try_from(out.len()).unwrap_or(0);
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = u32::try_from(context.len()).unwrap_or(0);
    attr.test.repeat = 1;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel has filled in this variant.
    let test = unsafe { attr.test };
    out.truncate(test.data_size_out as usize);
    Ok(TestRun {
        verdict: test.retval,
        packet: out,
    })
}

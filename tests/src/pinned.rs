//! Programs of a running dataplane, found by the pins of their links and run on packets that exist
//! nowhere else (`BPF_PROG_TEST_RUN`): the very programs that serve, over the very tables.

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};
use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel touches the attribute and what the pointers inside refer to, which the
    // callers below keep alive and sized.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn empty() -> bpf_attr {
    // SAFETY: a union of plain integers.
    unsafe { zeroed() }
}

fn open(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attr)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

/// Opens whatever is pinned at `path`.
pub fn open_pin(path: &Path) -> Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = text.as_ptr() as u64;
    open(bpf_cmd::BPF_OBJ_GET, &mut attr)
        .with_context(|| format!("cannot open the pin {}", path.display()))
}

/// Pins an object at `path`.
pub fn pin(object: &OwnedFd, path: &Path) -> Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = text.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr)
        .with_context(|| format!("cannot pin to {}", path.display()))?;
    Ok(())
}

/// Makes a table of `entries` values; `kind` is a `BPF_MAP_TYPE_*`.
pub fn make_table(
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
) -> Result<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_1.map_type = kind;
    attr.__bindgen_anon_1.key_size = key_size;
    attr.__bindgen_anon_1.value_size = value_size;
    attr.__bindgen_anon_1.max_entries = entries;
    attr.__bindgen_anon_1.map_flags = flags;
    open(bpf_cmd::BPF_MAP_CREATE, &mut attr).context("cannot make a table")
}

/// What the kernel says of a link: its id and its program's.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LinkIds {
    /// The link's id.
    pub link: u32,
    /// The id of the program behind it.
    pub program: u32,
}

/// The ids of the link pinned at `path`.
pub fn link_ids(path: &Path) -> Result<LinkIds> {
    let link = open_pin(path)?;
    // SAFETY: plain integers, filled in by the kernel.
    let mut info: bpf_link_info = unsafe { zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = raw(&link);
    attr.info.info_len = u32::try_from(size_of::<bpf_link_info>())?;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)
        .with_context(|| format!("{} is not a link", path.display()))?;
    Ok(LinkIds {
        link: info.id,
        program: info.prog_id,
    })
}

/// A program that serves.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// The program behind the link pinned at `path`.
    pub fn behind(path: &Path) -> Result<Self> {
        let mut attr = empty();
        attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = link_ids(path)?.program;
        let fd = open(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr)
            .context("cannot open the program behind a link")?;
        Ok(Self(fd))
    }

    /// Runs the program on `frame` and leaves there what came out, as far as it fits.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(&self, frame: &mut [u8]) -> io::Result<i32> {
        let size = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let mut attr = empty();
        attr.test.prog_fd = raw(&self.0);
        attr.test.data_in = frame.as_ptr() as u64;
        attr.test.data_size_in = size;
        attr.test.data_out = frame.as_mut_ptr() as u64;
        attr.test.data_size_out = size;
        attr.test.repeat = 1;
        bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
        // SAFETY: the kernel has filled in this variant.
        Ok(unsafe { attr.test.retval }.cast_signed())
    }
}

/// The value of `size` bytes under `key`.
pub fn look_up(map: &OwnedFd, key: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut value = vec![0; size];
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).context("cannot look an entry up")?;
    Ok(value)
}

//! Somebody else's program on the same tc hook: two instructions, loaded and attached by raw
//! `bpf(2)` so that nothing of ours is involved.

use anyhow::{Context, Result, bail};
use aya_obj::generated::bpf_prog_info;
use lb_lab::Namespace;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What the foreign program answers to every packet.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// `TCX_NEXT`: it only watches.
    Next,
    /// `TCX_DROP`.
    Drop,
}

/// Which side of the programs already attached it goes to.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// First on the hook.
    Before,
    /// Last on the hook.
    Behind,
}

/// Which hook.
#[derive(Clone, Copy, Debug)]
pub enum Hook {
    /// tc ingress.
    Ingress,
    /// tc egress.
    Egress,
}

/// An attached foreign program; it is detached on drop.
#[derive(Debug)]
pub struct ForeignProgram {
    program: OwnedFd,
    _link: OwnedFd,
    _statistics: OwnedFd,
}

// <linux/bpf.h>: commands, types and flags used here.
const PROG_LOAD: i64 = 5;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const LINK_CREATE: i64 = 28;
const ENABLE_STATS: i64 = 32;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// `union bpf_attr`, filled by offset.
#[repr(C, align(8))]
struct Attribute([u8; 128]);

impl Attribute {
    const fn new() -> Self {
        Self([0; 128])
    }

    fn set<const N: usize>(mut self, offset: usize, bytes: [u8; N]) -> Self {
        self.0[offset..offset + N].copy_from_slice(&bytes);
        self
    }

    fn call(&mut self, command: i64, what: &str) -> Result<i64> {
        // SAFETY: the attribute is larger than any the kernel reads for these commands, zeroed
        // beyond what was set, and pointers inside refer to memory that outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 {
            return Err(io::Error::last_os_error()).with_context(|| what.to_owned());
        }
        Ok(result)
    }

    fn open(&mut self, command: i64, what: &str) -> Result<OwnedFd> {
        let fd = i32::try_from(self.call(command, what)?)?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl ForeignProgram {
    /// Attaches a program to `device` of `namespace` by TCX.
    ///
    /// # Errors
    /// When the kernel has no TCX (before 6.6) or refuses.
    pub fn attach(
        namespace: &Namespace,
        device: &str,
        hook: Hook,
        side: Side,
        answer: Answer,
    ) -> Result<Self> {
        let index = namespace.index_of(device)?;
        let verdict: i32 = match answer {
            Answer::Next => -1,
            Answer::Drop => 2,
        };
        // r0 = verdict; exit
        let mut code = [0_u8; 16];
        code[0] = 0xb7;
        code[4..8].copy_from_slice(&verdict.to_ne_bytes());
        code[8] = 0x95;
        let license = *b"GPL\0";
        let program = Attribute::new()
            .set(0, PROG_TYPE_SCHED_CLS.to_ne_bytes())
            .set(4, 2_u32.to_ne_bytes())
            .set(8, (code.as_ptr() as u64).to_ne_bytes())
            .set(16, (license.as_ptr() as u64).to_ne_bytes())
            .open(PROG_LOAD, "cannot load a foreign program")?;
        let attach_type = match hook {
            Hook::Ingress => TCX_INGRESS,
            Hook::Egress => TCX_EGRESS,
        };
        let flags = match side {
            Side::Before => BEFORE,
            Side::Behind => AFTER,
        };
        let link = namespace.enter(|| {
            Attribute::new()
                .set(0, program.as_raw_fd().to_ne_bytes())
                .set(4, index.to_ne_bytes())
                .set(8, attach_type.to_ne_bytes())
                .set(12, flags.to_ne_bytes())
                .open(LINK_CREATE, "cannot attach a foreign program")
        })??;
        let statistics =
            Attribute::new().open(ENABLE_STATS, "cannot switch program statistics on")?;
        Ok(Self {
            program,
            _link: link,
            _statistics: statistics,
        })
    }

    /// How many packets it has seen.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn packets(&self) -> Result<u64> {
        let mut info = vec![0_u8; size_of::<bpf_prog_info>()];
        Attribute::new()
            .set(0, self.program.as_raw_fd().to_ne_bytes())
            .set(4, u32::try_from(info.len())?.to_ne_bytes())
            .set(8, (info.as_mut_ptr() as u64).to_ne_bytes())
            .call(OBJ_GET_INFO_BY_FD, "cannot ask for a program's statistics")?;
        let offset = offset_of!(bpf_prog_info, run_cnt);
        let Some(count) = info.get(offset..offset + 8) else {
            bail!("short program info")
        };
        Ok(u64::from_ne_bytes(count.try_into()?))
    }
}

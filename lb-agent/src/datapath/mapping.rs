//! Arrays of the kernel as memory of ours: whole words are stored and read atomically, without a
//! system call.
//!
//! The kernel fills in every page of such a mapping at once, and they all count as resident. So a
//! table is mapped in pieces, and only where it is used.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of a mmapable array, as 64-bit words.
#[derive(Debug)]
struct Piece {
    start: *mut AtomicU64,
    words: usize,
}

// SAFETY: the memory belongs to the kernel's array, stays mapped until the piece is dropped and is
// only touched through atomic words.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    fn map(fd: BorrowedFd<'_>, offset: u64, bytes: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; nothing else is
        // touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                libc::off_t::try_from(offset).map_err(io::Error::other)?,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            words: bytes / 8,
        })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is this many words long, page-aligned, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.words) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.words * 8) };
    }
}

/// Bytes of a piece: a multiple of the page size of every architecture we know, and no less than the
/// largest value.
const PIECE: usize = 512 * 1024;

/// A mmapable array of values of `W` words each, mapped piece by piece as it is touched.
#[derive(Debug)]
pub(super) struct Words<const W: usize> {
    fd: OwnedFd,
    writable: bool,
    entries: u32,
    pieces: Vec<Option<Piece>>,
}

impl<const W: usize> Words<W> {
    const PER_PIECE: usize = PIECE / 8 / W;

    /// The array of `entries` values behind `fd`.
    pub(super) fn new(fd: OwnedFd, entries: u32, writable: bool) -> Self {
        // Values do not straddle pieces; one whose size is no power of two is alone in its array.
        const { assert!(W.is_power_of_two() || Self::PER_PIECE == 1) }
        debug_assert!(W.is_power_of_two() || entries == 1, "values would straddle");
        let pieces = (entries as usize).div_ceil(Self::PER_PIECE);
        Self {
            fd,
            writable,
            entries,
            pieces: (0..pieces).map(|_| None).collect(),
        }
    }

    /// Number of values.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// The words of value `index`.
    pub(super) fn get(&mut self, index: u32) -> io::Result<&[AtomicU64]> {
        if index >= self.entries {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let (piece, within) = (
            index as usize / Self::PER_PIECE,
            index as usize % Self::PER_PIECE,
        );
        if self.pieces[piece].is_none() {
            self.pieces[piece] = Some(self.map(piece)?);
        }
        let words = self.pieces[piece].as_ref().map_or(&[][..], Piece::words);
        Ok(&words[within * W..(within + 1) * W])
    }

    /// A copy of value `index`. Words are read one by one: a value that changes meanwhile may be
    /// half old.
    pub(super) fn read(&mut self, index: u32) -> io::Result<[u64; W]> {
        let words = self.get(index)?;
        Ok(std::array::from_fn(|word| {
            words[word].load(Ordering::Acquire)
        }))
    }

    /// Hands every value to `each` and unmaps what was mapped for it, piece by piece.
    pub(super) fn each(&self, mut each: impl FnMut(u32, &[AtomicU64])) -> io::Result<()> {
        for piece in 0..self.pieces.len() {
            let mapped = self.map(piece)?;
            let first = piece * Self::PER_PIECE;
            let values = mapped.words().chunks_exact(W);
            for (index, value) in (first..self.entries as usize).zip(values) {
                each(u32::try_from(index).unwrap_or(u32::MAX), value);
            }
        }
        Ok(())
    }

    fn map(&self, piece: usize) -> io::Result<Piece> {
        let page = page_size();
        let total = (self.entries as usize * W * 8).next_multiple_of(page);
        let offset = piece * PIECE;
        let bytes = PIECE.min(total - offset);
        Piece::map(self.fd.as_fd(), offset as u64, bytes, self.writable)
    }
}

fn page_size() -> usize {
    // SAFETY: asks for a constant of the machine.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

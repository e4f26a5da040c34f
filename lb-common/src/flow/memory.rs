//! The flow table in host memory, with the atomics of the standard library.

use super::record::WORDS;
use super::table::Buckets;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets that threads share.
#[derive(Debug)]
pub struct HostBuckets {
    words: Vec<[AtomicU64; WORDS]>,
}

impl HostBuckets {
    /// `count` empty buckets: a power of two, at least a group.
    pub fn new(count: usize) -> Self {
        Self {
            words: (0..count).map(|_| Default::default()).collect(),
        }
    }

    /// Number of buckets.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// True if there are no buckets.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

impl Buckets for HostBuckets {
    type Bucket = usize;

    fn bucket(&self, index: u32) -> Option<Self::Bucket> {
        let index = index as usize;
        (index < self.words.len()).then_some(index)
    }

    fn load(&self, bucket: Self::Bucket, word: usize) -> u64 {
        self.words[bucket][word].load(Ordering::Acquire)
    }

    fn store(&self, bucket: Self::Bucket, word: usize, value: u64) {
        self.words[bucket][word].store(value, Ordering::Release);
    }

    fn store_upper(&self, bucket: Self::Bucket, word: usize, value: u32) {
        let with = |old: u64| Some(old & u64::from(u32::MAX) | (u64::from(value) << 32));
        // `with` always gives a value, so this cannot fail.
        let _ = self.words[bucket][word].fetch_update(Ordering::AcqRel, Ordering::Acquire, with);
    }

    fn swap_if(&self, bucket: Self::Bucket, word: usize, expected: u64, new: u64) -> bool {
        self.words[bucket][word]
            .compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

//! The flow table under threads: nothing is lost, doubled, torn or left locked; and the same stress
//! finds all of that in a table without the lock.

use lb_common::addr::ServiceId;
use lb_common::flow::stress::{BACKENDS, Failures, Worker, backend_end, inspect};
use lb_common::flow::{Buckets, FlowTable, HostBuckets, Record, WORDS};
use lb_common::hash::HashKeys;
use lb_common::host::HostTables;
use lb_common::table::{Backend, Config};
use zerocopy::FromZeros;

fn tables(buckets: usize) -> HostTables {
    let config = Config {
        flow_mask: u32::try_from(buckets - 1).unwrap(),
        hash_keys: HashKeys::from_random([11, 22, 33, 44, 55, 66, 77, 88]),
        ..Config::new_zeroed()
    };
    let mut tables = HostTables::new(config);
    tables.backends = (0..BACKENDS)
        .map(|id| Backend {
            addr: backend_end(id).addr,
            port: backend_end(id).port,
            service: ServiceId(1),
            ..Backend::default()
        })
        .collect();
    tables
}

/// Lets two threads work on `buckets` and looks at what they left.
fn stress<B: Buckets + Sync>(buckets: &B, count: usize, flows: usize, rounds: u32) -> Failures {
    let workers = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|id| {
                scope.spawn(move || {
                    let tables = tables(count);
                    let table = FlowTable::new(buckets, &tables, &tables.config);
                    let mut worker = Worker::new(id, flows);
                    for _ in 0..rounds {
                        let mut batch = worker.batch(16);
                        for step in &mut batch {
                            step.run(&table);
                        }
                        for mut removal in worker.judge(&batch) {
                            removal.run(&table);
                        }
                    }
                    (worker.failures, worker.refused)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    let tables = tables(count);
    let table = FlowTable::new(buckets, &tables, &tables.config);
    let words: Vec<[u64; WORDS]> = (0..u32::try_from(count).unwrap())
        .map(|index| {
            let bucket = buckets.bucket(index).unwrap();
            std::array::from_fn(|word| buckets.load(bucket, word))
        })
        .collect();
    let find = |wanted: &Record| {
        table
            .find_by_frontend(&wanted.client(), &wanted.frontend(), wanted.protocol())
            .map(|found| found.bucket())
    };
    println!("{count} buckets, {flows} flows a worker: {workers:?}");
    workers
        .iter()
        .fold(inspect(&words, find), |sum, (failures, _)| {
            sum.plus(*failures)
        })
}

#[test]
fn threads_lose_double_tear_and_leave_nothing() {
    for (count, flows) in [(32, 12), (32, 40), (256, 100), (2048, 400)] {
        let failures = stress(&HostBuckets::new(count), count, flows, 20_000);
        assert_eq!(
            failures,
            Failures::default(),
            "{count} buckets, {flows} flows"
        );
    }
}

/// The same memory, but everybody gets every lock.
struct WithoutLock(HostBuckets);

impl Buckets for WithoutLock {
    type Bucket = usize;

    fn bucket(&self, index: u32) -> Option<usize> {
        self.0.bucket(index)
    }

    fn load(&self, bucket: usize, word: usize) -> u64 {
        self.0.load(bucket, word)
    }

    fn store(&self, bucket: usize, word: usize, value: u64) {
        self.0.store(bucket, word, value);
    }

    fn store_upper(&self, bucket: usize, word: usize, value: u32) {
        self.0.store_upper(bucket, word, value);
    }

    fn swap_if(&self, bucket: usize, word: usize, expected: u64, new: u64) -> bool {
        const HOME: usize = 1;
        word == HOME || self.0.swap_if(bucket, word, expected, new)
    }
}

#[test]
fn the_stress_finds_a_missing_lock() {
    for round in 1..=20 {
        let failures = stress(&WithoutLock(HostBuckets::new(32)), 32, 12, 5_000 * round);
        if failures != Failures::default() {
            return;
        }
    }
    panic!("a table without its lock passed the stress");
}

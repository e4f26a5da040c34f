//! The flow table in the kernel: two CPUs, the real map, the real compare-and-swap.

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions};
use lb_common::addr::{BackendId, Endpoint, Protocol, ServiceId};
use lb_common::flow::Record;
use lb_common::flow::script::{Answer, Op, Step};
use lb_common::flow::stress::{BACKENDS, Failures, NOW, Worker, backend_end, inspect};
use lb_common::hash::HashKeys;
use lb_common::table::{Backend, Config};
use lb_tests::kernel::{KernelObject, bench_object_path, running_features};
use std::net::SocketAddr;
use std::sync::Mutex;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const PROGRAM: &str = "flow_script";
/// Bytes before the steps: what a test run takes for an Ethernet header, and two more.
const HEADER: usize = 16;
/// Steps in one packet.
const STEPS: usize = 24;

fn object(buckets: u32) -> Result<KernelObject> {
    let mut object = KernelObject::load_from(&bench_object_path(), running_features())?;
    object.config(&Config {
        flow_mask: buckets - 1,
        // Small numbers would be keys under which two protocols never meet.
        hash_keys: HashKeys::from_random(
            [1, 2, 3, 4, 5, 6, 7, 8].map(|x: u32| x.wrapping_mul(0x9e37_79b1)),
        ),
        ..Config::new_zeroed()
    })?;
    for id in 0..BACKENDS {
        let end = backend_end(id);
        object.backend(
            BackendId(id),
            Backend {
                addr: end.addr,
                port: end.port,
                service: ServiceId(1),
                ..Backend::default()
            },
        )?;
    }
    object.load_classifier(PROGRAM)?;
    Ok(object)
}

/// Runs the steps in the kernel and replaces them by the answers.
fn run(object: &KernelObject, steps: &mut [Step]) -> Result<()> {
    for chunk in steps.chunks_mut(STEPS) {
        let mut packet = vec![0; HEADER];
        packet.extend_from_slice(chunk.as_bytes());
        packet.extend_from_slice(Step::default().as_bytes());
        let mut answer = vec![0; packet.len()];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut answer),
            ..TestRunOptions::new()
        };
        let result = object.classifier(PROGRAM)?.test_run(options)?;
        ensure!(
            result.return_value as usize == chunk.len(),
            "the program ran {} of {} steps",
            result.return_value,
            chunk.len()
        );
        for (step, bytes) in chunk
            .iter_mut()
            .zip(answer[HEADER..].chunks(size_of::<Step>()))
        {
            *step = Step::read_from_bytes(bytes).map_err(|_| anyhow::anyhow!("short answer"))?;
        }
    }
    Ok(())
}

fn stress(buckets: u32, flows: usize, rounds: u32) -> Result<(Failures, u64)> {
    let mut object = object(buckets)?;
    let results = Mutex::new((Failures::default(), 0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|id| {
                let (object, results) = (&object, &results);
                scope.spawn(move || -> Result<()> {
                    let mut worker = Worker::new(id, flows);
                    for _ in 0..rounds {
                        let mut batch = worker.batch(STEPS);
                        run(object, &mut batch)?;
                        let mut removals = worker.judge(&batch);
                        run(object, &mut removals)?;
                    }
                    let mut sum = results.lock().expect("no thread panics while it holds it");
                    *sum = (sum.0.plus(worker.failures), sum.1 + worker.refused);
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("the worker does not panic"))
    })?;
    let words = object.flow_buckets(buckets)?;
    let left = inspect(&words, |wanted: &Record| {
        let mut step = [Step::new(Op::BY_FRONTEND, *wanted, NOW)];
        run(&object, &mut step).ok()?;
        let found = Record {
            words: step[0].words,
        };
        (found.control().version() != 0).then(|| found.bucket())
    });
    let (failures, refused) = results.into_inner().context("a worker panicked")?;
    Ok((failures.plus(left), refused))
}

#[test]
fn two_cpus_lose_double_tear_and_leave_nothing() -> Result<()> {
    lb_lab::require_root();
    for (buckets, flows) in [(32, 30), (64, 40), (256, 100), (2048, 400)] {
        let (failures, refused) = stress(buckets, flows, 10_000)?;
        println!("{buckets} buckets, {flows} flows a worker: {refused} refused");
        assert_eq!(
            failures,
            Failures::default(),
            "{buckets} buckets, {flows} flows"
        );
    }
    Ok(())
}

fn end(address: [u8; 4], port: u16) -> Endpoint {
    SocketAddr::from((address, port)).into()
}

#[test]
fn a_flow_of_the_other_protocol_on_the_same_ends_is_another_one() -> Result<()> {
    lb_lab::require_root();
    // In so small a table that of many pairs some begin at the same bucket.
    let object = object(32)?;
    let (id, frontend) = (BackendId(3), end([192, 0, 2, 1], 80));
    for number in 0..400_u16 {
        let client = end([10, 0, 0, 1], 20_000 + number);
        let begin = Record::of_flow(&client, &frontend, Protocol::TCP, id);
        let mut steps = [Step::new(Op::INSERT, begin, NOW)];
        run(&object, &mut steps)?;
        assert_eq!(steps[0].answer, Answer::FLOW);
        let flow = Record {
            words: steps[0].words,
        };
        let twin = Record::of_flow(&client, &frontend, Protocol::UDP, id);
        let behind = Record::of_flow(&client, &backend_end(id.0), Protocol::UDP, id);
        let mut steps = [
            Step::new(Op::BY_FRONTEND, twin, NOW),
            Step::new(Op::BY_BACKEND, behind, NOW),
            Step::new(Op::REMOVE, flow, NOW),
        ];
        run(&object, &mut steps)?;
        let answers = [steps[0].answer, steps[1].answer];
        assert_eq!(
            answers,
            [Answer::NONE; 2],
            "client port {}",
            20_000 + number
        );
    }
    Ok(())
}

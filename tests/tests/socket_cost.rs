//! What the socket hooks cost: mean time of a run, by the kernel's own clock. Prints, asserts nothing
//! about time; run it by name on a machine that does nothing else.

use aya::programs::Program;
use aya::sys::{Stats, enable_stats};
use lb_common::addr::Protocol;
use lb_tests::raw;
use lb_tests::socket_world::{World, v4, v6};
use std::net::SocketAddr;

const RUNS: u32 = 50_000;

/// Runs and nanoseconds of a program so far.
fn cost(world: &mut World, name: &str) -> (u64, u128) {
    let info = match world.kernel.ebpf().program(name).unwrap() {
        Program::CgroupSockAddr(program) => program.info().unwrap(),
        _ => panic!("{name} is no program of addresses"),
    };
    (info.run_count(), info.run_time().as_nanos())
}

fn measure(world: &mut World, name: &str, what: &str, work: impl Fn()) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let before = cost(world, name);
        for _ in 0..RUNS {
            work();
        }
        let after = cost(world, name);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let mean = (after.1 - before.1) as f64 / (after.0 - before.0) as f64;
        best = best.min(mean);
    }
    println!("{name} {what}: {best:.0} ns");
}

#[test]
#[ignore = "measures, proves nothing"]
fn what_the_hooks_cost() {
    let _stats = enable_stats(Stats::RunTime).unwrap();
    let mut world = World::new(&["a"]);
    for (asked, family) in [(v4("10.96.0.1", 80), "4"), (v6("fd00:10:96::1", 80), "6")] {
        world.serve(asked, Protocol::UDP, &["a"]);
        let direct: SocketAddr = (world.pods["a"].address_like(asked.ip()), 9).into();
        let name = |hook: &str| format!("lb_{hook}{family}");
        for (to, what) in [(direct, "not ours"), (asked, "ClusterIP")] {
            let socket = world.socket(|| Ok(raw::udp(asked)?));
            measure(&mut world, &name("connect"), what, || {
                raw::connect(&socket, to).unwrap();
            });
            measure(&mut world, &name("getpeername"), what, || {
                raw::peer(&socket).unwrap();
            });
            let socket = world.socket(|| Ok(raw::udp(asked)?));
            measure(&mut world, &name("sendmsg"), what, || {
                raw::send_to(&socket, b"who", to, 0).unwrap();
            });
        }
    }
}

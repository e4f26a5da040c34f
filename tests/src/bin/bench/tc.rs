//! Nanoseconds a packet at the ingress hook, from test runs of the real program.

use crate::report::{Figure, Goal, Report};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{TestRun, TestRunOptions};
use lb_common::addr::{Addr, BackendId, Port, Protocol, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::measure::{COLD, PLAN, Plan, TARGET};
use lb_common::table::{
    Backend, BackendState, Config, Frontend, FrontendKey, FrontendKind, Membership, Service,
    ServiceFlags, Slot, Window, name,
};
use lb_common::verdict::Reason;
use lb_tests::kernel::{KernelObject, Raw, bench_object_path, object_path, running_features};
use std::net::{IpAddr, Ipv4Addr};
use zerocopy::FromZeros;

/// Buckets of the flow table: four for each of the 512k flows, as the agent sizes it.
const BUCKETS: u32 = 1 << 21;
const ROUNDS: usize = 11;
const SERVICES: u32 = 1_000;
const BACKENDS_PER_SERVICE: u32 = 10;
/// The service that is asked.
const ASKED: u32 = 500;
/// New flows a round: few enough to leave the table's fill alone.
const NEW: u32 = 8_192;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// One thing to measure.
struct Case {
    name: &'static str,
    /// The program that gets the packets: one of the bench object, or the real one.
    target: &'static str,
    /// Clients, a power of two.
    clients: u32,
    first: u64,
    repeat: u32,
    destination: Ipv4Addr,
    flags: u8,
    /// Every round has clients of its own.
    fresh: bool,
}

const REAL: &str = "tc_ingress";
const GENERATOR: &str = "generator alone";
const FLOOR: &str = "floor: parse and return";
const NOT_OURS: &str = "not ours";
const ESTABLISHED_1: &str = "established, 1 flow";
const ESTABLISHED_64K: &str = "established, 64k flows";
const ESTABLISHED_512K: &str = "established, 512k flows";
const COLD_64K: &str = "parse, rewrite, one cold line of 64k";
const COLD_512K: &str = "parse, rewrite, one cold line of 512k";
const NEW_FLOW: &str = "new flow";

const SERVED: Ipv4Addr = service_address(ASKED);
const FOREIGN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

const fn service_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac10_0000 + number)
}

const fn backend_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac20_0000 + number)
}

const fn case(name: &'static str, target: &'static str, clients: u32, first: u64) -> Case {
    Case {
        name,
        target,
        clients,
        first,
        repeat: if clients < 65_536 { 131_072 } else { clients },
        destination: SERVED,
        flags: ACK,
        fresh: false,
    }
}

const FLOWS_64K: u64 = 1 << 20;
const FLOWS_512K: u64 = 2 << 20;
const FLOWS_NEW: u64 = 1 << 24;

const CASES: [Case; 12] = [
    case(GENERATOR, "nothing", 1, 0),
    case(FLOOR, "floor", 1, 0),
    case("parse and rewrite", "rewrite_only", 1, 0),
    case("parse, rewrite, one hot line", "rewrite_cold", 1, 0),
    case(COLD_64K, "rewrite_cold", 1 << 16, FLOWS_64K),
    case(COLD_512K, "rewrite_cold", 1 << 19, FLOWS_512K),
    Case {
        destination: FOREIGN,
        ..case(NOT_OURS, REAL, 1, 0)
    },
    Case {
        destination: FOREIGN,
        ..case("not ours, 64k clients", REAL, 1 << 16, FLOWS_64K)
    },
    case(ESTABLISHED_1, REAL, 1, 0),
    case(ESTABLISHED_64K, REAL, 1 << 16, FLOWS_64K),
    case(ESTABLISHED_512K, REAL, 1 << 19, FLOWS_512K),
    Case {
        flags: SYN,
        repeat: NEW,
        fresh: true,
        ..case(NEW_FLOW, REAL, NEW, FLOWS_NEW)
    },
];

/// Measures every case in every round, in another order each time.
pub(crate) fn measure() -> Result<Report> {
    pin_to_one_cpu()?;
    let mut stage = Stage::new()?;
    for first in [0, FLOWS_64K, FLOWS_512K] {
        let flows = match first {
            0 => 1,
            FLOWS_64K => 1 << 16,
            _ => 1 << 19,
        };
        stage.open(first, flows)?;
    }
    let mut rounds = vec![Vec::new(); CASES.len()];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..ROUNDS {
        let mut order: Vec<usize> = (0..CASES.len()).collect();
        for last in (1..order.len()).rev() {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            #[expect(clippy::cast_possible_truncation, reason = "it is at most `last`")]
            order.swap(last, (seed % (last as u64 + 1)) as usize);
        }
        for index in order {
            rounds[index].push(stage.run(&CASES[index], round as u64)?);
        }
    }
    report(rounds)
}

fn report(rounds: Vec<Vec<f64>>) -> Result<Report> {
    let generator = rounds[0].iter().copied().fold(f64::INFINITY, f64::min);
    let figures = CASES
        .iter()
        .zip(rounds)
        .map(|(case, rounds)| Figure::new(case.name, rounds, generator))
        .collect();
    let mut report = Report {
        kernel: nix::sys::utsname::uname()?
            .release()
            .to_string_lossy()
            .into_owned(),
        generator,
        figures,
        goals: Vec::new(),
    };
    let net = |name| report.net(name);
    let above_floor = |name| net(name) - net(FLOOR);
    report.goals = vec![
        Goal::new(
            "not ours, above the floor",
            above_floor(NOT_OURS),
            10.0,
            "ns",
        ),
        Goal::new(
            "established, 1 flow, above the floor",
            above_floor(ESTABLISHED_1),
            40.0,
            "ns",
        ),
        Goal::new(
            "established, 64k flows, to parse + rewrite + cold line",
            net(ESTABLISHED_64K) / net(COLD_64K),
            1.5,
            "×",
        ),
        Goal::new(
            "established, 512k flows, to parse + rewrite + cold line",
            net(ESTABLISHED_512K) / net(COLD_512K),
            1.5,
            "×",
        ),
        Goal::new("new flow", net(NEW_FLOW), 400.0, "ns"),
    ];
    Ok(report)
}

/// Both objects, filled tables, and the generator.
struct Stage {
    real: KernelObject,
    bench: KernelObject,
    /// Walked through before every run: what the caches hold then is nobody's.
    flush: Vec<u64>,
}

impl Stage {
    fn new() -> Result<Self> {
        let features = running_features();
        let sizes = [(name::FLOWS, BUCKETS)];
        let mut real = KernelObject::load_sized(&object_path(), features, &sizes)?;
        let sizes = [(COLD, BUCKETS)];
        let mut bench = KernelObject::load_sized(&bench_object_path(), features, &sizes)?;
        fill(&mut real)?;
        real.load_classifier(REAL)?;
        for program in [
            "generate",
            "nothing",
            "floor",
            "rewrite_only",
            "rewrite_cold",
        ] {
            bench.load_classifier(program)?;
        }
        Ok(Self {
            real,
            bench,
            flush: vec![1; 1 << 20],
        })
    }

    /// Opens flows of `count` clients from number `first` on, and sees that they were opened.
    fn open(&mut self, first: u64, count: u32) -> Result<()> {
        let before = self.real.reason(Reason::Opened)?;
        self.run(
            &Case {
                flags: SYN,
                repeat: count,
                ..case("opening", REAL, count, first)
            },
            0,
        )?;
        let opened = self.real.reason(Reason::Opened)? - before;
        ensure!(
            opened == u64::from(count),
            "{opened} of {count} flows were opened: the figures would mean nothing"
        );
        Ok(())
    }

    /// Nanoseconds a packet.
    fn run(&mut self, case: &Case, round: u64) -> Result<f64> {
        let plan = Plan {
            next: 0,
            multiplier: 0x9e37_79b1,
            mask: u64::from(case.clients) - 1,
            first: case.first
                + if case.fresh {
                    round * u64::from(case.clients)
                } else {
                    0
                },
            destination: u32::from_ne_bytes(case.destination.octets()),
            port: Port::new(80).0,
            flags: case.flags,
            reserved: 0,
            lines: u64::from(BUCKETS) - 1,
        };
        let map = self.bench.ebpf().map_mut(PLAN).context("no plan")?;
        Array::<_, Raw<Plan>>::try_from(map)?.set(0, Raw(plan), 0)?;
        let source = if case.target == REAL {
            &self.real
        } else {
            &self.bench
        };
        let target = source.classifier(case.target)?.fd()?.try_clone()?;
        let map = self.bench.ebpf().map_mut(TARGET).context("no target")?;
        ProgramArray::try_from(map)?.set(0, &target, 0)?;

        for word in &mut self.flush {
            *word = word.wrapping_mul(3);
        }
        std::hint::black_box(&self.flush);
        let packet = template();
        let mut out = vec![0; packet.len()];
        let result = self
            .bench
            .classifier("generate")?
            .test_run(TestRunOptions {
                data_in: Some(&packet),
                data_out: Some(&mut out),
                repeat: case.repeat,
                ..TestRunOptions::new()
            })?;
        let translated = out[30..34] != case.destination.octets();
        let expected = case.destination == SERVED && !["nothing", "floor"].contains(&case.target);
        ensure!(
            translated == expected,
            "{}: the packet was {}translated: the figures would mean nothing",
            case.name,
            if translated { "" } else { "not " }
        );
        Ok(result.duration.as_secs_f64() * 1e9)
    }
}

/// A TCP segment over IPv4 whose ends the generator fills in.
fn template() -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], SERVED.octets(), 64)
        .tcp(40_000, 80, 1, 1_000)
        .ack(1)
        .write(&mut packet, &[0; 10])
        .expect("a vector takes everything");
    packet
}

/// A node with many services; the one that is asked has ten backends on other nodes.
fn fill(object: &mut KernelObject) -> Result<()> {
    object.config(&Config {
        flow_mask: BUCKETS - 1,
        snat_port_first: 61_000,
        snat_port_last: 65_535,
        node_port_first: 30_000,
        node_port_last: 32_767,
        hash_keys: HashKeys::from_random([
            0x243f_6a88,
            0x85a3_08d3,
            0x1319_8a2e,
            0x0370_7344,
            0xa409_3822,
            0x299f_31d0,
            0x082e_fa98,
            0xec4e_6c89,
        ]),
        ..Config::new_zeroed()
    })?;
    for number in 1..=SERVICES {
        let service = ServiceId(number);
        let start = number * BACKENDS_PER_SERVICE;
        for backend in start..start + BACKENDS_PER_SERVICE {
            let addr = Addr::from(IpAddr::from(backend_address(backend)));
            object.backend(
                BackendId(backend),
                Backend {
                    addr,
                    port: Port::new(8080),
                    state: BackendState::Active as u8,
                    member: Membership::CLUSTER,
                    service,
                    protocol: Protocol::TCP,
                    ..Backend::default()
                },
            )?;
            object.slot(
                backend,
                Slot {
                    addr,
                    backend: BackendId(backend),
                    service,
                    port: Port::new(8080),
                    generation: 1,
                    ..Slot::default()
                },
            )?;
        }
        let window = Window {
            start,
            count: u16::try_from(BACKENDS_PER_SERVICE)?,
            generation: 1,
        };
        object.service(
            service,
            Service {
                cluster: window.to_word(),
                flags: ServiceFlags::LIVE,
                ..Service::default()
            },
        )?;
        let addr = Addr::from(IpAddr::from(service_address(number)));
        object.frontend(
            FrontendKey::exact(addr, Port::new(80), Protocol::TCP),
            Frontend::new(service, FrontendKind::ClusterIp),
        )?;
    }
    Ok(())
}

fn pin_to_one_cpu() -> Result<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(0)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)
        .context("cannot stay on one CPU")
}

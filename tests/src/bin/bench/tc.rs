//! Nanoseconds a packet at the ingress hook, from test runs of the real program, beside programs that
//! do less.

use crate::report::{Figure, Goal, Section};
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
use lb_tests::object::arrived;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zerocopy::FromZeros;

/// Buckets of the flow table: four for each of the 512k flows, as the agent sizes it.
const BUCKETS: u32 = 1 << 21;
const SERVICES: u32 = 1_000;
const BACKENDS_PER_SERVICE: u32 = 10;
/// The service that is asked.
const ASKED: u32 = 500;
/// New flows a round: few enough to leave the table's fill alone.
const NEW: u32 = 4_096;

const SYN: u8 = 2;
const ACK: u8 = 16;

const REAL: &str = "tc_ingress";

/// Numbers of the first clients: of 64k flows, of 512k flows, and of those that come new.
const FLOWS_64K: u64 = 1 << 20;
const FLOWS_512K: u64 = 2 << 20;
const FLOWS_NEW: u64 = 1 << 24;

/// An address family, with the names of its programs in the measuring object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The program of the measuring object.
    fn program(self, what: &str) -> String {
        let family = match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        };
        format!("{what}_{family}")
    }

    /// An address in 172.16.0.0/12 or its like.
    fn address(self, base: u32, number: u32) -> IpAddr {
        let v4 = base + number;
        match self {
            Self::V4 => Ipv4Addr::from_bits(v4).into(),
            Self::V6 => Ipv6Addr::from_bits((0xfd00_u128 << 112) | u128::from(v4)).into(),
        }
    }

    fn service(self, number: u32) -> IpAddr {
        self.address(0xac10_0000, number)
    }

    fn backend(self, number: u32) -> IpAddr {
        self.address(0xac20_0000, number)
    }

    fn foreign(self) -> IpAddr {
        self.address(0xcb00_7100, 77)
    }
}

/// How the packets of a run hang together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Chain {
    /// They do not: the processor works on several at once.
    Independent,
    /// Each needs what became of the one before: the whole latency shows.
    Dependent,
}

impl Chain {
    const BOTH: [Self; 2] = [Self::Independent, Self::Dependent];

    const fn name(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Dependent => "dependent",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Generator,
    Floor,
    Rewrite,
    /// Parse, rewrite and one line out of so many.
    Line(u32),
    /// A packet of one of so many clients that concerns nobody.
    Foreign(u32),
    /// A packet of one of so many flows.
    Established(u32),
    New,
}

const K64: u32 = 1 << 16;
const K512: u32 = 1 << 19;

impl What {
    const ALL: [Self; 12] = [
        Self::Generator,
        Self::Floor,
        Self::Rewrite,
        Self::Line(1),
        Self::Line(K64),
        Self::Line(K512),
        Self::Foreign(1),
        Self::Foreign(K64),
        Self::Established(1),
        Self::Established(K64),
        Self::Established(K512),
        Self::New,
    ];

    fn name(self) -> String {
        let many = |count| match count {
            1 => "1".to_owned(),
            count => format!("{}k", count >> 10),
        };
        match self {
            Self::Generator => "generator alone".to_owned(),
            Self::Floor => "floor: parse and return".to_owned(),
            Self::Rewrite => "parse and rewrite".to_owned(),
            Self::Line(count) => format!("parse, rewrite, one cold line of {}", many(count)),
            Self::Foreign(count) => format!("not ours, clients: {}", many(count)),
            Self::Established(count) => format!("established, flows: {}", many(count)),
            Self::New => "new flow".to_owned(),
        }
    }

    const fn clients(self) -> u32 {
        match self {
            Self::Generator | Self::Floor | Self::Rewrite => 1,
            Self::Line(count) | Self::Foreign(count) | Self::Established(count) => count,
            Self::New => NEW,
        }
    }

    const fn first(self) -> u64 {
        match self {
            Self::New => FLOWS_NEW,
            _ => first_of(self.clients()),
        }
    }

    fn repeat(self) -> u32 {
        match self {
            Self::New => NEW,
            _ => self.clients().max(1 << 17),
        }
    }

    /// The measuring object's program, or `None` for the real one.
    fn program(self, family: Family) -> Option<String> {
        match self {
            Self::Generator => Some("nothing".to_owned()),
            Self::Floor => Some(family.program("floor")),
            Self::Rewrite => Some(family.program("rewrite")),
            Self::Line(_) => Some(family.program("line")),
            Self::Foreign(_) | Self::Established(_) | Self::New => None,
        }
    }

    const fn translates(self) -> bool {
        !matches!(self, Self::Generator | Self::Floor | Self::Foreign(_))
    }
}

const fn first_of(clients: u32) -> u64 {
    match clients {
        K64 => FLOWS_64K,
        K512 => FLOWS_512K,
        _ => 0,
    }
}

/// Measures every case in every round, in another order each time.
pub(crate) fn measure(rounds: u32) -> Result<Section> {
    pin_to_one_cpu()?;
    let mut section = Section::new("tc", "ns a packet at tc ingress", "without the generator");
    for family in [Family::V4, Family::V6] {
        measure_family(family, rounds, &mut section)?;
    }
    Ok(section)
}

fn measure_family(family: Family, rounds: u32, section: &mut Section) -> Result<()> {
    let mut stage = Stage::new(family)?;
    for clients in [1, K64, K512] {
        stage.open(clients)?;
    }
    let cases: Vec<(What, Chain)> = What::ALL
        .into_iter()
        .flat_map(|what| Chain::BOTH.map(|chain| (what, chain)))
        .collect();
    let mut samples = vec![Vec::new(); cases.len()];
    let mut random = Shuffle(0x2545_f491_4f6c_dd1d);
    let mut fresh = FLOWS_NEW;
    for _ in 0..rounds {
        for index in random.order(cases.len()) {
            let (what, chain) = cases[index];
            let mut first = what.first();
            if what == What::New {
                first = fresh;
                fresh += u64::from(NEW);
            }
            samples[index].push(stage.run(what, chain, first)?);
        }
    }
    report(family, &cases, samples, section);
    Ok(())
}

fn report(family: Family, cases: &[(What, Chain)], samples: Vec<Vec<f64>>, section: &mut Section) {
    let name =
        |what: What, chain: Chain| format!("{}, {}, {}", family.name(), what.name(), chain.name());
    let mut generator = [0.0; 2];
    for ((what, chain), rounds) in cases.iter().zip(samples) {
        let slot = &mut generator[usize::from(*chain == Chain::Dependent)];
        if *what == What::Generator {
            *slot = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        }
        section
            .figures
            .push(Figure::new(&name(*what, *chain), rounds, *slot));
    }
    let goals = {
        let net = |what, chain| section.net(&name(what, chain));
        let above = |what| net(what, Chain::Independent) - net(What::Floor, Chain::Independent);
        let to_line = |count| {
            net(What::Established(count), Chain::Dependent)
                / net(What::Line(count), Chain::Dependent)
        };
        [
            (
                "not ours, above the floor",
                above(What::Foreign(1)),
                10.0,
                "ns",
            ),
            (
                "established, 1 flow, above the floor",
                above(What::Established(1)),
                40.0,
                "ns",
            ),
            (
                "established, 64k flows, to parse + rewrite + one cold line",
                to_line(K64),
                1.5,
                "×",
            ),
            (
                "established, 512k flows, to parse + rewrite + one cold line",
                to_line(K512),
                1.5,
                "×",
            ),
            ("new flow", net(What::New, Chain::Independent), 400.0, "ns"),
        ]
    };
    for (what, value, limit, unit) in goals {
        let what = format!("{}: {what}", family.name());
        section.goals.push(Goal::new(&what, value, limit, unit));
    }
}

/// Both objects, filled tables, and the generator.
struct Stage {
    family: Family,
    real: KernelObject,
    bench: KernelObject,
    /// Walked through before every run: what the nearer caches hold then is nobody's.
    flush: Vec<u64>,
}

impl Stage {
    fn new(family: Family) -> Result<Self> {
        let features = running_features();
        let sizes = [(name::FLOWS, BUCKETS)];
        let mut real = KernelObject::load_sized(&object_path(), features, &sizes)?;
        let sizes = [(COLD, BUCKETS)];
        let mut bench = KernelObject::load_sized(&bench_object_path(), features, &sizes)?;
        fill(&mut real, family)?;
        real.load_classifier(REAL)?;
        bench.load_classifier("nothing")?;
        for what in ["next", "after", "floor", "rewrite", "line"] {
            bench.load_classifier(&family.program(what))?;
        }
        Ok(Self {
            family,
            real,
            bench,
            flush: vec![1; 1 << 20],
        })
    }

    /// Opens the flows of so many clients, and sees that they were opened.
    fn open(&mut self, clients: u32) -> Result<()> {
        let before = self.real.reason(Reason::Opened)?;
        self.send(
            What::New,
            Chain::Independent,
            first_of(clients),
            clients,
            clients,
        )?;
        let opened = self.real.reason(Reason::Opened)? - before;
        ensure!(
            opened == u64::from(clients),
            "{opened} of {clients} flows were opened: the figures would mean nothing"
        );
        Ok(())
    }

    /// Nanoseconds a packet.
    fn run(&mut self, what: What, chain: Chain, first: u64) -> Result<f64> {
        self.send(what, chain, first, what.clients(), what.repeat())
    }

    fn send(
        &mut self,
        what: What,
        chain: Chain,
        first: u64,
        clients: u32,
        repeat: u32,
    ) -> Result<f64> {
        let destination = match what {
            What::Foreign(_) => self.family.foreign(),
            _ => self.family.service(ASKED),
        };
        let plan = Plan {
            next: 0,
            multiplier: 0x9e37_79b1,
            mask: u64::from(clients) - 1,
            first,
            zero: 0,
            destination: Addr::from(destination).words(),
            port: Port::new(80).0,
            flags: if what == What::New { SYN } else { ACK },
            reserved: [0; 5],
            lines: u64::from(BUCKETS) - 1,
        };
        let map = self.bench.ebpf().map_mut(PLAN).context("no plan")?;
        Array::<_, Raw<Plan>>::try_from(map)?.set(0, Raw(plan), 0)?;
        let target = match what.program(self.family) {
            None => self.real.classifier(REAL)?,
            Some(program) => self.bench.classifier(&program)?,
        };
        let target = target.fd()?.try_clone()?;
        let map = self.bench.ebpf().map_mut(TARGET).context("no target")?;
        ProgramArray::try_from(map)?.set(0, &target, 0)?;
        for word in &mut self.flush {
            *word = word.wrapping_mul(3);
        }
        std::hint::black_box(&self.flush);
        let (packet, length) = self.template(destination);
        let mut out = vec![0; packet.len()];
        let generator = self.family.program(match chain {
            Chain::Independent => "next",
            Chain::Dependent => "after",
        });
        let result = self
            .bench
            .classifier(&generator)?
            .test_run(TestRunOptions {
                data_in: Some(&packet),
                data_out: Some(&mut out),
                ctx_in: Some(&arrived()),
                repeat,
                ..TestRunOptions::new()
            })?;
        let address = Addr::from(destination).octets();
        let at = packet.len() - length;
        let translated = !address.ends_with(&out[at..at + self.address_length()]);
        ensure!(
            translated == what.translates(),
            "{}: the packet was {}translated: the figures would mean nothing",
            what.name(),
            if translated { "" } else { "not " }
        );
        Ok(result.duration.as_secs_f64() * 1e9)
    }

    const fn address_length(&self) -> usize {
        match self.family {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// A TCP segment whose ends the generator fills in, and the length from the destination on.
    fn template(&self, destination: IpAddr) -> (Vec<u8>, usize) {
        const PAYLOAD: usize = 10;
        let ethernet = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let source = self.family.address(0x0a00_0000, 1);
        let ip = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet.ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet.ipv6(source.octets(), destination.octets(), 64)
            }
            _ => unreachable!("both are of the stage's family"),
        };
        let mut packet = Vec::new();
        ip.tcp(40_000, 80, 1, 1_000)
            .ack(1)
            .write(&mut packet, &[0; PAYLOAD])
            .expect("a vector takes everything");
        (packet, self.address_length() + 20 + PAYLOAD)
    }
}

/// Another order in every round, the same in every run.
struct Shuffle(u64);

impl Shuffle {
    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let other = self.0 % (last as u64 + 1);
            order.swap(last, usize::try_from(other).unwrap_or(0));
        }
        order
    }
}

/// A node with many services; the one that is asked has ten backends on other nodes.
fn fill(object: &mut KernelObject, family: Family) -> Result<()> {
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
            let addr = Addr::from(family.backend(backend));
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
        let addr = Addr::from(family.service(number));
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

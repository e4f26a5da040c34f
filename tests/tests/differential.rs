//! The same random packets and tables through the core on the host and through the programs in the
//! kernel: the same verdicts, the same bytes, the same reasons counted.
//!
//! Chance must not divide the two, so every window has one slot at most. Time need not: both are
//! told the same clock.

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use lb_common::addr::{Endpoint, Prefix, Protocol, Tick};
use lb_common::host::{HostTables, PacketWorld, craft};
use lb_common::table::{ConfigFlags, FrontendKind, LocalAddress, ServiceFlags};
use lb_common::verdict::{Reason, Verdict};
use lb_common::wire::Sctp;
use lb_tests::object::Object;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Packets that are compared.
const PACKETS: u64 = 120_000;
/// As many as a [`PacketWorld`] has.
const BUCKETS: u32 = 1024;
/// The device of a test run: the loopback device of its namespace.
const DEVICE: u32 = 1;
/// Bytes of the Ethernet header that a frame of the kernel begins with.
const ETHERNET: usize = 14;

/// `xorshift64`: the same packets in every run.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.word() % limit as u64).unwrap_or(0)
    }

    fn one_in(&mut self, limit: usize) -> bool {
        self.below(limit) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn byte(&mut self) -> u8 {
        self.word().to_le_bytes()[0]
    }
}

fn end(socket: &str) -> Endpoint {
    let socket: SocketAddr = socket.parse().expect("the tests write addresses correctly");
    socket.into()
}

/// The ends clients ask, of both families.
const FRONTENDS: [&str; 26] = [
    "172.30.0.1:80",
    "172.30.0.2:80",
    "172.30.0.3:53",
    "172.30.0.4:80",
    "198.51.100.7:443",
    "198.51.100.8:80",
    "192.168.0.2:30080",
    "192.168.0.2:30081",
    "[fd30::1]:80",
    "[fd30::2]:80",
    "[fd30::3]:53",
    "[2001:db8::7]:443",
    "[fd00:2::2]:30080",
    "[fd00:2::2]:30081",
    "203.0.113.9:80",
    "[2001:db8:9::9]:80",
    // Undefined ports of ClusterIPs; inside no ServiceCIDR, too.
    "172.30.0.1:81",
    "[fd30::1]:81",
    "100.64.0.1:9",
    // Free addresses of ServiceCIDRs; one that the node has itself.
    "172.30.7.7:80",
    "[fd30::7:7]:53",
    "172.30.0.99:80",
    // Guarded by source ranges.
    "198.51.100.9:443",
    "[2001:db8::8]:443",
    // Node ports on addresses of the node that serve none.
    "192.168.0.3:30080",
    "[fd00:2::3]:30080",
];

/// Who may use the guarded frontends.
const RANGES: [(&str, u8); 4] = [
    ("203.0.113.50", 32),
    ("10.0.1.0", 24),
    ("192.168.0.0", 30),
    ("fd10::", 64),
];

const CLIENTS: [&str; 12] = [
    "10.0.1.10:40000",
    "10.0.1.11:40000",
    "10.0.2.10:61000",
    "203.0.113.50:50000",
    "203.0.113.51:61001",
    "192.168.0.2:33000",
    "192.168.0.9:65535",
    "[fd10::10]:40000",
    "[fd10::11]:61000",
    "[2001:db8:5::50]:50000",
    "[fd00:2::2]:33000",
    "[fd10:1::5]:1024",
];

/// Frontend, its kind, flags, affinity, endpoint and whether it is here.
type Service = (
    &'static str,
    FrontendKind,
    u32,
    u32,
    Option<(&'static str, bool)>,
);

/// A node with services of every kind: with one endpoint here or elsewhere, without any, with
/// affinity, with both Local policies.
#[expect(clippy::too_many_lines, reason = "a table, one row for each service")]
fn tables() -> HostTables {
    let mut tables = HostTables::of_node();
    tables.config.flags = 3;
    tables.config.pods_v4 = lb_common::addr::Prefix::new("10.0.0.0".parse().expect("written"), 8);
    tables.config.pods_v6 = lb_common::addr::Prefix::new("fd10::".parse().expect("written"), 16);
    for address in ["192.168.0.2", "fd00:2::2"] {
        tables.add_node_address(address.parse().expect("written"));
    }
    let local = ServiceFlags::EXTERNAL_LOCAL;
    let services: [Service; 16] = [
        (
            FRONTENDS[0],
            FrontendKind::ClusterIp,
            0,
            0,
            Some(("10.0.1.10:8080", true)),
        ),
        (FRONTENDS[1], FrontendKind::ClusterIp, 0, 0, None),
        (
            FRONTENDS[2],
            FrontendKind::ClusterIp,
            0,
            30,
            Some(("10.0.2.20:5353", false)),
        ),
        (
            FRONTENDS[3],
            FrontendKind::ClusterIp,
            ServiceFlags::INTERNAL_LOCAL,
            0,
            Some(("10.0.2.21:80", false)),
        ),
        (
            FRONTENDS[4],
            FrontendKind::LoadBalancer,
            0,
            0,
            Some(("10.0.2.22:8443", false)),
        ),
        (
            FRONTENDS[5],
            FrontendKind::ExternalIp,
            local,
            0,
            Some(("10.0.1.12:8080", true)),
        ),
        (
            FRONTENDS[6],
            FrontendKind::NodePort,
            0,
            60,
            Some(("10.0.1.10:8080", true)),
        ),
        (
            FRONTENDS[7],
            FrontendKind::NodePort,
            local,
            0,
            Some(("10.0.2.23:8080", false)),
        ),
        (
            FRONTENDS[8],
            FrontendKind::ClusterIp,
            0,
            0,
            Some(("[fd10::10]:8080", true)),
        ),
        (FRONTENDS[9], FrontendKind::ClusterIp, 0, 0, None),
        (
            FRONTENDS[10],
            FrontendKind::ClusterIp,
            0,
            0,
            Some(("[fd10:2::20]:5353", false)),
        ),
        (
            FRONTENDS[11],
            FrontendKind::LoadBalancer,
            0,
            0,
            Some(("[fd10:2::22]:8443", false)),
        ),
        (
            FRONTENDS[12],
            FrontendKind::NodePort,
            0,
            0,
            Some(("[fd10::10]:8080", true)),
        ),
        (FRONTENDS[13], FrontendKind::NodePort, local, 0, None),
        (
            FRONTENDS[22],
            FrontendKind::LoadBalancer,
            0,
            0,
            Some(("10.0.2.24:8443", false)),
        ),
        (FRONTENDS[23], FrontendKind::LoadBalancer, local, 0, None),
    ];
    for (frontend, kind, flags, affinity, backend) in services {
        let frontend = end(frontend);
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            let service = tables.add_service(flags, affinity);
            if let Some((backend, here)) = backend {
                tables.add_backend(service, &end(backend), protocol, here);
            }
            if frontend == end(FRONTENDS[22]) || frontend == end(FRONTENDS[23]) {
                let ranges = RANGES.map(|(network, length)| {
                    Prefix::new(network.parse().expect("written"), length)
                });
                tables.add_guarded_frontend(service, &frontend, protocol, &ranges);
            } else if kind == FrontendKind::NodePort {
                tables.add_node_port(service, &frontend.addr, frontend.port, protocol);
            } else {
                tables.add_frontend(service, &frontend, protocol, kind);
            }
        }
    }
    for address in ["172.30.0.1", "fd30::1", "100.64.0.1", "172.30.0.99"] {
        let address: IpAddr = address.parse().expect("written");
        tables.add_any_port(address.into());
    }
    for own in [FRONTENDS[21], FRONTENDS[24], FRONTENDS[25]] {
        tables.local.insert(end(own).addr, LocalAddress::default());
    }
    tables.config.set_service_cidrs(&[
        Prefix::new("172.30.0.0".parse().expect("written"), 16),
        Prefix::new("172.28.0.0".parse().expect("written"), 16),
        Prefix::new("fd30::".parse().expect("written"), 108),
    ]);
    tables
}

/// Host and kernel side by side.
struct Pair {
    host: PacketWorld,
    kernel: Object,
    compared: u64,
    outcomes: BTreeMap<(&'static str, String, bool), u64>,
}

impl Pair {
    fn new() -> Result<Self> {
        let host = PacketWorld::new(tables(), 1);
        let mut kernel = Object::load(BUCKETS)?;
        kernel.write(&host.tables)?;
        Ok(Self {
            host,
            kernel,
            compared: 0,
            outcomes: BTreeMap::new(),
        })
    }

    /// From the second quarter on, pods are told by the device of their packets: at first it is none
    /// of theirs.
    fn tell_pods_by_device(&mut self, part: u64) -> Result<()> {
        let tables = &mut self.host.tables;
        tables.config.flags |= ConfigFlags::PODS_BY_DEVICE;
        if part > 1 {
            tables.pod_devices.insert(DEVICE);
        }
        self.kernel.write(tables)
    }

    /// Treats the packet on both sides; what comes out, if it goes on.
    fn treat(&mut self, program: &'static str, packet: &[u8]) -> Result<Option<Vec<u8>>> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
        let nanos = Duration::from(now).as_nanos();
        self.host
            .env
            .now
            .set(Tick::from_nanos(u64::try_from(nanos)?));
        let mut bytes = packet.to_vec();
        let verdict = if program == "tc_ingress" {
            self.host.ingress(&mut bytes, DEVICE)
        } else {
            self.host.egress(&mut bytes, DEVICE)
        };
        let outcome = self
            .kernel
            .run(program, packet, 1)
            .with_context(|| format!("{program} on {}", hex(packet)))?;
        let expected = match verdict {
            Verdict::Continue => -1,
            Verdict::Drop => 2,
            Verdict::Answer | Verdict::Route | Verdict::Deliver => 7,
        };
        self.compared += 1;
        ensure!(
            outcome.code == expected,
            "{program}, packet {}: the host says {verdict:?}, the kernel {}\n{}",
            self.compared,
            outcome.code,
            hex(packet)
        );
        ensure!(
            outcome.frame[ETHERNET..] == bytes,
            "{program}, packet {}: {verdict:?}, but other bytes\nbefore {}\nhost   {}\nkernel {}",
            self.compared,
            hex(packet),
            hex(&bytes),
            hex(&outcome.frame[ETHERNET..])
        );
        let key = (program, format!("{verdict:?}"), bytes != packet);
        *self.outcomes.entry(key).or_default() += 1;
        Ok((verdict == Verdict::Continue).then_some(bytes))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A TCP, UDP or SCTP packet between two ends of one family.
fn segment(
    random: &mut Random,
    from: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
    flags: u8,
) -> Vec<u8> {
    let payload: Vec<u8> = (0..random.below(60)).map(|_| random.byte()).collect();
    if protocol == Protocol::SCTP {
        let chunk = match flags {
            2 => Sctp::INIT,
            18 => Sctp::INIT_ACK,
            flags if flags & 4 != 0 => Sctp::ABORT,
            flags if flags & 1 != 0 => Sctp::SHUTDOWN,
            _ => 0,
        };
        return craft::sctp(&from.into(), &to.into(), chunk, &payload);
    }
    let mut packet = Vec::new();
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("ends are paired by family"),
    };
    let written = if protocol == Protocol::UDP {
        builder
            .udp(from.port(), to.port())
            .write(&mut packet, &payload)
    } else {
        let mut builder = builder.tcp(from.port(), to.port(), 1000, 4096);
        if flags & 1 != 0 {
            builder = builder.fin();
        }
        if flags & 2 != 0 {
            builder = builder.syn();
        }
        if flags & 4 != 0 {
            builder = builder.rst();
        }
        if flags & 16 != 0 {
            builder = builder.ack(77);
        }
        builder.write(&mut packet, &payload)
    };
    written.expect("a vector takes everything");
    packet
}

/// Where the transport header lies in a packet of ours.
fn transport(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

/// The packet's ends and protocol, if it is a plain TCP, UDP or SCTP packet.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, Protocol)> {
    let sliced = etherparse::SlicedPacket::from_ip(packet).ok()?;
    let (source, destination) = match sliced.net? {
        etherparse::NetSlice::Ipv4(ip) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
        ),
        etherparse::NetSlice::Ipv6(ip) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
        ),
        etherparse::NetSlice::Arp(_) => return None,
    };
    let (from, to, protocol) = match sliced.transport {
        Some(etherparse::TransportSlice::Tcp(tcp)) => {
            (tcp.source_port(), tcp.destination_port(), Protocol::TCP)
        }
        Some(etherparse::TransportSlice::Udp(udp)) => {
            (udp.source_port(), udp.destination_port(), Protocol::UDP)
        }
        None if is_sctp(packet) => {
            let [a, b, c, d] = *packet[transport(packet)..].first_chunk()?;
            let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            (from, to, Protocol::SCTP)
        }
        _ => return None,
    };
    Some((
        SocketAddr::new(source, from),
        SocketAddr::new(destination, to),
        protocol,
    ))
}

/// True for whole SCTP packets without options.
fn is_sctp(packet: &[u8]) -> bool {
    if packet[0] >> 4 == 4 {
        packet[0] == 0x45 && packet[9] == Protocol::SCTP.0 && packet[6] << 2 == 0 && packet[7] == 0
    } else {
        packet[6] == Protocol::SCTP.0
    }
}

/// Makes the packet odd: IP options, an extension header, a fragment, a missing UDP checksum, noise.
fn disturb(random: &mut Random, packet: &mut Vec<u8>) {
    let (v4, at) = (packet[0] >> 4 == 4, transport(packet));
    match random.below(8) {
        0 if v4 => {
            packet.splice(20..20, [1, 1, 1, 0]);
            packet[0] = 0x46;
        }
        0 => {
            let next = std::mem::replace(&mut packet[6], 0);
            packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        }
        1 | 2 if v4 => {
            let offset = [0x2000_u16, 0x0003, 0x2003, 0x4000][random.below(4)];
            packet[4..6].copy_from_slice(&[0, u8::from(random.one_in(2))]);
            packet[6..8].copy_from_slice(&offset.to_be_bytes());
        }
        1 | 2 => {
            let next = std::mem::replace(&mut packet[6], 44);
            let offset = [0_u16, 1, 24, 25][random.below(4)].to_be_bytes();
            let id = u8::from(random.one_in(2));
            packet.splice(40..40, [next, 0, offset[0], offset[1], 0, 0, 0, id]);
        }
        3 if packet.len() > at + 8 => packet[at + 6..at + 8].fill(0),
        4 => {
            let length =
                at.min(packet.len()) + random.below(packet.len() + 1 - at.min(packet.len()));
            packet.truncate(length);
        }
        5 => packet.extend((0..random.below(20)).map(|_| 0)),
        _ => {
            for _ in 0..=random.below(3) {
                // Not the version: the kernel is told the family by the link layer.
                let place = 1 + random.below(packet.len() - 1);
                packet[place] = random.byte();
            }
        }
    }
}

/// An ICMP error from a router about a packet that was sent.
fn icmp_error(random: &mut Random, about: &[u8]) -> Vec<u8> {
    let quoted = &about[..about.len().min(transport(about) + 8 + random.below(40))];
    let mut packet = Vec::new();
    if about[0] >> 4 == 4 {
        let to: [u8; 4] = about[12..16].try_into().expect("four bytes");
        let from = if random.one_in(2) {
            [192, 0, 2, 254]
        } else {
            about[16..20].try_into().expect("four bytes")
        };
        let (kind, code) = *random.pick(&[(3, 4), (3, 1), (11, 0), (3, 3), (12, 0), (8, 0)]);
        PacketBuilder::ipv4(from, to, 64)
            .icmpv4_raw(kind, code, [0, 0, 5, 0])
            .write(&mut packet, quoted)
    } else {
        let to: [u8; 16] = about[8..24].try_into().expect("sixteen bytes");
        let from: [u8; 16] = about[24..40].try_into().expect("sixteen bytes");
        let (kind, code) = *random.pick(&[(2, 0), (1, 0), (3, 0), (1, 4), (128, 0), (135, 0)]);
        PacketBuilder::ipv6(from, to, 64)
            .icmpv6_raw(kind, code, [0, 0, 5, 0])
            .write(&mut packet, quoted)
    }
    .expect("a vector takes everything");
    packet
}

/// One conversation: a request, perhaps odd, through both hooks; then perhaps a reply, an ICMP error.
fn converse(random: &mut Random, pair: &mut Pair) -> Result<()> {
    let client: SocketAddr = random.pick(&CLIENTS).parse()?;
    let frontend = loop {
        let frontend: SocketAddr = random.pick(&FRONTENDS).parse()?;
        if frontend.is_ipv4() == client.is_ipv4() {
            break frontend;
        }
    };
    let protocol = *random.pick(&[
        Protocol::TCP,
        Protocol::TCP,
        Protocol::UDP,
        Protocol::UDP,
        Protocol::SCTP,
    ]);
    let flags = *random.pick(&[2, 2, 2, 16, 16, 16, 17, 20, 4, 18]);
    let mut request = segment(random, client, frontend, protocol, flags);
    if random.one_in(4) {
        disturb(random, &mut request);
    }
    let Some(forwarded) = pair.treat("tc_ingress", &request)? else {
        return Ok(());
    };
    if random.one_in(8) {
        return Ok(());
    }
    let Some(sent) = pair.treat("tc_egress", &forwarded)? else {
        return Ok(());
    };
    let Some((source, destination, protocol)) = ends(&sent) else {
        return Ok(());
    };
    if random.one_in(4) {
        let error = icmp_error(random, &sent);
        if let Some(error) = pair.treat("tc_ingress", &error)? {
            pair.treat("tc_egress", &error)?;
        }
    }
    if random.one_in(3) {
        return Ok(());
    }
    let flags = *random.pick(&[18, 18, 16, 16, 17, 20]);
    let mut reply = segment(random, destination, source, protocol, flags);
    if random.one_in(6) {
        disturb(random, &mut reply);
    }
    let Some(reply) = pair.treat("tc_ingress", &reply)? else {
        return Ok(());
    };
    let Some(answer) = pair.treat("tc_egress", &reply)? else {
        return Ok(());
    };
    if random.one_in(6) {
        // The client complains about the answer.
        let error = icmp_error(random, &answer);
        if let Some(error) = pair.treat("tc_ingress", &error)? {
            pair.treat("tc_egress", &error)?;
        }
    }
    Ok(())
}

/// Bytes without sense behind a first byte that says IPv4 or IPv6.
fn noise(random: &mut Random) -> Vec<u8> {
    let first = *random.pick(&[0x45, 0x45, 0x46, 0x60, 0x60, 0x4f]);
    let length = 40 + random.below(80);
    std::iter::once(first)
        .chain((1..length).map(|_| random.byte()))
        .collect()
}

#[test]
fn host_and_kernel_treat_random_packets_alike() -> Result<()> {
    lb_lab::require_root();
    let mut pair = Pair::new()?;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut parts = 0;
    while pair.compared < PACKETS {
        if pair.compared > (parts + 1) * PACKETS / 4 {
            parts += 1;
            pair.tell_pods_by_device(parts)?;
        }
        if random.one_in(20) {
            let packet = noise(&mut random);
            let program = *random.pick(&["tc_ingress", "tc_egress"]);
            pair.treat(program, &packet)?;
        } else {
            converse(&mut random, &mut pair)?;
        }
    }
    for ((program, verdict, changed), count) in &pair.outcomes {
        let changed = if *changed { "changed" } else { "as it was" };
        println!("{program:12} {verdict:10} {changed:10} {count}");
    }
    for reason in Reason::ALL {
        let host = pair.host.tables.reasons.borrow()[reason as usize];
        let kernel = pair.kernel.reason(reason)?;
        println!("{:32} {host}", reason.name());
        assert_eq!(kernel, host, "counted {}", reason.name());
    }
    Ok(())
}

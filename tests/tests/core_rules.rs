//! The rules of the packet path, one by one, in the kernel: packets pushed through the real programs
//! by `BPF_PROG_TEST_RUN` come out as the rule says. What is expected is written down here; the host's
//! core is not asked (that is what `packet_path` and `differential` do), so that a rule which both have
//! lost is missed.

use anyhow::{Result, bail};
use lb_common::addr::{Endpoint, Port, Prefix, Protocol, ServiceId};
use lb_common::host::HostTables;
use lb_common::host::craft::{flaw, icmp_error, repair, tcp, udp};
use lb_common::table::{AddressBits, ConfigFlags, FrontendKind, LocalAddress, ServiceFlags};
use lb_common::verdict::Reason;
use lb_common::wire::TcpFlags;
use lb_lab::Lab;
use lb_tests::object::Object;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

const CLIENT: &str = "192.0.2.9:40000";
const POD: &str = "10.1.0.50:40000";
const NODE: &str = "10.0.0.1:0";
const CLUSTER_IP: &str = "10.96.0.10:80";
const EXTERNAL_IP: &str = "198.51.100.9:80";
const NODE_PORT: &str = "10.0.0.1:30080";
const HERE: &str = "10.1.0.7:8080";
const ELSEWHERE: &str = "10.2.0.7:8080";

fn end(text: &str) -> Endpoint {
    let socket: SocketAddr = text.parse().expect("a literal end");
    socket.into()
}

/// What became of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Fate {
    /// It goes on, between these ends.
    Goes(SocketAddr, SocketAddr),
    Refused,
    Dropped,
}

/// It goes on, between these ends.
fn goes(from: &str, to: &str) -> Fate {
    let parsed = |text: &str| text.parse().expect("a literal end");
    Fate::Goes(parsed(from), parsed(to))
}

/// One service at every kind of frontend, in the kernel.
struct Kernel {
    object: Object,
    tables: HostTables,
    service: ServiceId,
    next_port: u16,
}

impl Kernel {
    /// Backends here and elsewhere; pods have addresses in 10.1.0.0/16.
    fn new(flags: u32) -> Result<Self> {
        Self::with_backends(flags, &[(HERE, true), (ELSEWHERE, false)])
    }

    fn with_backends(flags: u32, backends: &[(&str, bool)]) -> Result<Self> {
        lb_lab::require_root();
        let mut tables = HostTables::of_node();
        let service = tables.add_service(flags, 0);
        for protocol in [Protocol::TCP, Protocol::UDP] {
            for (frontend, kind) in [
                (CLUSTER_IP, FrontendKind::ClusterIp),
                (EXTERNAL_IP, FrontendKind::ExternalIp),
            ] {
                tables.add_frontend(service, &end(frontend), protocol, kind);
            }
            let node_port = end(NODE_PORT);
            tables.add_node_port(service, &node_port.addr, node_port.port, protocol);
        }
        for (backend, local) in backends {
            tables.add_backend(service, &end(backend), Protocol::TCP, *local);
            // One backend for both protocols.
            let (keys, end) = (tables.config.hash_keys, end(backend));
            let bits = AddressBits::of_backend(&keys, &end.addr, end.port, Protocol::UDP);
            std::sync::Arc::make_mut(&mut tables.bits).add(bits);
        }
        tables.add_node_address(NODE.parse::<SocketAddr>()?.ip());
        tables.config.flags |= ConfigFlags::DETECT_PODS_V4;
        tables.config.pods_v4 = Prefix::new("10.1.0.0".parse()?, 16);
        let mut kernel = Self {
            object: Object::load(1024)?,
            tables,
            service,
            next_port: 20_000,
        };
        kernel.tables.config.flow_mask = 1023;
        kernel.write()?;
        Ok(kernel)
    }

    fn write(&mut self) -> Result<()> {
        self.object.write(&self.tables)
    }

    fn run(&mut self, program: &str, packet: &[u8]) -> Result<Fate> {
        let outcome = self.object.run(program, packet, 1)?;
        let packet = &outcome.frame[14..];
        Ok(match outcome.code {
            -1 => {
                assert_eq!(flaw(packet), None);
                ends(packet)
            }
            2 => Fate::Dropped,
            7 => Fate::Refused,
            other => bail!("{program} returned {other}"),
        })
    }

    /// A packet arrives.
    fn arrives(&mut self, packet: &[u8]) -> Result<Fate> {
        self.run("tc_ingress", packet)
    }

    /// A packet leaves.
    fn leaves(&mut self, packet: &[u8]) -> Result<Fate> {
        self.run("tc_egress", packet)
    }

    /// Every backend that many connections of this client reach, and with which source addresses.
    fn reached(&mut self, from: &str, to: &str) -> Result<(BTreeSet<String>, BTreeSet<IpAddr>)> {
        let (mut backends, mut sources) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..40 {
            let mut from = end(from);
            from.port = Port::new(self.next_port);
            self.next_port += 1;
            let Fate::Goes(_, backend) = self.arrives(&syn(&from, &end(to)))? else {
                bail!("a connection to {to} was not translated");
            };
            let translated = syn(&from, &end(&backend.to_string()));
            let Fate::Goes(source, _) = self.leaves(&translated)? else {
                bail!("a connection to {to} did not leave");
            };
            backends.insert(backend.to_string());
            sources.insert(source.ip());
        }
        Ok((backends, sources))
    }

    fn reason(&mut self, reason: Reason) -> Result<u64> {
        self.object.reason(reason)
    }
}

fn syn(from: &Endpoint, to: &Endpoint) -> Vec<u8> {
    tcp(from, to, TcpFlags::SYN, b"")
}

fn segment(from: &str, to: &str, flags: u8) -> Vec<u8> {
    tcp(&end(from), &end(to), flags, b"data")
}

/// The ends of an IPv4 packet without options.
fn ends(packet: &[u8]) -> Fate {
    let at = |address: usize, port: usize| {
        let ip: [u8; 4] = packet[address..address + 4].try_into().expect("four bytes");
        SocketAddr::from((ip, u16::from_be_bytes([packet[port], packet[port + 1]])))
    };
    Fate::Goes(at(12, 20), at(16, 22))
}

fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

fn both() -> BTreeSet<String> {
    set([HERE.to_owned(), ELSEWHERE.to_owned()])
}

fn only(address: &str) -> BTreeSet<IpAddr> {
    let socket: SocketAddr = address.parse().expect("a literal end");
    set([socket.ip()])
}

#[test]
fn internal_policy_local_keeps_connections_on_the_node() -> Result<()> {
    let mut k = Kernel::new(ServiceFlags::INTERNAL_LOCAL)?;
    assert_eq!(k.reached(POD, CLUSTER_IP)?.0, set([HERE.to_owned()]));
    assert_eq!(k.reached(POD, EXTERNAL_IP)?.0, both());
    Ok(())
}

#[test]
fn a_cluster_ip_masquerades_all_but_pods() -> Result<()> {
    let mut k = Kernel::new(0)?;
    assert_eq!(k.reached(POD, CLUSTER_IP)?, (both(), only(POD)));
    assert_eq!(k.reached(CLIENT, CLUSTER_IP)?, (both(), only(NODE)));
    Ok(())
}

#[test]
fn pods_may_be_told_by_the_device_that_their_packets_come_in_by() -> Result<()> {
    let mut k = Kernel::new(ServiceFlags::EXTERNAL_LOCAL)?;
    k.tables.config.flags |= ConfigFlags::PODS_BY_DEVICE;
    k.tables.config.pods_v4 = Prefix::new("0.0.0.0".parse()?, 0);
    k.write()?;
    assert_eq!(k.reached(POD, CLUSTER_IP)?, (both(), only(NODE)));
    assert_eq!(k.reached(POD, EXTERNAL_IP)?.0, set([HERE.to_owned()]));
    // The device that packets of a test run come in by.
    k.tables.pod_devices.insert(1);
    k.write()?;
    for source in [POD, CLIENT] {
        assert_eq!(k.reached(source, CLUSTER_IP)?, (both(), only(source)));
        assert_eq!(k.reached(source, EXTERNAL_IP)?, (both(), only(source)));
    }
    Ok(())
}

#[test]
fn external_policy_cluster_masquerades_everybody() -> Result<()> {
    let mut k = Kernel::new(0)?;
    for to in [EXTERNAL_IP, NODE_PORT] {
        assert_eq!(k.reached(POD, to)?, (both(), only(NODE)));
        assert_eq!(k.reached(CLIENT, to)?, (both(), only(NODE)));
    }
    Ok(())
}

#[test]
fn external_policy_local_is_for_clients_outside_and_masquerades_nobody_but_the_node() -> Result<()>
{
    let mut k = Kernel::new(ServiceFlags::EXTERNAL_LOCAL)?;
    let here = set([HERE.to_owned()]);
    assert_eq!(k.reached(CLIENT, EXTERNAL_IP)?, (here, only(CLIENT)));
    assert_eq!(k.reached(POD, EXTERNAL_IP)?, (both(), only(POD)));
    assert_eq!(k.reached(NODE, EXTERNAL_IP)?, (both(), only(NODE)));
    Ok(())
}

#[test]
fn a_guarded_address_is_for_its_source_ranges_alone() -> Result<()> {
    let mut k = Kernel::new(0)?;
    let guarded = "198.51.100.10:80";
    let ranges = [Prefix::new("192.0.2.0".parse()?, 24)];
    (k.tables).add_guarded_frontend(k.service, &end(guarded), Protocol::TCP, &ranges);
    k.write()?;
    assert_eq!(k.reached(CLIENT, guarded)?.0, both());
    let other = syn(&end("203.0.113.9:40000"), &end(guarded));
    assert_eq!(k.arrives(&other)?, Fate::Dropped);
    assert_eq!(k.reason(Reason::DroppedSourceRange)?, 1);
    Ok(())
}

#[test]
fn nobody_here_is_silence_and_nobody_anywhere_a_refusal() -> Result<()> {
    let mut k = Kernel::with_backends(ServiceFlags::EXTERNAL_LOCAL, &[(ELSEWHERE, false)])?;
    let request = syn(&end(CLIENT), &end(EXTERNAL_IP));
    assert_eq!(k.arrives(&request)?, Fate::Dropped);
    let mut k = Kernel::with_backends(ServiceFlags::EXTERNAL_LOCAL, &[])?;
    assert_eq!(k.arrives(&request)?, Fate::Refused);
    // A reset is never answered by a reset, and refuses nothing that has begun.
    let reset = segment(CLIENT, EXTERNAL_IP, TcpFlags::RST);
    assert_eq!(k.arrives(&reset)?, goes(CLIENT, EXTERNAL_IP));
    Ok(())
}

#[test]
fn an_endpoint_that_reaches_itself_is_masqueraded_if_it_is_here() -> Result<()> {
    for (backend, local, seen) in [(HERE, true, NODE), ("10.1.9.7:8080", false, "10.1.9.7:0")] {
        let mut k = Kernel::with_backends(0, &[(backend, local)])?;
        let backends = set([backend.to_owned()]);
        assert_eq!(k.reached(backend, CLUSTER_IP)?, (backends, only(seen)));
    }
    Ok(())
}

#[test]
fn only_what_opens_a_connection_is_balanced_or_refused() -> Result<()> {
    let mut k = Kernel::new(0)?;
    k.tables.add_any_port(end(CLUSTER_IP).addr);
    let undefined = "10.96.0.10:81";
    k.tables.add_any_port(end(NODE).addr);
    k.write()?;
    for to in [CLUSTER_IP, undefined] {
        let late = segment(CLIENT, to, TcpFlags::ACK);
        assert_eq!(k.arrives(&late)?, goes(CLIENT, to));
    }
    assert_eq!(k.reason(Reason::MidFlowWithoutRecord)?, 1);
    let request = |to: &str| syn(&end(CLIENT), &end(to));
    assert_eq!(k.arrives(&request(undefined))?, Fate::Refused);
    // What somebody serves on an address of the node itself is not ours to refuse.
    let own = "10.0.0.1:81";
    assert_eq!(k.arrives(&request(own))?, goes(CLIENT, own));
    Ok(())
}

#[test]
fn node_ports_are_served_on_the_addresses_that_are_chosen_for_them() -> Result<()> {
    let mut k = Kernel::new(0)?;
    let ip: IpAddr = "10.0.0.2".parse()?;
    k.tables.local.insert(ip.into(), LocalAddress { flags: 0 });
    k.write()?;
    let other = "10.0.0.2:30080";
    let request = syn(&end(CLIENT), &end(other));
    assert_eq!(k.arrives(&request)?, goes(CLIENT, other));
    assert_eq!(k.reached(CLIENT, NODE_PORT)?.0, both());
    Ok(())
}

#[test]
fn datagrams_leave_a_backend_that_is_gone_and_connections_stay() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    let datagram = udp(&end(POD), &end(CLUSTER_IP), b"data");
    let (first, later) = (
        segment(POD, CLUSTER_IP, TcpFlags::SYN),
        segment(POD, CLUSTER_IP, TcpFlags::ACK),
    );
    for packet in [&datagram, &first] {
        assert_eq!(k.arrives(packet)?, goes(POD, HERE));
    }
    let gone = lb_common::addr::BackendId(1);
    let service = k.service;
    (k.tables).add_backend(service, &end(ELSEWHERE), Protocol::TCP, false);
    k.tables.remove_backend(gone);
    k.write()?;
    assert_eq!(k.arrives(&datagram)?, goes(POD, ELSEWHERE));
    assert_eq!(k.arrives(&later)?, goes(POD, HERE));
    // A new attempt goes to whoever is there.
    assert_eq!(k.arrives(&first)?, goes(POD, ELSEWHERE));
    assert_eq!(k.reason(Reason::MovedFromGoneBackend)?, 1);
    assert_eq!(k.reason(Reason::Rebalanced)?, 1);
    Ok(())
}

#[test]
fn a_connection_opened_on_the_ends_of_a_closing_one_is_a_new_one() -> Result<()> {
    for closing in [TcpFlags::FIN | TcpFlags::ACK, TcpFlags::RST] {
        let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
        let request = segment(POD, CLUSTER_IP, TcpFlags::SYN);
        k.arrives(&request)?;
        k.leaves(&segment(HERE, POD, TcpFlags::SYN | TcpFlags::ACK))?;
        k.arrives(&request)?;
        assert_eq!(k.reason(Reason::Opened)?, 1, "a retransmission");
        let end = k.leaves(&segment(HERE, POD, closing))?;
        assert_eq!(end, goes(CLUSTER_IP, POD));
        k.arrives(&request)?;
        assert_eq!(k.reason(Reason::Rebalanced)?, 1);
        assert_eq!(k.reason(Reason::Opened)?, 2);
    }
    Ok(())
}

#[test]
fn two_frontends_of_one_backend_asked_from_one_port_are_told_apart() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    let second = "10.96.0.11:80";
    (k.tables).add_frontend(
        k.service,
        &end(second),
        Protocol::TCP,
        FrontendKind::ClusterIp,
    );
    k.write()?;
    let opened = k.arrives(&segment(POD, CLUSTER_IP, TcpFlags::SYN))?;
    assert_eq!(opened, goes(POD, HERE));
    let Fate::Goes(other, to) = k.arrives(&segment(POD, second, TcpFlags::SYN))? else {
        bail!("the second connection was not translated");
    };
    assert_eq!(to, HERE.parse()?);
    assert_eq!(other.ip(), POD.parse::<SocketAddr>()?.ip());
    assert_ne!(other, POD.parse()?);
    let answer = TcpFlags::SYN | TcpFlags::ACK;
    assert_eq!(
        k.leaves(&segment(HERE, POD, answer))?,
        goes(CLUSTER_IP, POD)
    );
    let reply = segment(HERE, &other.to_string(), answer);
    // It passes ingress as it is, and both its ends are translated in one step.
    assert_eq!(k.arrives(&reply)?, goes(HERE, &other.to_string()));
    assert_eq!(k.leaves(&reply)?, goes(second, POD));
    Ok(())
}

#[test]
fn tcp_and_udp_between_the_same_ends_are_two_conversations() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    assert_eq!(
        k.arrives(&segment(POD, CLUSTER_IP, TcpFlags::SYN))?,
        goes(POD, HERE)
    );
    // Nothing was sent over UDP yet: what seems to be an answer is none.
    let answer = udp(&end(HERE), &end(POD), b"data");
    assert_eq!(k.leaves(&answer)?, goes(HERE, POD));
    assert_eq!(
        k.arrives(&udp(&end(POD), &end(CLUSTER_IP), b"data"))?,
        goes(POD, HERE)
    );
    assert_eq!(k.reason(Reason::Opened)?, 2);
    assert_eq!(k.leaves(&answer)?, goes(CLUSTER_IP, POD));
    Ok(())
}

#[test]
fn a_client_that_talks_to_the_backend_itself_is_not_masqueraded() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    let opening = segment(CLIENT, HERE, TcpFlags::SYN);
    k.arrives(&segment(CLIENT, NODE_PORT, TcpFlags::SYN))?;
    let Fate::Goes(snat, _) = k.leaves(&opening)? else {
        bail!("the request did not leave");
    };
    assert_eq!(snat.ip(), NODE.parse::<SocketAddr>()?.ip());
    let snat = snat.to_string();
    let reset = segment(HERE, &snat, TcpFlags::RST);
    assert_eq!(k.arrives(&reset)?, goes(HERE, CLIENT));
    let reset = segment(HERE, CLIENT, TcpFlags::RST);
    assert_eq!(k.leaves(&reset)?, goes(NODE_PORT, CLIENT));
    assert_eq!(k.leaves(&opening)?, goes(CLIENT, HERE));
    Ok(())
}

#[test]
fn a_half_closed_conversation_keeps_its_port_and_one_that_is_over_gives_it_back() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    let other = segment(CLIENT, EXTERNAL_IP, TcpFlags::SYN);
    let fin = TcpFlags::FIN | TcpFlags::ACK;
    k.arrives(&segment(CLIENT, NODE_PORT, TcpFlags::SYN))?;
    k.leaves(&segment(CLIENT, HERE, TcpFlags::SYN))?;
    // Masqueraded both, they would be alike at egress.
    assert_eq!(k.arrives(&other)?, Fate::Dropped);
    k.arrives(&segment(CLIENT, NODE_PORT, fin))?;
    assert_eq!(k.arrives(&other)?, Fate::Dropped);
    k.leaves(&segment(HERE, CLIENT, fin))?;
    assert_eq!(k.arrives(&other)?, goes(CLIENT, HERE));
    Ok(())
}

#[test]
fn icmp_that_is_no_error_is_nobody_s_flow() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    k.arrives(&segment(POD, CLUSTER_IP, TcpFlags::SYN))?;
    let quoted = segment(POD, HERE, TcpFlags::SYN);
    let from: IpAddr = "10.1.0.7".parse()?;
    let to: IpAddr = "10.1.0.50".parse()?;
    for (kind, translated) in [(8, false), (3, true)] {
        let packet = icmp_error(&from.into(), &to.into(), kind, 3, &quoted, 40);
        let source = match k.leaves(&packet)? {
            Fate::Goes(source, _) => source.ip(),
            other => bail!("{other:?}"),
        };
        let frontend: SocketAddr = CLUSTER_IP.parse()?;
        assert_eq!(source == frontend.ip(), translated, "ICMP type {kind}");
    }
    Ok(())
}

#[test]
fn later_fragments_follow_the_first_one() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    let whole = udp(&end(POD), &end(CLUSTER_IP), &[7; 56]);
    let part = |from: usize, to: usize, more: bool| {
        let mut packet = whole[..20].to_vec();
        packet.extend(&whole[20 + from..20 + to]);
        let length = u16::try_from(packet.len()).unwrap_or(0);
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        let field = u16::try_from(from / 8).unwrap_or(0) | if more { 0x2000 } else { 0 };
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        repair(&mut packet);
        packet
    };
    // The first one's checksum is over the whole datagram: it is not looked at here.
    let to = |frame: &[u8]| frame[14 + 16..14 + 20].to_vec();
    let backend = vec![10, 1, 0, 7];
    let first = k.object.run("tc_ingress", &part(0, 32, true), 1)?;
    assert_eq!((first.code, to(&first.frame)), (-1, backend.clone()));
    let later = k.object.run("tc_ingress", &part(32, 64, false), 1)?;
    assert_eq!((later.code, to(&later.frame)), (-1, backend));
    Ok(())
}

#[test]
fn a_datagram_for_a_socket_of_the_node_is_no_request() -> Result<()> {
    let mut k = Kernel::with_backends(0, &[(HERE, true)])?;
    let lab = Lab::new(&[])?;
    let wire = lab.wire();
    wire.ip("addr add 10.0.0.1/32 dev lo")?;
    let datagram = udp(&end(CLIENT), &end(NODE_PORT), b"data");
    // A test run belongs to the namespace of the thread that asks for it.
    let fate = wire.enter(|| -> Result<Fate> {
        let _socket = UdpSocket::bind(NODE_PORT)?;
        k.arrives(&datagram)
    })??;
    assert_eq!(fate, goes(CLIENT, NODE_PORT));
    let fate = wire.enter(|| k.arrives(&datagram))??;
    assert_eq!(fate, goes(CLIENT, HERE));
    Ok(())
}

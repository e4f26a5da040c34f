//! The packet path in the kernel: the object loads, and packets pushed through its programs come
//! out byte for byte as the host's core says.

use anyhow::Result;
use lb_common::addr::{BackendId, Endpoint, Port, Protocol, ServiceId};
use lb_common::host::craft::{flaw, icmp_error, sctp, tcp, udp};
use lb_common::host::{HostTables, PacketWorld};
use lb_common::table::FrontendKind;
use lb_common::verdict::{Reason, Verdict};
use lb_common::wire::{Sctp, TcpFlags};
use lb_tests::object::{Object, PROGRAMS};
use std::net::{IpAddr, SocketAddr};

/// Buckets of the flow table, here and in the host's world.
const BUCKETS: u32 = 1024;
const CONTINUE: i32 = -1;
const REDIRECT: i32 = 7;

#[test]
fn every_program_of_the_packet_path_passes_the_verifier() -> Result<()> {
    lb_lab::require_root();
    let mut object = Object::load(BUCKETS)?;
    for program in PROGRAMS {
        let count = object.verified_instructions(program)?;
        println!("{program}: {count} instructions verified");
    }
    Ok(())
}

fn end(ip: &str, port: u16) -> Endpoint {
    let ip: IpAddr = ip.parse().expect("a literal address");
    SocketAddr::new(ip, port).into()
}

/// One service with one backend, in the kernel and on the host.
struct Twins {
    object: Object,
    world: PacketWorld,
    protocol: Protocol,
    client: Endpoint,
    node: Endpoint,
    cluster_ip: Endpoint,
    backend: Endpoint,
}

impl Twins {
    fn new(v6: bool, protocol: Protocol) -> Result<Self> {
        let addr = |v4: &str, v6_text: &str, port| end(if v6 { v6_text } else { v4 }, port);
        let client = addr("192.0.2.9", "2001:db8::9", 40_000);
        let node = addr("10.0.0.1", "fd00::1", 30_080);
        let cluster_ip = addr("10.96.0.10", "fd00:96::10", 80);
        let backend = addr("10.1.0.7", "fd00:1::7", 8080);
        let mut tables = HostTables::of_node();
        let service = tables.add_service(0, 0);
        tables.add_backend(service, &backend, protocol, true);
        tables.add_frontend(service, &cluster_ip, protocol, FrontendKind::ClusterIp);
        tables.add_node_port(service, &node.addr, node.port, protocol);
        tables.add_node_address(node.addr.into());
        let world = PacketWorld::new(tables, 1);
        let mut object = Object::load(BUCKETS)?;
        object.write(&world.tables)?;
        Ok(Self {
            object,
            world,
            protocol,
            client,
            node,
            cluster_ip,
            backend,
        })
    }

    fn packet(&self, from: &Endpoint, to: &Endpoint, flags: u8) -> Vec<u8> {
        if self.protocol == Protocol::TCP {
            tcp(from, to, flags, b"some data")
        } else if self.protocol == Protocol::SCTP {
            let chunk = if flags == TcpFlags::SYN {
                Sctp::INIT
            } else {
                0
            };
            sctp(from, to, chunk, b"some data")
        } else {
            udp(from, to, b"some data")
        }
    }

    /// Pushes a packet through both, demands the same result, and returns it.
    fn push(&mut self, ingress: bool, packet: &[u8]) -> Result<Vec<u8>> {
        let mut expected = packet.to_vec();
        let (program, verdict) = if ingress {
            ("tc_ingress", self.world.ingress(&mut expected, 1))
        } else {
            ("tc_egress", self.world.egress(&mut expected, 1))
        };
        let outcome = self.object.run(program, packet, 1)?;
        assert_eq!(verdict, Verdict::Continue);
        assert_eq!(outcome.code, CONTINUE, "{program}");
        assert_eq!(outcome.frame[14..], expected, "{program}");
        assert_eq!(flaw(&expected), None, "{program}");
        Ok(expected)
    }
}

/// Runs a test for both families and both protocols.
fn everywhere(test: impl Fn(Twins) -> Result<()>) -> Result<()> {
    lb_lab::require_root();
    for v6 in [false, true] {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            test(Twins::new(v6, protocol)?)?;
        }
    }
    Ok(())
}

#[test]
fn a_conversation_with_a_cluster_ip_is_translated_as_on_the_host() -> Result<()> {
    everywhere(|mut t| {
        let (client, frontend, backend) = (t.client, t.cluster_ip, t.backend);
        let request = t.push(true, &t.packet(&client, &frontend, TcpFlags::SYN))?;
        assert_eq!(request, t.packet(&client, &backend, TcpFlags::SYN));
        t.push(false, &request)?;
        let reply = t.packet(&backend, &client, TcpFlags::SYN | TcpFlags::ACK);
        let reply = t.push(true, &reply)?;
        let reply = t.push(false, &reply)?;
        assert_eq!(
            reply,
            t.packet(&frontend, &client, TcpFlags::SYN | TcpFlags::ACK)
        );
        t.push(true, &t.packet(&client, &frontend, TcpFlags::ACK))?;
        assert_eq!(t.object.reason(Reason::Opened)?, 1);
        Ok(())
    })
}

#[test]
fn a_conversation_with_a_node_port_is_masqueraded_as_on_the_host() -> Result<()> {
    everywhere(|mut t| {
        let (client, frontend, backend) = (t.client, t.node, t.backend);
        for flags in [TcpFlags::SYN, TcpFlags::ACK] {
            let request = t.push(true, &t.packet(&client, &frontend, flags))?;
            let request = t.push(false, &request)?;
            let snat = Endpoint {
                addr: t.node.addr,
                port: Port::new(if v4(&request) {
                    u16::from_be_bytes([request[20], request[21]])
                } else {
                    u16::from_be_bytes([request[40], request[41]])
                }),
            };
            assert_eq!(request, t.packet(&snat, &backend, flags));
            let reply = t.packet(&backend, &snat, TcpFlags::ACK);
            let reply = t.push(true, &reply)?;
            let reply = t.push(false, &reply)?;
            assert_eq!(reply, t.packet(&frontend, &client, TcpFlags::ACK));
        }
        Ok(())
    })
}

#[test]
fn a_client_s_port_is_free_for_another_frontend_once_its_conversation_is_over() -> Result<()> {
    lb_lab::require_root();
    for v6 in [false, true] {
        let mut t = Twins::new(v6, Protocol::TCP)?;
        let (client, node, backend) = (t.client, t.node, t.backend);
        let external = end(if v6 { "2001:db8:9::9" } else { "198.51.100.9" }, 80);
        let kind = FrontendKind::ExternalIp;
        (t.world.tables).add_frontend(ServiceId(1), &external, Protocol::TCP, kind);
        t.object.write(&t.world.tables)?;
        t.push(true, &t.packet(&client, &node, TcpFlags::SYN))?;
        t.push(false, &t.packet(&client, &backend, TcpFlags::SYN))?;
        let fin = TcpFlags::FIN | TcpFlags::ACK;
        t.push(true, &t.packet(&client, &node, fin))?;
        t.push(false, &t.packet(&backend, &client, fin))?;
        let request = t.push(true, &t.packet(&client, &external, TcpFlags::SYN))?;
        assert_eq!(request, t.packet(&client, &backend, TcpFlags::SYN));
        let reply = t.push(false, &t.packet(&backend, &client, TcpFlags::ACK))?;
        assert_eq!(reply, t.packet(&external, &client, TcpFlags::ACK));
    }
    Ok(())
}

fn v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}
/// Pushes a packet that is refused through both and demands the same answer.
fn refuse(t: &mut Twins, packet: &[u8]) -> Result<()> {
    let mut expected = packet.to_vec();
    assert_eq!(t.world.ingress(&mut expected, 1), Verdict::Answer);
    let outcome = t.object.run("tc_ingress", packet, 1)?;
    assert_eq!(outcome.code, REDIRECT);
    assert_eq!(outcome.frame[14..], expected);
    // The neighbours have changed places.
    assert_eq!(outcome.frame[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    assert_eq!(flaw(&expected), None);
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_as_on_the_host() -> Result<()> {
    everywhere(|mut t| {
        t.world.tables.remove_backend(BackendId(1));
        t.object.write(&t.world.tables)?;
        let packet = t.packet(&t.client, &t.cluster_ip, TcpFlags::SYN);
        refuse(&mut t, &packet)
    })
}

#[test]
fn icmp_errors_are_translated_as_on_the_host() -> Result<()> {
    everywhere(|mut t| {
        let (client, frontend) = (t.client, t.node);
        let request = t.push(true, &t.packet(&client, &frontend, TcpFlags::SYN))?;
        let masqueraded = t.push(false, &request)?;
        let router = end(
            if v4(&request) {
                "172.16.0.1"
            } else {
                "fd00:5::1"
            },
            0,
        )
        .addr;
        let (kind, code) = if v4(&request) { (3, 4) } else { (2, 0) };
        for quoted in [48, 200] {
            let to = t.node.addr;
            let error = icmp_error(&router, &to, kind, code, &masqueraded, quoted);
            let error = t.push(true, &error)?;
            t.push(false, &error)?;
            let reply = t.packet(&frontend, &client, TcpFlags::ACK);
            let error = icmp_error(&router, &to, kind, code, &reply, quoted);
            let error = t.push(true, &error)?;
            t.push(false, &error)?;
        }
        assert_eq!(t.object.reason(Reason::IcmpErrorTranslated)?, 8);
        assert_eq!(
            t.world.tables.reasons.borrow()[Reason::IcmpErrorTranslated as usize],
            8
        );
        Ok(())
    })
}

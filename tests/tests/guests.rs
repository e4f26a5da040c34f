//! Others on the node that serve addresses of their own: NodeLocal DNSCache, portmap's host ports,
//! sockets of the host in the node port range, sidecars that redirect.

use anyhow::{Context, Result, ensure};
use lb_lab::{Place, PodNetwork, Process, Server, client};
use lb_tests::attempt::soon;
use lb_tests::paths;
use lb_tests::raw;
use lb_tests::shapes::BRIDGE;
use lb_tests::stage::{ServiceSpec, Stage, TARGET_PORT};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

const MODES: [&str; 2] = ["all", "off"];

/// Who answers, over TCP and UDP alike.
fn answered_by(from: &Place, server: SocketAddr) -> Result<String> {
    let (tcp, udp) = (from.ask_tcp(server)?, from.ask_udp(server, 64)?);
    ensure!(tcp.name == udp.name, "{server}: {tcp} and {udp}");
    Ok(tcp.name)
}

/// A cache that answers at this very address, over TCP and UDP.
fn cache(node: &Place, at: SocketAddr) -> Result<Process> {
    let text = move |peer: SocketAddr| format!("name=cache peer={peer} local={at}\n");
    Process::start(node, move |ready| {
        let (streams, datagrams) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
        ready.tell()?;
        std::thread::spawn(move || {
            for stream in streams.incoming().flatten() {
                let Ok(peer) = stream.peer_addr() else {
                    continue;
                };
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                let _ = (&stream).write_all(text(peer).as_bytes());
            }
        });
        let mut buffer = [0; 2048];
        loop {
            let (length, peer) = datagrams.recv_from(&mut buffer)?;
            let answer = format!("{:length$}", text(peer));
            datagrams.send_to(answer.as_bytes(), peer)?;
        }
    })
}

#[test]
fn a_cluster_ip_that_a_dns_cache_has_on_a_device_stays_the_hosts() -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::new(PodNetwork::Routed)?;
        let dns = ServiceSpec::new("kube-dns", 10, &["c"]);
        stage.apply(&dns)?;
        stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
        let node = stage.lab.node(0);
        let pod = stage.pod("a").place();
        // A veth stands in for a dummy.
        node.namespace().ip_batch(
            "link add nodelocaldns type veth peer name nodelocalpeer\nlink set nodelocaldns up\n",
        )?;
        for server in dns.cluster_ips() {
            ensure!(answered_by(pod, server)? == "c", "{mode}: before the cache");
            let address = server.ip();
            let host = if address.is_ipv4() { "32" } else { "128 nodad" };
            node.namespace()
                .ip(&format!("addr add {address}/{host} dev nodelocaldns"))?;
            let _cache = cache(node.place(), server)?;
            for from in [pod, node.place()] {
                soon(&format!("{mode}: the cache answers at {server}"), || {
                    let name = answered_by(from, server)?;
                    ensure!(name == "cache", "answered by {name}");
                    Ok(())
                })?;
            }
            let page = stage.agents[0].metrics(node)?;
            let series = "lb_refused_objects{reason=\"address_of_this_node\"}";
            ensure!(page.contains(series), "{mode}: not reported:\n{page}");
            node.namespace().ip(&format!(
                "addr del {address}/{} dev nodelocaldns",
                host.split(' ').next().unwrap_or(host)
            ))?;
            soon(&format!("{mode}: the cache is gone from {server}"), || {
                let name = answered_by(pod, server)?;
                ensure!(name == "c", "answered by {name}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// CNI-HOSTPORT-DNAT and what goes with it, as the portmap plugin writes them.
fn host_port(pod: std::net::Ipv4Addr) -> String {
    format!(
        "table ip nat {{
            chain PREROUTING {{
                type nat hook prerouting priority dstnat; policy accept;
                fib daddr type local jump CNI-HOSTPORT-DNAT
            }}
            chain OUTPUT {{
                type nat hook output priority -100; policy accept;
                fib daddr type local jump CNI-HOSTPORT-DNAT
            }}
            chain CNI-HOSTPORT-DNAT {{
                tcp dport 8888 jump CNI-DN-1
                udp dport 8888 jump CNI-DN-1
            }}
            chain CNI-DN-1 {{
                ip saddr 10.244.1.0/24 meta mark set meta mark | 0x2000
                ip saddr 127.0.0.1 meta mark set meta mark | 0x2000
                ip protocol tcp dnat to {pod}:{TARGET_PORT}
                ip protocol udp dnat to {pod}:{TARGET_PORT}
            }}
            chain CNI-HOSTPORT-MASQ {{
                type nat hook postrouting priority 99; policy accept;
                meta mark & 0x2000 == 0x2000 masquerade
            }}
        }}\n"
    )
}

#[test]
fn host_ports_of_the_portmap_plugin_work_beside_us() -> Result<()> {
    for mode in MODES {
        let mut stage = BRIDGE.stage()?;
        let node = stage.lab.node(0);
        node.namespace().nft(&host_port(stage.pod("b").v4()))?;
        let server = SocketAddr::from((stage.lab.node_addresses(0)[0], 8888));
        ensure!(
            answered_by(stage.client.place(), server)? == "b",
            "without an agent"
        );
        stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
        let node = stage.lab.node(0);
        for from in [stage.client.place(), stage.pod("a").place(), node.place()] {
            let name = answered_by(from, server).with_context(|| format!("{mode}: {from:?}"))?;
            ensure!(name == "b", "{mode}: {name}");
        }
        // And node ports beside them.
        let near = stage.node_port(0, paths::NEAR)[0];
        ensure!(
            answered_by(stage.client.place(), near)? == "b",
            "{mode}: node port"
        );
    }
    Ok(())
}

#[test]
fn tcp_of_a_host_socket_in_the_node_port_range_gets_its_answers() -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::new(PodNetwork::Routed)?;
        stage.apply(&ServiceSpec::new("web", 10, &["a", "c"]).node_port(30080))?;
        stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
        let _server = Server::start(stage.client.place(), "outside", 9000)?;
        for to in [stage.client.v4().into(), IpAddr::from(stage.client.v6())] {
            let to = SocketAddr::from((to, 9000));
            let name = stage.lab.node(0).place().call(|| {
                // The node port of the service, as the port of the host's own connection.
                let socket = raw::tcp(to)?;
                let any: IpAddr = if to.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                // The other family's connection from this port may not be forgotten yet.
                raw::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
                raw::bind(&socket, (any, 30080).into())?;
                raw::connect(&socket, to)?;
                Ok(client::ask(&TcpStream::from(socket))?.name)
            })?;
            ensure!(name == "outside", "{mode}: {name}");
        }
    }
    Ok(())
}

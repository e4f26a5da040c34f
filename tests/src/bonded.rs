//! An uplink as larger machines have it: two cables, a bond of them, and a VLAN on the bond. A packet
//! meets the hooks of three devices on its way in and on its way out.
//!
//! What may not live here: the agent's options, and what other kinds of uplinks do.

use crate::attempt::soon;
use crate::stage::{CLUSTER_CIDRS, ServiceSpec, Stage, TARGET_PORT};
use anyhow::{Context, Result, ensure};
use lb_lab::{Agent, Answer, Namespace, Offload, Place, Server, offload, snmp};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The VLAN's device on either end.
const UPLINK: &str = "bond0.100";
/// What the bond is made of.
const CABLES: [&str; 2] = ["cable0", "cable1"];
/// Last number of the ClusterIPs of the service whose endpoint is beyond.
const BEYOND: u8 = 77;
/// Its node port.
const BEYOND_PORT: u16 = 30_077;
/// The router's ends of the wire to the endpoint.
const SERVER_ROUTER_V4: &str = "203.0.113.1";
const SERVER_ROUTER_V6: &str = "2001:db8:98::1";
/// More than fits into the largest packet that a device is given to cut up.
const LONG: usize = 200_000;

/// What the cables leave to others.
#[derive(Clone, Copy, Debug)]
struct Cables {
    /// VLAN tags come beside the packets; else they stand in them.
    tags_beside: bool,
    offload: Offload,
}

impl Cables {
    const ALL: [Self; 3] = [
        Self {
            tags_beside: true,
            offload: Offload::ON,
        },
        Self {
            tags_beside: false,
            offload: Offload::ON,
        },
        Self {
            tags_beside: false,
            offload: Offload::OFF,
        },
    ];
}

/// The machine at the other end of the cables, and a server behind it.
#[derive(Debug)]
pub struct Bonded {
    // Dropped before the namespace it runs in.
    _server: Server,
    beyond: Place,
    outside: Place,
}

/// The kinds of devices that an uplink like this needs and the running kernel has not.
pub fn missing() -> Result<Vec<&'static str>> {
    lb_lab::require_root();
    let namespace = Namespace::create(&format!("{}-try", lb_lab::janitor::unique_name()))?;
    namespace.ip("link add cable0 type veth peer name cable1")?;
    let kinds = [
        ("bond", "link add bond0 type bond"),
        (
            "vlan",
            "link add link cable0 name cable0.100 type vlan id 100",
        ),
    ];
    let mut missing = Vec::new();
    for (kind, words) in kinds {
        if let Err(error) = namespace.ip(words) {
            let text = format!("{error:#}");
            ensure!(text.contains("Unknown device type"), "{text}");
            missing.push(kind);
        }
    }
    Ok(missing)
}

impl Bonded {
    /// Lays the cables from node 0 of the stage, makes the VLAN its way to everybody, and applies a service
    /// with the endpoint beyond.
    pub fn new(stage: &mut Stage) -> Result<Self> {
        let namespace = Namespace::create(&format!("{}-bonded", stage.lab.name()))?;
        let node = stage.lab.node(0).namespace();
        for cable in CABLES {
            node.ip(&format!(
                "link add {cable} type veth peer name {cable} netns {}",
                namespace.handle()
            ))?;
        }
        for (end, number) in [(node, 1), (&namespace, 2)] {
            let (v4, v6) = (wire4(number), wire6(number));
            // Each packet takes the next cable.
            end.ip_batch(&format!(
                "link add bond0 type bond mode balance-rr\n\
                 link set cable0 master bond0\n\
                 link set cable1 master bond0\n\
                 link set bond0 up\n\
                 link add link bond0 name {UPLINK} type vlan id 100\n\
                 addr add {v4}/24 dev {UPLINK}\n\
                 addr add {v6}/64 dev {UPLINK} nodad\n\
                 link set {UPLINK} up\n"
            ))?;
        }
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            namespace.sysctl(key, "1")?;
        }
        let mut routes = String::new();
        for range in (CLUSTER_CIDRS.split(',')).chain(["10.96.0.0/16", "fd00:10:96::/112"]) {
            let via = node_like(range.contains(':'));
            let _ = writeln!(routes, "route add {range} via {via}");
        }
        namespace.ip_batch(&routes)?;
        let outside = Place::new(namespace, None);
        let beyond = behind(&format!("{}-beyond", stage.lab.name()), outside.namespace())?;
        let server = Server::start(&beyond, "beyond", TARGET_PORT)?;
        default_route(stage)?;
        for address in server_addresses() {
            soon("the cables carry nothing", || {
                let node = stage.lab.node(0).place();
                node.ask_udp((address, TARGET_PORT).into(), 1).map(drop)
            })?;
        }
        stage.add_foreign("beyond", server_addresses());
        stage.apply(&service())?;
        Ok(Self {
            _server: server,
            beyond,
            outside,
        })
    }

    /// Walks every path that crosses it, from outside, from a
    /// pod and from the node, to a near endpoint and to one beyond, whatever the cables leave to others.
    /// Agents run and serve `near`, whose endpoint is the pod `a` of the node.
    pub fn every_path_works(&self, stage: &Stage, near: &ServiceSpec) -> Result<()> {
        for cables in Cables::ALL {
            self.set(stage, cables)?;
            for v6 in [false, true] {
                for path in self.paths(stage, near, v6) {
                    path.walk(stage)
                        .with_context(|| format!("{} {}, {cables:?}", path.what, path.server))?;
                }
            }
        }
        let wrong = stage.checksum_errors()?
            + snmp::checksum_errors(self.outside.namespace())?
            + snmp::checksum_errors(self.beyond.namespace())?;
        ensure!(wrong == 0, "{wrong} packets had wrong checksums");
        Ok(())
    }

    /// Lets the VLAN's packets keep their tags all the way: `lb-agent check` says that nothing is balanced
    /// there then, and what to do.
    pub fn tags_that_are_kept_are_found(&self, stage: &Stage) -> Result<()> {
        let node = stage.lab.node(0);
        let vlan = |order| format!("link set {UPLINK} type vlan reorder_hdr {order}");
        node.namespace().ip(&vlan("off"))?;
        let words = format!(
            "check --cgroup-root {}",
            node.cgroup_root().path().display()
        );
        let output = Agent::tool_output(&stage.lab, node, &words)?;
        let page = String::from_utf8_lossy(&output.stdout);
        ensure!(
            page.contains(&format!("{UPLINK} is a VLAN that keeps")),
            "check does not name {UPLINK}: {page}"
        );
        node.namespace().ip(&vlan("on"))?;
        Ok(())
    }

    fn set(&self, stage: &Stage, cables: Cables) -> Result<()> {
        stage.offload(cables.offload)?;
        for end in [stage.lab.node(0).namespace(), self.outside.namespace()] {
            for cable in CABLES {
                offload::set(end, cable, cables.offload)?;
                offload::vlan_tags(end, cable, cables.tags_beside)?;
            }
        }
        Ok(())
    }

    fn paths<'a>(&'a self, stage: &'a Stage, near: &ServiceSpec, v6: bool) -> Vec<Path<'a>> {
        let family = usize::from(v6);
        let far = service().cluster_ips()[family];
        let near_port = near.node_port.unwrap_or_default();
        let (near, node) = (near.cluster_ips()[family], node_like(v6));
        let (outside, pod) = (&self.outside, stage.pod("b"));
        let path = |what, from, server, name, peer| Path {
            what,
            from,
            server,
            name,
            peer,
        };
        let here = stage.lab.node(0).place();
        vec![
            path(
                "outside, node port, pod",
                outside,
                (node, near_port).into(),
                "a",
                None,
            ),
            path(
                "outside, node port, beyond",
                outside,
                (node, BEYOND_PORT).into(),
                "beyond",
                Some(node),
            ),
            path("outside, ClusterIP, pod", outside, near, "a", None),
            path(
                "outside, ClusterIP, beyond",
                outside,
                far,
                "beyond",
                Some(node),
            ),
            path(
                "pod, ClusterIP, beyond",
                pod.place(),
                far,
                "beyond",
                Some(pod.address_like(node)),
            ),
            path(
                "pod, node port, beyond",
                pod.place(),
                (node, BEYOND_PORT).into(),
                "beyond",
                None,
            ),
            path("node, ClusterIP, beyond", here, far, "beyond", Some(node)),
            path("node, ClusterIP, pod", here, near, "a", None),
        ]
    }
}

/// One way from a client to an endpoint.
struct Path<'a> {
    what: &'static str,
    from: &'a Place,
    server: SocketAddr,
    name: &'static str,
    /// The address that the endpoint must see, where it is not the path's business to change it.
    peer: Option<IpAddr>,
}

impl Path<'_> {
    /// Asks over TCP and UDP. Each conversation is begun once, however many hooks it meets.
    fn walk(&self, stage: &Stage) -> Result<()> {
        let (from, server) = (self.from, self.server);
        let before = stage.counted(0, "opened")?;
        self.expect("TCP", from.ask_tcp(server))?;
        self.expect("long TCP", from.ask_tcp_long(server, LONG))?;
        let tcp = stage.counted(0, "opened")?;
        self.expect("connected UDP", from.ask_udp(server, 1000))?;
        self.expect("unconnected UDP", from.ask_udp_unconnected(server, 1000))?;
        let udp = stage.counted(0, "opened")? - tcp;
        let tcp = tcp - before;
        // A datagram may come from a port that another conversation had, which then goes on.
        ensure!(
            tcp == 2 && udp <= 2,
            "2 conversations of each protocol were begun {tcp} times (TCP) and {udp} times (UDP)"
        );
        Ok(())
    }

    fn expect(&self, way: &str, answer: Result<Answer>) -> Result<()> {
        let answer = answer.with_context(|| way.to_owned())?;
        ensure!(
            answer.name == self.name,
            "{way}: {answer}, not {}",
            self.name
        );
        let seen = answer.peer.ip();
        ensure!(
            self.peer.is_none_or(|peer| peer == seen),
            "{way}: {answer}, expected the client {:?}",
            self.peer
        );
        Ok(())
    }
}

/// A place that has its only way through `router`.
fn behind(name: &str, router: &Namespace) -> Result<Place> {
    let namespace = Namespace::create(name)?;
    let [v4, v6] = server_addresses();
    namespace.ip_batch(&format!(
        "link add eth0 type veth peer name beyond netns {}\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         link set eth0 up\n",
        router.handle()
    ))?;
    router.ip_batch(&format!(
        "addr add {SERVER_ROUTER_V4}/24 dev beyond\n\
         addr add {SERVER_ROUTER_V6}/64 dev beyond nodad\n\
         link set beyond up\n"
    ))?;
    namespace.ip_batch(&format!(
        "route add default via {SERVER_ROUTER_V4}\nroute add default via {SERVER_ROUTER_V6}\n"
    ))?;
    Ok(Place::new(namespace, None))
}

fn default_route(stage: &Stage) -> Result<()> {
    stage.lab.node(0).namespace().ip_batch(&format!(
        "route replace default via {}\nroute replace default via {}\n",
        wire4(2),
        wire6(2)
    ))
}

/// The service with the endpoint beyond the cables.
fn service() -> ServiceSpec {
    ServiceSpec::new("beyond", BEYOND, &["beyond"]).node_port(BEYOND_PORT)
}

/// The node's address on the VLAN.
fn node_like(v6: bool) -> IpAddr {
    if v6 { wire6(1).into() } else { wire4(1).into() }
}

fn server_addresses() -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 3);
    [Ipv4Addr::new(203, 0, 113, 3).into(), v6.into()]
}

fn wire4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}

fn wire6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, host.into())
}

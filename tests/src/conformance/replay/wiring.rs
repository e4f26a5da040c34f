//! How the namespaces of a replay are connected, and which addresses they have.

use anyhow::Result;
use lb_lab::{Namespace, Node};
use std::fmt::Write as _;
use std::net::IpAddr;

/// The devices of the node: towards its pods, and its uplink. Their own addresses are what packets
/// are SNATed to, and nothing else is asked there: so SNAT shows.
pub(super) const LINKS: [Link; 2] = [Link::new("pods", 1), Link::new("eth0", 2)];

pub(super) struct Link {
    pub(super) device: &'static str,
    pub(super) number: u8,
}

impl Link {
    const fn new(device: &'static str, number: u8) -> Self {
        Self { device, number }
    }

    /// The node's addresses on it, and those of the other end.
    pub(super) fn addresses(&self, host: u8) -> [IpAddr; 2] {
        let v6 = [
            0xfd00,
            0x198,
            u16::from(self.number),
            0,
            0,
            0,
            0,
            u16::from(host),
        ];
        [IpAddr::from([198, 18, self.number, host]), IpAddr::from(v6)]
    }
}

/// A device pair between the node and `other`, which takes every packet that arrives for its own
/// and sends everything to the node.
pub(super) fn wire(node: &Node, other: &Namespace, link: &Link) -> Result<()> {
    let [node4, node6] = link.addresses(1);
    let [other4, other6] = link.addresses(2);
    let device = link.device;
    for namespace in [node.namespace(), other] {
        for key in [
            "all/rp_filter",
            "default/rp_filter",
            "all/send_redirects",
            "default/send_redirects",
        ] {
            namespace.sysctl(&format!("net/ipv4/conf/{key}"), "0")?;
        }
    }
    other.ip_batch(&format!(
        "link add eth0 type veth peer name {device} netns {}\n\
         addr add {other4}/24 dev eth0\naddr add {other6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         rule add iif eth0 lookup 100\nroute add local default dev lo table 100\n",
        node.namespace().handle()
    ))?;
    // An endpoint may be its own client.
    other.sysctl("net/ipv4/conf/eth0/accept_local", "1")?;
    other.ip("-6 rule add iif eth0 lookup 100")?;
    other.ip("-6 route add local default dev lo table 100")?;
    node.namespace().ip_batch(&format!(
        "addr add {node4}/24 dev {device}\naddr add {node6}/64 dev {device} nodad\n\
         link set {device} up\n"
    ))?;
    other.ip_batch(&format!(
        "route add default via {node4} dev eth0 onlink\nroute add default via {node6} dev eth0 onlink\n"
    ))
}

/// The node's own addresses, and the way to everything beyond.
pub(super) fn give_addresses(node: &Node, addresses: &[IpAddr]) -> Result<()> {
    let [v4, v6] = LINKS[1].addresses(2);
    let device = LINKS[1].device;
    let mut lines = format!(
        "route add default via {v4} dev {device} onlink\nroute add default via {v6} dev {device} onlink\n"
    );
    for address in addresses {
        let (length, nodad) = if address.is_ipv4() {
            (32, "")
        } else {
            (128, " nodad")
        };
        let _ = writeln!(lines, "addr add {address}/{length} dev {device}{nodad}");
    }
    node.namespace().ip_batch(&lines)
}

//! What netlink says about this machine: its devices and addresses, followed live.
//!
//! Level-triggered: any message means "look again", and a look is a complete listing. So nothing
//! depends on the order or completeness of messages, which netlink drops when a socket is slow.

pub mod limits;

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::MulticastGroup;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;

/// Messages come in bursts (a pod's device alone makes a dozen); one look answers them all.
const SETTLE: Duration = Duration::from_millis(20);

/// A network device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Packets begin with an Ethernet header; else with the IP header.
    pub ethernet: bool,
    /// The loopback device.
    pub loopback: bool,
    /// The index of the bridge, bond or the like that it is a port of. A VRF is none: what comes in by
    /// its devices has come in by them.
    pub master: Option<u32>,
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LocalAddress {
    /// The device that holds it.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// Scope "global": good for talking to anybody.
    pub global: bool,
    /// Not tentative, not deprecated, not a duplicate: may be a source.
    pub usable: bool,
    /// A secondary IPv4 address of its subnet.
    pub secondary: bool,
}

/// Everything known of the machine at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Devices in the order of their indexes.
    pub devices: Vec<Device>,
    /// Addresses in the order the kernel lists them, which is the order it prefers them in.
    pub addresses: Vec<LocalAddress>,
}

/// Masters upon masters: the kernel allows no more (`MAX_NEST_DEV`).
const NESTED: usize = 8;

/// IPVS mode binds every service address to this device; those are not the node's own.
const IPVS_DEVICE: &str = "kube-ipvs0";

impl Facts {
    /// The node's own addresses.
    pub fn own_addresses(&self) -> impl Iterator<Item = &LocalAddress> {
        let is_ipvs = |device: &&Device| device.name == IPVS_DEVICE;
        let ipvs = self.devices.iter().find(is_ipvs).map(|device| device.index);
        let addresses = self.addresses.iter();
        addresses.filter(move |address| Some(address.device) != ipvs)
    }

    /// The device that a packet which comes in by `device` has come in by to routing and netfilter:
    /// of a port, the bridge or bond above it.
    pub fn seen_as<'a>(&'a self, device: &'a Device) -> &'a Device {
        let mut seen = device;
        for _ in 0..NESTED {
            match seen.master.and_then(|index| self.device(index)) {
                Some(above) => seen = above,
                None => break,
            }
        }
        seen
    }

    fn device(&self, index: u32) -> Option<&Device> {
        let at = self
            .devices
            .binary_search_by_key(&index, |device| device.index);
        self.devices.get(at.ok()?)
    }
}

/// Follows the machine's devices and addresses. Sends a first listing at once and another whenever
/// something changed; ends when nobody listens. Must be called in the network namespace to follow.
pub fn follow() -> io::Result<mpsc::Receiver<Facts>> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (listening, listener, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    // Questions have a socket of their own: where messages overrun theirs, an answer would be lost
    // with them and waited for in vain.
    let (asking, handle, _) = rtnetlink::new_connection()?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(listening);
    tokio::spawn(asking);
    tokio::spawn(async move {
        // The connection lasts as long as its handle.
        let _listener = listener;
        let mut last = None;
        loop {
            match look(&handle).await {
                Ok(facts) => {
                    if last.as_ref() != Some(&facts) {
                        last = Some(facts.clone());
                        if sender.send(facts).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot list devices and addresses; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            }
            if messages.next().await.is_none() {
                tracing::error!("netlink went away: devices and addresses are followed no more");
                return;
            }
            tokio::time::sleep(SETTLE).await;
            while futures::FutureExt::now_or_never(messages.next())
                .flatten()
                .is_some()
            {}
        }
    });
    Ok(receiver)
}

async fn look(handle: &rtnetlink::Handle) -> Result<Facts, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let mut devices: Vec<Device> = links.iter().map(device).collect();
    devices.sort_unstable_by_key(|device| device.index);
    Ok(Facts {
        devices,
        addresses: addresses.iter().filter_map(local_address).collect(),
    })
}

fn device(link: &LinkMessage) -> Device {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
        .unwrap_or_default();
    let kind = link.header.link_layer_type;
    Device {
        index: link.header.index,
        name,
        ethernet: matches!(kind, LinkLayerType::Ether | LinkLayerType::Loopback),
        loopback: kind == LinkLayerType::Loopback,
        master: master(link),
    }
}

fn master(link: &LinkMessage) -> Option<u32> {
    let attributes = || link.attributes.iter();
    let of_vrf = attributes().any(|attribute| {
        let vrf = LinkInfo::PortKind(InfoPortKind::Vrf);
        matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&vrf))
    });
    let master = attributes().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) if *index != 0 => Some(*index),
        _ => None,
    });
    master.filter(|_| !of_vrf)
}

fn local_address(message: &AddressMessage) -> Option<LocalAddress> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point devices `Address` is the other end; `Local` is ours where it exists.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    Some(LocalAddress {
        device: message.header.index,
        address: local.or(address)?,
        global: matches!(
            message.header.scope,
            AddressScope::Universe | AddressScope::Site
        ),
        usable: !flags.intersects(unusable),
        secondary: flags.contains(AddressFlags::Secondary),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_by_a_port_has_come_in_by_the_bridge() {
        let device = |index, name: &str, master| Device {
            index,
            name: name.to_owned(),
            ethernet: true,
            loopback: false,
            master,
        };
        let facts = Facts {
            devices: vec![
                device(2, "eth0", Some(5)),
                device(3, "veth1", Some(4)),
                device(4, "cni0", None),
                device(5, "bond0", Some(6)),
                device(6, "br0", None),
                // A master in another namespace is not ours to see.
                device(7, "veth2", Some(99)),
            ],
            addresses: Vec::new(),
        };
        let seen: Vec<&str> = (facts.devices.iter())
            .map(|device| &*facts.seen_as(device).name)
            .collect();
        assert_eq!(seen, ["br0", "cni0", "cni0", "br0", "br0", "veth2"]);
    }
}

//! The node: what every agent is told, and its tables before the first of them.

use super::cluster::{NODES, node_ip};
use crate::host_path::tables_of;
use ipnet::IpNet;
use lb_agent::model::frontend::local_addresses;
use lb_agent::model::node::NodeFacts;
use lb_agent::model::{Options, PodDetection};
use lb_agent::plan::{Limits, memory};
use lb_common::addr::Addr;
use lb_common::host::HostTables;
use lb_common::table::SocketMode;
use std::net::IpAddr;

/// What every agent is told.
pub(super) fn options() -> Options {
    let range = |text: &str| -> IpNet { text.parse().expect("a range") };
    Options {
        pods: PodDetection::ClusterCidr(vec![range("10.1.0.0/16"), range("fd00:1::/32")]),
        service_cidrs: vec![range("10.96.0.0/24"), range("fd00:96::/112")],
        ..Options::default()
    }
}

/// Empty tables of the node.
pub(super) fn empty_tables(limits: &Limits) -> HostTables {
    let mut config = HostTables::of_node().config;
    let node = NodeFacts::named(NODES[0]);
    options().configure(&node, &mut config);
    config.socket_mode = SocketMode::All as u32;
    config.host_namespace = 1;
    let mut tables = tables_of(&config);
    memory::allocate(&mut tables, limits);
    let own: [IpAddr; 2] = [false, true].map(node_ip);
    tables.local = local_addresses(&options(), &node, &own)
        .into_iter()
        .map(|(address, flags)| (Addr::from(address), flags))
        .collect();
    tables
}

//! Looking: netlink, `/proc` and what is pinned. Nothing is changed.

use super::facts::{Device, Loaded, Machine, RoutingRule};
use super::nftables;
use crate::cli::privileges;
use crate::datapath;
use futures::TryStreamExt;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanFlags,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The agent's directory.
    pub bpffs: &'a Path,
    /// The cgroup to attach to, if it is not the root.
    pub cgroup_root: Option<&'a Path>,
    /// First and last node port.
    pub node_ports: (u16, u16),
}

/// Looks at the machine and the network namespace this process runs in.
///
/// # Errors
/// If netlink does not answer; everything else that cannot be seen is a finding.
pub async fn look(wanted: &Wanted<'_>) -> Result<Machine, rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| io_error(&error))?;
    tokio::spawn(connection);
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut rules = Vec::new();
    for family in [rtnetlink::IpVersion::V4, rtnetlink::IpVersion::V6] {
        // A kernel without a family has no rules of it.
        let listed: Result<Vec<RuleMessage>, _> =
            handle.rule().get(family).execute().try_collect().await;
        rules.extend(listed.unwrap_or_default().iter().filter_map(rule));
    }
    Ok(Machine {
        missing_capabilities: privileges::missing_here(),
        release: sysctl("kernel/osrelease").unwrap_or_default(),
        jit: number("net/core/bpf_jit_enable"),
        bpf_filesystem: datapath::is_usable_directory(wanted.bpffs),
        cgroup: datapath::cgroup_root(wanted.cgroup_root),
        forwarding: ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
            .map(|key| number::<u32>(key).map(|value| value != 0)),
        devices: devices(&links),
        rules,
        chains: nftables::list().map_err(|error| error.to_string()),
        legacy_tables: legacy_tables(),
        node_ports: wanted.node_ports,
        ephemeral: ephemeral(&sysctl("net/ipv4/ip_local_port_range").unwrap_or_default()),
        reserved: ranges(&sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default()),
        loaded: datapath::loaded(wanted.bpffs).map(|(switches, devices)| Loaded {
            masquerade_mark: switches.masquerade_mark,
            mark_replies: switches.mark_replies,
            devices,
        }),
    })
}

fn io_error(error: &std::io::Error) -> rtnetlink::Error {
    rtnetlink::Error::NamespaceError(error.to_string())
}

/// A value below `/proc/sys`.
fn sysctl(key: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(key)).ok()?;
    Some(text.trim().to_owned())
}

fn number<T: FromStr>(key: &str) -> Option<T> {
    sysctl(key)?.parse().ok()
}

/// Two numbers.
fn ephemeral(text: &str) -> (u16, u16) {
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first, last),
        // Linux's default.
        _ => (32_768, 60_999),
    }
}

/// `8080,30000-32767`.
pub(super) fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

/// The tables of iptables-legacy. They exist once somebody has looked at them.
fn legacy_tables() -> Vec<String> {
    let mut tables: Vec<String> = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    tables.sort();
    tables.dedup();
    tables
}

fn devices(links: &[LinkMessage]) -> Vec<Device> {
    let mut ports: HashMap<u32, usize> = HashMap::new();
    for link in links {
        for attribute in &link.attributes {
            if let LinkAttribute::Controller(bridge) = attribute {
                *ports.entry(*bridge).or_default() += 1;
            }
        }
    }
    let all: u32 = number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let is_loopback = |link: &&LinkMessage| link.header.flags.contains(LinkFlags::Loopback);
    let links = links.iter().filter(|link| !is_loopback(link));
    links
        .map(|link| device(link, all, ports.get(&link.header.index).copied()))
        .collect()
}

fn device(link: &LinkMessage, all: u32, ports: Option<usize>) -> Device {
    let (mut name, mut bridge, mut keeps_tags) = (String::new(), false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name.clone_from(found),
            LinkAttribute::LinkInfo(infos) => {
                bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                keeps_tags = infos.iter().any(keeps_vlan_tags);
            }
            _ => {}
        }
    }
    let own: u32 = number(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    let netfilter =
        |family| number::<u32>(&format!("net/bridge/bridge-nf-call-{family}")) == Some(1);
    Device {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        reverse_path_filter: own.max(all),
        bridge_ports: bridge.then(|| ports.unwrap_or(0)),
        keeps_tags,
        bridge_netfilter: netfilter("iptables"),
        name,
    }
}

fn keeps_vlan_tags(info: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Vlan(words)) = info else {
        return false;
    };
    // Flags of which none is set are not mentioned at all.
    !words
        .iter()
        .any(|word| matches!(word, InfoVlan::Flags((on, _)) if on.contains(VlanFlags::ReorderHdr)))
}

/// A rule, unless it is one of the three that every namespace begins with.
fn rule(message: &RuleMessage) -> Option<RoutingRule> {
    let mut rule = RoutingRule {
        table: message.header.table.into(),
        ..RoutingRule::default()
    };
    let (mut mark, mut bits) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(source) => {
                rule.from = Some(format!("{source}/{}", message.header.src_len));
            }
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => bits = *value,
            RuleAttribute::Table(table) => rule.table = *table,
            _ => {}
        }
    }
    rule.mark = mark.map(|value| (value, bits));
    let ordinary = rule.from.is_none() && rule.mark.is_none() && (253..=255).contains(&rule.table);
    (!ordinary).then_some(rule)
}

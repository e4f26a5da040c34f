//! The judgement: pure functions of what was seen.

use super::facts::Machine;
use super::{Finding, netfilter, routing};

/// The kernel the agent runs on at all, and the one it has all features on.
const LOWEST: (u32, u32) = (5, 10);
const FULL: (u32, u32) = (6, 1);

/// Everything that is found, the worst first.
pub fn findings(machine: &Machine) -> Vec<Finding> {
    let mut found = Vec::new();
    privileges(machine, &mut found);
    kernel(machine, &mut found);
    node_ports(machine, &mut found);
    hooks(machine, &mut found);
    tags(machine, &mut found);
    routing::find(machine, &mut found);
    netfilter::find(machine, &mut found);
    found.sort_by_key(|finding| finding.severity);
    found
}

fn privileges(machine: &Machine, found: &mut Vec<Finding>) {
    if !machine.missing_capabilities.is_empty() {
        let missing = machine.missing_capabilities.join(", ");
        found.push(Finding::problem(
            "privileges",
            format!("this process lacks {missing}: programs cannot be loaded, and not everything can be looked at"),
            "run it as root, or add the capabilities of deploy/kustomize/base/daemonset.yaml",
        ));
    }
    if !machine.bpf_filesystem {
        found.push(Finding::problem(
            "bpf-filesystem",
            "the agent's directory is not on a BPF file system: nothing could be pinned",
            "`mount -t bpf bpf /sys/fs/bpf`; in a pod, mount the host's",
        ));
    }
    if let Err(why) = &machine.cgroup {
        found.push(Finding::problem(
            "cgroup",
            format!("sockets cannot be balanced: {why}"),
            "mount the host's cgroup v2 root, or name it with --cgroup-root",
        ));
    }
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    Some((major, numbers.next()?.parse().ok()?))
}

fn kernel(machine: &Machine, found: &mut Vec<Finding>) {
    let release = &machine.release;
    match version(release) {
        Some(version) if version < LOWEST => found.push(Finding::problem(
            "kernel",
            format!("kernel {release} is older than 5.10: the programs cannot be loaded"),
            "use a kernel from 5.10 on, better from 6.1 on",
        )),
        Some(version) if version < FULL => found.push(Finding::warning(
            "kernel",
            format!(
                "kernel {release} is older than 6.1: connections that are to be refused cost a packet, \
                 since a socket hook cannot refuse them"
            ),
            "nothing; a kernel from 6.1 on has all features",
        )),
        _ => {}
    }
    if machine.jit == Some(0) {
        found.push(Finding::warning(
            "kernel",
            "net.core.bpf_jit_enable is 0: programs are interpreted, several times slower",
            "`sysctl net.core.bpf_jit_enable=1`",
        ));
    }
}

fn node_ports(machine: &Machine, found: &mut Vec<Finding>) {
    let (first, last) = machine.node_ports;
    let (low, high) = machine.ephemeral;
    let (from, to) = (first.max(low), last.min(high));
    let is_reserved = |port: u16| {
        let mut ranges = machine.reserved.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&port))
    };
    if from > to || (from..=to).all(is_reserved) {
        return;
    }
    found.push(Finding::warning(
        "node-ports",
        format!(
            "node ports {first}-{last} lie in the range {low}-{high} that the kernel gives to outgoing \
             connections: such a connection of the node and a node port can meet"
        ),
        format!("`sysctl net.ipv4.ip_local_reserved_ports={first}-{last}`, beside what it holds"),
    ));
}

fn hooks(machine: &Machine, found: &mut Vec<Finding>) {
    let Some(loaded) = &machine.loaded else {
        return;
    };
    if loaded.devices.is_empty() {
        return;
    }
    let bare = machine
        .devices
        .iter()
        .filter(|device| device.up && !loaded.devices.contains(&device.index));
    let names: Vec<&str> = bare.map(|device| device.name.as_str()).collect();
    if !names.is_empty() {
        found.push(Finding::warning(
            "devices",
            format!(
                "{} without our hooks: what comes in there is not balanced, and replies that leave \
                 there are not translated back",
                super::listed(&names, "is a device", "are devices")
            ),
            "name them in --devices (`auto` takes all), unless no client and no pod is behind them",
        ));
    }
}

fn tags(machine: &Machine, found: &mut Vec<Finding>) {
    let keeping = machine.devices.iter().filter(|device| device.keeps_tags);
    let names: Vec<&str> = keeping.map(|device| device.name.as_str()).collect();
    if names.is_empty() {
        return;
    }
    found.push(Finding::warning(
        "vlan",
        format!(
            "{} the tags in packets' Ethernet headers: the programs find no addresses behind them, and nothing \
             that comes in or leaves there is balanced",
            super::listed(&names, "is a VLAN that keeps", "are VLANs that keep")
        ),
        "`ip link set DEVICE type vlan reorder_hdr on`, as the kernel makes VLANs",
    ));
}

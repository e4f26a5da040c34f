//! Forwarding, reverse path filters, routing rules.

use super::Finding;
use super::facts::{MAIN, Machine, RoutingRule};

/// Strict, of linux/ip.h's `rp_filter`.
const STRICT: u32 = 1;
/// kube-proxy's and our default.
pub(super) const MASQUERADE_MARK: u32 = 1 << 14;

pub(super) fn find(machine: &Machine, found: &mut Vec<Finding>) {
    forwarding(machine, found);
    let by_source: Vec<&RoutingRule> = machine
        .rules
        .iter()
        .filter(|rule| rule.from.is_some() && rule.mark.is_none() && rule.table != MAIN)
        .collect();
    let Some(first) = by_source.first() else {
        return;
    };
    by_mark(machine, first, found);
    let strict = machine
        .devices
        .iter()
        .filter(|device| device.reverse_path_filter == STRICT);
    let names: Vec<&str> = strict.map(|device| device.name.as_str()).collect();
    if !names.is_empty() {
        found.push(Finding::warning(
            "reverse-path-filter",
            format!(
                "{} a strict rp_filter beside routing rules by source: what arrives by another device than \
                 its answer would leave by is dropped",
                super::listed(&names, "has", "have")
            ),
            "`sysctl net.ipv4.conf.DEVICE.rp_filter=2` (and that of `all`, if it is 1)",
        ));
    }
}

fn forwarding(machine: &Machine, found: &mut Vec<Finding>) {
    for (family, forwards) in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
        .iter()
        .zip(machine.forwarding)
    {
        if forwards == Some(false) {
            let what = format!("{family} is 0: the node passes no packets to and from pods");
            let todo = format!("`sysctl {family}=1`");
            // A cluster need not have IPv6.
            found.push(if family.contains("ipv4") {
                Finding::problem("forwarding", what, todo)
            } else {
                Finding::warning("forwarding", what, todo)
            });
        }
    }
}

/// Routing rules by source send what pods answer by tables of their own: answers to clients of node
/// ports, too, wherever their requests came from.
fn by_mark(machine: &Machine, by_source: &RoutingRule, found: &mut Vec<Finding>) {
    let loaded = machine.loaded.as_ref();
    let mark = loaded.map_or(MASQUERADE_MARK, |loaded| loaded.masquerade_mark);
    let marks = loaded.is_some_and(|loaded| loaded.mark_replies);
    let answered = machine.rules.iter().any(|rule| {
        let matches = rule
            .mark
            .is_some_and(|(value, mask)| mask != 0 && mark & mask == value);
        matches && rule.table == MAIN && rule.priority < by_source.priority
    });
    if marks && answered {
        return;
    }
    let from = by_source.from.as_deref().unwrap_or_default();
    let priority = by_source.priority.saturating_sub(1);
    let (table, own) = (by_source.table, by_source.priority);
    let mark = if mark == 0 { MASQUERADE_MARK } else { mark };
    found.push(Finding::warning(
        "policy-routing",
        format!(
            "routing rule {own} sends what comes from {from} by table {table}: pods' answers to clients of \
             node ports may leave by another device than the requests came from (AWS VPC's connection mark \
             does not see those requests)"
        ),
        format!(
            "run the agent with --mark-replies and `ip rule add priority {priority} fwmark \
             {mark:#x}/{mark:#x} lookup main`"
        ),
    ));
}

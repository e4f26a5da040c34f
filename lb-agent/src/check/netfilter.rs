//! Other people's netfilter rules.

use super::Finding;
use super::expression::Expression;
use super::facts::{Chain, Machine};
use super::routing::MASQUERADE_MARK;
use std::collections::{BTreeMap, BTreeSet};

/// `NF_INET_PRE_ROUTING` and `NF_INET_FORWARD`; netdev's ingress hook has the number 0, too.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
/// `NF_IP_PRI_NAT_DST`: who comes before sees what kube-proxy has not touched yet.
const DESTINATION_NAT: i32 = -100;

pub(super) fn find(machine: &Machine, found: &mut Vec<Finding>) {
    if !machine.legacy_tables.is_empty() {
        let tables = machine.legacy_tables.join(", ");
        found.push(Finding::warning(
            "foreign-rules",
            format!("iptables-legacy has tables ({tables}), whose rules cannot be looked at here"),
            "look at them with iptables-legacy-save: rules before DNAT see endpoints' addresses",
        ));
    }
    let chains = match &machine.chains {
        Ok(chains) => chains,
        Err(why) => {
            found.push(Finding::warning(
                "foreign-rules",
                format!("netfilter's rules cannot be listed: {why}"),
                "run `lb-agent check` as root in the host's network namespace",
            ));
            return;
        }
    };
    kube_proxy(machine, chains, found);
    for base in chains {
        let Some(hook) = base.hook else { continue };
        let rules = reachable(chains, base);
        if !["ip", "ip6", "inet", "netdev"].contains(&base.family) {
            continue;
        }
        if hook.number == PREROUTING && (hook.priority < DESTINATION_NAT || base.family == "netdev")
        {
            before_dnat(base, &rules, found);
        }
        if hook.number == FORWARD && base.family != "netdev" {
            forward_policy(base, hook.drops, &rules, found);
            invalid_on_bridges(machine, base, &rules, found);
        }
    }
}

/// What kube-proxy leaves: its nftables tables, the chains of its iptables modes, IPVS's device. Each
/// with what removes it where kube-proxy itself is no more.
fn kube_proxy(machine: &Machine, chains: &[Chain], found: &mut Vec<Finding>) {
    let mut traces = BTreeMap::new();
    for chain in chains {
        let (family, table, name) = (&chain.family, &chain.table, &chain.name);
        if table == "kube-proxy" {
            let trace = format!("table {family} kube-proxy");
            let remedy = format!("nft delete {trace}");
            traces.insert(trace, remedy);
        } else if ["KUBE-SERVICES", "KUBE-NODEPORTS"].contains(&name.as_str())
            && !chain.rules.is_empty()
        {
            // Emptied, not deleted: others may jump to it, and to those it jumps to.
            traces.insert(
                format!("chain {name} of table {family} {table}"),
                format!("nft flush chain {family} {table} {name}"),
            );
        }
    }
    let devices = &mut machine.devices.iter();
    if devices.any(|device| device.name == "kube-ipvs0") {
        traces.insert(
            "device kube-ipvs0".to_owned(),
            "ipvsadm --clear; ip link delete kube-ipvs0".to_owned(),
        );
    }
    if traces.is_empty() {
        return;
    }
    let (traces, remedies): (Vec<_>, Vec<_>) = traces.into_iter().unzip();
    found.push(Finding::problem(
        "kube-proxy",
        format!(
            "kube-proxy's rules are still there ({}): they choose endpoints of their own for what we leave \
             to the stack, and age",
            traces.join(", ")
        ),
        format!(
            "stop kube-proxy on this node and run `kube-proxy --cleanup`, or where it is gone `{}`; \
             connections that these rules carry end with them",
            remedies.join("; ")
        ),
    ));
}

/// The rules that a packet may meet from this chain on, in order.
fn reachable<'a>(chains: &'a [Chain], base: &'a Chain) -> Vec<&'a [Expression]> {
    let (mut rules, mut seen) = (Vec::new(), BTreeSet::new());
    collect(chains, base, &mut seen, &mut rules);
    rules
}

fn collect<'a>(
    chains: &'a [Chain],
    chain: &'a Chain,
    seen: &mut BTreeSet<&'a str>,
    rules: &mut Vec<&'a [Expression]>,
) {
    if !seen.insert(&chain.name) {
        return;
    }
    for rule in &chain.rules {
        rules.push(rule);
        for expression in rule {
            let Expression::Jump(name) = expression else {
                continue;
            };
            let named = |other: &&Chain| {
                other.name == *name && other.table == chain.table && other.family == chain.family
            };
            if let Some(next) = chains.iter().find(named) {
                collect(chains, next, seen, rules);
            }
        }
    }
}

/// Rules that look at a destination before it would have been translated see the endpoint already.
fn before_dnat(base: &Chain, rules: &[&[Expression]], found: &mut Vec<Finding>) {
    let looks = |rule: &&&[Expression]| {
        rule.iter().any(|expression| {
            matches!(
                expression,
                Expression::DestinationType
                    | Expression::DestinationAddress
                    | Expression::DestinationPort
            )
        }) && rule.iter().any(|expression| {
            matches!(
                expression,
                Expression::Drop | Expression::Accept | Expression::Remember | Expression::Jump(_)
            )
        })
    };
    let count = rules.iter().filter(looks).count();
    if count > 0 {
        found.push(Finding::warning(
            "foreign-rules",
            format!(
                "{count} rules from chain {} on look at destinations before DNAT: of packets to services from \
                 outside they see the endpoint's address and port, not the node's or service's",
                place(base)
            ),
            "write such rules for the endpoints' addresses and ports, or filter in front of this node; for marks \
             that bring answers back, see policy-routing",
        ));
    }
}

/// With a policy of DROP somebody must accept what is forwarded between clients and endpoints.
fn forward_policy(base: &Chain, drops: bool, rules: &[&[Expression]], found: &mut Vec<Finding>) {
    if !drops {
        return;
    }
    let accepts = |rule: &&&[Expression]| {
        rule.contains(&Expression::Accept)
            && !rule.iter().any(|e| matches!(e, Expression::State { .. }))
    };
    if rules.iter().any(|rule| accepts(&rule)) {
        return;
    }
    found.push(Finding::problem(
        "forward-policy",
        format!(
            "chain {} drops what no rule accepts, and none accepts new connections: what comes from outside \
             does not reach pods",
            place(base)
        ),
        format!(
            "accept packets to and from the pod networks there, or at least those with the mark \
             {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} and established connections"
        ),
    ));
}

/// Between two ports of a bridge, answers are switched: connection tracking sees half a conversation.
fn invalid_on_bridges(
    machine: &Machine,
    base: &Chain,
    rules: &[&[Expression]],
    found: &mut Vec<Finding>,
) {
    let drops = |rule: &&&[Expression]| {
        rule.contains(&Expression::State { invalid: true }) && rule.contains(&Expression::Drop)
    };
    if !rules.iter().any(|rule| drops(&rule)) {
        return;
    }
    let bridges = machine.devices.iter().filter(|device| {
        device.bridge_ports.is_some_and(|ports| ports > 1) && !device.bridge_netfilter
    });
    let names: Vec<&str> = bridges.map(|device| device.name.as_str()).collect();
    if !names.is_empty() {
        found.push(Finding::problem(
            "bridge-netfilter",
            format!(
                "chain {} drops what connection tracking calls invalid, and answers between two pods on {} pass \
                 it unseen: connections of pods to services on the same bridge hang, unless they are balanced at \
                 the socket",
                place(base),
                names.join(", ")
            ),
            "`modprobe br_netfilter` and `sysctl net.bridge.bridge-nf-call-iptables=1 \
             net.bridge.bridge-nf-call-ip6tables=1`",
        ));
    }
}

fn place(chain: &Chain) -> String {
    format!("{} of table {} {}", chain.name, chain.family, chain.table)
}

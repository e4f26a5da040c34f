//! What is found on which machine.

use super::expression::Expression::{
    self, Accept, DestinationPort, DestinationType, Drop, Jump, Mark, Match, Remember, State,
};
use super::facts::{Chain, Device, Hook, Loaded, MAIN, Machine, RoutingRule};
use super::findings::findings;
use super::{Finding, Severity, look};

/// A machine on which everything is as it should be.
fn machine() -> Machine {
    Machine {
        missing_capabilities: Vec::new(),
        release: "6.12.1-amd64".to_owned(),
        jit: Some(1),
        bpf_filesystem: true,
        cgroup: Ok("/sys/fs/cgroup".into()),
        forwarding: [Some(true), Some(true)],
        devices: vec![Device {
            index: 2,
            name: "eth0".to_owned(),
            up: true,
            reverse_path_filter: 1,
            ..Device::default()
        }],
        rules: Vec::new(),
        chains: Ok(Vec::new()),
        legacy_tables: Vec::new(),
        node_ports: (30_000, 32_767),
        ephemeral: (32_768, 60_999),
        reserved: Vec::new(),
        loaded: None,
    }
}

fn chain(name: &str, hook: Option<(u32, i32, bool)>, rules: &[&[Expression]]) -> Chain {
    Chain {
        family: "ip",
        table: "filter".to_owned(),
        name: name.to_owned(),
        hook: hook.map(|(number, priority, drops)| Hook {
            number,
            priority,
            drops,
        }),
        rules: rules.iter().map(|rule| rule.to_vec()).collect(),
    }
}

/// The topics of what a machine's findings are about.
fn topics(machine: &Machine) -> Vec<&'static str> {
    findings(machine)
        .iter()
        .map(|finding| finding.topic)
        .collect()
}

#[track_caller]
fn only(machine: &Machine, topic: &str) -> Finding {
    let found = findings(machine);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].topic, topic);
    found[0].clone()
}

#[test]
fn a_machine_as_it_should_be_has_no_findings() {
    assert_eq!(findings(&machine()), []);
}

#[test]
fn what_keeps_everything_from_working_comes_first() {
    let mut machine = machine();
    machine.jit = Some(0);
    machine.missing_capabilities = vec!["CAP_BPF"];
    machine.cgroup = Err("no cgroup v2 file system is mounted".to_owned());
    machine.bpf_filesystem = false;
    assert_eq!(
        topics(&machine),
        ["privileges", "bpf-filesystem", "cgroup", "kernel"]
    );
}

#[test]
fn kernels_are_judged_by_their_number() {
    let mut machine = machine();
    for (release, severity) in [
        ("5.4.0-1-generic", Severity::Problem),
        ("5.10.0-46-amd64", Severity::Warning),
    ] {
        release.clone_into(&mut machine.release);
        assert_eq!(only(&machine, "kernel").severity, severity, "{release}");
    }
    for release in ["6.1.0", "10.0", "6.18.44-fc-v669", "?"] {
        release.clone_into(&mut machine.release);
        assert_eq!(topics(&machine), [""; 0], "{release}");
    }
}

#[test]
fn a_node_that_does_not_forward_is_named() {
    let mut machine = machine();
    machine.forwarding = [Some(false), None];
    assert_eq!(only(&machine, "forwarding").severity, Severity::Problem);
    machine.forwarding = [Some(true), Some(false)];
    assert_eq!(only(&machine, "forwarding").severity, Severity::Warning);
}

#[test]
fn node_ports_in_the_ephemeral_range_are_to_be_reserved() {
    let mut machine = machine();
    machine.ephemeral = (32_000, 60_999);
    assert!(only(&machine, "node-ports").todo.contains("30000-32767"));
    machine.reserved = look::ranges("8080,32000-32500,32501-32767");
    assert_eq!(topics(&machine), [""; 0]);
}

#[test]
fn what_is_left_of_kube_proxy_is_named_in_each_of_its_modes() {
    let mut nftables = chain("services", None, &[]);
    nftables.table = "kube-proxy".to_owned();
    let services = chain(
        "KUBE-SERVICES",
        None,
        &[&[Match, Jump("KUBE-SVC-1".to_owned())]],
    );
    for (left, remedy) in [
        (nftables, "`nft delete table ip kube-proxy`"),
        (services, "`nft flush chain ip filter KUBE-SERVICES`"),
    ] {
        let mut machine = machine();
        machine.chains = Ok(vec![left]);
        let found = only(&machine, "kube-proxy");
        assert_eq!(found.severity, Severity::Problem);
        assert!(found.todo.contains(remedy), "{}", found.todo);
    }
    let mut machine = machine();
    machine.devices[0].name = "kube-ipvs0".to_owned();
    assert!(only(&machine, "kube-proxy").what.contains("kube-ipvs0"));
    // kubelet makes chains of these names, too, and leaves them empty.
    machine.devices.clear();
    machine.chains = Ok(vec![chain("KUBE-SERVICES", None, &[])]);
    assert_eq!(topics(&machine), [""; 0]);
}

#[test]
fn rules_that_look_at_destinations_before_dnat_are_named_with_their_chain() {
    let looking: [&[Expression]; 3] = [
        &[Match, DestinationType, Remember],
        &[DestinationPort, Drop],
        &[Match, Jump("site".to_owned())],
    ];
    for rule in looking {
        let mut machine = machine();
        machine.chains = Ok(vec![
            chain("PREROUTING", Some((0, -150, false)), &[rule]),
            chain("site", None, &[&[DestinationPort, Drop]]),
        ]);
        assert!(
            only(&machine, "foreign-rules")
                .what
                .contains("PREROUTING of table ip filter")
        );
        // After DNAT they would see the same with kube-proxy; on the way out anyway.
        for hook in [(0, -100, false), (1, -150, false)] {
            machine.chains = Ok(vec![chain("other", Some(hook), &[rule])]);
            assert_eq!(topics(&machine), [""; 0]);
        }
    }
    let mut machine = machine();
    let harmless: &[&[Expression]] = &[&[Match, Drop], &[DestinationPort], &[Mark, Remember]];
    machine.chains = Ok(vec![chain("PREROUTING", Some((0, -300, false)), harmless)]);
    assert_eq!(topics(&machine), [""; 0]);
}

#[test]
fn a_forward_policy_of_drop_needs_somebody_who_accepts() {
    let established: &[Expression] = &[State { invalid: false }, Accept];
    let mut machine = machine();
    machine.chains = Ok(vec![chain("FORWARD", Some((2, 0, true)), &[established])]);
    assert_eq!(only(&machine, "forward-policy").severity, Severity::Problem);
    for rule in [[Mark, Accept], [Match, Accept]] {
        machine.chains = Ok(vec![
            chain(
                "FORWARD",
                Some((2, 0, true)),
                &[established, &[Jump("mine".to_owned())]],
            ),
            chain("mine", None, &[&rule]),
        ]);
        assert_eq!(topics(&machine), [""; 0]);
    }
}

#[test]
fn chains_that_call_each_other_are_walked_once() {
    let mut machine = machine();
    machine.chains = Ok(vec![
        chain("FORWARD", Some((2, 0, true)), &[&[Jump("a".to_owned())]]),
        chain("a", None, &[&[Jump("b".to_owned())]]),
        chain("b", None, &[&[Jump("a".to_owned())], &[Match, Accept]]),
    ]);
    assert_eq!(topics(&machine), [""; 0]);
}

#[test]
fn a_bridge_that_netfilter_does_not_see_and_a_rule_against_invalid_do_not_go_together() {
    let mut machine = machine();
    machine.chains = Ok(vec![chain(
        "FORWARD",
        Some((2, 0, false)),
        &[&[State { invalid: true }, Drop]],
    )]);
    assert_eq!(topics(&machine), [""; 0]);
    machine.devices[0].bridge_ports = Some(2);
    assert!(
        only(&machine, "bridge-netfilter")
            .todo
            .contains("br_netfilter")
    );
    machine.devices[0].bridge_netfilter = true;
    assert_eq!(topics(&machine), [""; 0]);
}

#[test]
fn routing_by_source_needs_marked_replies_and_a_rule_for_them() {
    let by_source = RoutingRule {
        priority: 1536,
        from: Some("10.244.1.10/32".to_owned()),
        table: 2,
        ..RoutingRule::default()
    };
    let by_mark = RoutingRule {
        priority: 1023,
        mark: Some((0x4000, 0x4000)),
        table: MAIN,
        ..RoutingRule::default()
    };
    let mut machine = machine();
    machine.devices[0].reverse_path_filter = 2;
    machine.rules = vec![by_source.clone()];
    let todo = only(&machine, "policy-routing").todo;
    assert!(
        todo.contains("--mark-replies") && todo.contains("priority 1535 fwmark 0x4000/0x4000"),
        "{todo}"
    );
    machine.rules.push(by_mark);
    assert_eq!(topics(&machine), ["policy-routing"]);
    machine.loaded = Some(Loaded {
        masquerade_mark: 0x4000,
        mark_replies: true,
        ..Loaded::default()
    });
    assert_eq!(topics(&machine), [""; 0]);
    machine.devices[0].reverse_path_filter = 1;
    assert_eq!(topics(&machine), ["reverse-path-filter"]);
}

#[test]
fn vlans_that_keep_tags_in_packets_are_named() {
    let mut machine = machine();
    machine.devices[0].keeps_tags = true;
    let found = only(&machine, "vlan");
    assert!(found.what.contains("eth0 is a VLAN"), "{}", found.what);
    assert!(found.todo.contains("reorder_hdr on"), "{}", found.todo);
}

#[test]
fn devices_without_hooks_are_named_once_others_have_some() {
    let mut machine = machine();
    machine.devices.push(Device {
        index: 7,
        name: "wg0".to_owned(),
        up: true,
        ..Device::default()
    });
    machine.loaded = Some(Loaded {
        devices: [2].into(),
        ..Loaded::default()
    });
    assert!(only(&machine, "devices").what.contains("wg0 is a device"));
    machine.devices[1].up = false;
    assert_eq!(topics(&machine), [""; 0]);
}

#[test]
fn rules_that_cannot_be_seen_are_no_reason_for_silence() {
    let mut machine = machine();
    machine.chains = Err("Operation not permitted".to_owned());
    assert!(
        only(&machine, "foreign-rules")
            .what
            .contains("cannot be listed")
    );
    machine.chains = Ok(Vec::new());
    machine.legacy_tables = vec!["mangle".to_owned()];
    assert!(only(&machine, "foreign-rules").what.contains("mangle"));
}

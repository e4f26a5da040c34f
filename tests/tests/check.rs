//! `lb-agent check` on machines that are not as they should be: it names what is wrong, what that
//! does and what to do, and changes nothing.

use anyhow::{Context, Result, ensure};
use lb_lab::{Agent, Lab, PodNetwork, command};
use lb_tests::paths;
use lb_tests::shapes;
use serde_json::Value;

/// What is found on a node.
struct Found(Value);

impl Found {
    fn on(lab: &Lab) -> Result<Self> {
        let node = lab.node(0);
        let words = format!(
            "check -o json --cgroup-root {}",
            node.cgroup_root().path().display()
        );
        let output = Agent::tool_output(lab, node, &words)?;
        let page: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let found = Self(page);
        // The exit code says the same as the page.
        ensure!(
            output.status.code() == Some(i32::from(found.has_problem())),
            "{:?} for {}",
            output.status,
            found.0
        );
        Ok(found)
    }

    fn list(&self) -> &[Value] {
        self.0["findings"].as_array().map_or(&[], Vec::as_slice)
    }

    fn has_problem(&self) -> bool {
        self.list().iter().any(|one| one["severity"] == "problem")
    }

    /// The finding about `topic` has all of these words.
    fn names(&self, topic: &str, words: &[&str]) -> Result<()> {
        let of_topic = self.list().iter().filter(|one| one["topic"] == topic);
        let has = |one: &&Value| {
            let text = format!("{} {}", one["what"], one["todo"]);
            words.iter().all(|word| text.contains(word))
        };
        ensure!(
            of_topic.clone().any(|one| has(&one)),
            "nothing about {topic} with {words:?} in {}",
            self.0
        );
        Ok(())
    }
}

#[test]
fn a_node_as_it_should_be_has_no_findings_before_and_beside_an_agent() -> Result<()> {
    let mut stage = shapes::CALICO.stage()?;
    let before = Found::on(&stage.lab)?;
    ensure!(before.list().is_empty(), "{}", before.0);
    let pins = stage.lab.bpffs("node0")?.read_dir()?;
    let pinned = pins.flatten().any(|pin| pin.path().is_dir());
    ensure!(!pinned, "looking has pinned something");
    stage.start_agents("")?;
    let beside = Found::on(&stage.lab)?;
    ensure!(beside.list().is_empty(), "{}", beside.0);
    Ok(())
}

#[test]
fn connections_that_hang_on_a_bridge_are_explained() -> Result<()> {
    let stage = shapes::BRIDGE_THAT_DROPS_INVALID.with_agents("--socket-load-balancing off")?;
    let walked = paths::walk(&stage, &[0], false);
    let broken = walked
        .err()
        .context("nothing hangs any more: the finding is wrong")?;
    ensure!(
        broken.to_string().contains("pod, ClusterIP, pod here"),
        "{broken:#}"
    );
    Found::on(&stage.lab)?.names(
        "bridge-netfilter",
        &["cni0", "FORWARD of table ip filter", "br_netfilter"],
    )
}

#[test]
fn answers_that_leave_by_another_device_are_explained_and_the_remedy_is_enough() -> Result<()> {
    let stage = shapes::AWS_AS_IT_IS.stage()?;
    let found = Found::on(&stage.lab)?;
    found.names(
        "policy-routing",
        &["1536", "--mark-replies", "fwmark 0x4000/0x4000"],
    )?;
    found.names("foreign-rules", &["PREROUTING of table ip mangle"])?;
    drop(stage);
    let stage = shapes::AWS.with_agents("")?;
    let found = Found::on(&stage.lab)?;
    ensure!(
        found
            .list()
            .iter()
            .all(|one| one["topic"] != "policy-routing"),
        "{}",
        found.0
    );
    Ok(())
}

#[test]
fn rules_that_are_in_the_way_are_named() -> Result<()> {
    let lab = Lab::single(PodNetwork::Routed)?;
    let node = lab.node(0).namespace();
    for (rules, topic, words) in [
        (
            "table ip kube-proxy {\nchain services {\n}\n}",
            "kube-proxy",
            "table ip kube-proxy",
        ),
        (
            "table ip nat {\nchain KUBE-SERVICES {\nip daddr 10.96.0.1 counter\n}\n}",
            "kube-proxy",
            "KUBE-SERVICES",
        ),
        (
            "table inet site {
                chain guard {
                    type filter hook prerouting priority -200; policy accept;
                    tcp dport 30080 drop
                }
            }",
            "foreign-rules",
            "guard of table inet site",
        ),
        (
            "table ip filter {
                chain FORWARD {
                    type filter hook forward priority 0; policy drop;
                    ct state established accept
                }
            }",
            "forward-policy",
            "FORWARD of table ip filter",
        ),
    ] {
        node.nft(rules)?;
        Found::on(&lab)?.names(topic, &[words])?;
        node.nft("flush ruleset")?;
    }
    Ok(())
}

#[test]
fn a_node_that_does_not_forward_or_gives_node_ports_away_is_named() -> Result<()> {
    let lab = Lab::single(PodNetwork::Routed)?;
    let node = lab.node(0).namespace();
    node.sysctl("net/ipv4/ip_forward", "0")?;
    node.sysctl("net/ipv4/ip_local_port_range", "20000 60999")?;
    let found = Found::on(&lab)?;
    found.names("forwarding", &["sysctl net.ipv4.ip_forward=1"])?;
    found.names("node-ports", &["ip_local_reserved_ports=30000-32767"])?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv4/ip_local_reserved_ports", "30000-32767")?;
    let found = Found::on(&lab)?;
    ensure!(found.list().is_empty(), "{}", found.0);
    Ok(())
}

#[test]
fn a_device_that_lost_its_hooks_is_named() -> Result<()> {
    let mut stage = shapes::CALICO.stage()?;
    stage.start_agents("--devices eth*,pod1")?;
    let device = stage.pod("b").host_device();
    Found::on(&stage.lab)?.names("devices", &[device, "--devices"])
}

#[test]
fn what_kube_proxy_left_goes_by_the_commands_that_are_named() -> Result<()> {
    let lab = Lab::single(PodNetwork::Routed)?;
    let node = lab.node(0);
    for family in ["ip", "ip6"] {
        node.namespace().nft(&format!(
            "table {family} kube-proxy {{
                chain service-a {{
                    counter
                }}
                map service-ips {{
                    type inet_service : verdict
                    elements = {{ 80 : goto service-a }}
                }}
                chain services {{
                    tcp dport vmap @service-ips
                }}
                chain nat-prerouting {{
                    type nat hook prerouting priority -100;
                    jump services
                }}
            }}
            table {family} nat {{
                chain KUBE-MARK-MASQ {{
                    counter
                }}
                chain KUBE-SERVICES {{
                    tcp dport 81 jump KUBE-MARK-MASQ
                }}
                chain PREROUTING {{
                    type nat hook prerouting priority -100;
                    jump KUBE-SERVICES
                }}
            }}"
        ))?;
    }
    let found = Found::on(&lab)?;
    found.names("kube-proxy", &["table ip6 kube-proxy", "KUBE-SERVICES"])?;
    let mut findings = found.list().iter();
    let todo = findings
        .find(|one| one["topic"] == "kube-proxy")
        .and_then(|one| one["todo"].as_str())
        .context("nothing to do")?;
    let (_, rest) = todo
        .split_once("where it is gone `")
        .context("no command")?;
    let (commands, _) = rest.split_once('`').context("no end of the command")?;
    let mut shell = node.place().command("sh")?;
    command::output(shell.args(["-e", "-c", commands]))?;
    let after = Found::on(&lab)?;
    let left = after.list().iter().find(|one| one["topic"] == "kube-proxy");
    ensure!(left.is_none(), "{left:?} after `{commands}`");
    Ok(())
}

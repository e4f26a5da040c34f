//! `docs/configuration.md`, made from the command line's definition and the list of kube-proxy's
//! fields.

use super::field::{FIELDS, FLAGS, Field, Treatment};
use super::flags::SHARED;
use super::scheduler::SCHEDULERS;
use crate::cli::args::Cli;
use clap::{Command, CommandFactory};
use lb_common::balance::Algorithm;
use std::fmt::Write;

/// The page.
pub fn markdown() -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut page = String::from(HEAD);
    page.push_str("\n| key | option | meaning |\n|---|---|---|\n");
    for (key, option, help) in keys(&command) {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{key}` | `--{option}` | {help} |");
    }
    page.push_str(KUBE_PROXY);
    page.push_str("\n### Honoured\n\n| field | flag | default | here |\n|---|---|---|---|\n");
    rows(&mut page, Treatment::Honoured);
    page.push_str(
        "\n### Ignored\n\nA line in the log names each that is set to anything but nothing or its default.\n\n\
         | field | flag | default | why |\n|---|---|---|---|\n",
    );
    rows(&mut page, Treatment::Ignored);
    page.push_str(REFUSED);
    page.push_str(MODES);
    page.push_str("\n| scheduler | algorithm |\n|---|---|\n");
    for (scheduler, algorithm) in SCHEDULERS {
        let missing = match Algorithm::named(algorithm) {
            Some(_) => "",
            None => " (not in this version: random)",
        };
        let _ = writeln!(page, "| `{scheduler}` | {algorithm}{missing} |");
    }
    page.push_str(KERNEL);
    page
}

fn rows(page: &mut String, treatment: Treatment) {
    for field in FIELDS.iter().chain(FLAGS) {
        if field.treatment == treatment {
            let _ = writeln!(page, "{}", row(field));
        }
    }
}

fn row(field: &Field) -> String {
    let code = |text: &str| match text {
        "" => String::new(),
        text => format!("`{text}`"),
    };
    let flag = match field.flag() {
        "" => String::new(),
        flag if flag.len() == 1 => format!("`-{flag}`, `--{flag}`"),
        flag if SHARED.contains(&flag) => format!("`--{flag}` (ours, too)"),
        flag => format!("`--{flag}`"),
    };
    let default = field.default.trim_matches('"');
    format!(
        "| {} | {flag} | {} | {} |",
        code(field.path),
        code(default),
        field.note
    )
}

/// The file's keys with the options they stand for and their help, in the order of the help.
fn keys(command: &Command) -> Vec<(String, String, String)> {
    let Some(run) = command.find_subcommand("run") else {
        return Vec::new();
    };
    run.get_arguments()
        .filter(|argument| {
            !argument.is_hide_set() && !["config", "help"].contains(&argument.get_id().as_str())
        })
        .filter_map(|argument| {
            let option = argument.get_long()?.to_owned();
            let help = argument.get_help()?.to_string().replace('|', "\\|");
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            Some((camel_case(argument.get_id().as_str()), option, help))
        })
        .collect()
}

/// As serde's `rename_all = "camelCase"` makes it from a field's name.
fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.push_str(letters.as_str());
        name
    })
}

const HEAD: &str = "\
<!-- Generated from lb-agent/src/config and lb-agent/src/cli/args.rs; `UPDATE_DOCS=1 cargo test -p lb-agent` writes it anew. -->
# Configuration

`lb-agent run --config FILE` reads a YAML file of one or two documents, in any order:

* **ours**, which has no `kind`: the options of `run` in camelCase;
* **kube-proxy's**, a `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, taken as it is. kube-proxy
  itself reads only the first document of a file, so that one file with ours behind serves both.

Documents of other kinds beside them (kubeadm's) are ignored with a line in the log. kube-proxy's flags are
understood by `lb-agent run`, too, and `lb-agent kube-proxy …`, or a binary or link with the name `kube-proxy`, stands
in for kube-proxy with its command line as it is.

What is typed wins over our document, and that over kube-proxy's. `NODE_NAME` and `LB_APISERVER` count as typed.
Beside a `KubeProxyConfiguration`, kube-proxy's flags are ignored, as kube-proxy does (a line in the log names
each), but for `--hostname-override`, `--master`, those of logging, `--cleanup`, `--init-only` and
`--write-config-to`; `--kubeconfig` counts if the file names none.

The whole is checked before anything is touched. Everything wrong is said at once, a sentence each, and ends the
start with exit code 2. While the agent runs, a change of the file that makes sense ends it with an error, as it
ends kube-proxy, so that whoever supervises it starts it anew (traffic goes on meanwhile); a change that makes no
sense is logged, and what was read before stays in force.

`/configz` on the metrics address shows what is in force.

## Our options

A list is written as in the shell or as a YAML sequence. An unknown key, or a value that cannot be read, is refused
with its line.
";

const KUBE_PROXY: &str = "
## kube-proxy's configuration

Decoded strictly first; a field that is not known, or is written twice, is named in a warning and the rest counts.
`null`, `\"\"`, `0` and `0s` mean the default, except below `conntrack` and for `oomScoreAdj`, where 0 is a value.

Only with kube-proxy's configuration or flags (or under its name) do kube-proxy's defaults for the machine apply: the host's name
as the node's, `oomScoreAdj`, and connection tracking.
";

const REFUSED: &str = "
### Refused

Each with its reason: another `apiVersion`; a value of another type; a mode that is none of Linux'; negative periods,
and a `minSyncPeriod` longer than its `syncPeriod`; a `masqueradeBit` outside of 0-31; an `oomScoreAdj` outside of
±1000; addresses and ranges that are none, two `clusterCIDR`s of one family, `primary` beside ranges; `BridgeInterface` and
`InterfaceNamePrefix` without a name; a locked feature gate (`PreferSameTrafficDistribution`,
`NFTablesProxyMode`, `MultiCIDRServiceAllocator`) switched off; `--metrics-port 0`.
";

const MODES: &str = "
### What the mode decides

The same programs serve in every mode (`/proxyMode` says `ebpf`), by the semantics of nftables mode. The mode of the
configuration decides what its users would miss:

| | iptables (default) | ipvs | nftables |
|---|---|---|---|
| node ports on 127.0.0.0/8 | `iptables.localhostNodePorts` | no | no |
| node ports without `nodePortAddresses` | on all addresses | on all addresses | on the primary ones |
| `masqueradeAll` | from `iptables` | from `iptables` | from `nftables` |
| `syncPeriod`, `minSyncPeriod` | from `iptables` | from `ipvs` | from `nftables` |
| algorithm of services | random | by `ipvs.scheduler` | random |

A scheduler without a counterpart here means random, a line in the log and, if it was written, an Event
(`UnsupportedScheduler`) on the Node.
";

const KERNEL: &str = "
### What is written on the machine

With kube-proxy's configuration or flags only, as kube-proxy does at its start:

| what | value | needs |
|---|---|---|
| `net.netfilter.nf_conntrack_max` | `conntrack.maxPerCore` × CPUs, at least `conntrack.min`, at most 1,048,576; also lowered | the host's network namespace, `/proc/sys` writable |
| `/sys/module/nf_conntrack/parameters/hashsize` | a quarter of that, if it is smaller | `/sys` writable |
| `net.netfilter.nf_conntrack_tcp_timeout_established`, `…_close_wait`, `nf_conntrack_udp_timeout`, `…_stream` | the timeouts, if they are not 0 | `/proc/sys` writable |
| `net.netfilter.nf_conntrack_tcp_be_liberal` | 1, if `conntrack.tcpBeLiberal` | `/proc/sys` writable |
| `/proc/self/oom_score_adj` | `oomScoreAdj` | CAP_SYS_RESOURCE to lower it |

What the privileges do not allow is a warning in the log with the value that was wanted, and no reason to end: what
is served here depends on none of it. Where the kernel has no connection tracking, nothing is written.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_options_in_camel_case() {
        let mut command = Cli::command();
        command.build();
        let keys = keys(&command);
        for (key, option) in [
            ("node", "node"),
            ("socketLoadBalancing", "socket-load-balancing"),
            ("serviceClusterIpRange", "service-cluster-ip-range"),
        ] {
            let found = keys.iter().find(|(found, ..)| found == key);
            assert!(
                found.is_some_and(|(_, of, _)| of == option),
                "{key}: {keys:?}"
            );
        }
        let hidden = keys.iter().find(|(_, option, _)| option == "proxy-mode");
        assert!(hidden.is_none(), "kube-proxy's flags are no keys of ours");
    }
}

//! What kube-proxy's configuration means for us: options of our own where we have them, and
//! [`KubeProxy`] for the rest. Pure: nothing is read and nothing touched.

use super::document::Document;
use super::field::{self, Field, Treatment};
use super::flags::Flags;
use super::meaning::{DetectLocal, Mode, Remark, Translated};
use crate::cli::values::{BindAddress, Cidr, List, LogFormat, Mark};
use crate::model::NodePortAddresses;
use crate::model::desired::Family;
use crate::net::limits::Conntrack;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Gates of kube-proxy 1.36 that are locked on.
const LOCKED: [&str; 3] = [
    "PreferSameTrafficDistribution",
    "NFTablesProxyMode",
    "MultiCIDRServiceAllocator",
];

/// Reads the whole document. `flags`: those without a field of their own.
pub fn translate(document: Document, flags: &Flags) -> Translated {
    let mut out = Translated::default();
    for field in field::FIELDS {
        if field.treatment == Treatment::Ignored && document.differs(field) {
            out.remarks.push(Remark::line(format!(
                "{} is ignored: {}",
                name_of(field),
                field.note
            )));
        }
    }
    out.mode(&document);
    out.gates(&document);
    out.addresses(&document, flags);
    out.detection(&document);
    out.node_ports(&document);
    out.periods(&document);
    out.conntrack(&document);
    out.logging(&document);
    out.limits(&document);
    out.flags(flags);
    out.args.kubeconfig = document.text(&field::KUBECONFIG).map(PathBuf::from);
    out.args.node = document.text(&field::HOSTNAME).map(str::to_owned);
    out.kube_proxy.hard_fail = document.switch(&field::HARD_FAIL).unwrap_or(false);
    out.kube_proxy.document = document;
    out
}

/// A field as people know it: by its path, and by its flag.
fn name_of(field: &Field) -> String {
    match field.flag() {
        "" => field.path.to_owned(),
        flag => format!("{} (--{flag})", field.path),
    }
}

impl Translated {
    fn problem(&mut self, field: &Field, sentence: &str) {
        self.problems
            .push(format!("{}: {sentence}", name_of(field)));
    }

    fn mode(&mut self, document: &Document) {
        let mode = document.text(&field::MODE).unwrap_or_default();
        self.kube_proxy.mode = match mode {
            "" | "iptables" => Mode::Iptables,
            "ipvs" => Mode::Ipvs,
            "nftables" => Mode::Nftables,
            other => {
                let sentence =
                    format!("`{other}` is no mode of Linux: iptables, ipvs and nftables are");
                return self.problem(&field::MODE, &sentence);
            }
        };
        if self.kube_proxy.mode == Mode::Ipvs {
            self.scheduler(document.text(&field::SCHEDULER));
        }
    }

    fn gates(&mut self, document: &Document) {
        let gates = document.get(&field::FEATURE_GATES).cloned();
        for (gate, on) in gates.iter().filter_map(|gates| gates.as_object()).flatten() {
            let on = on.as_bool().unwrap_or_default();
            if gate == "AllowServiceExternalIPs" {
                self.args.external_ips = Some(on);
            } else if LOCKED.contains(&gate.as_str()) {
                if !on {
                    let sentence = format!("`{gate}` is locked on and cannot be switched off");
                    self.problem(&field::FEATURE_GATES, &sentence);
                }
            } else {
                self.remarks.push(Remark::line(format!(
                    "featureGates.{gate} is ignored: it changes nothing here"
                )));
            }
        }
    }

    fn addresses(&mut self, document: &Document, flags: &Flags) {
        if let Some(text) = document.text(&field::BIND_ADDRESS) {
            match text.parse::<IpAddr>() {
                Ok(ip) => self.kube_proxy.node_ip = (!ip.is_unspecified()).then_some(ip),
                Err(_) => self.problem(&field::BIND_ADDRESS, &format!("`{text}` is no IP address")),
            }
        }
        for field in [&field::HEALTHZ_ADDRESS, &field::METRICS_ADDRESS] {
            let Some(text) = document.text(field) else {
                continue;
            };
            match text.parse::<BindAddress>() {
                Ok(address) if *field == field::HEALTHZ_ADDRESS => {
                    self.args.healthz_bind_address = Some(address);
                }
                Ok(address) => self.args.metrics_bind_address = Some(address),
                Err(error) => self.problem(field, &error),
            }
        }
        let port = |field: &Field| flags.word(field).and_then(|word| word.parse::<u16>().ok());
        match port(&field::HEALTHZ_PORT) {
            Some(0) => self.kube_proxy.without_health = true,
            Some(port) => self.args.healthz_bind_address = Some(BindAddress::on_port(port)),
            None => {}
        }
        match port(&field::METRICS_PORT) {
            Some(0) => self
                .problems
                .push("--metrics-port 0: metrics cannot be switched off".to_owned()),
            Some(port) => self.args.metrics_bind_address = Some(BindAddress::on_port(port)),
            None => {}
        }
    }

    fn detection(&mut self, document: &Document) {
        if let Some(text) = document.text(&field::CLUSTER_CIDR) {
            match text.parse::<List<Cidr>>() {
                Ok(ranges) => self.cluster_cidr(ranges),
                Err(error) => self.problem(&field::CLUSTER_CIDR, &error),
            }
        }
        let mode = document.text(&field::DETECT_LOCAL_MODE);
        let name = |field: &Field| document.text(field).map(str::to_owned);
        self.kube_proxy.detect_local = match mode.unwrap_or("ClusterCIDR") {
            "ClusterCIDR" => DetectLocal::ClusterCidr,
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                let Some(bridge) = name(&field::BRIDGE) else {
                    return self.problem(&field::BRIDGE, "BridgeInterface needs a name here");
                };
                DetectLocal::Bridge(bridge)
            }
            "InterfaceNamePrefix" => {
                let Some(prefix) = name(&field::INTERFACE_PREFIX) else {
                    let sentence = "InterfaceNamePrefix needs a prefix here";
                    return self.problem(&field::INTERFACE_PREFIX, sentence);
                };
                DetectLocal::InterfacePrefix(prefix)
            }
            other => {
                let sentence = format!(
                    "`{other}` is none of ClusterCIDR, NodeCIDR, BridgeInterface and \
                     InterfaceNamePrefix"
                );
                return self.problem(&field::DETECT_LOCAL_MODE, &sentence);
            }
        };
    }

    fn cluster_cidr(&mut self, ranges: List<Cidr>) {
        let families = ranges.0.iter().map(|range| Family::of(range.0.addr()));
        let v6 = families.filter(|family| *family == Family::V6).count();
        if ranges.0.len() > 2 || (ranges.0.len() == 2 && v6 != 1) {
            let sentence = "one range, or one of each family";
            return self.problem(&field::CLUSTER_CIDR, sentence);
        }
        self.args.cluster_cidr = Some(ranges);
    }

    fn node_ports(&mut self, document: &Document) {
        let items = document.list(&field::NODE_PORT_ADDRESSES);
        let primary = items
            .iter()
            .any(|item| item.eq_ignore_ascii_case("primary"));
        if primary && items.len() > 1 {
            let sentence = "`primary` stands alone or not at all";
            self.problem(&field::NODE_PORT_ADDRESSES, sentence);
        } else if items.is_empty() {
            if self.kube_proxy.mode == Mode::Nftables {
                self.args.node_port_addresses = Some(NodePortAddresses::Primary);
            }
        } else {
            match items.join(",").parse::<NodePortAddresses>() {
                Ok(addresses) => self.args.node_port_addresses = Some(addresses),
                Err(error) => self.problem(&field::NODE_PORT_ADDRESSES, &error),
            }
        }
        let on_loopback = document
            .switch(&field::LOCALHOST_NODE_PORTS)
            .unwrap_or(true);
        self.args.localhost_node_ports =
            Some(self.kube_proxy.mode == Mode::Iptables && on_loopback);
        let masquerade_all = match self.kube_proxy.mode {
            Mode::Nftables => &field::NFTABLES_MASQUERADE_ALL,
            Mode::Iptables | Mode::Ipvs => &field::IPTABLES_MASQUERADE_ALL,
        };
        self.args.masquerade_all = document.switch(masquerade_all);
        if let Err(error) = (document.list(&field::EXCLUDE_CIDRS).join(",")).parse::<List<Cidr>>() {
            self.problem(&field::EXCLUDE_CIDRS, &error);
        }
    }

    fn duration(&mut self, document: &Document, field: &Field) -> Option<Duration> {
        let duration = document.duration(field);
        duration.unwrap_or_else(|problem| {
            self.problems.push(problem);
            None
        })
    }

    fn periods(&mut self, document: &Document) {
        let sections = [
            (
                Mode::Iptables,
                &field::IPTABLES_SYNC,
                &field::IPTABLES_MIN_SYNC,
            ),
            (Mode::Ipvs, &field::IPVS_SYNC, &field::IPVS_MIN_SYNC),
            (
                Mode::Nftables,
                &field::NFTABLES_SYNC,
                &field::NFTABLES_MIN_SYNC,
            ),
        ];
        // There is no flag of nftables': those of iptables count for both.
        let unset = |field: &Field| document.get(field).is_none();
        let borrowed = self.kube_proxy.mode == Mode::Nftables
            && unset(&field::NFTABLES_SYNC)
            && unset(&field::NFTABLES_MIN_SYNC);
        for (mode, period, least) in sections {
            let some = |duration: &Duration| !duration.is_zero();
            let every = self.duration(document, period).filter(some);
            let at_least = self.duration(document, least).filter(some);
            if at_least.unwrap_or_default() > every.unwrap_or(SYNC_PERIOD) {
                let sentence = format!("it cannot be longer than {}", period.path);
                self.problem(least, &sentence);
            }
            if mode == self.kube_proxy.mode || (borrowed && mode == Mode::Iptables) {
                self.kube_proxy.sync_period = self.kube_proxy.sync_period.or(every);
                self.kube_proxy.min_sync_period = self.kube_proxy.min_sync_period.or(at_least);
            }
        }
        for field in [
            &field::CONFIG_SYNC,
            &field::IPVS_TCP_TIMEOUT,
            &field::IPVS_FIN_TIMEOUT,
            &field::IPVS_UDP_TIMEOUT,
        ] {
            self.duration(document, field);
        }
    }

    fn conntrack(&mut self, document: &Document) {
        let mut count = |field: &Field, default: u32| match document.int(field) {
            None => default,
            Some(number) => u32::try_from(number).unwrap_or_else(|_| {
                let sentence = format!("{number} is no number of connections");
                self.problem(field, &sentence);
                default
            }),
        };
        let (max_per_core, min) = (
            count(&field::CONNTRACK_PER_CORE, 32_768),
            count(&field::CONNTRACK_MIN, 131_072),
        );
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        let timeouts = [
            (
                &field::CONNTRACK_ESTABLISHED,
                "nf_conntrack_tcp_timeout_established",
                hours(24),
            ),
            (
                &field::CONNTRACK_CLOSE_WAIT,
                "nf_conntrack_tcp_timeout_close_wait",
                hours(1),
            ),
            (&field::CONNTRACK_UDP, "nf_conntrack_udp_timeout", None),
            (
                &field::CONNTRACK_UDP_STREAM,
                "nf_conntrack_udp_timeout_stream",
                None,
            ),
        ];
        let timeouts = timeouts.into_iter().filter_map(|(field, name, default)| {
            let seconds = self.duration(document, field).or(default)?.as_secs();
            (seconds > 0).then_some((name, seconds))
        });
        self.kube_proxy.conntrack = Conntrack {
            timeouts: timeouts.collect(),
            max_per_core,
            min,
            liberal: document.switch(&field::CONNTRACK_LIBERAL).unwrap_or(false),
        };
    }

    fn logging(&mut self, document: &Document) {
        self.args.log_format = match document.text(&field::LOGGING_FORMAT) {
            None => None,
            Some("text") => Some(LogFormat::Text),
            Some("json") => Some(LogFormat::Json),
            Some(other) => {
                let sentence = format!("`{other}` is neither text nor json");
                return self.problem(&field::LOGGING_FORMAT, &sentence);
            }
        };
        self.kube_proxy.verbosity = document.int(&field::VERBOSITY).unwrap_or(0);
    }

    /// Numbers that have bounds.
    fn limits(&mut self, document: &Document) {
        for field in [&field::MASQUERADE_BIT, &field::NFTABLES_BIT] {
            if document
                .int(field)
                .is_some_and(|bit| !(0..=31).contains(&bit))
            {
                self.problem(field, "a mark has the bits 0 to 31");
            }
        }
        let bit = match self.kube_proxy.mode {
            Mode::Nftables => document.int(&field::NFTABLES_BIT),
            Mode::Iptables | Mode::Ipvs => document.int(&field::MASQUERADE_BIT),
        };
        let mark = bit.and_then(|bit| 1_u32.checked_shl(u32::try_from(bit).ok()?));
        self.args.masquerade_mark = mark.map(Mark);
        let score = document.int(&field::OOM_SCORE).unwrap_or(-999);
        match i32::try_from(score)
            .ok()
            .filter(|score| (-1000..=1000).contains(score))
        {
            Some(score) => self.kube_proxy.oom_score = score,
            None => self.problem(&field::OOM_SCORE, "it lies between -1000 and 1000"),
        }
    }

    fn flags(&mut self, flags: &Flags) {
        if let Some(master) = flags.word(&field::MASTER).filter(|url| !url.is_empty()) {
            self.args.apiserver = Some(List(vec![master.to_owned()]));
        }
        self.kube_proxy.init_only = flags.is_on(&field::INIT_ONLY);
        let file = flags
            .word(&field::WRITE_CONFIG)
            .filter(|file| !file.is_empty());
        self.kube_proxy.write_config = file.map(PathBuf::from);
        for field in field::FLAGS {
            if field.treatment == Treatment::Ignored && flags.has(field) {
                let sentence = format!("--{} is ignored: {}", field.flag(), field.note);
                self.remarks.push(Remark::line(sentence));
            }
        }
    }
}

/// kube-proxy's default `syncPeriod`.
pub const SYNC_PERIOD: Duration = Duration::from_secs(30);

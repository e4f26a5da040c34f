//! What was typed, our own document and kube-proxy's configuration, one over the other.

use super::file::Contents;
use super::kube_proxy::{Document, Flags, Remark, Translated, field, translate};
use super::{Invalid, Settings, check};
use crate::cli::args::RunArgs;
use std::path::PathBuf;

/// Puts everything together and checks the whole. What was typed wins over our own document, and
/// that over kube-proxy's configuration; of kube-proxy's flags only some count beside its file, as
/// with kube-proxy.
pub(super) fn settle(mut typed: RunArgs, contents: Contents) -> Result<Settings, Invalid> {
    let stands_in =
        typed.as_kube_proxy || contents.kube_proxy.is_some() || !typed.kube_proxy.is_empty();
    let mut remarks: Vec<Remark> = (contents.warnings.into_iter()).map(Remark::line).collect();
    let mut problems = Vec::new();
    let mut translated = Translated::default();
    if stands_in {
        let flags = std::mem::take(&mut typed.kube_proxy);
        let (document, flags) = match contents.kube_proxy {
            Some(mut decoded) => {
                remarks.extend(decoded.warnings.into_iter().map(Remark::line));
                problems.append(&mut decoded.problems);
                let (kept, ignored) = flags.kept_beside_a_file();
                ignore(&mut typed, &decoded.document, ignored, &mut remarks);
                (overlaid(decoded.document, &kept, &mut problems), kept)
            }
            None => (overlaid(Document::default(), &flags, &mut problems), flags),
        };
        translated = translate(document, &flags);
        let hostname = flags.word(&field::HOSTNAME).filter(|name| !name.is_empty());
        typed.node = hostname.map(str::to_owned).or(typed.node);
        problems.append(&mut translated.problems);
        remarks.append(&mut translated.remarks);
        if typed.node.is_none() && contents.ours.node.is_none() && translated.args.node.is_none() {
            translated.args.node = own_hostname();
        }
    }
    let args = over(typed, over(contents.ours, translated.args));
    let mut settings = match check::check(args, &translated.kube_proxy) {
        Ok(settings) if problems.is_empty() => settings,
        Ok(_) => return Err(Invalid(problems)),
        Err(Invalid(more)) => {
            problems.extend(more);
            return Err(Invalid(problems));
        }
    };
    settings.stands_in = stands_in;
    settings.kube_proxy = translated.kube_proxy;
    settings.remarks = remarks;
    Ok(settings)
}

/// The document with what flags set in it.
fn overlaid(mut document: Document, flags: &Flags, problems: &mut Vec<String>) -> Document {
    let (set, mut wrong) = flags.document();
    problems.append(&mut wrong);
    for field in field::FIELDS {
        if let Some(value) = set.get(field) {
            document.set(field, value.clone());
        }
    }
    document
}

/// kube-proxy reads its other flags only where no file is named. A kubeconfig is where objects come
/// from, which is ours to choose: it counts where the file names none.
fn ignore(
    typed: &mut RunArgs,
    document: &Document,
    mut ignored: Vec<&'static str>,
    remarks: &mut Vec<Remark>,
) {
    if document.text(&field::KUBECONFIG).is_some() && typed.kubeconfig.take().is_some() {
        ignored.push("kubeconfig");
    }
    let shared = [
        ("cluster-cidr", typed.cluster_cidr.take().is_some()),
        (
            "nodeport-addresses",
            typed.node_port_addresses.take().is_some(),
        ),
        ("masquerade-all", typed.masquerade_all.take().is_some()),
        (
            "metrics-bind-address",
            typed.metrics_bind_address.take().is_some(),
        ),
        (
            "healthz-bind-address",
            typed.healthz_bind_address.take().is_some(),
        ),
    ];
    ignored.extend(
        shared
            .iter()
            .filter(|(_, given)| *given)
            .map(|(name, _)| *name),
    );
    remarks.extend(ignored.into_iter().map(|flag| {
        Remark::line(format!(
            "--{flag} is ignored: the configuration file decides, as it does with kube-proxy"
        ))
    }));
}

/// The machine's name, which kube-proxy takes for the node's.
fn own_hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_lowercase()).filter(|name| !name.is_empty())
}

/// What stands above wins. A source above replaces one below, whichever kind that is.
pub(super) fn over(above: RunArgs, below: RunArgs) -> RunArgs {
    let source_above = above.kubeconfig.is_some() || above.manifests.is_some();
    let of_below = |path: Option<PathBuf>| path.filter(|_| !source_above);
    RunArgs {
        node: above.node.or(below.node),
        kubeconfig: above.kubeconfig.or(of_below(below.kubeconfig)),
        manifests: above.manifests.or(of_below(below.manifests)),
        config: above.config,
        cgroup_root: above.cgroup_root.or(below.cgroup_root),
        bpffs: above.bpffs.or(below.bpffs),
        devices: above.devices.or(below.devices),
        cluster_cidr: above.cluster_cidr.or(below.cluster_cidr),
        node_port_addresses: above.node_port_addresses.or(below.node_port_addresses),
        localhost_node_ports: above.localhost_node_ports.or(below.localhost_node_ports),
        masquerade_all: above.masquerade_all.or(below.masquerade_all),
        masquerade_mark: above.masquerade_mark.or(below.masquerade_mark),
        mark_replies: above.mark_replies.or(below.mark_replies),
        socket_load_balancing: above.socket_load_balancing.or(below.socket_load_balancing),
        socket_opt_out_label: above.socket_opt_out_label.or(below.socket_opt_out_label),
        packet_path_udp_ports: above.packet_path_udp_ports.or(below.packet_path_udp_ports),
        close_pod_sockets: above.close_pod_sockets.or(below.close_pod_sockets),
        tc_attach: above.tc_attach.or(below.tc_attach),
        metrics_bind_address: above.metrics_bind_address.or(below.metrics_bind_address),
        healthz_bind_address: above.healthz_bind_address.or(below.healthz_bind_address),
        max_flows: above.max_flows.or(below.max_flows),
        takeover_wait: above.takeover_wait.or(below.takeover_wait),
        apiserver: above.apiserver.or(below.apiserver),
        endpoints_api: above.endpoints_api.or(below.endpoints_api),
        external_ips: above.external_ips.or(below.external_ips),
        external_ip_ranges: above.external_ip_ranges.or(below.external_ip_ranges),
        service_cluster_ip_range: above
            .service_cluster_ip_range
            .or(below.service_cluster_ip_range),
        service_node_port_range: above
            .service_node_port_range
            .or(below.service_node_port_range),
        state_dir: above.state_dir.or(below.state_dir),
        log_format: above.log_format.or(below.log_format),
        kube_proxy: above.kube_proxy,
        as_kube_proxy: above.as_kube_proxy,
    }
}

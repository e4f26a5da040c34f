//! The configuration file, and what was typed over it.

use crate::cli::args::RunArgs;
use std::path::{Path, PathBuf};

/// The options in a configuration file.
pub(super) fn read_file(path: &Path) -> Result<RunArgs, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!(
            "cannot read the configuration file {}: {error}",
            path.display()
        )
    })?;
    parse_file(&text).map_err(|problem| format!("configuration file {}, {problem}", path.display()))
}

/// The options in the text of a configuration file; an error names its line.
pub fn parse_file(text: &str) -> Result<RunArgs, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // A file of comments only is a document without content: no option is set.
    if text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    }) {
        return Ok(RunArgs::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location().map_or(0, |location| location.line());
        let message = error.without_snippet().to_string();
        // The library appends its own "at line L, column C", which is said in front already.
        let message = message
            .split(" at line ")
            .next()
            .unwrap_or(&message)
            .trim_end_matches([',', ':', ' ']);
        if at == 0 {
            message.to_owned()
        } else {
            format!("line {at}: {message}")
        }
    })
}

/// What was typed wins. A source that was typed replaces the file's, whichever kind that is.
pub(super) fn merge(typed: RunArgs, file: RunArgs) -> RunArgs {
    let source_typed = typed.kubeconfig.is_some() || typed.manifests.is_some();
    let of_file = |path: Option<PathBuf>| path.filter(|_| !source_typed);
    RunArgs {
        node: typed.node.or(file.node),
        kubeconfig: typed.kubeconfig.or(of_file(file.kubeconfig)),
        manifests: typed.manifests.or(of_file(file.manifests)),
        config: typed.config,
        cgroup_root: typed.cgroup_root.or(file.cgroup_root),
        bpffs: typed.bpffs.or(file.bpffs),
        devices: typed.devices.or(file.devices),
        cluster_cidr: typed.cluster_cidr.or(file.cluster_cidr),
        node_port_addresses: typed.node_port_addresses.or(file.node_port_addresses),
        localhost_node_ports: typed.localhost_node_ports.or(file.localhost_node_ports),
        masquerade_all: typed.masquerade_all.or(file.masquerade_all),
        socket_load_balancing: typed.socket_load_balancing.or(file.socket_load_balancing),
        tc_attach: typed.tc_attach.or(file.tc_attach),
        metrics_bind_address: typed.metrics_bind_address.or(file.metrics_bind_address),
        healthz_bind_address: typed.healthz_bind_address.or(file.healthz_bind_address),
        max_flows: typed.max_flows.or(file.max_flows),
        takeover_wait: typed.takeover_wait.or(file.takeover_wait),
        apiserver: typed.apiserver.or(file.apiserver),
        endpoints_api: typed.endpoints_api.or(file.endpoints_api),
        external_ips: typed.external_ips.or(file.external_ips),
        external_ip_ranges: typed.external_ip_ranges.or(file.external_ip_ranges),
        service_cluster_ip_range: typed
            .service_cluster_ip_range
            .or(file.service_cluster_ip_range),
        service_node_port_range: typed
            .service_node_port_range
            .or(file.service_node_port_range),
        state_dir: typed.state_dir.or(file.state_dir),
        log_format: typed.log_format.or(file.log_format),
    }
}

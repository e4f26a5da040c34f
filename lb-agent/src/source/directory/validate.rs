//! What the API server would refuse in a Service on its own, in the words kubectl prints. Pure.
//! Conflicts with other Services are `allocate`'s.

use super::defaults::{has_node_ports, is_external_name, is_headless};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeSet;
use std::fmt::Display;

const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
    start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name', \
    or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
    characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name', or \
    '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const PORT: &str = "must be between 1 and 65535, inclusive";

/// Complaints about fields, as `path: kind: detail`.
#[derive(Debug, Default)]
pub struct FieldErrors(Vec<String>);

impl FieldErrors {
    /// `path: Invalid value: value: detail`.
    pub fn invalid(&mut self, path: impl Display, value: impl Display, detail: impl Display) {
        self.0
            .push(format!("{path}: Invalid value: {value}: {detail}"));
    }

    /// A field that must be set.
    pub fn required(&mut self, path: impl Display, detail: &str) {
        let separator = if detail.is_empty() { "" } else { ": " };
        self.0
            .push(format!("{path}: Required value{separator}{detail}"));
    }

    /// Something that is nobody's mistake.
    pub fn internal(&mut self, path: impl Display, detail: &str) {
        self.0.push(format!("{path}: Internal error: {detail}"));
    }

    /// Whether there is nothing to complain about.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn duplicate(&mut self, path: impl Display, value: impl Display) {
        self.0.push(format!("{path}: Duplicate value: {value}"));
    }

    fn forbidden(&mut self, path: impl Display, detail: impl Display) {
        self.0.push(format!("{path}: Forbidden: {detail}"));
    }

    fn unsupported(&mut self, path: impl Display, value: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|name| format!("\"{name}\"")).collect();
        let list = list.join(", ");
        self.0.push(format!(
            "{path}: Unsupported value: \"{value}\": supported values: {list}"
        ));
    }

    /// The sentence kubectl would print, `None` where there is nothing to say.
    pub fn sentence(&self, service: &str) -> Option<String> {
        match self.0.as_slice() {
            [] => None,
            [one] => Some(format!("The Service \"{service}\" is invalid: {one}")),
            many => Some(format!(
                "The Service \"{service}\" is invalid: \n* {}",
                many.join("\n* ")
            )),
        }
    }
}

/// Validates a defaulted Service.
pub fn validate(service: &Service) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    if !is_label(name, true) {
        errors.invalid("metadata.name", quoted(name), DNS_1035);
    }
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    if !is_label(namespace, false) {
        errors.invalid("metadata.namespace", quoted(namespace), DNS_1123);
    }
    let Some(spec) = &service.spec else {
        return errors;
    };
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    supported(&mut errors, "spec.type", spec.type_.as_deref(), &types);
    addresses(spec, &mut errors);
    ports(spec, &mut errors);
    policies(spec, &mut errors);
    affinity(spec, &mut errors);
    errors
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn supported(errors: &mut FieldErrors, path: &str, value: Option<&str>, known: &[&str]) {
    if let Some(value) = value
        && !known.contains(&value)
    {
        errors.unsupported(path, value, known);
    }
}

/// A DNS label of at most 63 characters, beginning with a letter where asked.
fn is_label(text: &str, letter_first: bool) -> bool {
    let lower = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= 63
        && lower(last)
        && (if letter_first {
            first.is_ascii_lowercase()
        } else {
            lower(first)
        })
        && bytes.iter().all(|byte| lower(byte) || *byte == b'-')
}

fn addresses(spec: &ServiceSpec, errors: &mut FieldErrors) {
    let type_ = spec.type_.as_deref().unwrap_or_default();
    if is_external_name(spec) {
        if spec.cluster_ip.is_some() {
            errors.forbidden(
                "spec.clusterIPs[0]",
                "may not be set when `type` is 'ExternalName'",
            );
        }
        if spec.external_name.as_deref().is_none_or(str::is_empty) {
            errors.required("spec.externalName", "");
        }
    }
    if is_headless(spec) && has_node_ports(spec) {
        let detail = format!("may not be set to 'None' for {type_} services");
        errors.invalid("spec.clusterIPs[0]", quoted("None"), detail);
    }
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    if list.first() != spec.cluster_ip.as_ref() {
        let first = list.first().map(String::as_str).unwrap_or_default();
        errors.invalid(
            "spec.clusterIPs[0]",
            quoted(first),
            "must match `clusterIP`",
        );
    }
    for (index, address) in list.iter().enumerate() {
        let none = index == 0 && list.len() == 1 && address == "None";
        if !none && address.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(
                format!("spec.clusterIPs[{index}]"),
                quoted(address),
                ADDRESS,
            );
        }
    }
    if list.len() > 2 {
        let detail = "may only hold up to 2 values";
        errors.invalid("spec.clusterIPs", format!("{list:?}"), detail);
    }
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        if address.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(
                format!("spec.externalIPs[{index}]"),
                quoted(address),
                ADDRESS,
            );
        }
    }
    for (index, range) in spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .enumerate()
    {
        if range.trim().parse::<ipnet::IpNet>().is_err() {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            let path = format!("spec.loadBalancerSourceRanges[{index}]");
            errors.invalid(path, quoted(range), detail);
        }
    }
    families(spec, errors);
}

fn families(spec: &ServiceSpec, errors: &mut FieldErrors) {
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    supported(
        errors,
        "spec.ipFamilyPolicy",
        spec.ip_family_policy.as_deref(),
        &policies,
    );
    let list = spec.ip_families.as_deref().unwrap_or_default();
    for (index, family) in list.iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        supported(errors, &path, Some(family), &["IPv4", "IPv6"]);
        if list[..index].contains(family) {
            errors.duplicate(path, quoted(family));
        }
    }
    let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
    for (index, (address, family)) in addresses.iter().zip(list).enumerate() {
        if let Ok(parsed) = address.parse::<std::net::IpAddr>()
            && parsed.is_ipv4() != (family == "IPv4")
        {
            let detail =
                format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(format!("spec.clusterIPs[{index}]"), quoted(address), detail);
        }
    }
    if matches!(spec.ip_family_policy.as_deref(), None | Some("SingleStack")) {
        let asked = spec.ip_family_policy.as_deref().unwrap_or("SingleStack");
        let must = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        if addresses.len() > 1 {
            let detail = format!("{must} cluster IPs are specified");
            errors.invalid("spec.ipFamilyPolicy", quoted(asked), detail);
        }
        if list.len() > 1 {
            let detail = format!("{must} IP families are specified");
            errors.invalid("spec.ipFamilyPolicy", quoted(asked), detail);
        }
    }
}

fn ports(spec: &ServiceSpec, errors: &mut FieldErrors) {
    let list = spec.ports.as_deref().unwrap_or_default();
    if list.is_empty() && !is_headless(spec) && !is_external_name(spec) {
        errors.required("spec.ports", "");
    }
    let (mut names, mut numbers, mut node_ports) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in list.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if list.len() > 1 {
                errors.required(format!("{path}.name"), "");
            }
        } else {
            if !is_label(name, false) {
                errors.invalid(format!("{path}.name"), quoted(name), DNS_1123);
            }
            if !names.insert(name) {
                errors.duplicate(format!("{path}.name"), quoted(name));
            }
        }
        one_port(port, &path, errors);
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if !numbers.insert((protocol, port.port)) {
            let value = format!("{{\"protocol\":{protocol:?},\"port\":{}}}", port.port);
            errors.duplicate(&path, value);
        }
        let Some(node_port) = port.node_port else {
            continue;
        };
        if !has_node_ports(spec) {
            let type_ = spec.type_.as_deref().unwrap_or_default();
            let detail = format!("may not be used when `type` is '{type_}'");
            errors.forbidden(format!("{path}.nodePort"), detail);
        }
        if !node_ports.insert((protocol, node_port)) {
            errors.duplicate(format!("{path}.nodePort"), node_port);
        }
    }
}

fn one_port(port: &ServicePort, path: &str, errors: &mut FieldErrors) {
    if !(1..=65_535).contains(&port.port) {
        errors.invalid(format!("{path}.port"), port.port, PORT);
    }
    let protocols = ["SCTP", "TCP", "UDP"];
    supported(
        errors,
        &format!("{path}.protocol"),
        port.protocol.as_deref(),
        &protocols,
    );
    match &port.target_port {
        Some(IntOrString::Int(number)) if !(1..=65_535).contains(number) => {
            errors.invalid(format!("{path}.targetPort"), number, PORT);
        }
        Some(IntOrString::String(name)) if !is_port_name(name) => {
            let detail = "must be at most 15 characters of a-z, 0-9 and '-', with at least one \
                          letter, not beginning or ending with '-'";
            errors.invalid(format!("{path}.targetPort"), quoted(name), detail);
        }
        _ => {}
    }
}

/// An IANA service name (RFC 6335).
fn is_port_name(name: &str) -> bool {
    is_label(name, false)
        && name.len() <= 15
        && !name.contains("--")
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn policies(spec: &ServiceSpec, errors: &mut FieldErrors) {
    let known = ["Cluster", "Local"];
    let internal = spec.internal_traffic_policy.as_deref();
    supported(errors, "spec.internalTrafficPolicy", internal, &known);
    let external = spec.external_traffic_policy.as_deref();
    supported(errors, "spec.externalTrafficPolicy", external, &known);
    let external_ips = spec
        .external_ips
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    if let Some(policy) = external
        && !has_node_ports(spec)
        && !external_ips
    {
        let detail = "may only be set for externally-accessible services";
        errors.invalid("spec.externalTrafficPolicy", quoted(policy), detail);
    }
    if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0)
        && !super::defaults::needs_health_port(spec)
    {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` \
                      is 'Local'";
        errors.invalid("spec.healthCheckNodePort", port, detail);
    }
}

fn affinity(spec: &ServiceSpec, errors: &mut FieldErrors) {
    let known = ["ClientIP", "None"];
    supported(
        errors,
        "spec.sessionAffinity",
        spec.session_affinity.as_deref(),
        &known,
    );
    if spec.session_affinity.as_deref() == Some("None") {
        if spec.session_affinity_config.is_some() {
            let detail = "must not be set when session affinity is None";
            errors.forbidden("spec.sessionAffinityConfig", detail);
        }
        return;
    }
    let client = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = client.and_then(|client| client.timeout_seconds)
        && !(1..=86_400).contains(&seconds)
    {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.invalid(path, seconds, "must be greater than 0 and less than 86400");
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;

use super::*;
use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::json;

fn allocator() -> Allocator {
    Allocator::new(Ranges::default(), BTreeMap::new())
}

fn service(name: &str, spec: &serde_json::Value) -> Service {
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    let mut service = serde_json::from_value(object).unwrap();
    super::super::defaults::apply(&mut service);
    service
}

fn node_port(name: &str, number: Option<u16>) -> Service {
    service(
        name,
        &json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]}),
    )
}

fn assign(allocator: &mut Allocator, mut service: Service) -> Result<ServiceSpec, String> {
    let name = service.metadata.name.clone().unwrap();
    match allocator.assign(&mut service) {
        Ok(_) => Ok(service.spec.unwrap()),
        Err(errors) => Err(errors.sentence(&name).unwrap()),
    }
}

fn port_of(spec: &ServiceSpec) -> i32 {
    spec.ports.as_ref().unwrap()[0].node_port.unwrap()
}

#[test]
fn cluster_ips_come_from_the_ranges_by_policy() {
    let mut allocator = allocator();
    let single = assign(
        &mut allocator,
        service("a", &json!({"ports": [{"port": 80}]})),
    )
    .unwrap();
    let address: IpAddr = single.cluster_ip.unwrap().parse().unwrap();
    assert!(Ranges::default().cluster_ips[0].contains(&address));
    assert_eq!(single.ip_families, Some(vec!["IPv4".to_owned()]));
    assert_eq!(single.ip_family_policy.as_deref(), Some("SingleStack"));

    let dual = json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]});
    let dual = assign(&mut allocator, service("b", &dual)).unwrap();
    assert_eq!(
        dual.ip_families,
        Some(vec!["IPv4".to_owned(), "IPv6".to_owned()])
    );
    assert_eq!(dual.cluster_ips.unwrap().len(), 2);

    let six = json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]});
    let six = assign(&mut allocator, service("c", &six)).unwrap();
    assert!(six.cluster_ip.unwrap().starts_with("fd00:10:96:"));

    let headless = json!({"clusterIP": "None", "ports": [{"port": 80}]});
    let headless = assign(&mut allocator, service("d", &headless)).unwrap();
    assert_eq!(headless.cluster_ip.as_deref(), Some("None"));
}

#[test]
fn a_cluster_ip_that_a_manifest_names_is_taken_as_it_is() {
    let mut allocator = allocator();
    let spec = json!({"clusterIP": "192.0.2.7", "ports": [{"port": 80}]});
    let spec = assign(&mut allocator, service("a", &spec)).unwrap();
    assert_eq!(spec.cluster_ips, Some(vec!["192.0.2.7".to_owned()]));
    let again = json!({"clusterIP": "192.0.2.7", "ports": [{"port": 81}]});
    let said = assign(&mut allocator, service("b", &again)).unwrap_err();
    assert_eq!(
        said,
        "The Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"192.0.2.7\"]: \
         failed to allocate IP 192.0.2.7: provided IP is already allocated"
    );
}

#[test]
fn dual_stack_needs_two_ranges() {
    let ranges = Ranges {
        cluster_ips: vec!["10.96.0.0/16".parse().unwrap()],
        ..Ranges::default()
    };
    let mut allocator = Allocator::new(ranges, BTreeMap::new());
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]});
    let said = assign(&mut allocator, service("a", &spec)).unwrap_err();
    assert!(
        said.ends_with("this cluster is not configured for dual-stack services"),
        "{said}"
    );
    let spec = json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]});
    let said = assign(&mut allocator, service("a", &spec)).unwrap_err();
    assert!(
        said.ends_with("\"IPv6\": not configured on this cluster"),
        "{said}"
    );
}

#[test]
fn an_out_of_range_node_port_is_refused_with_kubectls_sentence() {
    assert_eq!(
        assign(&mut allocator(), node_port("x", Some(1234))).unwrap_err(),
        "The Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 1234: provided port \
         is not in the valid range. The range of valid ports is 30000-32767"
    );
}

#[test]
fn a_duplicate_node_port_is_refused_with_kubectls_sentence() {
    let mut allocator = allocator();
    assign(&mut allocator, node_port("y", Some(30_080))).unwrap();
    assert_eq!(
        assign(&mut allocator, node_port("x", Some(30_080))).unwrap_err(),
        "The Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port \
         is already allocated"
    );
}

#[test]
fn a_named_node_port_wins_over_an_automatic_one() {
    let mut allocator = allocator();
    let taken = port_of(&assign(&mut allocator, node_port("auto", None)).unwrap());
    let mut wanting = node_port("named", Some(u16::try_from(taken).unwrap()));
    let evicted = allocator.assign(&mut wanting).unwrap();
    assert_eq!(&*evicted.into_iter().next().unwrap().name, "auto");
    let moved = port_of(&assign(&mut allocator, node_port("auto", None)).unwrap());
    assert_ne!(moved, taken);
}

#[test]
fn what_was_given_stays_over_restarts_and_edits() {
    let mut first = allocator();
    let one = assign(&mut first, node_port("a", None)).unwrap();
    let two = assign(&mut first, node_port("b", None)).unwrap();
    let written = serde_json::to_string(first.held().values().next().unwrap()).unwrap();
    assert!(written.contains("clusterIps"), "{written}");

    let mut second = Allocator::new(Ranges::default(), first.held().clone());
    let changed = service(
        "b",
        &json!({"type": "NodePort", "ports": [{"port": 80, "name": "web"}, {"port": 81, "name": "c"}]}),
    );
    let again = assign(&mut second, changed).unwrap();
    assert_eq!(
        (port_of(&again), &again.cluster_ip),
        (port_of(&two), &two.cluster_ip)
    );
    assert_eq!(
        port_of(&assign(&mut second, node_port("a", None)).unwrap()),
        port_of(&one)
    );
}

#[test]
fn tcp_and_udp_on_one_port_share_the_node_port() {
    let spec = json!({"type": "NodePort", "ports": [
        {"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]});
    let spec = assign(&mut allocator(), service("dns", &spec)).unwrap();
    let ports = spec.ports.unwrap();
    assert_eq!(ports[0].node_port, ports[1].node_port);
}

#[test]
fn every_value_of_a_small_range_is_found_and_a_full_range_is_said() {
    let ranges = Ranges {
        cluster_ips: vec!["10.0.0.0/28".parse().unwrap()],
        node_ports: 30_000..=30_009,
    };
    let mut allocator = Allocator::new(ranges, BTreeMap::new());
    let ports: BTreeSet<i32> = (0..10)
        .map(|n| port_of(&assign(&mut allocator, node_port(&format!("s{n}"), None)).unwrap()))
        .collect();
    assert_eq!(ports, (30_000..=30_009).collect());
    let said = assign(&mut allocator, node_port("more", None)).unwrap_err();
    assert!(
        said.contains("failed to allocate a nodePort: range is full"),
        "{said}"
    );
}

#[test]
fn a_local_load_balancer_gets_a_health_port() {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80}]});
    let spec = assign(&mut allocator(), service("lb", &spec)).unwrap();
    assert!(spec.health_check_node_port.is_some());
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": [{"port": 80}]});
    let spec = assign(&mut allocator(), service("lb", &spec)).unwrap();
    assert_eq!(spec.ports.unwrap()[0].node_port, None);
}

//! Bad objects, all in one file with good ones: each is refused with a sentence that names it and
//! the reason, is counted, and hurts nothing else.

use anyhow::{Result, ensure};
use lb_tests::site::{Site, at, service, slice, socket};
use std::net::SocketAddr;

/// What must be refused: the object, the field's value, words of the reason, the metric's name.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    (
        "EndpointSlice lab/mixed-4",
        "127.0.0.1",
        "loopback",
        "loopback",
    ),
    (
        "EndpointSlice lab/mixed-4",
        "169.254.1.1",
        "link-local",
        "link_local",
    ),
    (
        "EndpointSlice lab/mixed-4",
        "224.0.0.1",
        "multicast",
        "multicast",
    ),
    (
        "EndpointSlice lab/mixed-4",
        "0.0.0.0",
        "unspecified",
        "unspecified",
    ),
    (
        "EndpointSlice lab/mixed-4",
        "10.96.1.1",
        "ClusterIP of Service lab/good",
        "endpoint_on_service_address",
    ),
    (
        "EndpointSlice lab/mixed-4",
        "10.0.0.256",
        "not an IP address",
        "unparsable",
    ),
    (
        "EndpointSlice lab/mixed-4",
        "fd00::7",
        "addressType",
        "other_family",
    ),
    ("EndpointSlice lab/mixed-6", "::1", "loopback", "loopback"),
    (
        "EndpointSlice lab/mixed-6",
        "fe80::1",
        "link-local",
        "link_local",
    ),
    (
        "EndpointSlice lab/mixed-6",
        "ff02::1",
        "multicast",
        "multicast",
    ),
    ("Service lab/external", "127.0.0.2", "loopback", "loopback"),
    (
        "Service lab/external",
        "169.254.169.254",
        "link-local",
        "link_local",
    ),
    (
        "Service lab/external",
        "239.1.1.1",
        "multicast",
        "multicast",
    ),
    (
        "Service lab/external",
        "10.96.1.1",
        "ClusterIP of Service lab/good",
        "cluster_ip_of_another_service",
    ),
    (
        "Service lab/external",
        "203.0.113.9",
        "outside the ranges",
        "outside_allowed_ranges",
    ),
    ("Service lab/balanced", "127.0.0.3", "loopback", "loopback"),
    (
        "Service lab/balanced",
        "169.254.3.3",
        "link-local",
        "link_local",
    ),
    (
        "Service lab/balanced",
        "10.96.1.1",
        "ClusterIP of Service lab/good",
        "cluster_ip_of_another_service",
    ),
    (
        "Service lab/balanced",
        "203.0.113.8",
        "outside the ranges",
        "outside_allowed_ranges",
    ),
    (
        "Service lab/second",
        "192.0.2.7:80/TCP",
        "Service lab/first came first",
        "held_by_another_service",
    ),
];

/// One file with all of it.
fn manifest(site: &Site) -> String {
    let (a, b) = (
        site.pod("a").v4().to_string(),
        site.pod("b").v4().to_string(),
    );
    let node = site.lab().node_addresses(0)[0];
    let created = |text: String, year: u16| {
        let stamp = format!("namespace: lab, creationTimestamp: \"{year}-01-01T00:00:00Z\"}}");
        text.replacen("namespace: lab}", &stamp, 1)
    };
    let dual =
        "  clusterIPs: [10.96.1.2, \"fd00:10:96::1:2\"]\n  ipFamilyPolicy: RequireDualStack\n";
    let mixed = [
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "10.96.1.1",
        "10.0.0.256",
        "fd00::7",
        &b,
    ];
    let b6 = site.pod("b").v6().to_string();
    let mixed6 = slice("mixed", &["::1", "fe80::1", "ff02::1", &b6])
        .replace("mixed-4", "mixed-6")
        .replace("IPv4", "IPv6");
    let external = format!(
        "  externalIPs: [127.0.0.2, 169.254.169.254, 239.1.1.1, 10.96.1.1, 203.0.113.9, 192.0.2.3, \
         {node}]\n"
    );
    let balanced = service("balanced", &format!("{}  type: LoadBalancer\n", at(4)))
        + "status:\n  loadBalancer:\n    ingress: [{ip: 127.0.0.3}, {ip: 169.254.3.3}, \
           {ip: 10.96.1.1}, {ip: 203.0.113.8}, {ip: 192.0.2.4}]\n";
    let shared = |name: &str, number: u8, year: u16| {
        let spec = format!("{}  externalIPs: [192.0.2.7]\n", at(number));
        created(service(name, &spec), year)
    };
    let unserved =
        |name: &str, number: u8| service(name, &format!("{}  externalIPs: [here]\n", at(number)));
    [
        service("good", &at(1)),
        slice("good", &[&a]),
        service("mixed", dual),
        slice("mixed", &mixed),
        mixed6,
        service("external", &(at(3) + &external)),
        slice("external", &[&a]),
        balanced,
        slice("balanced", &[&a]),
        shared("second", 6, 2021),
        slice("second", &[&b]),
        shared("first", 5, 2020),
        slice("first", &[&a]),
        unserved("nonsense", 7),
        service("last", &at(8)),
        slice("last", &[&b]),
    ]
    .join("---\n")
}

#[test]
fn bad_objects_are_refused_by_name_and_reason_counted_and_hurt_nothing_else() -> Result<()> {
    let mut site = Site::new(&["a", "b"])?;
    let node = site.lab().node_addresses(0)[0];
    site.write("all.yaml", manifest(&site))?;
    site.start(&format!("--external-ip-ranges 192.0.2.0/24,127.0.0.0/8,169.254.0.0/16,239.0.0.0/8,10.96.0.0/16,{node}/32"))?;
    for (object, value, words, reason) in REFUSED {
        let named = format!("{object}: ");
        let refused = format!(" {value} is refused: ");
        let line = site.await_log(&["WARN", &named, &refused, words])?;
        ensure!(line.contains(reason), "no {reason} in {line}");
        let lines = site.log_count(&[&named, &refused])?;
        ensure!(lines == 1, "{object} {value}: said {lines} times");
        let label = format!("reason=\"{reason}\"");
        let expected = REFUSED.iter().filter(|one| one.3 == *reason).count();
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        site.await_metric("lb_refused_objects", &[&label], Some(expected as f64))?;
        site.until("status names it", || {
            let status = site.tool("status")?;
            Ok((!status.contains(&named) || !status.contains(&refused)).then_some(status))
        })?;
    }
    // What the API server itself would refuse is refused whole, in its words.
    site.await_log(&[
        "The Service \"nonsense\" is invalid: spec.externalIPs[0]",
        "all.yaml",
    ])?;
    // Everything good in the same objects and the same file is served.
    let external = |address: [u8; 4]| SocketAddr::from((address, 80));
    for (server, pod) in [
        (socket(1), "a"),
        (socket(2), "b"),
        ("[fd00:10:96::1:2]:80".parse()?, "b"),
        (socket(3), "a"),
        (external([192, 0, 2, 3]), "a"),
        (SocketAddr::new(node, 80), "a"),
        (socket(4), "a"),
        (external([192, 0, 2, 4]), "a"),
        (socket(5), "a"),
        (external([192, 0, 2, 7]), "a"),
        (socket(6), "b"),
        (socket(8), "b"),
    ] {
        for _ in 0..4 {
            ensure!(
                site.ask(server)? == pod,
                "{server} is not answered by {pod}"
            );
        }
    }
    // The table shows what is served and nothing of what is refused.
    let table = site.tool("services")?;
    for shown in [
        "192.0.2.3:80",
        "192.0.2.4:80",
        "192.0.2.7:80",
        "10.96.1.8:80",
    ] {
        ensure!(table.contains(shown), "no {shown} in\n{table}");
    }
    for (_, value, _, reason) in REFUSED {
        let shown = [format!(" {value}:"), format!("[{value}]:")]
            .iter()
            .any(|text| table.contains(text));
        let elsewhere = ["10.96.1.1", "192.0.2.7:80/TCP"].contains(value);
        ensure!(elsewhere || !shown, "{value} ({reason}) is in\n{table}");
    }
    ensure!(
        table.matches("10.96.1.1:80").count() == 1,
        "taken over:\n{table}"
    );
    // The one that waits is served as soon as the address comes free, and nothing is said twice.
    let text = manifest(&site).replacen("externalIPs: [192.0.2.7]", "externalIPs: [192.0.2.8]", 2);
    site.write("all.yaml", text)?;
    site.await_answer(external([192, 0, 2, 8]), "a")?;
    site.await_metric("lb_refused_objects", &["reason=\"loopback\""], Some(4.0))?;
    Ok(())
}

//! Values by the sentences people get.

use super::*;
use clap::ValueEnum;

#[test]
fn the_spelling_of_socket_load_balancing_is_tolerant() {
    for text in [
        "host-only",
        "hostOnly",
        "HostOnly",
        "HOST-ONLY",
        "host_only",
    ] {
        assert_eq!(
            SocketLoadBalancing::from_str(text, true),
            Ok(SocketLoadBalancing::HostOnly),
            "{text}"
        );
    }
    assert!(SocketLoadBalancing::from_str("some", true).is_err());
}

#[test]
fn cidrs_lose_their_host_bits_and_bad_ones_are_named() {
    let list: List<Cidr> = "10.244.1.7/16, fd00::/56".parse().unwrap();
    assert_eq!(list.0[0].0.to_string(), "10.244.0.0/16");
    assert_eq!(list.0[1].0.to_string(), "fd00::/56");
    let error = "10.244.0.0".parse::<List<Cidr>>().unwrap_err();
    assert!(error.contains("`10.244.0.0` is not a CIDR"), "{error}");
}

#[test]
fn an_address_without_port_gets_the_usual_one() {
    let usual: SocketAddr = "192.0.2.1:9".parse().unwrap();
    for (text, wanted) in [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("127.0.0.1", "127.0.0.1:9"),
        ("[::]:1", "[::]:1"),
        ("[::1]", "[::1]:9"),
        ("::1", "[::1]:9"),
        ("", "192.0.2.1:9"),
    ] {
        let parsed: BindAddress = text.parse().unwrap();
        assert_eq!(parsed.or(usual), wanted.parse().unwrap(), "{text}");
    }
    for text in ["localhost:1", ":10249", "1.2.3.4:70000"] {
        assert!(text.parse::<BindAddress>().is_err(), "{text}");
    }
}

#[test]
fn port_ranges_are_written_as_for_the_api_server() {
    let range = |text: &str| text.parse::<PortRange>().map(|r| (r.first, r.last));
    assert_eq!(range("30000-32767"), Ok((30000, 32767)));
    assert_eq!(range("30000+10"), Ok((30000, 30010)));
    assert_eq!(range("30000"), Ok((30000, 30000)));
    for text in ["0-10", "20-10", "a-b", "", "65535+1"] {
        assert!(range(text).is_err(), "{text}");
    }
}

#[test]
fn node_port_addresses_are_all_primary_or_ranges() {
    assert_eq!("All".parse(), Ok(NodePortAddresses::All));
    assert_eq!("primary".parse(), Ok(NodePortAddresses::Primary));
    assert_eq!(
        "192.0.2.1/24".parse(),
        Ok(NodePortAddresses::Ranges(vec![
            "192.0.2.0/24".parse().unwrap()
        ]))
    );
    assert!("primary,192.0.2.0/24".parse::<NodePortAddresses>().is_err());
}

#[test]
fn devices_are_auto_or_patterns_never_both() {
    assert_eq!("AUTO".parse(), Ok(Devices::Auto));
    assert_eq!(
        "eth*, veth?".parse(),
        Ok(Devices::Globs(vec!["eth*".to_owned(), "veth?".to_owned()]))
    );
    for text in ["auto,eth0", "", ",", "a b", "a/b"] {
        assert!(text.parse::<Devices>().is_err(), "{text}");
    }
}

//! ICMP errors follow the flow they quote.

use super::*;
use crate::host::craft::icmp_error;

/// "Fragmentation needed" and "packet too big".
const fn too_big(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (3, 4),
        Family::V6 => (2, 0),
    }
}

/// An error from `router` about `packet`, of which it quotes everything or as little as allowed.
fn error(family: Family, router: &Addr, packet: &[u8], short: bool) -> Vec<u8> {
    let (kind, code) = too_big(family);
    let header = if family == Family::V4 { 20 } else { 40 };
    let quoted = if short { header + 8 } else { packet.len() };
    icmp_error(router, &ends(packet).0.addr, kind, code, packet, quoted)
}

/// Runs a test for everything, with full and with short quotes.
fn with_quotes(test: impl Fn(Scene, bool)) {
    everywhere(|family, protocol| {
        for short in [false, true] {
            test(Scene::new(family, protocol), short);
        }
    });
}

#[track_caller]
fn arrives_as(s: &Scene, mut packet: Vec<u8>, expected: &[u8]) {
    assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Continue);
    assert_eq!(flaw(&packet), None);
    assert_eq!(packet, expected);
}

#[track_caller]
fn leaves_as(s: &Scene, mut packet: Vec<u8>, expected: &[u8]) {
    assert_eq!(s.world.egress(&mut packet, DEVICE), Verdict::Continue);
    assert_eq!(flaw(&packet), None);
    assert_eq!(packet, expected);
}

#[test]
fn an_error_about_a_request_reaches_the_client_as_one_from_the_frontend() {
    with_quotes(|s, short| {
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let router = s.family.addr(5, 5);
        let arriving = error(s.family, &router, &s.data(&client, &backend), short);
        arrives_as(&s, arriving.clone(), &arriving);
        let expected = error(s.family, &frontend.addr, &s.data(&client, &frontend), short);
        leaves_as(&s, arriving, &expected);
        assert_eq!(s.reason(Reason::IcmpErrorTranslated), 1);
    });
}

#[test]
fn a_message_that_is_no_error_is_left_alone_whatever_its_body_looks_like() {
    with_quotes(|s, short| {
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let echo = if s.family == Family::V4 { 8 } else { 128 };
        let body = s.data(&client, &backend);
        let header = if s.family == Family::V4 { 20 } else { 40 };
        let length = if short { header + 8 } else { body.len() };
        let router = s.family.addr(5, 5);
        let packet = icmp_error(&router, &client.addr, echo, 0, &body, length);
        leaves_as(&s, packet.clone(), &packet);
        let body = s.data(&frontend, &client);
        let packet = icmp_error(&router, &frontend.addr, echo, 0, &body, length);
        arrives_as(&s, packet.clone(), &packet);
        assert_eq!(s.reason(Reason::IcmpErrorTranslated), 0);
    });
}

#[test]
fn an_error_about_a_masqueraded_request_finds_its_client() {
    with_quotes(|s, short| {
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.node_port());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        let router = s.family.addr(5, 5);
        let arriving = error(s.family, &router, &s.data(&snat, &backend), short);
        let between = error(s.family, &router, &s.data(&client, &backend), short);
        arrives_as(&s, arriving, &between);
        let expected = error(s.family, &frontend.addr, &s.data(&client, &frontend), short);
        leaves_as(&s, between, &expected);
    });
}

#[test]
fn an_error_about_a_reply_finds_its_backend() {
    with_quotes(|s, short| {
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let router = s.family.addr(5, 5);
        let arriving = error(s.family, &router, &s.data(&frontend, &client), short);
        let expected = error(s.family, &router, &s.data(&backend, &client), short);
        arrives_as(&s, arriving, &expected);
        leaves_as(&s, expected.clone(), &expected);
    });
}

#[test]
fn an_error_about_a_reply_to_a_masqueraded_client_quotes_the_snat_end() {
    with_quotes(|s, short| {
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.node_port());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        let router = s.family.addr(5, 5);
        let arriving = error(s.family, &router, &s.data(&frontend, &client), short);
        let between = error(s.family, &router, &s.data(&backend, &client), short);
        arrives_as(&s, arriving, &between);
        let expected = error(s.family, &snat.addr, &s.data(&backend, &snat), short);
        leaves_as(&s, between, &expected);
    });
}

#[test]
fn errors_and_echoes_that_are_not_ours_are_left_alone() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::UDP);
        let (a, b) = (family.end(9, 1, 1000), family.end(9, 2, 2000));
        let packet = error(family, &family.addr(5, 5), &s.data(&a, &b), false);
        arrives_as(&s, packet.clone(), &packet);
        leaves_as(&s, packet.clone(), &packet);
        let kind = if family == Family::V4 { 8 } else { 128 };
        let echo = icmp_error(&a.addr, &b.addr, kind, 0, &[0; 16], 16);
        arrives_as(&s, echo.clone(), &echo);
        leaves_as(&s, echo.clone(), &echo);
    }
}

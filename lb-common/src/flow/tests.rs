//! What the table promises, one thread at a time; `tests/flow_stress.rs` has the threads.

use super::*;
use crate::addr::ServiceId;
use crate::hash::HashKeys;
use crate::host::HostTables;
use crate::table::{Backend, Config};
use std::net::IpAddr;
use zerocopy::FromZeros;

const NOW: Tick = Tick(1000);

/// A table of its own, with 64 backends.
struct World {
    buckets: HostBuckets,
    tables: HostTables,
}

impl World {
    fn new(buckets: usize) -> Self {
        let config = Config {
            flow_mask: u32::try_from(buckets - 1).unwrap(),
            hash_keys: HashKeys::from_random(
                [1, 2, 3, 4, 5, 6, 7, 8].map(|x: u32| x.wrapping_mul(0x9e37_79b1)),
            ),
            ..Config::new_zeroed()
        };
        let mut tables = HostTables::new(config);
        tables.backends = (0..64u32)
            .map(|id| Backend {
                addr: backend(id).addr,
                port: backend(id).port,
                service: ServiceId(1),
                ..Backend::default()
            })
            .collect();
        Self {
            buckets: HostBuckets::new(buckets),
            tables,
        }
    }

    fn flows(&self) -> FlowTable<'_, HostBuckets, HostTables> {
        FlowTable::new(&self.buckets, &self.tables, &self.tables.config)
    }

    fn census(&self, now: Tick) -> Census {
        let mut census = Census::default();
        for index in 0..u32::try_from(self.buckets.len()).unwrap() {
            let entry = read(index, |word| self.buckets.load(index as usize, word));
            census.add(&entry, now);
        }
        census
    }
}

fn end(text: &str, port: u16) -> Endpoint {
    Endpoint {
        addr: text.parse::<IpAddr>().unwrap().into(),
        port: Port::new(port),
    }
}

fn client(number: u32) -> Endpoint {
    let [_, a, b, c] = number.to_be_bytes();
    end(&format!("10.{a}.{b}.{c}"), 40_000)
}

fn backend(id: u32) -> Endpoint {
    end(&format!("fd00::{id:x}"), 8080)
}

fn new_flow(client: Endpoint, backend: u32) -> NewFlow {
    NewFlow {
        client,
        frontend: end("192.0.2.1", 80),
        protocol: Protocol::TCP,
        backend: BackendId(backend),
        state: 0,
    }
}

fn later(seconds: u32) -> Tick {
    Tick(NOW.0 + Tick::seconds(seconds))
}

#[test]
fn a_flow_is_found_from_both_directions() {
    let world = World::new(64);
    let flows = world.flows();
    let new = new_flow(client(1), 3);
    assert_eq!(
        flows.by_frontend(&new.client, &new.frontend, new.protocol),
        None
    );

    let flow = flows.insert(&new, NOW).unwrap();

    assert_eq!(flow.client, new.client);
    assert_eq!(flow.frontend, new.frontend);
    assert_eq!(flow.backend, BackendId(3));
    let found = flows.by_frontend(&new.client, &new.frontend, Protocol::TCP);
    assert_eq!(found, Some(flow));
    assert_eq!(
        flows.by_backend(&new.client, &backend(3), Protocol::TCP),
        Some(flow)
    );
    assert_eq!(
        flows.by_backend(&new.client, &backend(4), Protocol::TCP),
        None
    );
    assert_eq!(
        flows.by_frontend(&new.client, &new.frontend, Protocol::UDP),
        None
    );
    assert_eq!(
        flows.by_frontend(&client(2), &new.frontend, Protocol::TCP),
        None
    );
}

#[test]
fn a_flow_of_the_other_protocol_on_the_same_ends_is_another_one() {
    // In so small a table that of many pairs some begin at the same bucket.
    let world = World::new(32);
    for number in 0..400 {
        let wanted = new_flow(client(number), 3);
        let flow = world.flows().insert(&wanted, NOW).unwrap();
        let (flows, client) = (world.flows(), &wanted.client);
        assert!(
            flows
                .by_frontend(client, &wanted.frontend, Protocol::UDP)
                .is_none()
        );
        assert!(
            flows
                .by_backend(client, &backend(3), Protocol::UDP)
                .is_none()
        );
        flows.remove(&flow);
    }
}

#[test]
fn the_second_insert_gets_the_first_ones_flow() {
    let world = World::new(64);
    let first = world.flows().insert(&new_flow(client(1), 3), NOW).unwrap();
    let second = world.flows().insert(&new_flow(client(1), 4), NOW).unwrap();
    assert_eq!(second, first);
    assert_eq!(world.census(NOW).used, 1);
}

#[test]
fn a_flow_whose_time_is_over_is_replaced() {
    let world = World::new(64);
    let first = world.flows().insert(&new_flow(client(1), 3), NOW).unwrap();
    let now = later(Lifetime::TCP_EMBRYONIC);
    let second = world.flows().insert(&new_flow(client(1), 4), now).unwrap();
    assert_eq!(second.backend, BackendId(4));
    assert_ne!(second.handle, first.handle);
    assert_eq!(world.census(now).used, 1);
}

#[test]
fn a_note_sets_state_and_time_of_this_flow_only() {
    let world = World::new(64);
    let flows = world.flows();
    let new = new_flow(client(1), 3);
    let flow = flows.insert(&new, NOW).unwrap();
    flows.note(&flow, FlowState::REPLIED, later(1));
    let noted = flows
        .by_frontend(&new.client, &new.frontend, Protocol::TCP)
        .unwrap();
    assert_eq!((noted.state, noted.seen), (FlowState::REPLIED, later(1)));
    assert_eq!(noted.handle, flow.handle);

    flows.remove(&noted);
    let other = flows.insert(&new, later(1)).unwrap();
    flows.note(&flow, FlowState::RESET, later(2));
    flows.remove(&flow);
    let found = flows.by_frontend(&new.client, &new.frontend, Protocol::TCP);
    assert_eq!(found, Some(other), "an old handle touches nothing");
}

/// What a source is to become, politely.
fn to_be(end: Endpoint) -> SnatEnd {
    SnatEnd {
        end,
        address: SnatAddressIndex(2),
        pressure: false,
    }
}

#[test]
fn a_reply_to_the_snat_end_finds_the_flow() {
    let world = World::new(64);
    let flows = world.flows();
    let flow = flows.insert(&new_flow(client(1), 3), NOW).unwrap();
    let snat = end("198.51.100.1", 61_000);
    let flow = flows
        .attach_snat(&flow, &to_be(snat), &backend(3), Protocol::TCP, NOW)
        .unwrap();

    assert_eq!(
        (flow.snat_port, flow.snat_address),
        (snat.port, to_be(snat).address)
    );
    assert_eq!(
        flows.by_alias(&snat, &backend(3), Protocol::TCP),
        Some(flow)
    );
    assert_eq!(flows.by_alias(&snat, &backend(4), Protocol::TCP), None);
    assert_eq!(world.census(NOW).aliases, 1);
}

#[test]
fn an_snat_end_serves_one_flow_a_backend() {
    let world = World::new(64);
    let flows = world.flows();
    let snat = end("198.51.100.1", 61_000);
    let attach =
        |flow: &Flow, to| flows.attach_snat(flow, &to_be(snat), &backend(to), Protocol::TCP, NOW);
    let first = flows.insert(&new_flow(client(1), 3), NOW).unwrap();
    let second = flows.insert(&new_flow(client(2), 3), NOW).unwrap();
    let elsewhere = flows.insert(&new_flow(client(3), 4), NOW).unwrap();

    let first = attach(&first, 3).unwrap();
    assert_eq!(attach(&first, 3), Ok(first), "asking twice changes nothing");
    assert_eq!(attach(&second, 3), Err(Refused::Taken));
    assert!(attach(&elsewhere, 4).is_ok());

    flows.remove(&first);
    assert_eq!(flows.by_alias(&snat, &backend(3), Protocol::TCP), None);
    assert!(
        attach(&second, 3).is_ok(),
        "the end is free once its flow is gone"
    );
}

#[test]
fn under_pressure_a_closed_flow_loses_its_snat_end_and_a_live_one_does_not() {
    const CLOSED: u16 = FlowState::FIN_FORWARD | FlowState::FIN_REPLY;
    let world = World::new(64);
    let flows = world.flows();
    let polite = to_be(end("198.51.100.1", 61_000));
    let pressing = SnatEnd {
        pressure: true,
        ..polite
    };
    let attach = |flow: &Flow, snat| flows.attach_snat(flow, snat, &backend(3), Protocol::TCP, NOW);
    let first = flows.insert(&new_flow(client(1), 3), NOW).unwrap();
    let first = attach(&first, &polite).unwrap();
    let second = flows.insert(&new_flow(client(2), 3), NOW).unwrap();

    flows.note(&first, FlowState::REPLIED, NOW);
    assert_eq!(attach(&second, &pressing), Err(Refused::Taken), "live");
    flows.note(&first, FlowState::FIN_FORWARD, NOW);
    assert_eq!(
        attach(&second, &pressing),
        Err(Refused::Taken),
        "half-closed"
    );
    flows.note(&first, CLOSED, NOW);
    assert_eq!(attach(&second, &polite), Err(Refused::Taken));
    let second = attach(&second, &pressing).unwrap();

    assert_eq!(
        flows.by_alias(&polite.end, &backend(3), Protocol::TCP),
        Some(second)
    );
    let frontend = first.frontend;
    let found = flows.by_frontend(&client(1), &frontend, Protocol::TCP);
    assert_eq!(found, None, "a flow never lives on without its end");
    assert_eq!(world.census(NOW).aliases, 1);
}

#[test]
fn an_snat_end_that_a_client_really_has_is_taken() {
    let world = World::new(64);
    let flows = world.flows();
    flows.insert(&new_flow(client(1), 3), NOW).unwrap();
    let other = flows.insert(&new_flow(client(2), 3), NOW).unwrap();
    let refused = flows.attach_snat(&other, &to_be(client(1)), &backend(3), Protocol::TCP, NOW);
    assert_eq!(refused, Err(Refused::Taken));
}

#[test]
fn of_two_snat_ends_for_one_flow_the_first_stays() {
    let world = World::new(64);
    let flows = world.flows();
    let flow = flows.insert(&new_flow(client(1), 3), NOW).unwrap();
    let (a, b) = (end("198.51.100.1", 61_000), end("198.51.100.1", 61_001));
    let attach =
        |snat: &Endpoint| flows.attach_snat(&flow, &to_be(*snat), &backend(3), Protocol::TCP, NOW);
    let first = attach(&a).unwrap();
    let second = attach(&b).unwrap();
    assert_eq!(second, first);
    assert_eq!(flows.by_alias(&b, &backend(3), Protocol::TCP), None);
    assert_eq!(
        world.census(NOW).aliases,
        1,
        "the loser's reservation is given back"
    );
}

/// Inserts clients until one is refused.
fn fill(world: &World, now: Tick) -> Vec<Flow> {
    (0..)
        .map_while(|number| world.flows().insert(&new_flow(client(number), 3), now).ok())
        .collect()
}

#[test]
fn live_flows_are_never_pushed_out() {
    let world = World::new(64);
    let flows = fill(&world, NOW);
    for flow in &flows {
        world.flows().note(flow, FlowState::REPLIED, NOW);
    }
    let now = later(Lifetime::TCP_ESTABLISHED - 1);
    for number in 1000..2000 {
        let _ = world.flows().insert(&new_flow(client(number), 4), now);
    }
    for flow in &flows {
        let found = world
            .flows()
            .by_frontend(&flow.client, &flow.frontend, Protocol::TCP);
        assert_eq!(found.map(|found| found.backend), Some(BackendId(3)));
    }
}

#[test]
fn closed_reset_and_unanswered_flows_make_room() {
    for state in [
        FlowState::RESET | FlowState::REPLIED,
        FlowState::FIN_FORWARD | FlowState::FIN_REPLY | FlowState::REPLIED,
        0,
    ] {
        let world = World::new(64);
        for flow in fill(&world, NOW) {
            world.flows().note(&flow, state, NOW);
        }
        for number in 1000..2000 {
            let flow = world
                .flows()
                .insert(&new_flow(client(number), 4), later(2))
                .unwrap();
            world.flows().note(&flow, state, Tick(NOW.0 - 20));
        }
    }
}

#[test]
fn flows_whose_time_is_over_make_room_with_their_aliases() {
    let world = World::new(64);
    let flows = world.flows();
    let mut now = NOW;
    for round in 0..200 {
        now = Tick(now.0 + Tick::seconds(Lifetime::UDP_REPLIED));
        for number in 0..8u16 {
            let new = NewFlow {
                protocol: Protocol::UDP,
                ..new_flow(client(round * 8 + u32::from(number)), 3)
            };
            let flow = flows.insert(&new, now).unwrap();
            flows.note(&flow, FlowState::REPLIED, now);
            let snat = end("198.51.100.1", 61_000 + number);
            flows
                .attach_snat(&flow, &to_be(snat), &backend(3), Protocol::UDP, now)
                .unwrap();
        }
    }
}

#[test]
fn a_table_at_a_quarter_refuses_nobody() {
    let world = World::new(1 << 14);
    let wanted = 1 << 12;
    for number in 0..wanted {
        world
            .flows()
            .insert(&new_flow(client(number), 3), NOW)
            .unwrap();
    }
    let census = world.census(NOW);
    assert_eq!(census.active(), u64::from(wanted));
    assert_eq!(
        census.by_backend,
        [(BackendId(3), u64::from(wanted))].into()
    );
    let frontend = (end("192.0.2.1", 80), Protocol::TCP);
    assert_eq!(census.by_frontend, [(frontend, u64::from(wanted))].into());
    let embryonic_are_over = world.census(later(Lifetime::TCP_EMBRYONIC));
    assert_eq!(embryonic_are_over.expired, wanted as usize);
    assert_eq!(embryonic_are_over.active(), 0);
}

#[test]
fn one_client_port_may_talk_to_a_whole_groups_worth_of_frontends() {
    let world = World::new(1 << 10);
    let flow = |port| NewFlow {
        frontend: end("192.0.2.1", port),
        ..new_flow(client(1), 3)
    };
    for port in 0..32 {
        world.flows().insert(&flow(port), NOW).unwrap();
    }
    assert_eq!(world.flows().insert(&flow(32), NOW), Err(Refused::Full));
    for port in 0..32 {
        let wanted = flow(port);
        let found = world
            .flows()
            .by_frontend(&wanted.client, &wanted.frontend, Protocol::TCP);
        assert!(found.is_some(), "frontend {port}");
    }
}

#[test]
fn bits_that_nobody_needs_are_dropped() {
    let world = World::new(32);
    for flow in fill(&world, NOW) {
        world.flows().remove(&flow);
    }
    // Each client's insertion cleans its home, and its removal leaves at most one bit behind.
    for number in 0..10_000 {
        let flow = world
            .flows()
            .insert(&new_flow(client(number), 3), NOW)
            .unwrap();
        world.flows().remove(&flow);
    }
    let members: u32 = (0..32)
        .map(|bucket| world.buckets.load(bucket, record::HOME).count_ones())
        .sum();
    assert!(members <= 32, "{members} bits left");
}

#[test]
fn versions_wrap_without_losing_a_flow() {
    let world = World::new(32);
    for round in 0..70_000u32 {
        let new = new_flow(client(1), 3);
        let flow = world.flows().insert(&new, NOW).unwrap();
        if round % 1000 == 0 {
            assert_eq!(
                world
                    .flows()
                    .by_frontend(&new.client, &new.frontend, Protocol::TCP),
                Some(flow)
            );
        }
        world.flows().remove(&flow);
    }
}

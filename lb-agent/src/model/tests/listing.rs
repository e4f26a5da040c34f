//! Listings: what was not applied again is gone, and nothing is gone before.

use super::*;

#[test]
fn the_state_is_complete_when_every_kind_was_listed() {
    let mut state = State::new(Options::default(), NodeFacts::named("here"));
    for kind in Kind::ALL {
        assert!(!state.is_complete());
        state.apply(Change::Restart(kind));
        assert!(!state.is_complete());
        state.apply(Change::Complete(kind));
    }
    assert!(state.is_complete());
    state.apply(Change::Restart(Kind::Service));
    assert!(
        state.is_complete(),
        "a listing begun again takes nothing away"
    );
}

#[test]
fn what_a_listing_does_not_mention_is_gone_at_its_end_and_not_before() {
    let mut state = state();
    let web = || service("web", json!({"clusterIP": "10.96.0.1"}));
    state.apply(web());
    state.apply(service("gone", json!({"clusterIP": "10.96.0.2"})));
    state.apply(slice("s", "web", json!([ready("10.0.0.1", "here")])));
    state.apply(Change::Restart(Kind::Service));
    assert!(
        state.apply(web()).is_empty(),
        "an unchanged object touches nothing"
    );
    assert!(state.desired(&http("gone")).is_some());
    let dirty = state.apply(Change::Complete(Kind::Service));
    assert_eq!(dirty, [http("gone")].into());
    assert_eq!(state.desired(&http("gone")), None);
    assert_eq!(
        sets(&state, "web").0.len(),
        1,
        "a listing of Services says nothing of slices"
    );
    state.apply(Change::Restart(Kind::EndpointSlice));
    let dirty = state.apply(Change::Complete(Kind::EndpointSlice));
    assert_eq!(dirty, [http("web")].into());
    assert!(sets(&state, "web").0.is_empty());
}

#[test]
fn an_object_deleted_during_a_listing_is_gone() {
    let mut state = state();
    state.apply(Change::Restart(Kind::Service));
    state.apply(service("web", json!({"clusterIP": "10.96.0.1"})));
    state.apply(Change::Delete(Kind::Service, named("web")));
    state.apply(Change::Complete(Kind::Service));
    assert_eq!(state.desired(&http("web")), None);
}

#[test]
fn a_refusal_goes_with_its_object() {
    let mut state = state();
    state.apply(service("web", json!({"clusterIP": "127.0.0.1"})));
    assert_eq!(state.refusals().len(), 1);
    state.apply(Change::Restart(Kind::Service));
    state.apply(Change::Complete(Kind::Service));
    assert!(state.refusals().is_empty());
}

#[test]
fn trigger_times_are_handed_out_once_and_only_for_changes_after_the_start() {
    let mut state = state();
    let at = |name: &str, time: &str| {
        slice_object(json!({
            "metadata": {"namespace": "ns", "name": name,
                "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}],
            "endpoints": [ready("10.0.0.1", "here")],
        }))
    };
    let start = "2020-01-01T00:00:00Z".parse().expect("a time");
    state.apply(at("early", "2019-01-01T00:00:00Z"));
    state.apply(at("late", "2020-01-01T00:00:01Z"));
    let times = state.take_trigger_times(start);
    assert_eq!(times[&(named("web"), Family::V4)].len(), 1);
    assert!(state.take_trigger_times(start).is_empty());
    state.apply(at("later", "2020-01-01T00:00:02Z"));
    state.apply(Change::Delete(Kind::EndpointSlice, named("late")));
    assert!(
        state.take_trigger_times(start).is_empty(),
        "a removal is not measured"
    );
}

#[test]
fn what_a_listing_names_without_being_readable_stays_as_it_was() {
    let mut state = state();
    let web = service("web", json!({"clusterIP": "10.96.0.1"}));
    let name = http("web").service;
    state.apply(web);
    state.apply(Change::Restart(Kind::Service));
    assert!(state.apply(Change::Keep(Kind::Service, name)).is_empty());
    assert!(state.apply(Change::Complete(Kind::Service)).is_empty());
    assert!(state.desired(&http("web")).is_some());
}

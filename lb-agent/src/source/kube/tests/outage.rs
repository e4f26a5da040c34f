//! Ten minutes without an API server, in simulated time.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const OUTAGE: Duration = Duration::from_secs(600);

/// A server that lists nothing and is then away for [`OUTAGE`], during which `attempts` counts who
/// asks; its first answers after that are `first`. Then service b comes.
fn outage(away: fn() -> Answer, first: u32) -> (Running, Instant, Arc<AtomicU32>) {
    let (client, requests) = mock();
    let attempts = Arc::new(AtomicU32::new(0));
    let (counted, mut listed, mut late) = (Arc::clone(&attempts), false, 0);
    let end = Instant::now() + OUTAGE;
    serve(requests, move |query| {
        if !is_services(query) {
            return Answer::Hang;
        }
        if !std::mem::replace(&mut listed, true) {
            return Answer::Events(vec![end_of_list("Service", "v1")]);
        }
        if Instant::now() < end {
            counted.fetch_add(1, Ordering::Relaxed);
            return away();
        }
        late += 1;
        match late {
            number if number <= first => Answer::Status(503, "starting"),
            number if number == first + 1 => {
                assert!(query.contains("resourceVersion=9"), "listed anew: {query}");
                Answer::Events(vec![added(&service("b"))])
            }
            _ => Answer::Hang,
        }
    });
    (start(vec![client], false), end, attempts)
}

/// How long after the outage service b arrived, in seconds.
async fn arrival(running: &mut Running, end: Instant) -> f64 {
    for expected in ["restart", "complete", "apply n/b"] {
        assert_eq!(running.next(Kind::Service).await, expected);
    }
    end.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn changes_arrive_within_seconds_after_ten_minutes_without_a_server() {
    let (mut running, end, attempts) = outage(|| Answer::Refuse, 0);
    let took = arrival(&mut running, end).await;
    assert!(took <= 7.5, "{took} s");
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((80..250).contains(&attempts), "{attempts} attempts");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_trouble_to_start_is_asked_again_within_seconds() {
    let (mut running, end, _) = outage(|| Answer::Refuse, 3);
    // The last wait for a server, and three short ones for its start.
    let took = arrival(&mut running, end).await;
    assert!(took <= 7.5 + 1.5 * (0.8 + 1.6 + 3.2), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_overloaded_for_ten_minutes_is_asked_twice_a_minute() {
    let (mut running, end, attempts) = outage(|| Answer::Status(503, "overloaded"), 0);
    let took = arrival(&mut running, end).await;
    assert!(took <= 45.0, "{took} s");
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((13..50).contains(&attempts), "{attempts} attempts");
}

//! Counts what is asked of the API server, by client-go's labels. What may not live here: how that is
//! shown.

use kube::Client;
use kube::client::Body;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Upper bounds of durations in seconds: client-go's.
pub const BOUNDS: [f64; 12] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0,
];
/// What client-go calls the code of a request that nobody answered.
const NO_ANSWER: &str = "<error>";

/// Observations by bucket; the last is for everything above [`BOUNDS`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latency {
    /// All of them, in seconds.
    pub sum: f64,
    /// How many fell into each, not cumulative.
    pub counts: [u64; BOUNDS.len() + 1],
}

impl Latency {
    fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.sum += seconds;
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }
}

/// What was asked so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// By status code (`<error>`: none), method and host.
    pub answers: BTreeMap<[String; 3], u64>,
    /// How long answers took to begin, by method and host. Watches are not in it: what they are
    /// answered with is nothing yet.
    pub durations: BTreeMap<[String; 2], Latency>,
}

/// The counts of all clients of an agent.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Counts>);

impl Requests {
    /// As they are now.
    pub fn counts(&self) -> Counts {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Counts one request and, unless it is a watch, what it `took`.
    pub fn note(&self, code: Option<u16>, method: &str, host: &str, took: Option<Duration>) {
        let code = code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = [code, method.to_owned(), host.to_owned()];
        *counts.answers.entry(labels).or_default() += 1;
        if let Some(took) = took {
            let labels = [method.to_owned(), host.to_owned()];
            counts.durations.entry(labels).or_default().observe(took);
        }
    }
}

/// A client of `host` whose requests are counted.
pub(super) fn counted(client: Client, host: &str, requests: &Arc<Requests>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let (host, requests) = (Arc::<str>::from(host), Arc::clone(requests));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (client, host, requests) = (client.clone(), Arc::clone(&host), Arc::clone(&requests));
        async move {
            let method = request.method().clone();
            let query = request.uri().query().unwrap_or_default();
            let is_watch = query.split('&').any(|part| part == "watch=true");
            let began = Instant::now();
            let answer = client.send(request).await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            let took = (!is_watch).then(|| began.elapsed());
            requests.note(code, method.as_str(), &host, took);
            answer
        }
    });
    Client::new(service, namespace)
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Answer, mock, serve};
    use super::*;

    #[tokio::test]
    async fn requests_are_counted_by_code_method_and_host_and_watches_take_no_time() {
        let (client, server) = mock();
        serve(server, |query| match query {
            "/version" => Answer::Object(serde_json::json!({})),
            "/busy" => Answer::Status(503, "busy"),
            _ => Answer::Refuse,
        });
        let requests = Arc::<Requests>::default();
        let client = counted(client, "api:6443", &requests);
        for path in ["/version", "/version", "/busy", "/away", "/away?watch=true"] {
            let request = http::Request::get(path).body(Body::empty()).unwrap();
            let _ = client.send(request).await;
        }
        let counts = requests.counts();
        let host = "api:6443";
        let expected = [("200", 2), ("503", 1), ("<error>", 2)].map(|(code, count)| {
            let labels = [code, "GET", host].map(str::to_owned);
            (labels, count)
        });
        assert_eq!(counts.answers, BTreeMap::from(expected));
        let latency = &counts.durations[&["GET", host].map(str::to_owned)];
        assert_eq!(latency.counts.iter().sum::<u64>(), 4);
    }

    #[test]
    fn durations_land_in_the_first_bucket_that_holds_them() {
        let mut latency = Latency::default();
        for millis in [5, 6, 90_000] {
            latency.observe(Duration::from_millis(millis));
        }
        assert_eq!(
            (latency.counts[0], latency.counts[1], latency.counts[12]),
            (1, 1, 1)
        );
    }
}

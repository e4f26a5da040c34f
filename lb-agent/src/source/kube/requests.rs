//! Counts what is asked of the API server, by client-go's labels. What may not live here: how that is
//! shown.

use crate::durations::Durations;
use kube::Client;
use kube::client::Body;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What client-go calls the code of a request that nobody answered.
const NO_ANSWER: &str = "<error>";

/// What was asked so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// By status code (`<error>`: none), method and host.
    pub answers: BTreeMap<[String; 3], u64>,
    /// How long answers took to begin, by method and host. Watches are not in it: what they are
    /// answered with is nothing yet.
    pub durations: BTreeMap<[String; 2], Durations>,
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
            let durations = counts.durations.entry(labels);
            durations
                .or_insert_with(Durations::of_requests)
                .observe(took);
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
        let durations = &counts.durations[&["GET", host].map(str::to_owned)];
        assert_eq!(durations.count(), 4);
    }
}

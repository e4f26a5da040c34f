//! An API server for the tests: kube's client on one side, a closure that answers on the other.

use ::kube::Client;
use ::kube::client::Body;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tower_test::mock::{Handle, SendResponse};

type Requests = Handle<Request<Body>, Response<Body>>;

/// An API server that answers as a test tells it, by path and query.
pub(super) enum Answer {
    /// Watch events, one a line, after which the connection ends.
    Events(Vec<Value>),
    /// One object.
    Object(Value),
    /// An error status.
    Status(u16, &'static str),
    /// No connection.
    Refuse,
    /// Nothing, for ever.
    Hang,
}

/// Answers every request until the client is gone.
pub(super) fn serve(
    mut requests: Requests,
    mut answer: impl FnMut(&str) -> Answer + Send + 'static,
) {
    tokio::spawn(async move {
        let mut hanging: Vec<SendResponse<Response<Body>>> = Vec::new();
        while let Some((request, send)) = requests.next_request().await {
            let query = request.uri().path_and_query().unwrap().as_str();
            match answer(
                &query
                    .replace("%21", "!")
                    .replace("%2F", "/")
                    .replace("%3D", "="),
            ) {
                Answer::Events(events) => {
                    let lines: Vec<String> =
                        events.iter().map(|event| format!("{event}\n")).collect();
                    send.send_response(Response::new(Body::from(lines.concat().into_bytes())));
                }
                Answer::Object(object) => {
                    send.send_response(Response::new(Body::from(object.to_string().into_bytes())));
                }
                Answer::Status(code, message) => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "message": message, "reason": "", "code": code});
                    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
                    *response.status_mut() = StatusCode::from_u16(code).unwrap();
                    send.send_response(response);
                }
                Answer::Refuse => send.send_error(std::io::Error::other("connection refused")),
                Answer::Hang => hanging.push(send),
            }
        }
    });
}

/// A client and what it asks.
pub(super) fn mock() -> (Client, Requests) {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "default"), handle)
}

//! A Kubernetes API server as far as the agent asks one: lists, watches and their troubles, over
//! plain HTTP/1.1, on an address of the test's choice.
//!
//! What may not live here: anything about services and endpoints. It keeps objects, no more.

use anyhow::{Context, Result, anyhow};
use lb_lab::Place;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the server knows and how it behaves.
#[derive(Debug, Default)]
struct State {
    version: u64,
    /// Objects by resource and `namespace/name`.
    objects: BTreeMap<(String, String), Value>,
    /// Events with their version and resource.
    events: Vec<(u64, String, Value)>,
    /// Watches that resume before this version have expired.
    oldest: u64,
    /// Watches of an earlier number end.
    closed: u64,
    /// Error answers by resource.
    answers: BTreeMap<String, (u16, String)>,
    delay: Duration,
    no_watch_list: bool,
    requests: Vec<String>,
    /// What was created, by path: it is not kept as an object.
    created: Vec<(String, Value)>,
    connections: Vec<TcpStream>,
}

/// The server. It answers while it is [up](Self::up), in the namespace it was started in.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
    listener: Option<TcpListener>,
}

/// The resource of an object, as the path and RBAC name it.
fn resource_of(object: &Value) -> Result<&'static str> {
    match object["kind"].as_str() {
        Some("Service") => Ok("services"),
        Some("EndpointSlice") => Ok("endpointslices"),
        Some("Endpoints") => Ok("endpoints"),
        Some("Node") => Ok("nodes"),
        Some("ServiceCIDR") => Ok("servicecidrs"),
        Some("Pod") => Ok("pods"),
        Some("Namespace") => Ok("namespaces"),
        other => Err(anyhow!("the server keeps no {other:?}")),
    }
}

fn key_of(object: &Value) -> String {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", field("namespace"), field("name"))
}

impl ApiServer {
    /// A server that knows nothing and is down.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            shared: Arc::default(),
            listener: None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.1.notify_all();
    }

    /// Begins to answer at its address within `place`.
    pub fn up(&mut self, place: &Place) -> Result<()> {
        let address = self.address;
        let listener = place
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address}"))?;
        let (ours, shared) = (listener.try_clone()?, Arc::clone(&self.shared));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // An error is the listener's end.
                let Ok(stream) = stream else { return };
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&shared, &stream));
            }
        });
        self.listener = Some(ours);
        Ok(())
    }

    /// Stops: connections break, new ones are refused.
    pub fn down(&mut self) {
        if let Some(listener) = self.listener.take() {
            // Wakes the thread that accepts; there is nothing to do about a failure.
            let _ =
                nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        self.change(|state| {
            state.closed += 1;
            for stream in state.connections.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    /// Creates or updates an object and tells the watches.
    pub fn put(&self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        let key = (resource_of(&object)?.to_owned(), key_of(&object));
        self.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let known = state.objects.insert(key.clone(), object.clone()).is_some();
            let kind = if known { "MODIFIED" } else { "ADDED" };
            let event = json!({"type": kind, "object": object});
            state.events.push((state.version, key.0, event));
        });
        Ok(())
    }

    /// Deletes an object and tells the watches.
    pub fn delete(&self, resource: &str, key: &str) {
        self.change(|state| {
            let found = state.objects.remove(&(resource.to_owned(), key.to_owned()));
            if let Some(mut object) = found {
                state.version += 1;
                object["metadata"]["resourceVersion"] = json!(state.version.to_string());
                let event = json!({"type": "DELETED", "object": object});
                state
                    .events
                    .push((state.version, resource.to_owned(), event));
            }
        });
    }

    /// Forgets every object of a resource without telling anybody.
    pub fn lose(&self, resource: &str) {
        self.change(|state| state.objects.retain(|(of, _), _| of != resource));
    }

    /// Sends an event to the watches of a resource, whatever the objects are.
    pub fn send(&self, resource: &str, event: Value) {
        self.change(|state| {
            state.version += 1;
            state
                .events
                .push((state.version, resource.to_owned(), event));
        });
    }

    /// Sends a bookmark to the watches of a resource.
    pub fn bookmark(&self, resource: &str, kind: &str) {
        let version = (self.state().version + 1).to_string();
        let metadata = json!({"resourceVersion": version, "creationTimestamp": null});
        let object = json!({"kind": kind, "apiVersion": "v1", "metadata": metadata});
        self.send(resource, json!({"type": "BOOKMARK", "object": object}));
    }

    /// Ends every watch that runs, as servers do every few minutes.
    pub fn close_watches(&self) {
        self.change(|state| state.closed += 1);
    }

    /// Forgets history: a watch that resumes is told 410 Gone.
    pub fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.oldest = state.version;
            state.closed += 1;
        });
    }

    /// Answers every request for a resource with this error; `None` ends it.
    pub fn answer(&self, resource: &str, error: Option<(u16, &str)>) {
        self.change(|state| {
            let error = error.map(|(code, message)| (code, message.to_owned()));
            match error {
                Some(error) => state.answers.insert(resource.to_owned(), error),
                None => state.answers.remove(resource),
            };
        });
    }

    /// Waits this long before each answer.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// Does not know streaming lists (servers before 1.32).
    pub fn without_streaming_lists(&self) {
        self.change(|state| state.no_watch_list = true);
    }

    /// The requests so far, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// What clients have created so far: path and object.
    pub fn created(&self) -> Vec<(String, Value)> {
        self.state().created.clone()
    }

    /// How many requests of a resource there were that have all of these words.
    pub fn count(&self, resource: &str, words: &[&str]) -> usize {
        let path = format!("/{resource}?");
        let of = |request: &&String| {
            request.contains(&path) && words.iter().all(|word| request.contains(word))
        };
        self.state().requests.iter().filter(of).count()
    }

    /// Writes a kubeconfig that names this server.
    pub fn kubeconfig(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("kubeconfig");
        let server = format!("http://{}", self.address);
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}]});
        fs::write(&path, config.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
    }
}

type Shared = (Mutex<State>, Condvar);

/// Answers the requests of one connection until it ends.
fn serve(shared: &Shared, stream: &TcpStream) -> Option<()> {
    let lock = || shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    lock().connections.push(stream.try_clone().ok()?);
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let request = line.split(' ').nth(1)?.replace("%21", "!");
        let request = request.replace("%2F", "/").replace("%3D", "=");
        let creates = line.starts_with("POST ");
        while lines.read_line(&mut line).ok()? > 2 {}
        if creates {
            let length = line.lines().find_map(|header| {
                let (name, value) = header.split_once(':')?;
                (name.eq_ignore_ascii_case("content-length")).then(|| value.trim().parse().ok())?
            })?;
            let mut body = vec![0; length];
            lines.read_exact(&mut body).ok()?;
            create(shared, stream, &request, &body).ok()?;
            continue;
        }
        let delay = {
            let mut state = lock();
            state.requests.push(request.clone());
            state.delay
        };
        std::thread::sleep(delay);
        respond(shared, stream, &request).ok()?;
    }
}

/// Takes what is created, unless its resource answers with an error.
fn create(shared: &Shared, stream: &TcpStream, request: &str, body: &[u8]) -> std::io::Result<()> {
    let object: Value = serde_json::from_slice(body)?;
    let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    let path = request.split('?').next().unwrap_or_default().to_owned();
    let resource = path.rsplit('/').next().unwrap_or_default();
    let answer = state.answers.get(resource).cloned();
    if answer.is_none() {
        state.created.push((path, object.clone()));
    }
    drop(state);
    match answer {
        Some((code, message)) => error(stream, code, &message),
        None => whole(stream, 201, &object),
    }
}

fn parameter<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let query = request.split_once('?')?.1;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn respond(shared: &Shared, stream: &TcpStream, request: &str) -> std::io::Result<()> {
    let state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    let path = request.split('?').next().unwrap_or_default();
    let resource = path.rsplit('/').next().unwrap_or_default().to_owned();
    // Only newer servers know ServiceCIDRs: this one does once it has one.
    let known = ["services", "endpointslices", "endpoints", "nodes"].contains(&&*resource)
        || state.objects.keys().any(|(of, _)| *of == resource);
    if !known {
        return error(
            stream,
            404,
            "the server could not find the requested resource",
        );
    }
    if let Some((code, message)) = state.answers.get(&resource) {
        return error(stream, *code, message);
    }
    let streaming = parameter(request, "sendInitialEvents") == Some("true");
    if streaming && state.no_watch_list {
        let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate \
                       is enabled";
        return error(stream, 422, message);
    }
    let listed: Vec<Value> = state
        .objects
        .iter()
        .filter(|((of, _), object)| *of == resource && selected(request, object))
        .map(|(_, object)| object.clone())
        .collect();
    let version = state.version;
    if parameter(request, "watch") != Some("true") {
        drop(state);
        let list = json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": version.to_string()}, "items": listed});
        return whole(stream, 200, &list);
    }
    let from: u64 = parameter(request, "resourceVersion")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let expired = !streaming && from < state.oldest;
    // Servers say it in either way, depending on who of them notices.
    let by_event = state.requests.len().is_multiple_of(2);
    drop(state);
    let mut first = Vec::new();
    if expired {
        let gone = "too old resource version";
        if !by_event {
            return error(stream, 410, gone);
        }
        first.push(json!({"type": "ERROR", "object": status(410, gone)}));
    }
    if streaming {
        first.extend(listed.iter().map(|o| json!({"type": "ADDED", "object": o})));
        let kind = listed
            .first()
            .map_or(json!("List"), |one| one["kind"].clone());
        let metadata = json!({"resourceVersion": version.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"}});
        first.push(json!({"type": "BOOKMARK",
            "object": {"kind": kind, "apiVersion": "v1", "metadata": metadata}}));
    }
    let from = if streaming { version } else { from };
    watch(shared, stream, request, &resource, from, &first)
}

/// Sends `first` and then every event of the resource after version `from`.
fn watch(
    shared: &Shared,
    mut stream: &TcpStream,
    request: &str,
    resource: &str,
    mut from: u64,
    first: &[Value],
) -> std::io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    let chunk = |mut stream: &TcpStream, event: &Value| {
        let line = format!("{event}\n");
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())
    };
    first.iter().try_for_each(|event| chunk(stream, event))?;
    let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    let closed = state.closed;
    loop {
        let news: Vec<Value> = state
            .events
            .iter()
            .filter(|(version, of, event)| {
                *version > from && of == resource && selected(request, &event["object"])
            })
            .map(|(_, _, event)| event.clone())
            .collect();
        from = state.version;
        let ended = state.closed != closed;
        drop(state);
        news.iter().try_for_each(|event| chunk(stream, event))?;
        if ended {
            return stream.write_all(b"0\r\n\r\n");
        }
        state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.version == from && state.closed == closed {
            state = shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The selectors the agent uses: `!label`, the own node, and Services that are not headless.
fn selected(request: &str, object: &Value) -> bool {
    let label = parameter(request, "labelSelector").and_then(|label| label.strip_prefix('!'));
    let has = |label: &str| !object["metadata"]["labels"][label].is_null();
    let fields = parameter(request, "fieldSelector").unwrap_or_default();
    let named = fields.strip_prefix("metadata.name=");
    let node = fields.strip_prefix("spec.nodeName=");
    label.is_none_or(|label| !has(label))
        && named.is_none_or(|name| object["metadata"]["name"] == name)
        && node.is_none_or(|node| object["spec"]["nodeName"] == node)
        && !(fields == "spec.clusterIP!=None" && object["spec"]["clusterIP"] == "None")
}

fn error(stream: &TcpStream, code: u16, message: &str) -> std::io::Result<()> {
    whole(stream, code, &status(code, message))
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "", "code": code})
}

fn whole(mut stream: &TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    stream.write_all(
        format!(
            "HTTP/1.1 {code} Said\r\nContent-Type: application/json\r\nContent-Length: {length}\
             \r\n\r\n{body}"
        )
        .as_bytes(),
    )
}

//! Writes objects to a real API server, as clients of any language do: by its REST interface.
//!
//! What may not live here: what objects look like. Callers bring them.

use anyhow::{Context, Result, anyhow, bail};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lb_lab::Place;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::path::Path;
use tokio::runtime::{Builder, Runtime};

/// Who the objects' fields belong to (server-side apply).
const MANAGER: &str = "lab";
/// Requests of one bulk write that are under way at once.
const AT_ONCE: usize = 32;

/// A client in a place, which need not be the test's own.
pub struct ApiClient {
    client: Client,
    runtime: Runtime,
}

/// The path of an object's collection, e.g. `/api/v1/namespaces/lab/services`.
fn collection(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let version = text("/apiVersion").context("an object without apiVersion")?;
    let kind = text("/kind")
        .context("an object without kind")?
        .to_lowercase();
    let group = if version.contains('/') { "apis" } else { "api" };
    let plural = if kind.ends_with('s') {
        kind
    } else {
        format!("{kind}s")
    };
    Ok(match text("/metadata/namespace") {
        Some(namespace) => format!("/{group}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("/{group}/{version}/{plural}"),
    })
}

/// The path of an object.
fn path(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str();
    Ok(format!(
        "{}/{}",
        collection(object)?,
        name.context("an object without a name")?
    ))
}

fn request(method: &str, path: &str, kind: &str, body: &Value) -> Result<Request<Vec<u8>>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("Content-Type", kind)
        .body(serde_json::to_vec(body)?)
        .with_context(|| format!("cannot ask for {path}"))
}

async fn send(client: Client, request: Request<Vec<u8>>) -> Result<Value> {
    let what = format!("{} {}", request.method(), request.uri());
    client
        .request(request)
        .await
        .with_context(|| format!("the API server refuses {what}"))
}

impl ApiClient {
    /// A client of the server that `kubeconfig` names, connecting from `place`.
    pub fn new(place: &Place, kubeconfig: &Path) -> Result<Self> {
        let namespace = place.namespace().open()?;
        // One thread, which makes the sockets and therefore must be in the namespace.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || {
                // A client elsewhere reaches nobody: the first request says so.
                let _ = setns(&namespace, CloneFlags::CLONE_NEWNET);
            })
            .build()
            .context("cannot start a runtime")?;
        let text = Kubeconfig::read_from(kubeconfig).context("cannot read the kubeconfig")?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(text, &KubeConfigOptions::default())
                .await
                .context("cannot use the kubeconfig")?;
            Client::try_from(config).context("cannot make a client")
        })?;
        Ok(Self { client, runtime })
    }

    fn send(&self, request: Request<Vec<u8>>) -> Result<Value> {
        let task = self.runtime.spawn(send(self.client.clone(), request));
        self.runtime
            .block_on(task)
            .context("the client's task ended")?
    }

    /// Creates the object, or gives an existing one these fields and takes away what an earlier
    /// call gave it and this one does not name.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = format!("{}?fieldManager={MANAGER}&force=true", path(object)?);
        self.send(request(
            "PATCH",
            &path,
            "application/apply-patch+yaml",
            object,
        )?)
    }

    /// Merges `status` into the status of the object.
    pub fn status(&self, object: &Value, status: &Value) -> Result<Value> {
        let path = format!("{}/status", path(object)?);
        let body = json!({"status": status});
        self.send(request(
            "PATCH",
            &path,
            "application/merge-patch+json",
            &body,
        )?)
    }

    /// The object as the server has it; `None` if it has none.
    pub fn get(&self, object: &Value) -> Result<Option<Value>> {
        self.find(&path(object)?)
    }

    fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.send(request("GET", path, "application/json", &Value::Null)?) {
            Ok(found) => Ok(Some(found)),
            Err(error) => match error.downcast_ref::<kube::Error>() {
                Some(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The objects of the collection of `like`.
    pub fn list(&self, like: &Value) -> Result<Vec<Value>> {
        let path = collection(like)?;
        let mut list = self
            .find(&path)?
            .with_context(|| format!("no collection {path}"))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("{path} is no list: {other}"),
        }
    }

    /// Deletes the object; `grace` in seconds is for pods.
    pub fn delete(&self, object: &Value, grace: Option<u32>) -> Result<()> {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(seconds) = grace {
            options["gracePeriodSeconds"] = json!(seconds);
        }
        self.send(request(
            "DELETE",
            &path(object)?,
            "application/json",
            &options,
        )?)
        .map(drop)
    }

    /// Creates many objects, several at once.
    pub fn create_all(&self, objects: &[Value]) -> Result<()> {
        let share = objects.len().div_ceil(AT_ONCE).max(1);
        let tasks: Vec<_> = objects
            .chunks(share)
            .map(|objects| {
                let requests = objects
                    .iter()
                    .map(|object| request("POST", &collection(object)?, "application/json", object))
                    .collect::<Result<Vec<_>>>()?;
                let client = self.client.clone();
                Ok(self.runtime.spawn(async move {
                    for request in requests {
                        send(client.clone(), request).await?;
                    }
                    Ok::<_, anyhow::Error>(())
                }))
            })
            .collect::<Result<_>>()?;
        for task in tasks {
            self.runtime
                .block_on(task)
                .map_err(|error| anyhow!("{error}"))??;
        }
        Ok(())
    }
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{collection, path};
    use serde_json::json;

    #[test]
    fn objects_are_found_where_the_api_has_them() {
        let slice = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": "web-4", "namespace": "lab"}});
        let expected = "/apis/discovery.k8s.io/v1/namespaces/lab/endpointslices/web-4";
        assert_eq!(path(&slice).unwrap(), expected);
        let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node0"}});
        assert_eq!(path(&node).unwrap(), "/api/v1/nodes/node0");
        let endpoints = json!({"kind": "Endpoints", "apiVersion": "v1",
            "metadata": {"name": "web", "namespace": "lab"}});
        assert_eq!(
            collection(&endpoints).unwrap(),
            "/api/v1/namespaces/lab/endpoints"
        );
        assert!(path(&json!({"kind": "Node", "apiVersion": "v1"})).is_err());
    }
}

//! Connections to the API server: credentials, addresses, and noticing a dead peer.
//!
//! kube's ready-made client speaks HTTP/1.1 without TCP keepalive and notices a server that vanished
//! or hangs after minutes. This one notices within about 45 s, as kube-proxy does.

use super::requests::{Requests, counted};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tower::ServiceBuilder;

/// The name in every API server's certificate, whatever address it is reached by.
const SERVER_NAME: &str = "kubernetes.default.svc";
/// How long a server may take to begin an answer; watches answer at once, too.
const ANSWER: Duration = Duration::from_secs(60);
/// How long connecting may take, TLS included: something that accepts and says no more is no server.
const CONNECT: Duration = Duration::from_secs(15);
/// A connection that is silent for this long is asked whether it is one (client-go's
/// `HTTP2_READ_IDLE_TIMEOUT_SECONDS`).
const PING: Duration = Duration::from_secs(30);
/// How long it may take to say so (`HTTP2_PING_TIMEOUT_SECONDS`).
const PONG: Duration = Duration::from_secs(15);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error(
        "cannot use the kubeconfig {path}; check that it exists, parses and names a current \
         context (`kubectl --kubeconfig {path} config view`)"
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// This is no pod, or one without a service account.
    #[error(
        "there is no in-cluster configuration; outside a cluster give --kubeconfig FILE, in a pod \
         mount its service account token"
    )]
    InCluster(#[source] Box<InClusterError>),
    /// An address is not one.
    #[error("the API server's address `{url}` is not a URL such as https://10.0.0.1:6443")]
    Url {
        /// As given.
        url: String,
    },
    /// The credentials cannot be used.
    #[error("cannot prepare the connection to the API server at {url}")]
    Client {
        /// The address.
        url: String,
        /// Why: a certificate, a key, an exec plugin.
        source: Box<kube::Error>,
    },
}

/// One or more addresses of the same API server, one in use.
#[derive(Clone)]
pub struct Servers {
    clients: Arc<[(String, Client)]>,
    current: Arc<AtomicUsize>,
}

impl Servers {
    /// From a kubeconfig, or else the pod's own configuration; `addresses` replace the configured
    /// one, in turn. What is asked is counted in `requests`.
    pub async fn connect(
        kubeconfig: Option<&Path>,
        addresses: &[String],
        requests: &Arc<Requests>,
    ) -> Result<Self, ConnectError> {
        let config = match kubeconfig {
            Some(path) => from_file(path).await?,
            // Reads KUBERNETES_SERVICE_HOST, which a manifest may set to an address that works
            // without this agent.
            None => {
                Config::incluster_env().map_err(|error| ConnectError::InCluster(Box::new(error)))?
            }
        };
        let mut configs = Vec::new();
        for address in addresses {
            let mut config = config.clone();
            let bad = || ConnectError::Url {
                url: address.clone(),
            };
            config.cluster_url = address.parse().map_err(|_| bad())?;
            if config.cluster_url.scheme().is_none() || config.cluster_url.host().is_none() {
                return Err(bad());
            }
            if config.cluster_url.scheme_str() == Some("https") {
                config
                    .tls_server_name
                    .get_or_insert_with(|| SERVER_NAME.to_owned());
            }
            configs.push(config);
        }
        if configs.is_empty() {
            configs.push(config);
        }
        let clients = configs.iter().map(|config| {
            let url = config.cluster_url.to_string();
            match client(config) {
                Ok(client) => {
                    let host = config
                        .cluster_url
                        .authority()
                        .map_or("", |host| host.as_str());
                    let client = counted(client, host, requests);
                    Ok((url, client))
                }
                Err(source) => Err(ConnectError::Client {
                    url,
                    source: Box::new(source),
                }),
            }
        });
        Ok(Self::new(clients.collect::<Result<_, _>>()?))
    }

    /// These clients with the names of their addresses; at least one.
    pub fn new(clients: Vec<(String, Client)>) -> Self {
        Self {
            clients: clients.into(),
            current: Arc::default(),
        }
    }

    /// The address in use: its number, its name and its client.
    pub fn current(&self) -> Option<(usize, &str, &Client)> {
        let number = self.current.load(Ordering::Relaxed) % self.clients.len().max(1);
        let (name, client) = self.clients.get(number)?;
        Some((number, name, client))
    }

    /// Goes to the next address if `failed` is still in use. True if there is another one than
    /// `failed` to try.
    pub fn fail_over(&self, failed: usize) -> bool {
        if self.clients.len() < 2 {
            return false;
        }
        let next = (failed + 1) % self.clients.len();
        // Of several watchers that see the same failure only one moves on.
        let _ = self
            .current
            .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
        true
    }
}

async fn from_file(path: &Path) -> Result<Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig {
        path: path.into(),
        source: Box::new(source),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(failed)
}

/// kube's stack over a connector of our own. No retry layer: a watch that fails must be seen.
fn client(config: &Config) -> Result<Client, kube::Error> {
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG)
        .build(
            ServiceBuilder::new()
                .map_future(Box::pin)
                .timeout(CONNECT)
                .service(connector(config)?),
        );
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .timeout(ANSWER)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// TLS with HTTP/2 where the server has it; what answers over HTTP/1.1 at least has to be there.
fn connector(config: &Config) -> Result<HttpsConnector<HttpConnector>, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(20)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    connector.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name
            .clone()
            .try_into()
            .map_err(|error| kube::Error::Service(Box::new(error)))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(builder.enable_all_versions().wrap_connector(connector))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

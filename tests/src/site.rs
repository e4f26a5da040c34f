//! One node with pods and an agent that reads manifests as a person writes them: for tests of what
//! goes into the agent rather than of the packets that come out.
//!
//! What may not live here: expectations. Tests say what must happen; the site only sets it up.

use crate::stage::{CLUSTER_CIDRS, TARGET_PORT};
use anyhow::{Context, Result, bail};
use lb_lab::{Agent, AgentOptions, Lab, Pod, PodNetwork, Process, Server, client};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an effect is awaited: only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// One node. Fields drop in order: the agent before servers, servers before pods.
#[derive(Debug)]
pub struct Site {
    agent: Option<Agent>,
    servers: Vec<Server>,
    pods: Vec<Pod>,
    client: Pod,
    lab: Lab,
}

impl Site {
    /// Pods of these names, each with a server of its name, and a client pod. No agent yet.
    pub fn new(names: &[&str]) -> Result<Self> {
        lb_lab::require_root();
        let lab = Lab::single(PodNetwork::Routed)?;
        let client = lab.node(0).add_pod("client")?;
        let mut site = Self {
            agent: None,
            servers: Vec::new(),
            pods: Vec::new(),
            client,
            lab,
        };
        fs::create_dir_all(site.directory())?;
        for name in names {
            let pod = site.lab.node(0).add_pod(name)?;
            site.servers
                .push(Server::start(pod.place(), name, TARGET_PORT)?);
            site.pods.push(pod);
        }
        Ok(site)
    }

    /// The node's lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The client pod.
    pub fn client(&self) -> &Pod {
        &self.client
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> &Pod {
        let found = self.pods.iter().find(|pod| pod.name() == name);
        found.unwrap_or_else(|| panic!("the test made no pod {name}"))
    }

    /// Where the manifests are.
    pub fn directory(&self) -> PathBuf {
        self.lab.dir().join("manifests")
    }

    /// Writes a manifest in one go, as most tools do: a new file, renamed to its name.
    pub fn write(&self, file: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.directory().join(file);
        let fresh = self.directory().join(format!(".{file}.new"));
        fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A Service at [`socket`]`(number)` with these pods as endpoints.
    pub fn web(&self, name: &str, number: u8, pods: &[&str]) -> String {
        let addresses: Vec<String> = pods.iter().map(|p| self.pod(p).v4().to_string()).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        format!(
            "{}---\n{}",
            service(name, &at(number)),
            slice(name, &addresses)
        )
    }

    /// Starts the agent on the directory and waits for its health.
    pub fn start(&mut self, flags: &str) -> Result<()> {
        let options = AgentOptions::manifests(&self.directory())
            .with(&format!("--cluster-cidr {CLUSTER_CIDRS}"))
            .with(flags);
        self.start_with(&options)
    }

    /// Starts the agent with other options and waits for its health.
    pub fn start_with(&mut self, options: &AgentOptions) -> Result<()> {
        self.agent = Some(Agent::start(&self.lab, self.lab.node(0), options)?);
        Ok(())
    }

    /// Starts the agent with other options, without waiting for its health.
    pub fn launch_with(&mut self, options: &AgentOptions) -> Result<()> {
        self.agent = Some(Agent::launch(&self.lab, self.lab.node(0), options)?);
        Ok(())
    }

    /// Waits for the health of an agent that was launched.
    pub fn await_health(&mut self) -> Result<()> {
        let agent = self.agent.as_mut().context("no agent runs")?;
        agent.wait_healthy(self.lab.node(0))
    }

    /// Stops the agent; the dataplane stays.
    pub fn stop(&mut self) -> Result<()> {
        let agent = self.agent.take().context("no agent runs")?;
        let status = agent.stop()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(())
    }

    /// Hands the agent over, e.g. to see how it ends.
    pub fn take_agent(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent runs")
    }

    /// The running agent.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// The process runs and answers: nothing hangs.
    pub fn is_alive(&self) -> Result<()> {
        let (status, body) = lb_lab::agent::http_get(self.lab.node(0), 10256, "/healthz")?;
        if status != 200 {
            bail!("/healthz says {status}: {body}");
        }
        Ok(())
    }

    /// The name of the pod that answers the client over TCP.
    pub fn ask(&self, server: SocketAddr) -> Result<String> {
        Ok(self.client.place().ask_tcp(server)?.name)
    }

    /// Asks until a connection is answered by `name`.
    pub fn await_answer(&self, server: SocketAddr, name: &str) -> Result<()> {
        self.until(&format!("{name} answers at {server}"), || {
            match self.client.place().call(|| short(server)) {
                Ok(answer) if answer == name => Ok(None),
                Ok(answer) => Ok(Some(format!("answered by {answer}"))),
                Err(error) => Ok(Some(format!("{error:#}"))),
            }
        })
    }

    /// Asks until nobody answers any more.
    pub fn await_silence(&self, server: SocketAddr) -> Result<()> {
        self.until(&format!("nobody answers at {server}"), || {
            let answer = self.client.place().call(|| short(server));
            Ok(answer.ok().map(|name| format!("answered by {name}")))
        })
    }

    /// Connects to `server` again and again from now on.
    pub fn steady(&self, server: SocketAddr) -> Result<Steady> {
        let flag = self.lab.dir().join(format!("stop-{server}"));
        let stop = flag.clone();
        let process = self.client.place().spawn(move || {
            let mut answered = 0_u32;
            while !stop.exists() {
                // Patient: a busy machine is no fault, and an address that is not translated when
                // it is asked stays untranslated however long one waits.
                client::tcp(server).with_context(|| format!("after {answered} connections"))?;
                answered += 1;
            }
            Ok(answered.to_string())
        })?;
        Ok(Steady { process, flag })
    }

    /// Tries until `attempt` has nothing to complain about: for effects without an event.
    pub fn until(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<Option<String>>,
    ) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let Some(complaint) = attempt()? else {
                return Ok(());
            };
            if Instant::now() > end {
                bail!("{what}: still not ({complaint})\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the log has a line with all of these words.
    pub fn await_log(&self, words: &[&str]) -> Result<String> {
        let mut found = String::new();
        self.until(&format!("the log says {words:?}"), || {
            let log = self.agent()?.log();
            let line = log
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            Ok(match line {
                Some(line) => {
                    line.clone_into(&mut found);
                    None
                }
                None => Some("no such line".to_owned()),
            })
        })?;
        Ok(found)
    }

    /// How many lines of the log have all of these words.
    pub fn log_count(&self, words: &[&str]) -> Result<usize> {
        let log = self.agent()?.log();
        let has = |line: &&str| words.iter().all(|word| line.contains(word));
        Ok(log.lines().filter(has).count())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.agent().map(Agent::log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// What `lb-agent WORDS…` prints.
    pub fn tool(&self, words: &str) -> Result<String> {
        Agent::tool(&self.lab, self.lab.node(0), words)
    }

    /// `lb-agent services -o json`.
    pub fn services(&self) -> Result<Vec<Value>> {
        let mut page: Value = serde_json::from_str(&self.tool("services -o json")?)?;
        match page["services"].take() {
            Value::Array(services) => Ok(services),
            other => bail!("no list of services: {other}"),
        }
    }

    /// The IPv4 ClusterIP and node port of the first port of a Service, as `services` shows them.
    pub fn shown(&self, name: &str) -> Result<Option<(String, Option<u16>)>> {
        let services = self.services()?;
        let service = services
            .iter()
            .find(|service| service["name"] == name && service["ipFamily"] == "IPv4");
        let Some(frontends) = service.and_then(|service| service["frontends"].as_array()) else {
            return Ok(None);
        };
        let of = |kind: &str| frontends.iter().find(|one| one["kind"] == kind);
        let address = of("ClusterIP").and_then(|one| one["address"].as_str());
        let port = of("NodePort").and_then(|one| one["port"].as_u64());
        Ok(address.map(|address| (address.to_owned(), port.and_then(|p| u16::try_from(p).ok()))))
    }

    /// The value of one series of `/metrics`: the name and some of its labels (`kind="x"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let text = self.agent()?.metrics(self.lab.node(0))?;
        Ok(sample(&text, name, labels))
    }

    /// Waits until a series has this value; `None`: until it is absent.
    pub fn await_metric(&self, name: &str, labels: &[&str], value: Option<f64>) -> Result<()> {
        self.until(&format!("{name}{labels:?} is {value:?}"), || {
            let now = self.metric(name, labels)?;
            Ok((now != value).then(|| format!("it is {now:?}")))
        })
    }
}

/// The sum of the series of a name that have these labels; `None` if there is none.
pub fn sample(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = rest.rsplit_once(' ')?;
        let right = set.is_empty() || set.starts_with('{');
        let has = |label: &&str| set.contains(*label);
        (right && labels.iter().all(has)).then(|| value.parse::<f64>().ok())?
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// One short question: a connection that is dropped must not take a minute to be tried again.
fn short(server: SocketAddr) -> Result<String> {
    let stream = std::net::TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    Ok(client::ask(&stream)?.name)
}

/// A client that connects without a pause, until it is stopped or a connection fails.
#[derive(Debug)]
pub struct Steady {
    process: Process,
    flag: PathBuf,
}

impl Steady {
    /// Stops it: how many connections were answered, or what went wrong with the first that was not.
    pub fn finish(self) -> Result<u32> {
        fs::write(&self.flag, "").context("cannot stop the client")?;
        let count = self.process.wait()?;
        count.parse().context("the client counted nothing")
    }
}

/// The line of a Service's spec that gives it the ClusterIP 10.96.1.N.
pub fn at(number: u8) -> String {
    format!("  clusterIP: 10.96.1.{number}\n")
}

/// The socket of the Service [`at`] this ClusterIP.
pub fn socket(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 96, 1, number], 80))
}

/// A Service with one TCP port 80 and further lines of its `spec` (indented by two).
pub fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: lab}}\nspec:\n{spec}  \
         ports:\n  - {{name: tcp, protocol: TCP, port: 80, targetPort: {TARGET_PORT}}}\n"
    )
}

/// An IPv4 EndpointSlice of a Service with these addresses, all ready, on the target port.
pub fn slice(service: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<String> = addresses
        .iter()
        .map(|address| format!("- {{addresses: [\"{address}\"], conditions: {{ready: true}}}}\n"))
        .collect();
    let endpoints = if endpoints.is_empty() {
        "endpoints: []\n".to_owned()
    } else {
        format!("endpoints:\n{}", endpoints.concat())
    };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-4\n  \
         namespace: lab\n  labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\n\
         ports:\n- {{name: tcp, protocol: TCP, port: {TARGET_PORT}}}\n{endpoints}"
    )
}

/// A Pod object with label `app`, as the API server would show it.
pub fn pod_manifest(pod: &Pod, app: &str, ready: bool) -> String {
    let condition = if ready { "True" } else { "False" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: lab, labels: {{app: {app}}}}}\n\
         spec:\n  nodeName: node0\n  containers: [{{name: c, image: i, ports: \
         [{{name: web, containerPort: {TARGET_PORT}}}]}}]\nstatus:\n  phase: Running\n  podIP: {}\n  \
         podIPs: [{{ip: \"{}\"}}, {{ip: \"{}\"}}]\n  conditions: [{{type: Ready, status: \
         \"{condition}\"}}]\n",
        pod.name(),
        pod.v4(),
        pod.v4(),
        pod.v6(),
    )
}

//! A real control plane: etcd, the Kubernetes API server and the controllers that make slices out of
//! Pods and Services, as processes in a place of their own.
//!
//! What may not live here: objects. Who starts a control plane says what is on it.

use crate::daemon::Daemon;
use crate::{Place, command};
use anyhow::{Context, Result, anyhow, bail};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The port of the API server.
pub const PORT: u16 = 6443;
/// Where etcd answers, within its place.
const ETCD: &str = "http://127.0.0.1:2379";
/// How long a part may take to start on a loaded machine: only a failing test waits that long.
const START: Duration = Duration::from_secs(300);
/// Names the directory with the programs; `cargo xtask test` sets it.
pub const VARIABLE: &str = "LB_CONTROL_PLANE";
/// The convention of the ecosystem: a directory with `etcd`, `kube-apiserver` and `kubectl`.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// The programs, by the names they are called by.
pub const PROGRAMS: [&str; 4] = ["etcd", "kube-apiserver", "kubectl", "controllers"];

/// The manifests that give the agent its rights.
const RIGHTS: [&str; 2] = ["serviceaccount.yaml", "rbac.yaml"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    directories: Vec<PathBuf>,
}

impl Programs {
    /// Those of [`ASSETS`], and for what it does not hold those of `built`.
    pub fn new(built: &Path) -> Self {
        let assets = std::env::var_os(ASSETS).map(PathBuf::from);
        Self {
            directories: assets.into_iter().chain([built.to_owned()]).collect(),
        }
    }

    /// Those that the environment names.
    pub fn find() -> Result<Self> {
        let built = std::env::var_os(VARIABLE).ok_or_else(|| {
            anyhow!(
                "{VARIABLE} does not name the control plane's programs: run `cargo xtask test`, or \
                 `cargo xtask build --control-plane` and set it to the directory that is printed"
            )
        })?;
        Ok(Self::new(Path::new(&built)))
    }

    /// The path of one of [`PROGRAMS`].
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        let paths = self.directories.iter().map(|dir| dir.join(program));
        paths
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| anyhow!("no {program} in {:?}", self.directories))
    }
}

/// What differs between one control plane and another.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address of the place that the API server listens on and is known by.
    pub address: Ipv4Addr,
    /// The ServiceCIDRs, IPv4 first, separated by a comma.
    pub service_ranges: String,
    /// Further flags of the API server.
    pub flags: Vec<String>,
}

/// A running control plane. Its processes end when this is dropped; its files go with `dir`.
#[derive(Debug)]
pub struct ControlPlane {
    controllers: Option<Daemon>,
    api: Option<Daemon>,
    etcd: Option<Daemon>,
    programs: Programs,
    settings: Settings,
    dir: PathBuf,
    place: Place,
}

impl ControlPlane {
    /// Starts everything in `place` with its files in the new directory `dir`, and returns once the
    /// API server is ready.
    pub fn start(place: Place, dir: &Path, programs: Programs, settings: Settings) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut started = Self {
            controllers: None,
            api: None,
            etcd: None,
            programs,
            settings,
            dir: dir.to_owned(),
            place,
        };
        started.prepare()?;
        started.start_etcd()?;
        started.start_api()?;
        started.start_controllers()?;
        Ok(started)
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The URL of the API server.
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.settings.address)
    }

    /// The kubeconfig of an administrator (group `system:masters`).
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// Writes the kubeconfig `name` for the bearer of `token`, who asks the API server at `url`.
    pub fn kubeconfig(&self, name: &str, url: &str, token: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{name}.kubeconfig"));
        let authority = self.authority();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             contexts:\n- name: lab\n  context: {{cluster: lab, user: {name}}}\n\
             clusters:\n- name: lab\n  cluster: {{server: \"{url}\", certificate-authority: \
             \"{}\"}}\nusers:\n- name: {name}\n  user: {{token: \"{token}\"}}\n",
            authority.display()
        );
        write_private(&path, &text)?;
        Ok(path)
    }

    /// `kubectl WORDS…` as the administrator, to be run in the place.
    pub fn kubectl(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.place.command(self.programs.path("kubectl")?)?;
        command
            .arg("--kubeconfig")
            .arg(self.admin())
            .args(words)
            // Its caches belong to the place.
            .env("HOME", &self.dir)
            .env_remove("KUBECONFIG")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy");
        Ok(command)
    }

    /// Runs [`Self::kubectl`] and returns what it printed.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        command::output(&mut self.kubectl(words)?)
    }

    /// Runs [`Self::ask`] until it succeeds: for what waits for something that the cluster itself
    /// makes, such as service accounts.
    pub fn retry(&self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + START;
        loop {
            match self.ask(words) {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(200)),
                other => return other,
            }
        }
    }

    /// Gives the service account `lb-agent` of `kube-system` the rights that the manifests in
    /// `base` name.
    pub fn grant(&self, base: &Path) -> Result<()> {
        for file in RIGHTS {
            let path = base.join(file).display().to_string();
            self.retry(&["--namespace", "kube-system", "apply", "-f", &path])?;
        }
        Ok(())
    }

    /// Applies manifests (YAML or JSON) as a person would.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        command::feed(&mut self.kubectl(&["apply", "-f", "-"])?, manifests)
    }

    /// A token of a service account of `kube-system`.
    pub fn token(&self, account: &str) -> Result<String> {
        let words = ["--namespace", "kube-system", "create", "token", account];
        Ok(self.ask(&words)?.trim().to_owned())
    }

    /// Kills the API server: connections break, new ones are refused.
    pub fn stop_api(&mut self) {
        self.api = None;
    }

    /// Starts the API server and returns once it is ready.
    pub fn start_api(&mut self) -> Result<()> {
        let Settings {
            address,
            service_ranges,
            flags,
        } = &self.settings;
        let key = self.dir.join("accounts.key");
        let mut command = self.command("kube-apiserver")?;
        command
            .arg(format!("--etcd-servers={ETCD}"))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!(
                "--service-account-signing-key-file={}",
                key.display()
            ))
            .arg(format!(
                "--token-auth-file={}",
                self.dir.join("tokens.csv").display()
            ))
            .arg(format!("--service-cluster-ip-range={service_ranges}"))
            .args(["--authorization-mode=Node,RBAC", "--anonymous-auth=false"])
            .arg(format!("--bind-address={address}"))
            .arg(format!("--advertise-address={address}"))
            .arg(format!("--secure-port={PORT}"))
            .arg(format!(
                "--cert-dir={}",
                self.dir.join("certificates").display()
            ))
            .args(flags);
        self.api = Some(Daemon::start("kube-apiserver", command, &self.dir)?);
        self.await_ready()
    }

    /// Starts the controllers, which ask the API server by themselves until it answers.
    pub fn start_controllers(&mut self) -> Result<()> {
        let mut command = self.command("controllers")?;
        command
            .arg("--kubeconfig")
            .arg(self.admin())
            .arg("--root-ca-file")
            .arg(self.authority());
        self.controllers = Some(Daemon::start("controllers", command, &self.dir)?);
        Ok(())
    }

    /// Ends the controllers: nobody makes slices any more.
    pub fn stop_controllers(&mut self) {
        self.controllers = None;
    }

    /// Makes etcd forget all history up to now: what asks for an older version is told so.
    pub fn compact(&self) -> Result<()> {
        let status = self.ask_etcd("/v3/maintenance/status", "{}")?;
        let revision = status
            .split_once("\"revision\":\"")
            .and_then(|(_, rest)| rest.split('"').next())
            .ok_or_else(|| anyhow!("etcd told no revision: {status}"))?;
        self.ask_etcd(
            "/v3/kv/compaction",
            &format!("{{\"revision\":\"{revision}\"}}"),
        )
        .map(drop)
    }

    fn authority(&self) -> PathBuf {
        // Leaf and authority in one file, made by the API server.
        self.dir.join("certificates/apiserver.crt")
    }

    /// What must be there before anything starts: the administrator's token and the key that signs
    /// those of service accounts.
    fn prepare(&self) -> Result<()> {
        let mut random = [0_u8; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("cannot make a token")?;
        let token = format!("{:032x}", u128::from_ne_bytes(random));
        write_private(
            &self.dir.join("tokens.csv"),
            &format!("{token},admin,admin,system:masters\n"),
        )?;
        self.kubeconfig("admin", &self.url(), &token)?;
        let key = self.dir.join("accounts.key");
        command::output(self.command("controllers")?.arg("--make-key").arg(key)).map(drop)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let peer = "http://127.0.0.1:2380";
        let mut command = self.command("etcd")?;
        command
            .arg("--data-dir")
            .arg(self.dir.join("etcd"))
            .args(["--name", "lab", "--initial-cluster", &format!("lab={peer}")])
            .args([
                "--listen-client-urls",
                ETCD,
                "--advertise-client-urls",
                ETCD,
            ])
            .args([
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
            ])
            // A lab that loses its power is built anew.
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        self.etcd = Some(Daemon::start("etcd", command, &self.dir)?);
        Ok(())
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.place.command(self.programs.path(program)?)?;
        command.current_dir(&self.dir);
        Ok(command)
    }

    fn await_ready(&mut self) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            let daemons = [&mut self.etcd, &mut self.api, &mut self.controllers];
            daemons.into_iter().flatten().try_for_each(Daemon::check)?;
            let answer = if self.authority().is_file() {
                self.ask(&["get", "--raw", "/readyz"])
            } else {
                Err(anyhow!("it has no certificate yet"))
            };
            let Err(error) = answer else { return Ok(()) };
            if Instant::now() > end {
                let log = self.api.as_ref().map(Daemon::tail).unwrap_or_default();
                bail!("the API server is not ready after {START:?}: {error:#}; its log:\n{log}");
            }
            // Readiness has no event to wait for.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks etcd's JSON interface.
    fn ask_etcd(&self, path: &str, body: &str) -> Result<String> {
        let answer = self.place.enter(|| -> Result<String> {
            let server = ETCD.trim_start_matches("http://");
            let mut stream = std::net::TcpStream::connect(server)?;
            write!(
                stream,
                "POST {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let answer = answer.context("cannot ask etcd")?;
        if !answer.starts_with("HTTP/1.1 200") {
            bail!("etcd answers to {path}: {answer}");
        }
        Ok(answer)
    }
}

/// Writes a file that only its owner reads.
fn write_private(path: &Path, text: &str) -> Result<()> {
    File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
